"""
What all parts of one Raft node share: term, vote, role, log, commit, and the effects of the event in hand.

Everything that changes the role lives here or in `elections`; everything that leaves the node goes through `persist`
and `send`, so that no message of a term overtakes the hard state of that term.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from kvorum.core.cluster import Configuration
from kvorum.core.entries import HEADER_BYTES, EntryBatch, EntryKind, HardState
from kvorum.core.limits import APPLY_BYTES_MAX, APPLY_ENTRIES_MAX
from kvorum.core.machine import Apply, DropReads, Persist, Role, Send
from kvorum.raft.durability import Durability
from kvorum.raft.log_view import LogView
from kvorum.raft.reads import ReadRounds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvorum.core.cluster import Member
    from kvorum.core.entries import Entry
    from kvorum.core.ids import Incarnation, Index, NodeId, Term, Ticket
    from kvorum.core.machine import Effect, SnapshotInstalled
    from kvorum.core.ports import RecoveredLog
    from kvorum.raft.log_view import EntryReader
    from kvorum.raft.messages import RaftMessage
    from kvorum.raft.settings import RaftSettings

APPLIES_UNDER_WAY_MAX: Final = 4
"""Groups handed to the state machine and not yet confirmed: enough to keep it busy, few enough to stay small."""

_NEVER: Final = float("inf")


class RaftState:
    """See the module text. Times are seconds of `clock`, which a pause of the process does not advance."""

    def __init__(
        self,
        node_id: NodeId,
        recovered: RecoveredLog,
        reader: EntryReader,
        settings: RaftSettings,
        *,
        applied_index: Index,
        now: float,
        base_time_ms: int = 0,
        incarnation: Incarnation = 0,
    ) -> None:
        hard_state = recovered.hard_state
        self.node_id = node_id
        self.incarnation = incarnation
        self.settings = settings
        self.reader = reader
        self.log = LogView(reader, (recovered.base_index, recovered.base_term), recovered.last_index, recovered.terms)
        assert hard_state.term >= self.log.last_term, "the log is ahead of the hard state"
        assert recovered.base_index <= applied_index <= recovered.last_index, (
            f"the state machine has applied {applied_index}, the log holds "
            f"{recovered.base_index + 1} to {recovered.last_index}"
        )
        self.term: Term = hard_state.term
        self.voted_for: NodeId | None = hard_state.voted_for
        self.leader: NodeId | None = None
        self.commit_index: Index = applied_index
        self.durability = Durability(recovered.last_index)
        self.effects: list[Effect] = []
        self.reason = "started"
        """Why role, term or leader changed last."""
        self._hard_state_changed = False
        self.base_time_ms = base_time_ms
        """Time of the base entry, as far as known: the log itself has forgotten it."""

        self.clock = 0.0
        self.real_time = now
        self.drawn = 0.5
        self.election_deadline = _NEVER
        self.leader_heard_at = -_NEVER
        self.has_seen_leader = False

        self.verified: Index = 0
        """Follower: everything up to here equals the log of this term's leader."""
        self.term_start: Index = 0
        """Leader: index of its no-op; every entry from here on is of its own term."""
        self.reads = ReadRounds()

        self._applying: deque[Index] = deque()
        self._handed_index: Index = applied_index
        self.configurations: list[tuple[Index, Configuration]] = list(recovered.configurations)
        self.configuration = Configuration(())
        self.voters: frozenset[NodeId] = frozenset()
        self.quorum = 1
        self.is_voter = False
        self.role = Role.FOLLOWER
        self.configuration_version = 0
        """Counts changes of `configuration`, so that a leader notices them."""
        self.adopt_configuration()

    # --- what leaves the node ---------------------------------------------------------------------

    def persist(self, batch: EntryBatch | None) -> None:
        """Order the disk to keep these entries, and the hard state with them if it changed."""
        durability = self.durability
        ticket = durability.issue(batch.entries[-1].index if batch is not None else None)
        hard_state = None
        if self._hard_state_changed:
            hard_state = HardState(self.term, self.voted_for)
            self._hard_state_changed = False
            durability.hard_state_ticket = ticket
        self.effects.append(Persist(ticket, hard_state, batch))

    def settle_hard_state(self) -> None:
        """Persist the hard state if it changed; called before anything leaves and at the end of each event."""
        if self._hard_state_changed:
            self.persist(None)

    def send(self, to: NodeId, message: RaftMessage, after: Ticket = 0, *, urgent: bool = False) -> None:
        """
        Order a message to leave once ``after`` is durable.

        Safety: it also waits for a hard state that is still on its way to the disk, whatever it says (catalogue bugs 2
        and 3; test_raft_simulation fails without it).
        """
        if self._hard_state_changed:
            self.persist(None)
        hard_state_ticket = self.durability.hard_state_ticket
        self.effects.append(Send(to, message, max(after, hard_state_ticket), urgent))

    # --- term, vote, role -------------------------------------------------------------------------

    def enter_term(self, term: Term, voted_for: NodeId | None) -> None:
        """Begin a later term."""
        assert term > self.term, "terms only rise"
        self.term = term
        self.voted_for = voted_for
        self.verified = 0
        self._hard_state_changed = True

    def vote_for(self, candidate: NodeId) -> None:
        """Give the one vote of this term; it is never taken back, whatever role follows (catalogue bug 4)."""
        assert self.voted_for in (None, candidate), "a second vote in one term"
        if self.voted_for is None:
            self.voted_for = candidate
            self._hard_state_changed = True

    def become_follower(self, term: Term, leader: NodeId | None, reason: str) -> None:
        """Follow ``leader``, or nobody yet, in this term or a later one."""
        if term != self.term:
            self.enter_term(term, None)
        was_leader = self.role == Role.LEADER
        self.role = Role.FOLLOWER if self.is_voter else Role.LEARNER
        self.leader = leader
        self.reason = reason
        if was_leader:
            # Catalogue bug 14: a leader had no election timer; without this one it would never stand again.
            self.restart_election_timer()
            dropped = self.reads.drop()
            if dropped:
                self.effects.append(DropReads(dropped))

    def restart_election_timer(self) -> None:
        """Draw the next timeout from [T/2, T]."""
        self.election_deadline = self.clock + self.settings.election_timeout_s * (0.5 + 0.5 * self.drawn)

    @property
    def trusts_leader(self) -> bool:
        """A leader was heard within the shortest election timeout: votes are refused, so that nobody disturbs it."""
        if self.role == Role.LEADER:
            return True
        return self.leader is not None and self.clock - self.leader_heard_at < self.settings.election_timeout_s * 0.5

    # --- log --------------------------------------------------------------------------------------

    def append(self, batch: EntryBatch, *, configuration: bool) -> None:
        """Add entries behind the last one and order the disk to keep them."""
        entries = batch.entries
        self.log.append(entries, len(batch.block), self.durability.index)
        self.persist(batch)
        if configuration:
            self._note_configurations(entries)

    def truncate_after(self, index: Index) -> None:
        """Drop entries that conflict with the leader's; the next append replaces them on disk."""
        assert index >= self.commit_index, "a committed entry would be lost"
        self.log.truncate_after(index)
        self.durability.truncated(index)
        if self.configurations and self.configurations[-1][0] > index:
            # Catalogue bug 44: a configuration counts from its append on, so it goes with its entry.
            while self.configurations and self.configurations[-1][0] > index:
                self.configurations.pop()
            self.adopt_configuration()

    def last_time_ms(self) -> int:
        """Time of the newest entry: entries never get an earlier time than their predecessor."""
        log = self.log
        if log.last_index == log.base_index:
            return self.base_time_ms
        return log.slice(log.last_index, log.last_index, 1, 1)[0].time_ms

    def cut_log(self, index: Index) -> None:
        """Entries up to ``index`` are gone from the log; the state machine holds them durably."""
        assert index <= self._handed_index, "entries were cut that the state machine has not been given"
        if index == self.log.last_index:
            self.base_time_ms = self.last_time_ms()
        self.log.cut(index)
        configurations = self.configurations
        while len(configurations) > 1 and configurations[1][0] <= index:
            del configurations[0]

    def accepts_snapshot(self, index: Index, term: Term) -> bool:
        """Whether a snapshot that ends at this entry would help, and would lose nothing that was acknowledged."""
        return (
            self.role != Role.LEADER
            and term <= self.term
            and index > self.commit_index
            and self.log.term_at(index) != term
        )

    def install(self, event: SnapshotInstalled) -> None:
        """Go on behind a snapshot. What it holds is committed, so it equals the log of whoever leads."""
        index = event.index
        assert self.role != Role.LEADER, "a leader's log is complete; it never installs"
        assert self.accepts_snapshot(index, event.term), "a snapshot that would lose what is here (catalogue bug 52)"
        assert event.configuration_index <= index, "the configuration in force at the base"
        if self.role == Role.CANDIDATE:
            self.become_follower(self.term, None, "a snapshot was installed")
        if event.time_ms or self.log.is_cached(self.log.last_index):
            # Nothing may be read from the disk here: it holds the new log already.
            self.base_time_ms = event.time_ms or self.last_time_ms()
        self.log = LogView(self.reader, (index, event.term), index, ())
        self.durability.installed(index)
        self.commit_index = self._handed_index = self.verified = index
        self._applying.clear()
        self.configurations = [(event.configuration_index, event.configuration)]
        self.adopt_configuration()

    def configuration_at(self, index: Index) -> tuple[Index, Configuration]:
        """The newest configuration at or below a committed index, with the index of its entry."""
        assert self.log.base_index <= index <= self.commit_index, "only of what is committed and was not cut"
        for found in reversed(self.configurations):
            if found[0] <= index:
                return found
        return 0, Configuration(())

    def _note_configurations(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.kind == EntryKind.CONFIGURATION:
                self.configurations.append((entry.index, Configuration.decode(entry.record, HEADER_BYTES)))
        self.adopt_configuration()

    @property
    def configuration_committed(self) -> bool:
        """Whether the configuration in force is known to be committed."""
        return not self.configurations or self.configurations[-1][0] <= self.commit_index

    @property
    def may_stand(self) -> bool:
        """
        Whether this node may become leader.

        A voter may; so may one whose removal is in its log and not known to be committed: perhaps nobody else has that
        entry, and the others may be unable to elect anyone without it (dissertation 4.2.2; catalogue bug 46).
        """
        if self.is_voter:
            return True
        if self.configuration_committed or len(self.configurations) < 2:
            return False
        before = self.configurations[-2][1].member(self.node_id)
        return before is not None and before.voter and self._is_self(before)

    def adopt_configuration(self) -> None:
        """The newest configuration in the log is in force, committed or not (dissertation 4.1)."""
        configuration = self.configurations[-1][1] if self.configurations else Configuration(())
        self.configuration = configuration
        self.configuration_version += 1
        self.voters = frozenset(configuration.voters)
        self.quorum = configuration.quorum
        member = configuration.member(self.node_id)
        # Safety: a new data directory is not the voter whose seat it holds (catalogue bugs 28 and 29).
        self.is_voter = member is not None and member.voter and self._is_self(member)
        if self.role in (Role.FOLLOWER, Role.LEARNER):
            self.role = Role.FOLLOWER if self.is_voter else Role.LEARNER

    def _is_self(self, member: Member) -> bool:
        return member.incarnation in (0, self.incarnation) or not self.incarnation

    # --- commit and apply -------------------------------------------------------------------------

    def commit_up_to(self, index: Index) -> None:
        """Everything up to ``index`` is committed; hand out what is durable here too."""
        assert self.commit_index < index <= self.log.last_index, "commits only rise, and only over what is here"
        self.commit_index = index
        self.hand_out()

    def hand_out(self) -> None:
        """Give the state machine what is committed and durable here, a few bounded groups at a time."""
        target = min(self.commit_index, self.durability.index)
        while self._handed_index < target and len(self._applying) < APPLIES_UNDER_WAY_MAX:
            entries = self.log.slice(self._handed_index + 1, target, APPLY_ENTRIES_MAX, APPLY_BYTES_MAX)
            self._handed_index = entries[-1].index
            self._applying.append(self._handed_index)
            self.effects.append(Apply(EntryBatch(entries)))

    def applied(self, index: Index) -> None:
        """The state machine shows everything up to ``index``."""
        assert index <= self._handed_index, "applied what was never handed out"
        applying = self._applying
        while applying and applying[0] <= index:
            applying.popleft()
        self.hand_out()

    @property
    def applied_index(self) -> Index:
        """Last index handed to the state machine."""
        return self._handed_index
