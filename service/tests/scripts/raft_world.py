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
    LogCut,
    PeerReset,
    Persist,
    Persisted,
    Proposed,
    ReadAsked,
    Received,
    Role,
    Send,
    SendSnapshot,
    ServeReads,
    SnapshotInstalled,
    SnapshotSent,
    Ticked,
    TransferAsked,
)
from kvorum.core.ports import RecoveredLog
from kvorum.raft.machine import RaftMachine, RaftSettings
from kvorum.raft.messages import AppendReply, HeartbeatReply, RaftMessage, VoteReply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvorum.core.machine import Effect, Event

BIRTH_TERM = 1


def member(node: int, *, voter: bool = True, incarnation: int = 0) -> Member:
    """A member at its usual endpoints."""
    return Member(node, f"node{node}:9090", f"node{node}:7090", voter, incarnation)


def static_configuration(voters: int, learners: int = 0, first_incarnation: int = 0) -> Configuration:
    """Voters 0, 1 ... and learners behind them; with their data directories recorded if there is a first one."""
    return Configuration.of(
        member(node, voter=node < voters, incarnation=first_incarnation and first_incarnation + node)
        for node in range(voters + learners)
    )


def birth_entry(configuration: Configuration) -> Entry:
    """Log entry 1, which every node derives alike."""
    return Entry.create(1, BIRTH_TERM, EntryKind.CONFIGURATION, 0, configuration.encode())


class Disk:
    """What is durable on one node, and what is on its way; a `core.ports.Log` as far as the core reads it."""

    def __init__(self, hard_state: HardState, entries: Iterable[Entry]) -> None:
        self.hard_state = hard_state
        self.entries = list(entries)
        self.base = (0, 0)
        self.base_configurations: tuple[tuple[int, Configuration], ...] = ()
        self.under_way: deque[Persist] = deque()

    @property
    def last_index(self) -> int:
        """Last durable entry."""
        return self.base[0] + len(self.entries)

    def entry(self, index: int) -> Entry:
        """One durable entry."""
        assert self.base[0] < index <= self.last_index, f"no entry {index} on this disk"
        return self.entries[index - self.base[0] - 1]

    def holds(self, index: int, term: int) -> bool:
        """Whether this very entry is durable, as an entry or in the state before the base."""
        return index <= self.base[0] or (index <= self.last_index and self.entry(index).term == term)

    def cut(self, index: int) -> None:
        """Forget entries up to ``index``."""
        if index <= self.base[0]:
            return
        configurations = [c for c in self.recovered_configurations() if c[0] <= index]
        term = self.entry(index).term
        del self.entries[: index - self.base[0]]
        self.base = (index, term)
        self.base_configurations = tuple(configurations[-1:])

    def reset(self, hard_state: HardState, base: tuple[int, int], configuration: tuple[int, Configuration]) -> None:
        """Go on behind an installed snapshot."""
        assert not self.under_way, "the log is reset when everything before is durable"
        self.hard_state = hard_state
        self.entries = []
        self.base = base
        self.base_configurations = (configuration,)

    def recovered_configurations(self) -> list[tuple[int, Configuration]]:
        """The one at the base and each later one."""
        return [
            *self.base_configurations,
            *((e.index, Configuration.decode(e.payload)) for e in self.entries if e.kind == EntryKind.CONFIGURATION),
        ]

    def read(self, first: int, last: int, bytes_max: int) -> list[Entry]:
        base = self.base[0]
        assert base < first <= last <= self.last_index, f"read of {first} to {last} in {base + 1} to {self.last_index}"
        taken: list[Entry] = []
        size = 0
        for entry in self.entries[first - base - 1 : last - base]:
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
            assert self.base[0] < first <= self.last_index + 1, "a gap in the log on disk"
            del self.entries[first - self.base[0] - 1 :]
            self.entries.extend(persist.batch.entries)
        return persist.ticket

    def recover(self) -> RecoveredLog:
        """What is found after a crash: writes under way are gone."""
        self.under_way.clear()
        terms: list[tuple[int, int]] = []
        for entry in self.entries:
            if not terms or terms[-1][1] != entry.term:
                terms.append((entry.index, entry.term))
        configurations = tuple(self.recovered_configurations())
        return RecoveredLog(self.hard_state, *self.base, self.last_index, tuple(terms), configurations)


class Letter(NamedTuple):
    """A message under way, between two data directories."""

    sender: int
    to: int
    message: RaftMessage
    sender_incarnation: int = 0
    to_incarnation: int = 0


class Snapshot(NamedTuple):
    """A state as it was on one node."""

    applied: list[Entry]
    term: int
    configuration_index: int
    configuration: Configuration

    @property
    def index(self) -> int:
        """Last entry in it."""
        return len(self.applied)


class Node:
    """One core with its disk and state machine; volatile parts are made anew at each restart."""

    def __init__(self, node_id: int, disk: Disk, settings: RaftSettings, incarnation: int = 0) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
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
            base_time_ms=self.applied[-1].time_ms if self.applied else 0,
            incarnation=self.incarnation,
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

    def __init__(
        self, voters: int, learners: int = 0, settings: RaftSettings | None = None, first_incarnation: int = 0
    ) -> None:
        configuration = static_configuration(voters, learners, first_incarnation)
        first = birth_entry(configuration)
        self.settings = settings or RaftSettings()
        self.nodes = {
            each.node_id: Node(each.node_id, Disk(HardState(BIRTH_TERM), [first]), self.settings, each.incarnation)
            for each in configuration.members
        }
        self.buried: dict[tuple[int, int], Disk] = {}
        """Disks that were lost, by seat and data directory: what they had acknowledged was durable on them."""
        self.wanted: list[tuple[int, int]] = []
        """Snapshots that leaders want to send: from, to."""
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
        elif isinstance(effect, SendSnapshot):
            if (node.node_id, effect.to) not in self.wanted:
                self.wanted.append((node.node_id, effect.to))
        elif effect.role == Role.LEADER:
            self._check_leader(node, effect)

    def _letter(self, node: Node, send: Send) -> Letter:
        to = self.nodes.get(send.to)
        return Letter(node.node_id, send.to, send.message, node.incarnation, to.incarnation if to else 0)

    def _post(self, node: Node, send: Send) -> None:
        """A message leaves: what it promises must be durable (catalogue bugs 2 and 59)."""
        message = send.message
        disk = node.disk
        if isinstance(message, VoteReply) and message.granted and not message.prevote:
            durable = disk.hard_state
            assert durable.term > message.term or durable == (message.term, send.to), "a vote that is not durable"
        if isinstance(message, AppendReply) and not message.rejected:
            assert message.index <= disk.last_index, "an acknowledgement of entries that are not durable"
            assert disk.hard_state.term >= message.term, "an acknowledgement in a term that is not durable"
        self.letters.append(self._letter(node, send))

    def _apply(self, node: Node, apply: Apply) -> None:
        for entry in apply.batch.entries:
            assert entry.index == len(node.applied) + 1, "applied out of order"
            assert node.disk.entry(entry.index) == entry, "applied something else than is durable"
            assert not node.applied or entry.time_ms >= node.applied[-1].time_ms, "entry times never fall"
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
        log = node.core.log
        for index, term in self.committed.items():
            assert index < log.base_index or log.term_at(index) == term, f"the new leader lacks committed entry {index}"

    def _check_commit(self, node: Node, before: int) -> None:
        """What anyone calls committed never changes and is durable on a quorum."""
        core = node.core
        for index in range(max(before + 1, core.log.base_index), core.commit_index + 1):
            term = core.log.term_at(index)
            known = self.committed.setdefault(index, term)
            assert known == term, f"committed entry {index} changed from term {known} to {term}"
        if core.commit_index > before and core.role == Role.LEADER:
            self._check_copies(core)
        if core.role == Role.LEADER and len(core.configurations) > 1:
            # The newest may be uncommitted; the one before must be committed, whoever knows it.
            assert core.configurations[-2][0] <= max(self.committed, default=1), "two uncommitted configurations"

    def _check_copies(self, core: RaftMachine) -> None:
        """What a leader commits is durable on a quorum of the configuration in force."""
        holders = 0
        for each in core.configuration.members:
            seat = self.nodes.get(each.node_id)
            if seat is None or not each.voter:
                continue
            lost = self.buried.get((each.node_id, each.incarnation))
            disk = seat.disk if lost is None else lost
            holders += disk.holds(core.commit_index, core.term)
        quorum = len(core.configuration.voters) // 2 + 1
        assert holders >= quorum, f"{core.commit_index} was committed with {holders} durable copies"

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
        node = self.nodes.get(letter.to)
        if node is None or node.machine is None or not self._is_admitted(node, letter):
            return
        if node.machine is not None:
            wire = b"".join(node.machine.encode(letter.message))
            self.feed(letter.to, Received(letter.sender, node.machine.decode(wire)))

    @staticmethod
    def _is_admitted(node: Node, letter: Letter) -> bool:
        """Answers count only from the data directory that is recorded for their seat (catalogue bug 74)."""
        if letter.to_incarnation != node.incarnation:
            return False
        seat = node.core.configuration.member(letter.sender)
        if seat is None or not isinstance(letter.message, VoteReply | AppendReply | HeartbeatReply):
            return True
        return seat.incarnation in (0, letter.sender_incarnation)

    def join(self, node_id: int, incarnation: int) -> None:
        """A node with an empty data directory starts in this seat; what the seat held before is lost."""
        old = self.nodes.get(node_id)
        if old is not None:
            self.buried[node_id, old.incarnation] = old.disk
        self.nodes[node_id] = Node(node_id, Disk(HardState(), ()), self.settings, incarnation)
        self.nodes[node_id].start()

    def change(self, node_id: int, configuration: Configuration) -> None:
        """A leader proposes a configuration."""
        self.feed(node_id, Proposed([configuration.encode()], 0, EntryKind.CONFIGURATION))

    def cut_log(self, node_id: int, index: int) -> None:
        """The state machine of a node is durable up to ``index``, and its log is cut there."""
        node = self.nodes[node_id]
        node.durable_applied = max(node.durable_applied, index)
        self.feed(node_id, LogCut(index))
        node.disk.cut(index)

    def take_snapshot(self, node_id: int) -> Snapshot:
        """The state that a node shows now."""
        node = self.nodes[node_id]
        index = len(node.applied)
        return Snapshot(list(node.applied), node.core.term_at(index), *node.core.configuration_at(index))

    def install(self, node_id: int, snapshot: Snapshot) -> bool:
        """Offer a snapshot to a node; False if it does not want it."""
        node = self.nodes[node_id]
        if node.machine is None or not node.core.accepts_snapshot(snapshot.index, snapshot.term):
            return False
        self.persist(node_id)
        if not node.core.accepts_snapshot(snapshot.index, snapshot.term):
            return False
        assert len(node.applied) <= snapshot.index, "the state would go back"
        assert node.applied == snapshot.applied[: len(node.applied)], "a snapshot of another history"
        node.disk.reset(
            HardState(node.core.term, node.core.voted_for),
            (snapshot.index, snapshot.term),
            (snapshot.configuration_index, snapshot.configuration),
        )
        node.applied = list(snapshot.applied)
        node.durable_applied = snapshot.index
        node.unconfirmed.clear()
        time_ms = snapshot.applied[-1].time_ms
        self.feed(node_id, SnapshotInstalled(snapshot.index, snapshot.term, *snapshot[2:], time_ms))
        return True

    def stream(self, node_id: int, to: int, *, fails: bool = False) -> None:
        """Carry out one wanted snapshot at once, or let it fail."""
        self.wanted.remove((node_id, to))
        if self.nodes[node_id].machine is None:
            return
        index = 0
        if not fails and to in self.nodes:
            snapshot = self.take_snapshot(node_id)
            if self.install(to, snapshot):
                index = snapshot.index
        self.feed(node_id, SnapshotSent(to, index))

    def crash(self, node_id: int) -> None:
        """Stop a node; letters that it sent may still arrive."""
        disk = self.nodes[node_id].disk
        for persist in disk.under_way:
            for entry in persist.batch.entries if persist.batch is not None else ():
                if entry.term > disk.hard_state.term:
                    # A single voter's term that was never durable: nobody heard of it, and it may come again.
                    self.born.pop((entry.index, entry.term), None)
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
    if isinstance(event, Proposed) and event.kind == EntryKind.CONFIGURATION:
        return f"was proposed: {show_configuration(Configuration.decode(event.payloads[0]))}"
    if isinstance(event, TransferAsked):
        return f"was asked to hand over to {'anyone' if event.target is None else event.target}"
    if isinstance(event, LogCut):
        return f"cut its log up to {event.index}"
    if isinstance(event, SnapshotSent):
        return f"sent a snapshot to {event.peer}: {f'up to {event.index}' if event.index else 'failed'}"
    if isinstance(event, SnapshotInstalled):
        return f"installed a snapshot up to {event.index}/{event.term}, {show_configuration(event.configuration)}"
    if isinstance(event, Proposed):
        return f"was proposed: {', '.join(payload.decode() for payload in event.payloads)}"
    assert isinstance(event, PeerReset)
    return f"has its link to {event.peer} {'up' if event.reachable else 'down'}"


def show_configuration(configuration: Configuration) -> str:
    """Node ids; learners end with l, recorded data directories follow a #."""
    words = [
        f"{each.node_id}{'' if each.voter else 'l'}{f'#{each.incarnation}' if each.incarnation else ''}"
        for each in configuration.members
    ]
    return f"configuration {' '.join(words)}"


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
    if isinstance(effect, SendSnapshot):
        return f"send a snapshot to {effect.to}"
    leader = "nobody" if effect.leader is None else effect.leader
    return f"now {effect.role} in term {effect.term}, leader {leader}: {effect.reason}"
