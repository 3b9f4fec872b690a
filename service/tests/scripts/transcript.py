"""
Protocol transcripts: commands, and below each the full trace of what they caused (in the manner of etcd's tests).

A file is a sequence of blocks: comment lines, command lines, a line ``----``, the trace, an empty line. Commands:

    cluster VOTERS [learners=N] [timeout_ms=N] [heartbeat_ms=N] [in_flight=N] [batch=N]   a new world, all nodes up
                                             [directories=N]: node 0 holds its seat with directory N, node 1 with N+1
    preset NODE term=N [vote=N] log=T,T,T    restart with a log of these terms from index 2 on (1 is the configuration)
    tick NODES MS                            let time pass in steps of 20 ms; NODES is `all` or `0,2`
    pause NODES MS                           the process stood still for so long: the same time in one step
    persist NODES [COUNT]                    finish disk writes, oldest first
    deliver [A>B] [COUNT|last]               hand over letters that are under way now
    drop [A>B] [COUNT|last]                  lose letters
    inject A>B KIND field=N ... [entries=T,T] [flag]   hand over a letter that nobody sent, made of these fields
    keep NAME A>B                            set the oldest such letter aside; `replay NAME` hands it over, repeatedly
    stabilize                                deliver and persist until nothing is left
    cut NODES|none                           `stabilize` and `elect` lose all letters from and to these nodes
    elect NODE                               let it stand and win, while the others hear nobody
    propose NODE TEXT ...                    one entry per word
    read NODE NUMBER
    manual                                   applied groups are confirmed by `confirm NODE` only
    reset NODE PEER up|down                  tell a node that a link came up or broke
    change NODE MEMBER ...                   propose a configuration: `0`, `0l` (learner) or `0#7` (directory 7)
    may_change NODE                          whether the configuration may change now, and why not
    join NODE [INCARNATION]                  an empty directory starts in this seat; what it held before is lost
    cut_log NODES INDEX                      entries up to there are durable in the state machine and leave the log
    snapshot A>B [fail]                      carry out a wanted snapshot
    take NAME NODE, install NAME NODE        keep the state of a node; offer it to a node
    transfer NODE [TARGET]                   ask a leader to hand over
    crash NODES, restart NODES
    drawn X                                  the random number of all ticks from here on
    letters                                  what is under way
    show NODES                               where nodes stand
    expect NODE name=value ...               role term vote leader commit last durable applied served.R dropped
                                             state.PEER match.PEER next.PEER in_flight.PEER may_serve letters
                                             base configuration quorum transferring wanted may_change
    quietly COMMAND                          without its trace

``expect`` fails also while traces are being rewritten, so a rewritten file still proves what it says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvorum.core.cluster import Configuration
from kvorum.core.entries import Entry, EntryBatch, EntryKind, HardState
from kvorum.core.machine import PeerReset, Proposed, ReadAsked, Role, TransferAsked
from kvorum.raft import messages
from kvorum.raft.machine import RaftSettings
from tests.scripts.raft_world import Disk, Letter, Snapshot, World, member, show_entries, show_message

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvorum.raft.messages import RaftMessage

FLAGS = {"VoteRequest": ("prevote", "transfer"), "VoteReply": ("prevote", "granted")}
STEP_S = 0.02
STABILIZE_ROUNDS_MAX = 200
ELECT_TICKS_MAX = 100


@dataclass
class Block:
    """Some commands and their expected trace."""

    comments: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)


def parse(text: str) -> list[Block]:
    """Cut a transcript into blocks."""
    blocks: list[Block] = []
    block = Block()
    in_trace = False
    for line in [*text.splitlines(), ""]:
        if in_trace:
            if line:
                block.trace.append(line)
            else:
                blocks.append(block)
                block = Block()
                in_trace = False
        elif line == "----":
            in_trace = True
        elif line.startswith("#") or not line:
            block.comments.append(line)
        else:
            block.commands.append(line)
    assert not block.commands, f"commands without a trace: {block.commands}"
    if any(block.comments):
        blocks.append(block)
    return blocks


def render(blocks: list[Block]) -> str:
    """Inverse of `parse`."""
    lines: list[str] = []
    for block in blocks:
        lines += block.comments
        if block.commands:
            lines += [*block.commands, "----", *block.trace, ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def run(path: Path) -> tuple[str, str]:
    """Carry out a transcript; returns what the file says and what happened."""
    written = path.read_text()
    blocks = parse(written)
    runner = Runner()
    for block in blocks:
        if block.commands:
            runner.lines = []
            for command in block.commands:
                try:
                    runner.execute(command)
                except BaseException as error:
                    error.add_note("\n".join([f"{path.name}: {command}", *runner.lines]))
                    raise
            block.trace = runner.lines or ["ok"]
    return written, render(blocks)


def text_entry(index: int, term: int) -> Entry:
    """A command whose text is its index and term."""
    return Entry.create(index, term, EntryKind.COMMAND, 0, f"{index}.{term}".encode())


class Runner:
    """Executes commands on one world and collects the trace."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.world = World(1)
        self.kept: dict[str, Letter] = {}
        self.taken: dict[str, Snapshot] = {}
        self.cut: set[int] = set()
        self.quiet = False

    def trace(self, line: str) -> None:
        if not self.quiet:
            self.lines.append(line)

    def execute(self, command: str) -> None:
        name, *words = command.split()
        if name == "quietly":
            self.quiet = True
            try:
                self.execute(" ".join(words))
            finally:
                self.quiet = False
            return
        method: Callable[..., None] = getattr(self, f"do_{name}")
        method(*words)

    def nodes(self, words: str) -> list[int]:
        return list(self.world.nodes) if words == "all" else [int(word) for word in words.split(",")]

    # --- worlds -----------------------------------------------------------------------------------

    def do_cluster(self, voters: str, *options: str) -> None:
        values = {name: int(value) for name, value in (option.split("=") for option in options)}
        settings = RaftSettings(
            election_timeout_s=values.get("timeout_ms", 1000) / 1000,
            heartbeat_s=values.get("heartbeat_ms", 100) / 1000,
            max_batch_entries=values.get("batch", 64),
            appends_in_flight_max=values.get("in_flight", 8),
        )
        self.world = World(int(voters), values.get("learners", 0), settings, values.get("directories", 0))
        self.world.trace = self.trace
        self.kept = {}

    def do_preset(self, node: str, *options: str) -> None:
        values = dict(option.split("=") for option in options)
        seat = self.world.nodes[int(node)]
        entries = [seat.disk.entries[0]]
        for index, word in enumerate(values["log"].split(",") if values["log"] else (), 2):
            entry = text_entry(index, int(word))
            self.world.born.setdefault((index, entry.term), (entry.record, entries[-1].term))
            entries.append(entry)
        vote = int(values["vote"]) if "vote" in values else None
        seat.disk = Disk(HardState(int(values["term"]), vote), entries)
        seat.start()

    def do_crash(self, words: str) -> None:
        for node in self.nodes(words):
            self.world.crash(node)

    def do_restart(self, words: str) -> None:
        for node in self.nodes(words):
            self.world.restart(node)

    def do_drawn(self, word: str) -> None:
        self.world.drawn = float(word)

    def do_manual(self) -> None:
        self.world.auto_confirm = False

    # --- time, disk, network ----------------------------------------------------------------------

    def do_tick(self, words: str, milliseconds: str) -> None:
        for _ in range(round(int(milliseconds) / 1000 / STEP_S)):
            for node in self.nodes(words):
                self.world.tick(node, STEP_S)

    def do_pause(self, words: str, milliseconds: str) -> None:
        for node in self.nodes(words):
            self.world.tick(node, int(milliseconds) / 1000)

    def do_persist(self, words: str, count: str | None = None) -> None:
        for node in self.nodes(words):
            self.world.persist(node, None if count is None else int(count))

    def do_confirm(self, node: str) -> None:
        self.world.confirm(int(node))

    def take(self, words: tuple[str, ...]) -> list[Letter]:
        """Remove the letters that the words name from the network."""
        chosen = list(range(len(self.world.letters)))
        for word in words:
            if ">" in word:
                sender, to = word.split(">")
                chosen = [
                    at
                    for at in chosen
                    if sender in ("*", str(self.world.letters[at].sender))
                    and to in ("*", str(self.world.letters[at].to))
                ]
            elif word == "last":
                chosen = chosen[-1:]
            else:
                chosen = chosen[: int(word)]
        assert chosen or not words, f"no letter {' '.join(words)} is under way"
        taken = [self.world.letters[at] for at in chosen]
        self.world.letters = [letter for at, letter in enumerate(self.world.letters) if at not in chosen]
        return taken

    def do_deliver(self, *words: str) -> None:
        for letter in self.take(words):
            self.world.deliver(letter)

    def do_drop(self, *words: str) -> None:
        for letter in self.take(words):
            self.trace(f"lost {letter.sender}>{letter.to}: {show_message(letter.message)}")

    def do_inject(self, link: str, kind: str, *options: str) -> None:
        sender, to = map(int, link.split(">"))
        values: dict[str, object] = {}
        entries: list[Entry] = []
        for option in options:
            name, _, value = option.partition("=")
            if name == "entries":
                first = int(str(values["prev_index"])) + 1
                entries = [text_entry(index, int(term)) for index, term in enumerate(value.split(","), first)]
            else:
                values["read_round" if name == "round" else name] = int(value) if value else True
        if kind == "AppendRequest":
            values["batch"] = EntryBatch(entries) if entries else None
        for flag in FLAGS.get(kind, ()):
            values.setdefault(flag, False)
        message: RaftMessage = getattr(messages, kind)(**values)
        seats = self.world.nodes
        self.world.deliver(
            Letter(sender, to, message, seats[sender].incarnation if sender in seats else 0, seats[to].incarnation)
        )

    def do_keep(self, name: str, link: str) -> None:
        (self.kept[name],) = self.take((link, "1"))
        self.trace(f"kept: {show_message(self.kept[name].message)}")

    def do_replay(self, name: str) -> None:
        self.world.deliver(self.kept[name])

    def do_letters(self) -> None:
        for letter in self.world.letters:
            self.trace(f"{letter.sender}>{letter.to}: {show_message(letter.message)}")

    def do_cut(self, words: str) -> None:
        self.cut = set() if words == "none" else set(self.nodes(words))

    def do_stabilize(self) -> None:
        world = self.world
        for _ in range(STABILIZE_ROUNDS_MAX):
            for node, seat in world.nodes.items():
                if seat.machine is not None:
                    world.persist(node)
            letters, world.letters = world.letters, []
            for letter in letters:
                if not self.cut & {letter.sender, letter.to}:
                    world.deliver(letter)
            if not world.letters and not any(seat.disk.under_way for seat in world.nodes.values()):
                return
        msg = "no rest after many rounds"
        raise AssertionError(msg)

    # --- what clients and links do ----------------------------------------------------------------

    def do_elect(self, word: str) -> None:
        node = int(word)
        world = self.world
        others = [other for other, seat in world.nodes.items() if other != node and seat.machine is not None]
        while any(
            world.nodes[other].core.leader is not None and world.nodes[other].core.trusts_leader for other in others
        ):
            for other in others:
                world.tick(other, STEP_S)
            others = [other for other in others if world.nodes[other].core.role != Role.LEADER]
        world.letters.clear()
        for _ in range(ELECT_TICKS_MAX):
            world.tick(node, STEP_S)
            if world.nodes[node].core.role == Role.CANDIDATE and world.letters:
                break
        self.do_stabilize()
        assert self.world.nodes[node].core.role == Role.LEADER, f"node {node} was not elected"

    def do_propose(self, node: str, *texts: str) -> None:
        self.world.feed(int(node), Proposed([text.encode() for text in texts], 0))

    def do_read(self, node: str, number: str) -> None:
        self.world.feed(int(node), ReadAsked(int(number)))

    def do_reset(self, node: str, peer: str, state: str) -> None:
        self.world.feed(int(node), PeerReset(int(peer), reachable=state == "up"))

    # --- members, log, hand-over ------------------------------------------------------------------

    def do_change(self, node: str, *words: str) -> None:
        members = []
        for word in words:
            seat, _, incarnation = word.partition("#")
            members.append(
                member(int(seat.rstrip("l")), voter=not seat.endswith("l"), incarnation=int(incarnation or 0))
            )
        self.world.change(int(node), Configuration.of(members))

    def do_may_change(self, node: str) -> None:
        self.trace(f"{node}: {self.world.nodes[int(node)].core.change_refused() or 'may change'}")

    def do_join(self, node: str, incarnation: str = "0") -> None:
        self.world.join(int(node), int(incarnation))

    def do_cut_log(self, words: str, index: str) -> None:
        for node in self.nodes(words):
            self.world.cut_log(node, int(index))

    def do_snapshot(self, link: str, how: str = "") -> None:
        sender, to = map(int, link.split(">"))
        self.world.stream(sender, to, fails=how == "fail")

    def do_take(self, name: str, node: str) -> None:
        self.taken[name] = self.world.take_snapshot(int(node))
        self.trace(f"{name}: up to {self.taken[name].index}/{self.taken[name].term}")

    def do_install(self, name: str, node: str) -> None:
        if not self.world.install(int(node), self.taken[name]):
            self.trace(f"{node} does not want {name}")

    def do_transfer(self, node: str, target: str | None = None) -> None:
        self.world.feed(int(node), TransferAsked(None if target is None else int(target)))

    # --- looking ----------------------------------------------------------------------------------

    def do_show(self, words: str) -> None:
        for node in self.nodes(words):
            core = self.world.nodes[node].core
            entries: list[Entry] = []
            while core.base_index + len(entries) < core.last_index:
                first = core.base_index + len(entries) + 1
                entries += core.log.slice(first, core.last_index, core.last_index, 2**30)
            vote = "-" if core.voted_for is None else core.voted_for
            self.trace(
                f"{node} {core.role} term={core.term} vote={vote} commit={core.commit_index} "
                f"durable={core.durability.index} {show_entries(entries)}"
            )

    def do_expect(self, word: str, *facts: str) -> None:
        node = self.world.nodes[int(word)]
        core = node.core
        statistics = core.statistics()
        for fact in facts:
            name, wanted = fact.split("=")
            name, _, detail = name.partition(".")
            found: object
            if detail and name in ("state", "match", "next", "in_flight"):
                progress = statistics["progress"]
                assert isinstance(progress, dict)
                found = progress[int(detail)][name]
            else:
                found = {
                    "role": core.role,
                    "term": core.term,
                    "vote": core.voted_for,
                    "leader": core.leader,
                    "commit": core.commit_index,
                    "last": core.last_index,
                    "durable": core.durability.index,
                    "applied": len(node.applied),
                    "served": node.served.get(int(detail or 0), "none"),
                    "dropped": ",".join(map(str, node.dropped)),
                    "may_serve": core.may_serve,
                    "base": core.base_index,
                    "configuration": statistics["configuration_index"],
                    "quorum": core.quorum,
                    "transferring": core.transferring_to,
                    "may_change": core.change_refused() is None,
                    "wanted": ",".join(str(to) for sender, to in self.world.wanted if sender == node.node_id),
                    "letters": sum(letter.sender == node.node_id for letter in self.world.letters),
                }[name]
            assert str(found) == wanted, f"node {word}: {fact.split('=')[0]} is {found}, expected {wanted}"
