"""
What a leader knows of its followers and sends to each: appends by their progress, snapshots where entries are gone.

`replication.Replicator` decides what to append and counts the answers; here is only what concerns one follower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvorum.core.entries import EntryBatch
from kvorum.core.machine import Send, SendSnapshot
from kvorum.raft.messages import AppendRequest
from kvorum.raft.progress import PROBE, REPLICATE, STATE_NAMES, Progress

if TYPE_CHECKING:
    from kvorum.core.ids import Index, NodeId
    from kvorum.raft.messages import AppendReply
    from kvorum.raft.state import RaftState

CATCH_UP_MESSAGES_MAX: Final = 2
"""Appends that one answer of a lagging follower releases: its window doubles per round trip, the loop never stalls."""


class Followers:
    """The other members of the configuration in force, as their leader sees them."""

    def __init__(self, state: RaftState) -> None:
        self._state = state
        self._progress: dict[NodeId, Progress] = {}
        self._peers: list[Progress] = []
        self._voting_peers: list[Progress] = []
        self.probes_total = 0
        self.snapshots_needed_total = 0

    def _adopt_configuration(self) -> None:
        """
        Follow the members of the configuration in force; what is known of those that stay is kept.

        Not what is known of a seat whose data directory is another one: it holds nothing of what the old one
        acknowledged (catalogue bugs 28 and 29).
        """
        state = self._state
        known, voted = self._progress, self._voting_peers
        self._progress = {}
        for member in state.configuration.members:
            peer = member.node_id
            if peer == state.node_id:
                continue
            progress = known.get(peer)
            if progress is None or progress.incarnation not in (0, member.incarnation):
                messages_max = state.settings.appends_in_flight_max
                progress = Progress(peer, state.log.last_index + 1, messages_max, state.clock)
            progress.incarnation = member.incarnation
            self._progress[peer] = progress
        self._peers = list(self._progress.values())
        self._voting_peers = [progress for progress in self._peers if progress.node_id in state.voters]
        for progress in self._voting_peers:
            if progress not in voted:
                # A new voter has an election timeout to be heard, whenever it was heard as a learner.
                progress.heard_at = state.clock

    def _send(self, progress: Progress, message: AppendRequest, last_index: Index, size: int) -> None:
        state = self._state
        progress.sent(last_index, size)
        progress.commit_told = state.commit_index
        # The hard state of this term may still be on its way to the disk; the entries themselves need not wait.
        state.effects.append(Send(progress.node_id, message, state.durability.hard_state_ticket))

    def _fill(self, progress: Progress) -> None:
        """Send what a follower lacks as far as its window allows; in PROBE, one append even without entries."""
        state = self._state
        log = state.log
        settings = state.settings
        state.settle_hard_state()
        for _ in range(CATCH_UP_MESSAGES_MAX):
            if not progress.may_send or (progress.next > log.last_index and progress.state == REPLICATE):
                return
            prev_index = progress.next - 1
            if prev_index < log.base_index:
                # Cut meanwhile. It may hold more than is known: only its rejection tells that it needs a snapshot.
                progress.probe_from(log.base_index + 1)
                prev_index = progress.next - 1
            batch = None
            last_index, size = prev_index, 0
            if prev_index < log.last_index:
                batch = EntryBatch(
                    log.slice(progress.next, log.last_index, settings.max_batch_entries, settings.append_bytes_max)
                )
                last_index, size = batch.entries[-1].index, len(batch.block)
            message = AppendRequest(
                state.term, prev_index, log.term_at(prev_index), state.commit_index, state.reads.round, batch=batch
            )
            self._send(progress, message, last_index, size)

    def _need_snapshot(self, progress: Progress) -> None:
        """What this follower needs is gone from the log."""
        self.snapshots_needed_total += 1
        progress.await_snapshot()
        self._state.effects.append(SendSnapshot(progress.node_id))

    def _look_back(self, progress: Progress, reply: AppendReply) -> None:
        """The logs differ before ``next``; the hint lets both sides skip whole terms."""
        if progress.is_stale_rejection(reply.index):
            return
        log = self._state.log
        hint_index = min(reply.hint_index, reply.index - 1)
        if hint_index < log.base_index:
            # Who holds the base entry never points below it.
            self._need_snapshot(progress)
            return
        agreed = log.last_at_most(hint_index, reply.hint_term)
        if agreed >= progress.match:
            self._probe(progress, agreed + 1)
        else:
            # It lost what it had acknowledged. Looking again at once would go round for ever; what was acknowledged
            # counts, so only another leader, or the record of its new data directory, takes it in again.
            progress.probe_from(progress.match + 1)
            progress.probe_sent = True

    def _probe(self, progress: Progress, next_index: Index) -> None:
        self.probes_total += 1
        progress.probe_from(max(next_index, self._state.log.base_index + 1))
        self._fill(progress)

    def peer_reset(self, peer: NodeId, *, reachable: bool) -> None:
        """What was sent to this peer may be lost; find out where it stands."""
        progress = self._progress.get(peer)
        if progress is None:
            return
        # One that is being probed may hold far more than it has acknowledged to this leader.
        progress.probe_from(progress.next if progress.state == PROBE else progress.match + 1)
        if reachable:
            self._fill(progress)
        else:
            progress.probe_sent = True

    def snapshot_sent(self, peer: NodeId, index: Index) -> None:
        """The stream is over: go on behind what it held, or after a failure look again at the next heartbeat."""
        progress = self._progress.get(peer)
        if progress is None or progress.state == REPLICATE:
            return
        progress.probe_from(min(index, self._state.log.last_index) + 1)
        if index > 0:
            self._fill(progress)
        else:
            progress.probe_sent = True

    # --- figures ----------------------------------------------------------------------------------

    def matches(self) -> dict[NodeId, Index]:
        """Per other member, how far its log is known to be durable and equal."""
        return {progress.node_id: progress.match for progress in self._peers}

    def statistics(self) -> dict[NodeId, dict[str, object]]:
        """Per follower: where it stands and what is on its way to it."""
        clock = self._state.clock
        return {
            progress.node_id: {
                "state": STATE_NAMES[progress.state],
                "match": progress.match,
                "next": progress.next,
                "in_flight": progress.in_flight,
                "in_flight_bytes": progress.in_flight_bytes,
                "heard_age_s": clock - progress.heard_at,
            }
            for progress in self._peers
        }
