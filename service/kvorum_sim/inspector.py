"""
What must hold at every moment, checked after every event of every node, at a cost of what changed.

The inspector looks at machines from outside and keeps its own books: who led which term, who spoke for whom, which
entries are committed and since which term. It trusts no node's word for what is durable: the `disk.Shadow` knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from kvorum.core.cluster import Configuration
from kvorum.core.entries import HEADER_BYTES, EntryKind
from kvorum.core.limits import UNCOMMITTED_BYTES_MAX
from kvorum.core.machine import LogCut, Role, SnapshotInstalled
from kvorum.raft.messages import AppendReply, VoteReply, VoteRequest
from kvorum_sim.probes import Probe

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from kvorum.core.cluster import Member
    from kvorum.core.entries import Entry
    from kvorum.core.ids import Index, NodeId, Term
    from kvorum.core.machine import Event, Send
    from kvorum_sim.disk import Shadow
    from kvorum_sim.process import Process

HELD_SENDS_MAX: Final = 100_000
"""Messages that wait for their ticket; far above what a few seconds of a slow disk bring."""


class Books(Protocol):
    """What the inspector needs of its world."""

    probes: Counter[str]

    def shadows(self, member: Member) -> list[Shadow]:
        """
        What is durable on the disk that holds a seat, whether its node runs or not.

        A disk that was lost counts as long as the configuration names it: what it acknowledged was true.
        """
        ...


@dataclass(slots=True)
class _Seen:
    """A machine as it was after its last event."""

    process: Process
    term: Term
    vote: NodeId | None
    commit: Index
    last: Index
    role: str
    applied: Index
    configurations: int
    newest_configuration: Index


class Inspector:
    """
    See the module text.

    Args:
        books: The world.
        violated: Ends the run with a text.
    """

    def __init__(self, books: Books, violated: Callable[[str], NoReturn]) -> None:
        self._books = books
        self._violated = violated
        self._seen: dict[NodeId, _Seen] = {}
        self._leaders: dict[Term, tuple[NodeId, int]] = {}
        self._spoken: dict[tuple[int, Term], NodeId] = {}
        """By incarnation and term: for whom it asked or gave votes."""
        self.committed: list[Term] = []
        """Term of each committed entry, from index 1 on."""
        self._commits: list[tuple[Term, Index]] = []
        """Term of the leader that first committed up to an index, with that index; both ascend."""
        self._hashes: dict[Index, str] = {}
        self.configurations: list[tuple[Index, Configuration]] = []
        """Committed configurations, ascending."""
        self.checks = 0
        """Events after which everything was looked at."""

    # --- a life begins ---

    def joined(self, process: Process, machine: Any) -> None:
        """A machine starts on what its disk held."""
        incarnation = process.disk.incarnation
        if (spoken := self._spoken.get((incarnation, machine.term))) is not None and machine.voted_for != spoken:
            self._violated(f"{process!r} spoke for node {spoken} in term {machine.term} and has forgotten it")
        highest = max((term for inc, term in self._spoken if inc == incarnation), default=0)
        if machine.term < highest:
            self._violated(f"{process!r} spoke in term {highest} and comes back in term {machine.term}")
        applied, base = process.executor.applied_index, machine.log.base_index
        if applied < base:
            self._violated(f"{process!r} comes back with {applied} applied, and its log begins behind {base}: a gap")
        self._check_committed(process, machine, base, machine.commit_index)
        if machine.commit_index > len(self.committed):
            self._violated(f"{process!r} comes back with {machine.commit_index} applied, which was never committed")
        self._seen[process.node_id] = _Seen(
            process, machine.term, machine.voted_for, machine.commit_index, machine.last_index, machine.role, 0, 0, 0
        )

    # --- after every event ---

    def handled(self, process: Process, machine: Any, event: Event) -> None:
        """Look at what one event has changed."""
        self.checks += 1
        seen = self._seen[process.node_id]
        term, vote, commit, last = machine.term, machine.voted_for, machine.commit_index, machine.last_index
        if term < seen.term:
            self._violated(f"{process!r} went from term {seen.term} back to {term} on {event!r}")
        if term == seen.term and seen.vote is not None and vote != seen.vote:
            self._violated(f"{process!r} changed its vote of term {term} from {seen.vote} to {vote} on {event!r}")
        if commit < seen.commit:
            self._violated(f"{process!r} took its commit index from {seen.commit} back to {commit} on {event!r}")
        applied = process.executor.applied_index
        if applied < seen.applied:
            self._violated(f"{process!r} took its applied index from {seen.applied} back to {applied}")
        # An installed snapshot shows in the state machine a moment before the log has followed.
        if not machine.log.base_index <= commit <= last:
            self._violated(
                f"{process!r}: base {machine.log.base_index} <= commit {commit} <= last {last} does not hold"
            )
        kind = type(event)
        if kind is SnapshotInstalled:
            self._installed(process, machine, seen)
        elif kind is LogCut:
            self._books.probes[Probe.LOG_CUT] += 1
        elif last < seen.last:
            self._books.probes[Probe.TAIL_OVERWRITTEN] += 1
        if machine.role != seen.role or term != seen.term:
            self._role_changed(process, machine, seen)
        if commit > seen.commit:
            # A leader whose own removal is what it commits follows nobody by the end of this very event.
            self._committed(process, machine, seen.commit, commit, led=Role.LEADER in (machine.role, seen.role))
        if len(machine.configurations) != seen.configurations:
            # A list that grew and shrank in one event keeps its length; then nothing in it is new to the checks.
            self._configured(process, machine, seen)
        if machine.uncommitted_bytes > UNCOMMITTED_BYTES_MAX:
            self._violated(f"{process!r} holds {machine.uncommitted_bytes} uncommitted bytes")
        seen.term, seen.vote, seen.commit, seen.last = term, vote, commit, last
        seen.role, seen.applied, seen.configurations = machine.role, applied, len(machine.configurations)

    def _installed(self, process: Process, machine: Any, seen: _Seen) -> None:
        """A snapshot took the place of the log: nothing but committed state may come in."""
        self._books.probes[Probe.SNAPSHOT_INSTALLED] += 1
        base = machine.log.base_index
        if base > len(self.committed) or machine.log.base_term != self.committed[base - 1]:
            self._violated(f"{process!r} installed a snapshot up to {base}, which was never committed")
        if process.executor.applied_index < base:
            self._violated(f"{process!r} installed a snapshot up to {base}, but shows {process.executor.applied_index}")
        if seen.last > seen.commit:
            self._books.probes[Probe.SNAPSHOT_OVER_TAIL] += 1

    def _role_changed(self, process: Process, machine: Any, seen: _Seen) -> None:
        if machine.role != Role.LEADER:
            if seen.role == Role.CANDIDATE:
                self._books.probes[Probe.ELECTION_LOST] += 1
            elif seen.role == Role.LEADER:
                self._books.probes[Probe.LEADER_DEPOSED] += 1
            return
        term = machine.term
        who = (process.node_id, process.disk.incarnation)
        if self._leaders.setdefault(term, who) != who:
            self._violated(f"{process!r} leads term {term}, but so does node {self._leaders[term][0]}")
        # Leader completeness: whatever was committed in an earlier term is in the log of every later leader.
        needed = next((index for earlier, index in reversed(self._commits) if earlier < term), 0)
        if needed > machine.log.base_index and machine.log.term_at(needed) != self.committed[needed - 1]:
            self._violated(
                f"{process!r} leads term {term} without entry {needed} of term {self.committed[needed - 1]}, which was "
                f"committed before; its log ends at {machine.last_index}, term {machine.log.last_term}"
            )

    def _check_committed(self, process: Process, machine: Any, after: Index, upto: Index) -> None:
        for index in range(max(after, machine.log.base_index) + 1, min(upto, len(self.committed)) + 1):
            if machine.log.term_at(index) != self.committed[index - 1]:
                self._violated(
                    f"{process!r} has committed entry {index} of term {machine.log.term_at(index)}, others the one of "
                    f"term {self.committed[index - 1]}"
                )

    def _committed(self, process: Process, machine: Any, after: Index, upto: Index, *, led: bool) -> None:
        self._check_committed(process, machine, after, upto)
        known = len(self.committed)
        if upto <= known:
            return
        if not led:
            self._violated(f"{process!r}, a {machine.role}, is the first to commit entry {upto}")
        term = machine.log.term_at(upto)
        configuration: Configuration = machine.configuration
        holders = [
            member.node_id
            for member in configuration.members
            if member.voter and any(shadow.term_at(upto) == term for shadow in self._books.shadows(member))
        ]
        if len(holders) < configuration.quorum:
            self._violated(
                f"{process!r} commits entry {upto} of term {term}, which is durable on {holders} only, of the voters "
                f"{configuration.voters}"
            )
        if term != machine.term:
            self._violated(f"{process!r} commits entry {upto} of term {term} by counting copies in term {machine.term}")
        if machine.log.term_at(known + 1) != machine.term:
            self._books.probes[Probe.OLD_TERM_COMMITTED] += 1
        if process.node_id not in holders:
            self._books.probes[Probe.COMMIT_BEFORE_OWN_SYNC] += 1
        self.committed += [machine.log.term_at(index) for index in range(known + 1, upto + 1)]
        self._commits.append((machine.term, upto))

    def _configured(self, process: Process, machine: Any, seen: _Seen) -> None:
        open_ones = [index for index, _ in machine.configurations if index > len(self.committed)]
        if len(open_ones) > 1:
            self._violated(f"{process!r} holds more than one uncommitted configuration, at {open_ones}")
        newest = machine.configurations[-1][0] if machine.configurations else 0
        if newest < seen.newest_configuration:
            self._books.probes[Probe.CONFIGURATION_ROLLED_BACK] += 1
        seen.newest_configuration = newest

    # --- what leaves ---

    def sending(self, process: Process, send: Send) -> None:
        """A message leaves: whatever it promises must be on the platter by now."""
        log = process.log
        if send.after + process.consensus.ticket_base > log.durable_ticket and send.after:
            self._violated(f"{process!r} sends {send!r} before its ticket is durable ({log.durable_ticket})")
        message = send.message
        kind = type(message)
        if kind is AppendReply:
            shadow = process.disk.log.shadow
            current = message.term == shadow.hard_state.term and not message.rejected
            if current and message.index > shadow.last_index:
                self._violated(f"{process!r} acknowledges {message!r}, but its disk ends at {shadow.last_index}")
        elif kind is VoteReply:
            if message.granted and not message.prevote:
                self._speaks(process, message.term, send.to)
        elif kind is VoteRequest and not message.prevote:
            self._speaks(process, message.term, process.node_id)

    def _speaks(self, process: Process, term: Term, candidate: NodeId) -> None:
        spoken = self._spoken.setdefault((process.disk.incarnation, term), candidate)
        if spoken != candidate:
            self._violated(f"{process!r} votes for node {candidate} in term {term} after it spoke for node {spoken}")
        durable = process.disk.log.shadow.hard_state
        if durable.term < term or (durable.term == term and durable.voted_for != candidate):
            self._violated(f"{process!r} votes for node {candidate} in term {term}, but its disk says {durable}")
        if process.disk.boots > 1:
            self._books.probes[Probe.VOTE_AFTER_RESTART] += 1

    # --- what is applied ---

    def applied(self, process: Process, entries: list[Entry]) -> None:
        """Entries reach a state machine: they are committed, and configurations among them are history."""
        if entries[-1].index > len(self.committed):
            self._violated(f"{process!r} applies {entries[-1]!r}, which nobody has committed")
        for entry in entries:
            if entry.term != self.committed[entry.index - 1]:
                self._violated(f"{process!r} applies {entry!r}; committed is one of {self.committed[entry.index - 1]}")
            if entry.kind == EntryKind.CONFIGURATION and (
                not self.configurations or self.configurations[-1][0] < entry.index
            ):
                self.configurations.append((entry.index, Configuration.decode(entry.record, HEADER_BYTES)))
        if len(process.consensus._held) > HELD_SENDS_MAX:  # noqa: SLF001 - a bound is judged from outside
            self._violated(f"{process!r} holds back {len(process.consensus._held)} messages")  # noqa: SLF001

    def hashed(self, process: Process, index: Index, digest: str) -> None:
        """Equal indexes, equal states."""
        if self._hashes.setdefault(index, digest) != digest:
            self._violated(f"{process!r} shows another state at index {index} than another node did")

    # --- at rest ---

    def recheck(self, processes: list[Process]) -> None:
        """The full pass, once nothing happens any more: every log against everything that was ever committed."""
        for process in processes:
            machine: Any = process.consensus.machine
            self._check_committed(process, machine, machine.log.base_index, len(self.committed))
            if machine.commit_index != len(self.committed):
                self._violated(
                    f"{process!r} rests at {machine.commit_index} of {len(self.committed)} committed entries"
                )
            for waiting, what in (
                (process.consensus.proposals.pending_count, "writes"),
                (process.consensus.reads.pending_count, "reads"),
            ):
                if waiting:
                    self._violated(f"{process!r} rests with {waiting} {what} that nobody answers")
