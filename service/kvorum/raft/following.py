"""
The follower's side of replication (Raft paper 5.3).

Nothing is cut off unless it really conflicts, nothing is acknowledged that was not compared or just appended, and no
commit index is believed beyond that (catalogue bugs 21, 22, 23 and 28).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvorum.core.entries import EntryBatch, EntryKind
from kvorum.core.machine import Role
from kvorum.raft.messages import AppendReply, HeartbeatReply

if TYPE_CHECKING:
    from kvorum.core.ids import Index, NodeId
    from kvorum.raft.messages import AppendRequest, CommitNotice, Heartbeat
    from kvorum.raft.state import RaftState


class Follower:
    """Takes messages of the current term's leader; the machine has compared terms before."""

    def __init__(self, state: RaftState) -> None:
        self._state = state
        self.truncations_total = 0

    def _heard_leader(self, sender: NodeId) -> None:
        state = self._state
        assert state.role != Role.LEADER, f"nodes {sender} and {state.node_id} both lead term {state.term}"
        if state.leader != sender or state.role == Role.CANDIDATE:
            assert state.leader is None, f"nodes {sender} and {state.leader} both lead term {state.term}"
            state.become_follower(state.term, sender, f"node {sender} leads")
            state.has_seen_leader = True
        state.leader_heard_at = state.clock
        state.restart_election_timer()

    def append_requested(self, sender: NodeId, request: AppendRequest) -> None:
        """Compare, cut what conflicts, append what is missing, answer once that is durable."""
        self._heard_leader(sender)
        state = self._state
        log = state.log
        prev_index = request.prev_index
        if prev_index < log.base_index:
            # Older than anything kept, so committed: equal without looking.
            state.verified = max(state.verified, state.commit_index)
            self._acknowledge(sender, request, state.commit_index)
            return
        if log.term_at(prev_index) != request.prev_term:
            assert prev_index > state.commit_index, "a leader without our committed entries"
            hint_index = log.last_at_most(prev_index - 1, request.prev_term)
            reply = AppendReply(
                state.term,
                prev_index,
                request.round,
                rejected=True,
                hint_index=hint_index,
                hint_term=log.term_at(hint_index),
            )
            state.send(sender, reply)
            return
        match = prev_index
        batch = request.batch
        if batch is not None:
            match += len(batch.entries)
            if prev_index == log.last_index:
                self._append(batch)
            else:
                self._append_missing(batch)
        state.verified = max(state.verified, match)
        self._learn_commit(request.commit)
        self._acknowledge(sender, request, match)

    def _append(self, batch: EntryBatch) -> None:
        kinds = [entry.kind for entry in batch.entries]
        self._state.append(batch, configuration=EntryKind.CONFIGURATION in kinds)

    def _append_missing(self, batch: EntryBatch) -> None:
        """Entries that overlap with the log: skip those that are here, cut only at a real conflict."""
        state = self._state
        log = state.log
        entries = batch.entries
        for position, entry in enumerate(entries):
            if log.term_at(entry.index) == entry.term:
                continue
            if entry.index <= log.last_index:
                assert entry.index > state.verified, "a leader changed its own log"
                self.truncations_total += 1
                state.truncate_after(entry.index - 1)
            self._append(batch if position == 0 else EntryBatch(entries[position:]))
            return

    def _acknowledge(self, sender: NodeId, request: AppendRequest, match: Index) -> None:
        """
        Promise everything up to ``match``.

        Safety: also for entries that were here before, the answer waits for the ticket that makes them durable
        (catalogue bug 2; test_raft_simulation fails without it).
        """
        state = self._state
        state.send(sender, AppendReply(state.term, match, request.round), state.durability.ticket_of(match))

    def _learn_commit(self, commit: Index) -> None:
        """Believe the leader's commit index as far as this log is known to equal the leader's."""
        state = self._state
        index = min(commit, state.verified)
        if index > state.commit_index:
            state.commit_up_to(index)

    def heartbeat_received(self, sender: NodeId, heartbeat: Heartbeat) -> None:
        """Echo the round: at this moment this node still follows that leader."""
        self._heard_leader(sender)
        state = self._state
        self._learn_commit(heartbeat.commit)
        state.send(sender, HeartbeatReply(state.term, heartbeat.round, state.verified), urgent=True)

    def commit_noticed(self, sender: NodeId, notice: CommitNotice) -> None:
        """Learn a commit index between appends."""
        self._heard_leader(sender)
        self._learn_commit(notice.commit)

    def refuse_old_term(self, sender: NodeId) -> None:
        """
        Tell a leader of an earlier term that it is deposed.

        Without an answer a node whose term ran ahead would stay outside for ever: it ignores the leader, and the
        leader's voters ignore it (etcd's CheckQuorum with a stuck candidate).
        """
        state = self._state
        state.send(sender, HeartbeatReply(state.term, 0, 0), urgent=True)
