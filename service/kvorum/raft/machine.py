"""
The Raft node as a `core.machine.Machine`: which event and which message goes to which part, and in what order.

Terms are compared here, once, for every message: an older one is ignored (its leader is told), a newer one makes this
node a follower first. Votes compare terms themselves, because a PreVote must not raise anybody's term.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvorum.core.errors import LocalError
from kvorum.core.machine import (
    AppliedUpTo,
    DropReads,
    LeadershipChanged,
    LogCut,
    PeerReset,
    Persisted,
    Proposed,
    ReadAsked,
    Received,
    Role,
    SnapshotInstalled,
    SnapshotSent,
    Ticked,
    TransferAsked,
)
from kvorum.raft import codec
from kvorum.raft.elections import Elections
from kvorum.raft.following import Follower
from kvorum.raft.messages import (
    AppendReply,
    AppendRequest,
    CommitNotice,
    Heartbeat,
    HeartbeatReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from kvorum.raft.replication import Replicator
from kvorum.raft.settings import RaftSettings
from kvorum.raft.state import RaftState

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvorum.core.ids import Incarnation, Index, NodeId, Term
    from kvorum.core.machine import Effect, Event
    from kvorum.core.ports import RecoveredLog
    from kvorum.raft.log_view import EntryReader
    from kvorum.raft.messages import RaftMessage

__all__ = ["RaftMachine", "RaftSettings"]

_ANSWERS: Final = (AppendReply, HeartbeatReply, VoteReply)
_VOTING: Final = frozenset((VoteRequest, VoteReply))
_WANTS_ANSWER: Final = frozenset((AppendRequest, Heartbeat))
_FROM_LEADER: Final = frozenset((AppendRequest, Heartbeat, CommitNotice))


class RaftMachine(RaftState):
    """
    One Raft node. See `core.machine.Machine` for the contract and the package text for the parts.

    Args:
        node_id: Seat of this node.
        recovered: What the log directory held; everything in it is durable.
        reader: Gives back durable entries that are no longer in memory; usually the `core.ports.Log` itself.
        settings: Timings and bounds.
        applied_index: What the state machine already shows; it is committed by definition.
        now: Monotonic seconds.
        base_time_ms: Time of the entry at the log's base, as far as the state machine knows it.
        incarnation: Member id of the data directory; a configuration that records another one for this seat means
            another server, whose vote and acknowledgements are not this one's. 0: whatever is recorded is this one.
    """

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
        super().__init__(
            node_id,
            recovered,
            reader,
            settings,
            applied_index=applied_index,
            now=now,
            base_time_ms=base_time_ms,
            incarnation=incarnation,
        )
        self._replicator = Replicator(self)
        self._elections = Elections(self, self._replicator.lead)
        self._follower = Follower(self)
        self._announced: tuple[Term, str, NodeId | None] = (self.term, self.role, self.leader)
        self._on_event: dict[type, Callable[..., None]] = {
            Received: self._received,
            Persisted: self._persisted,
            Proposed: self._proposed,
            AppliedUpTo: self._applied_up_to,
            ReadAsked: self._read_asked,
            Ticked: self._ticked,
            PeerReset: self._peer_reset,
            TransferAsked: self._transfer_asked,
            LogCut: self._log_cut,
            SnapshotSent: self._snapshot_sent,
            SnapshotInstalled: self.install,
        }
        self._on_message: dict[type, Callable[..., None]] = {
            AppendRequest: self._follower.append_requested,
            AppendReply: self._append_answered,
            Heartbeat: self._follower.heartbeat_received,
            HeartbeatReply: self._heartbeat_answered,
            CommitNotice: self._follower.commit_noticed,
            VoteRequest: self._elections.vote_requested,
            VoteReply: self._elections.vote_answered,
            TimeoutNow: self._elections.timeout_told,
        }

    # --- events -----------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Effect]:
        """
        Take one event; return what is owed to the outside world, in the order in which it must be paid.

        Raises:
            LocalError: An event that this machine does not know; nothing has changed.
        """
        handler = self._on_event.get(type(event))
        if handler is None:
            msg = f"raft knows no event {type(event).__name__}"
            raise LocalError(msg)
        effects: list[Effect] = []
        self.effects = effects
        handler(event)
        self.settle_hard_state()
        self._replicator.tell_commit()
        announced = self._announced
        if announced[0] != self.term or announced[1] != self.role or announced[2] != self.leader:
            self._announced = (self.term, self.role, self.leader)
            # First of all: whoever carries out the rest must already know whom it can ask.
            effects.insert(0, LeadershipChanged(self.term, self.role, self.leader, self.reason))
        return effects

    def _received(self, event: Received) -> None:
        message: RaftMessage = event.message
        kind = type(message)
        if message.term != self.term and kind not in _VOTING:
            if message.term < self.term:
                if kind in _WANTS_ANSWER:
                    self._follower.refuse_old_term(event.sender)
                return
            reason = f"node {event.sender} is in a later term"
            self.become_follower(message.term, None, reason)
        self._on_message[kind](event.sender, message)

    def _append_answered(self, sender: NodeId, reply: AppendReply) -> None:
        if self.role == Role.LEADER:
            self._replicator.append_answered(sender, reply)

    def _heartbeat_answered(self, sender: NodeId, reply: HeartbeatReply) -> None:
        if self.role == Role.LEADER:
            self._replicator.heartbeat_answered(sender, reply)

    def _persisted(self, event: Persisted) -> None:
        durability = self.durability
        before = durability.index
        durability.report(event.ticket)
        if durability.index > before:
            if self.role == Role.LEADER:
                self._replicator.maybe_commit()
            self.hand_out()

    def _proposed(self, event: Proposed) -> None:
        assert self.role == Role.LEADER, "only a leader may be given proposals"
        self._replicator.propose(event.kind, event.payloads, event.time_ms)

    def _read_asked(self, event: ReadAsked) -> None:
        if self.role == Role.LEADER:
            self._replicator.read_asked(event.request)
        else:
            self.effects.append(DropReads((event.request,)))

    def _applied_up_to(self, event: AppliedUpTo) -> None:
        self.applied(event.index)

    def _ticked(self, event: Ticked) -> None:
        """
        Advance the machine's own clock, never by more than a heartbeat interval.

        However long the process stood still, the messages of that time are taken before a timeout can pass (catalogue
        bug 78).
        """
        elapsed_s = event.now - self.real_time
        self.real_time = event.now
        self.clock += min(max(elapsed_s, 0.0), self.settings.heartbeat_s)
        self.drawn = event.drawn
        if self.role == Role.LEADER:
            self._replicator.tick()
        else:
            self._elections.tick()

    def _peer_reset(self, event: PeerReset) -> None:
        if self.role == Role.LEADER:
            self._replicator.peer_reset(event.peer, reachable=event.reachable)
        elif event.reachable:
            self._elections.peer_reachable(event.peer)

    def _transfer_asked(self, event: TransferAsked) -> None:
        if self.role == Role.LEADER:
            self._replicator.transfer_asked(event.target)

    def _log_cut(self, event: LogCut) -> None:
        self.cut_log(event.index)

    def _snapshot_sent(self, event: SnapshotSent) -> None:
        if self.role == Role.LEADER:
            self._replicator.snapshot_sent(event.peer, event.index)

    # --- messages as bytes ------------------------------------------------------------------------

    def encode(self, message: RaftMessage) -> list[bytes]:
        """Byte form of a message as parts to be sent back to back."""
        return codec.encode(message)

    def decode(self, payload: bytes) -> RaftMessage:
        """Inverse of `encode`; raises `core.errors.RemoteError` on anything `encode` would not have written."""
        return codec.decode(payload)

    def counts_sender(self, message: RaftMessage) -> bool:
        """Whether a message lets its sender count as a member; see `core.machine.Machine.counts_sender`."""
        return isinstance(message, _ANSWERS)

    # --- what others may look at ------------------------------------------------------------------

    @property
    def last_index(self) -> Index:
        """Index of the last entry in the log, durable or not."""
        return self.log.last_index

    @property
    def base_index(self) -> Index:
        """Index before the first entry of the log."""
        return self.log.base_index

    @property
    def transferring_to(self) -> NodeId | None:
        """Whom this leader hands over to; it must be given no proposals meanwhile."""
        return self._replicator.transfer.target if self.role == Role.LEADER else None

    def change_refused(self) -> str | None:
        """Why the configuration cannot change now, None if it can; see `core.machine.Machine.change_refused`."""
        if self.role != Role.LEADER:
            return "this node does not lead"
        return self._replicator.change_refused()

    def matches(self) -> dict[NodeId, Index]:
        """Leader: per other member, the index up to which its log is known to be durable and equal; else empty."""
        return self._replicator.matches() if self.role == Role.LEADER else {}

    def term_at(self, index: Index) -> Term:
        """Term of an entry of the log or of its base; -1 for an index it does not hold."""
        return self.log.term_at(index)

    @property
    def may_serve(self) -> bool:
        """True on a leader whose no-op of this term has committed: it knows the commit index of its predecessors."""
        return self.role == Role.LEADER and self.commit_index >= self.term_start

    @property
    def uncommitted_bytes(self) -> int:
        """Own proposals that are not committed; proposing beyond `limits.UNCOMMITTED_BYTES_MAX` is a defect."""
        return self._replicator.uncommitted_bytes if self.role == Role.LEADER else 0

    def statistics(self) -> dict[str, object]:
        """Numbers for metrics and status; never changes anything."""
        return {
            "term": self.term,
            "role": self.role,
            "leader": self.leader,
            "is_asking": self._elections.is_asking,
            "first_index": self.log.base_index + 1,
            "last_index": self.log.last_index,
            "durable_index": self.durability.index,
            "commit_index": self.commit_index,
            "handed_index": self.applied_index,
            "cached_bytes": self.log.cached_bytes,
            "uncommitted_bytes": self.uncommitted_bytes,
            "reads_waiting": len(self.reads.waiting) + len(self.reads.confirming),
            "read_rounds_total": self._replicator.read_rounds_total,
            "probes_total": self._replicator.probes_total,
            "truncations_total": self._follower.truncations_total,
            "elections_stood_total": self._elections.stood_total,
            "elections_won_total": self._elections.won_total,
            "elections_lost_total": self._elections.lost_total,
            "elections_timed_out_total": self._elections.timed_out_total,
            "prevotes_lost_total": self._elections.prevotes_lost_total,
            "transferring_to": self.transferring_to,
            "transfers_total": self._replicator.transfer.total,
            "snapshots_needed_total": self._replicator.snapshots_needed_total,
            "configuration_index": self.configurations[-1][0] if self.configurations else 0,
            "voters": len(self.voters),
            "quorum": self.quorum,
            "progress": self._replicator.statistics() if self.role == Role.LEADER else {},
        }
