"""
A world of Raft cores without clock, disk or network of its own: the caller decides what happens and when.

Used by the transcripts beside this file and by the seeded simulation in unit/raft. Every safety property is checked
after every single event, whoever drives the world.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from kvorum.core.cluster import Configuration, Member
from kvorum.core.entries import Entry, EntryKind, HardState
from kvorum.core.machine import (
    AppliedUpTo,
    Apply,
    DropReads,
    LeadershipChanged,
    PeerReset,
    Persist,
    Persisted,
    Proposed,
    ReadAsked,
    Received,
    Role,
    Send,
    ServeReads,
    Ticked,
)
from kvorum.core.ports import RecoveredLog
from kvorum.raft.machine import RaftMachine, RaftSettings
from kvorum.raft.messages import AppendReply, RaftMessage, VoteReply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvorum.core.machine import Effect, Event

BIRTH_TERM = 1


def static_configuration(voters: int, learners: int = 0) -> Configuration:
    """Voters 0, 1 ... and learners behind them."""
    return Configuration.of(
        Member(node, f"node{node}:9090", f"node{node}:7090", voter=node < voters) for node in range(voters + learners)
    )


def birth_entry(configuration: Configuration) -> Entry:
    """Log entry 1, which every node derives alike."""
    return Entry.create(1, BIRTH_TERM, EntryKind.CONFIGURATION, 0, configuration.encode())


class Disk:
    """What is durable on one node, and what is on its way; a `core.ports.Log` as far as the core reads it."""

    def __init__(self, hard_state: HardState, entries: Iterable[Entry]) -> None:
        self.hard_state = hard_state
        self.entries = list(entries)
        self.under_way: deque[Persist] = deque()

    def read(self, first: int, last: int, bytes_max: int) -> list[Entry]:
        assert 1 <= first <= last <= len(self.entries), f"read of {first} to {last}, durable are {len(self.entries)}"
        taken: list[Entry] = []
        size = 0
        for entry in self.entries[first - 1 : last]:
            taken.append(entry)
            size += len(entry.record)
            if size > bytes_max:
                break
        return taken

    def write_one(self) -> int:
        """Make the oldest write durable; returns its ticket."""
        persist = self.under_way.popleft()
        if persist.hard_state is not None:
            assert persist.hard_state.term >= self.hard_state.term, "the durable term fell"
            self.hard_state = persist.hard_state
        if persist.batch is not None:
            first = persist.batch.entries[0].index
            assert first <= len(self.entries) + 1, "a gap in the log on disk"
            del self.entries[first - 1 :]
            self.entries.extend(persist.batch.entries)
        return persist.ticket

    def recover(self) -> RecoveredLog:
        """What is found after a crash: writes under way are gone."""
        self.under_way.clear()
        terms: list[tuple[int, int]] = []
        configurations = []
        for entry in self.entries:
            if not terms or terms[-1][1] != entry.term:
                terms.append((entry.index, entry.term))
            if entry.kind == EntryKind.CONFIGURATION:
                configurations.append((entry.index, Configuration.decode(entry.payload)))
        return RecoveredLog(self.hard_state, 0, 0, len(self.entries), tuple(terms), tuple(configurations))


class Letter(NamedTuple):
    """A message under way."""

    sender: int
    to: int
    message: RaftMessage


class Node:
    """One core with its disk and state machine; volatile parts are made anew at each restart."""

    def __init__(self, node_id: int, disk: Disk, settings: RaftSettings) -> None:
        self.node_id = node_id
        self.disk = disk
        self.settings = settings
        self.applied: list[Entry] = []
        self.durable_applied = 0
        self.machine: RaftMachine | None = None
        self.now = 0.0
        self.held: deque[Send] = deque()
        self.reported = 0
        self.unconfirmed: deque[int] = deque()
        self.served: dict[int, int] = {}
        self.dropped: list[int] = []

    def start(self) -> None:
        """Open the disk and begin; the state machine comes back as far as it had been flushed."""
        del self.applied[self.durable_applied :]
        self.held.clear()
        self.unconfirmed.clear()
        self.reported = 0
        self.machine = RaftMachine(
            self.node_id,
            self.disk.recover(),
            self.disk,
            self.settings,
            applied_index=self.durable_applied,
            now=self.now,
        )

    def crash(self) -> None:
        """Lose everything that is not durable."""
        self.machine = None
        self.disk.under_way.clear()
        self.held.clear()

    @property
    def core(self) -> RaftMachine:
        assert self.machine is not None, f"node {self.node_id} is down"
        return self.machine


class World:
    """Nodes, and the letters between them."""

    def __init__(self, voters: int, learners: int = 0, settings: RaftSettings | None = None) -> None:
        configuration = static_configuration(voters, learners)
        first = birth_entry(configuration)
        self.nodes = {
            node: Node(node, Disk(HardState(BIRTH_TERM), [first]), settings or RaftSettings())
            for node in range(voters + learners)
        }
        self.quorum = voters // 2 + 1
        self.voters = range(voters)
        self.letters: list[Letter] = []
        self.drawn = 0.5
        self.auto_persist = False
        self.auto_confirm = True
        self.trace: Callable[[str], None] = lambda _: None
        self.leaders: dict[int, int] = {}
        self.committed: dict[int, int] = {}
        self.applied: dict[int, bytes] = {}
        self.born: dict[tuple[int, int], tuple[bytes, int]] = {(1, BIRTH_TERM): (first.record, 0)}
        self.read_floors: dict[tuple[int, int], int] = {}
        for node in self.nodes.values():
            node.start()

    # --- events -----------------------------------------------------------------------------------

    def feed(self, node_id: int, event: Event) -> list[Effect]:
        """Give one event to a node, carry out its effects, check every invariant."""
        node = self.nodes[node_id]
        if isinstance(event, ReadAsked):
            self.read_floors[node_id, event.request] = max(self.committed, default=0)
        commit_before = node.core.commit_index
        effects = node.core.handle(event)
        if effects or not isinstance(event, Ticked):
            self.trace(f"{node_id} {show_event(event)}")
        for effect in effects:
            self.trace(f"  {show_effect(effect)}")
        for effect in effects:
            self._carry_out(node, effect)
        self._check_commit(node, commit_before)
        if self.auto_persist:
            self.persist(node_id)
        return effects

    def _carry_out(self, node: Node, effect: Effect) -> None:
        if isinstance(effect, Persist):
            self._check_entries(node, effect)
            node.disk.under_way.append(effect)
        elif isinstance(effect, Send):
            if effect.after <= node.reported:
                self._post(node, effect)
            else:
                node.held.append(effect)
        elif isinstance(effect, Apply):
            self._apply(node, effect)
        elif isinstance(effect, ServeReads):
            for request in effect.requests:
                floor = self.read_floors.pop((node.node_id, request))
                assert effect.index >= floor, f"read {request} served at {effect.index}, {floor} was committed"
                node.served[request] = effect.index
        elif isinstance(effect, DropReads):
            node.dropped.extend(effect.requests)
        elif effect.role == Role.LEADER:
            self._check_leader(node, effect)

    def _post(self, node: Node, send: Send) -> None:
        """A message leaves: what it promises must be durable (catalogue bugs 2 and 59)."""
        message = send.message
        disk = node.disk
        if isinstance(message, VoteReply) and message.granted and not message.prevote:
            durable = disk.hard_state
            assert durable.term > message.term or durable == (message.term, send.to), "a vote that is not durable"
        if isinstance(message, AppendReply) and not message.rejected:
            assert message.index <= len(disk.entries), "an acknowledgement of entries that are not durable"
            assert disk.hard_state.term >= message.term, "an acknowledgement in a term that is not durable"
        self.letters.append(Letter(node.node_id, send.to, message))

    def _apply(self, node: Node, apply: Apply) -> None:
        for entry in apply.batch.entries:
            assert entry.index == len(node.applied) + 1, "applied out of order"
            assert entry.index <= len(node.disk.entries), "applied before it was durable here"
            assert node.disk.entries[entry.index - 1] == entry, "applied something else than is durable"
            record = self.applied.setdefault(entry.index, entry.record)
            assert record == entry.record, f"two nodes applied different entries at {entry.index}"
            node.applied.append(entry)
        node.unconfirmed.append(len(node.applied))
        if self.auto_confirm:
            self.confirm(node.node_id)

    # --- invariants -------------------------------------------------------------------------------

    def _check_entries(self, node: Node, persist: Persist) -> None:
        """Log matching: an index and a term name one entry and one predecessor, everywhere and for ever."""
        if persist.batch is None:
            return
        first = persist.batch.entries[0]
        previous = node.core.log.term_at(first.index - 1)
        for entry in persist.batch.entries:
            made = self.born.setdefault((entry.index, entry.term), (entry.record, previous))
            assert made == (entry.record, previous), f"log matching broken at {entry.index}/{entry.term}"
            previous = entry.term

    def _check_leader(self, node: Node, change: LeadershipChanged) -> None:
        """Election safety and leader completeness."""
        leader = self.leaders.setdefault(change.term, node.node_id)
        assert leader == node.node_id, f"nodes {leader} and {node.node_id} both lead term {change.term}"
        for index, term in self.committed.items():
            assert node.core.log.term_at(index) == term, f"the new leader lacks committed entry {index}"

    def _check_commit(self, node: Node, before: int) -> None:
        """What anyone calls committed never changes and is durable on a quorum."""
        core = node.core
        for index in range(before + 1, core.commit_index + 1):
            term = core.log.term_at(index)
            known = self.committed.setdefault(index, term)
            assert known == term, f"committed entry {index} changed from term {known} to {term}"
        if core.commit_index > before and core.role == Role.LEADER:
            index = core.commit_index
            holders = 0
            for voter in self.voters:
                entries = self.nodes[voter].disk.entries
                holders += len(entries) >= index and entries[index - 1].term == core.term
            assert holders >= self.quorum, f"{index} was committed with {holders} durable copies"

    # --- what the outside does --------------------------------------------------------------------

    def persist(self, node_id: int, count: int | None = None) -> None:
        """Finish writes, oldest first: all of them, or ``count``."""
        node = self.nodes[node_id]
        done = 0
        while node.disk.under_way and done != count:
            node.reported = node.disk.write_one()
            done += 1
            self.feed(node_id, Persisted(node.reported))
            while node.held and node.held[0].after <= node.reported:
                self._post(node, node.held.popleft())

    def confirm(self, node_id: int) -> None:
        """The state machine shows the oldest group that it was given."""
        node = self.nodes[node_id]
        if node.unconfirmed:
            self.feed(node_id, AppliedUpTo(node.unconfirmed.popleft()))

    def tick(self, node_id: int, elapsed_s: float) -> None:
        """Let time pass on one node, in one step."""
        node = self.nodes[node_id]
        node.now += elapsed_s
        if node.machine is not None:
            self.feed(node_id, Ticked(node.now, self.drawn))

    def deliver(self, letter: Letter) -> None:
        """Hand over a letter as bytes, as the wire would; a node that is down gets nothing."""
        node = self.nodes[letter.to]
        if node.machine is not None:
            wire = b"".join(node.machine.encode(letter.message))
            self.feed(letter.to, Received(letter.sender, node.machine.decode(wire)))

    def crash(self, node_id: int) -> None:
        """Stop a node; letters that it sent may still arrive."""
        self.nodes[node_id].crash()

    def restart(self, node_id: int) -> None:
        """Start a stopped node from what is durable."""
        self.nodes[node_id].start()

    def leader(self) -> RaftMachine | None:
        """The leader of the highest term, if any."""
        leaders = [node.machine for node in self.nodes.values() if node.machine and node.machine.role == Role.LEADER]
        return max(leaders, key=lambda machine: machine.term, default=None)


# --- readable forms -------------------------------------------------------------------------------


def show_entry(entry: Entry) -> str:
    """index/term and what it is."""
    if entry.kind == EntryKind.NOOP:
        what = "no-op"
    elif entry.kind == EntryKind.CONFIGURATION:
        what = "configuration"
    elif len(entry.payload) > 16:
        what = f"{len(entry.payload)} B"
    else:
        what = entry.payload.decode()
    return f"{entry.index}/{entry.term} {what}"


def show_entries(entries: Iterable[Entry]) -> str:
    """Entries in brackets."""
    return "[" + ", ".join(show_entry(entry) for entry in entries) + "]"


def show_message(message: RaftMessage) -> str:
    """Message kind, then the fields that say something."""
    name = type(message).__name__
    fields = []
    for field in type(message).__slots__:
        if field in ("parts", "term"):
            continue
        value = getattr(message, field)
        if value is False or value is None or (field in ("hint_index", "hint_term") and not message.rejected):
            continue
        if field == "batch":
            fields.append(f"entries={show_entries(value.entries)}")
        elif value is True:
            fields.append(field)
        else:
            fields.append(f"{field}={value}")
    return " ".join((f"{name} term={message.term}", *fields))


def show_event(event: Event) -> str:
    """One line."""
    if isinstance(event, Received):
        return f"received from {event.sender}: {show_message(event.message)}"
    if isinstance(event, Ticked):
        return f"ticked at {event.now * 1000:.0f} ms"
    if isinstance(event, Persisted):
        return f"persisted #{event.ticket}"
    if isinstance(event, AppliedUpTo):
        return f"applied up to {event.index}"
    if isinstance(event, ReadAsked):
        return f"asked for read {event.request}"
    if isinstance(event, Proposed):
        return f"was proposed: {', '.join(payload.decode() for payload in event.payloads)}"
    assert isinstance(event, PeerReset)
    return f"has its link to {event.peer} {'up' if event.reachable else 'down'}"


def show_effect(effect: Effect) -> str:
    """One line."""
    if isinstance(effect, Persist):
        parts = [f"persist #{effect.ticket}"]
        if effect.hard_state is not None:
            parts.append(f"term={effect.hard_state.term} vote={effect.hard_state.voted_for}")
        if effect.batch is not None:
            parts.append(show_entries(effect.batch.entries))
        return " ".join(parts)
    if isinstance(effect, Send):
        after = f" after #{effect.after}" if effect.after else ""
        return f"send to {effect.to}: {show_message(effect.message)}{after}"
    if isinstance(effect, Apply):
        return f"apply {show_entries(effect.batch.entries)}"
    if isinstance(effect, ServeReads):
        return f"serve reads {', '.join(map(str, effect.requests))} at {effect.index}"
    if isinstance(effect, DropReads):
        return f"drop reads {', '.join(map(str, effect.requests))}"
    leader = "nobody" if effect.leader is None else effect.leader
    return f"now {effect.role} in term {effect.term}, leader {leader}: {effect.reason}"
