"""
The leader's side of replication: append, send ahead, count, commit, confirm reads (Raft paper 5.3 and 5.4.2).

Entries leave for the followers while the leader's own fsync is still under way; the leader counts itself only up to
what its disk has reported. One batch object goes to the disk and to every follower in step, so its bytes are joined
once, and those followers share one message, so it is encoded once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvorum.core.cluster import Configuration
from kvorum.core.entries import EntryBatch, EntryKind, create_entries
from kvorum.core.limits import ENTRY_BYTES_MAX, UNCOMMITTED_BYTES_MAX
from kvorum.core.machine import DropReads, Role, ServeReads
from kvorum.raft.followers import Followers
from kvorum.raft.membership import change_flaw
from kvorum.raft.messages import AppendRequest, CommitNotice, Heartbeat, TimeoutNow
from kvorum.raft.progress import PROBE, REPLICATE, SNAPSHOT
from kvorum.raft.quorum import agreed_index
from kvorum.raft.transfer import Transfer, most_up_to_date

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvorum.core.entries import Entry
    from kvorum.core.ids import Index, NodeId
    from kvorum.raft.messages import AppendReply, HeartbeatReply
    from kvorum.raft.state import RaftState

PATIENCE_HEARTBEATS: Final = 3
"""Heartbeat intervals without progress after which sent appends are taken for lost."""


class Replicator(Followers):
    """What a node does while it leads; idle otherwise."""

    def __init__(self, state: RaftState) -> None:
        super().__init__(state)
        self._heartbeat_at = 0.0
        self._uncommitted: list[tuple[Index, int]] = []
        self.uncommitted_bytes = 0
        self._commit_to_tell = False
        self.read_rounds_total = 0
        self.transfer = Transfer(state)

    # --- taking office ----------------------------------------------------------------------------

    def lead(self) -> None:
        """
        Begin to lead the term in hand.

        The no-op is the first own entry: only its commit proves which entries of earlier terms are committed (figure 8,
        dissertation 6.4).
        """
        state = self._state
        assert state.voted_for == state.node_id, "a leader voted for itself in its term"
        state.role = Role.LEADER
        state.leader = state.node_id
        state.has_seen_leader = True
        state.reason = f"elected by {state.quorum} of {len(state.voters)} voters"
        state.term_start = state.log.last_index + 1
        self._progress = {}
        self._uncommitted = []
        self.uncommitted_bytes = 0
        self._heartbeat_at = state.clock
        self.transfer.clear()
        self._adopt_configuration()
        self.propose(EntryKind.NOOP, (b"",), 0)

    # --- appending --------------------------------------------------------------------------------

    def propose(self, kind: int, payloads: Sequence[bytes], time_ms: int) -> None:
        """Append entries at the end of the log, in as few batches as the bounds of a message allow."""
        state = self._state
        assert payloads, "a proposal has at least one payload"
        assert self.uncommitted_bytes <= UNCOMMITTED_BYTES_MAX, "the caller must push back on proposals"
        assert self.transfer.target is None or kind != EntryKind.COMMAND, "no proposals during a hand-over"
        first = state.log.last_index + 1
        entries = create_entries(first, state.term, kind, max(time_ms, state.last_time_ms()), payloads)
        configuration = kind == EntryKind.CONFIGURATION
        if configuration:
            self._check_change(payloads)
        batch = EntryBatch(entries)
        if len(entries) > state.settings.max_batch_entries or len(batch.block) > state.settings.append_bytes_max:
            for part in self._split(entries):
                self._append(part, configuration=configuration)
        else:
            self._append(batch, configuration=configuration)
        if configuration:
            # Fewer voters may be enough for what waited for more.
            self.maybe_commit()
            if state.role == Role.LEADER:
                self._count_reads()

    def change_refused(self) -> str | None:
        """Why the configuration cannot change now (Ongaro 2015; catalogue bugs 41 and 42); only for a leader."""
        state = self._state
        if state.commit_index < state.term_start:
            return "the leader has not committed an entry of its term yet; try again in a moment"
        if not state.configuration_committed:
            return f"the change at index {state.configurations[-1][0]} is not committed yet; try again when it is"
        if self.transfer.target is not None:
            return f"leadership is being handed to node {self.transfer.target}; ask the next leader"
        return None

    def _check_change(self, payloads: Sequence[bytes]) -> None:
        assert len(payloads) == 1, "one change at a time"
        refused = self.change_refused()
        assert refused is None, refused
        flaw = change_flaw(self._state.configuration, Configuration.decode(payloads[0]))
        assert flaw is None, f"no single-server change: {flaw}"

    def _split(self, entries: list[Entry]) -> list[EntryBatch]:
        settings = self._state.settings
        batches = []
        start = size = 0
        for position, entry in enumerate(entries):
            length = len(entry.record)
            if position > start and (
                size + length > settings.append_bytes_max or position - start == settings.max_batch_entries
            ):
                batches.append(EntryBatch(entries[start:position]))
                start = position
                size = 0
            size += length
        batches.append(EntryBatch(entries[start:]))
        return batches

    def _append(self, batch: EntryBatch, *, configuration: bool) -> None:
        """One batch to the own disk and to every follower that is in step."""
        state = self._state
        log = state.log
        prev_index, prev_term = log.last_index, log.last_term
        size = len(batch.block)
        assert len(batch.entries) > 1 or size <= ENTRY_BYTES_MAX, "an entry that can never be sent (catalogue bug 75)"
        state.append(batch, configuration=configuration)
        if configuration:
            self._adopt_configuration()
        self._uncommitted.append((log.last_index, size))
        self.uncommitted_bytes += size
        message = None
        for progress in self._peers:
            if progress.state == REPLICATE and progress.next == prev_index + 1 and progress.may_send:
                if message is None:
                    message = AppendRequest(
                        state.term, prev_index, prev_term, state.commit_index, state.reads.round, batch=batch
                    )
                self._send(progress, message, log.last_index, size)
            else:
                self._fill(progress)

    # --- answers ----------------------------------------------------------------------------------

    def append_answered(self, sender: NodeId, reply: AppendReply) -> None:
        """Count an acknowledgement, or look further back after a rejection."""
        progress = self._progress.get(sender)
        if progress is None:
            return
        state = self._state
        progress.heard_at = state.clock
        if reply.round > progress.round:
            progress.round = reply.round
            self._count_reads()
        if reply.rejected:
            self._look_back(progress, reply)
            return
        assert reply.index <= state.log.last_index, f"node {sender} acknowledged entries that were never sent"
        if progress.accepted(reply.index) and reply.index > state.commit_index:
            self.maybe_commit()
            if state.role != Role.LEADER:
                return
        if progress.state == SNAPSHOT and reply.index >= state.log.base_index:
            self._probe(progress, reply.index + 1)
        if self.transfer.target == sender:
            self.transfer.push(progress)
        if progress.commit_told < state.commit_index:
            # It was still probed when the commit index moved, and was told nothing.
            self._commit_to_tell = True
        if progress.next <= state.log.last_index:
            self._fill(progress)

    def heartbeat_answered(self, sender: NodeId, reply: HeartbeatReply) -> None:
        """The follower lives: count its round, and send again what seems lost."""
        progress = self._progress.get(sender)
        if progress is None:
            return
        state = self._state
        progress.heard_at = state.clock
        if reply.round > progress.round:
            progress.round = reply.round
            self._count_reads()
        patience_s = PATIENCE_HEARTBEATS * state.settings.heartbeat_s
        if progress.is_stuck(reply.verified, state.clock, patience_s):
            self._probe(progress, min(reply.verified, state.log.last_index) + 1)
        elif progress.state == SNAPSHOT:
            if reply.verified >= state.log.base_index:
                self._probe(progress, min(reply.verified, state.log.last_index) + 1)
        elif progress.state == PROBE:
            progress.probe_sent = False
            self._fill(progress)

    # --- committing -------------------------------------------------------------------------------

    def maybe_commit(self) -> None:
        """
        Commit what a quorum holds durably, by counting entries of the own term only.

        Entries of earlier terms become committed with the first own entry behind them (figure 8; catalogue bugs 18 and
        19).
        """
        state = self._state
        matches = [progress.match for progress in self._voting_peers]
        if state.is_voter:
            matches.append(state.durability.index)
        index = agreed_index(matches, state.quorum)
        if index <= state.commit_index or index < state.term_start:
            return
        assert state.log.term_at(index) == state.term, "committing by counting entries of another term"
        self._commit_to_tell = True
        uncommitted = self._uncommitted
        count = 0
        while count < len(uncommitted) and uncommitted[count][0] <= index:
            self.uncommitted_bytes -= uncommitted[count][1]
            count += 1
        del uncommitted[:count]
        state.commit_up_to(index)
        if not state.is_voter and state.configuration_committed:
            self._leave()
        else:
            self._start_round()

    def _leave(self) -> None:
        """
        The entry that takes this leader out of the voters is committed: its work is done (dissertation 4.2.2).

        Somebody else is told to stand, so that clients do not wait for an election timeout.
        """
        state = self._state
        self.tell_commit()
        successor = most_up_to_date(self._voting_peers)
        assert successor is not None, "a configuration has voters"
        self.transfer.total += 1
        state.send(successor.node_id, TimeoutNow(state.term), urgent=True)
        state.become_follower(state.term, None, "is no voter any more")

    def transfer_asked(self, target: NodeId | None) -> None:
        """Begin to hand over; a target that is no other voter is ignored, and so is a second wish."""
        if self.transfer.target is not None:
            return
        voters = [progress for progress in self._voting_peers if target is None or progress.node_id == target]
        progress = most_up_to_date(voters)
        if progress is not None:
            self.transfer.begin(progress.node_id)
            self.transfer.push(progress)

    def tell_commit(self) -> None:
        """At the end of an event: a commit advance that no append carries leaves at once (architecture 3.1)."""
        if not self._commit_to_tell:
            return
        self._commit_to_tell = False
        state = self._state
        if state.role != Role.LEADER:
            return
        commit = state.commit_index
        notice = None
        for progress in self._peers:
            if progress.commit_told < commit and progress.state == REPLICATE:
                if notice is None:
                    notice = CommitNotice(state.term, commit)
                progress.commit_told = commit
                state.send(progress.node_id, notice)

    # --- reads ------------------------------------------------------------------------------------

    def read_asked(self, request: int) -> None:
        """A read joins the next round; a full queue gives it back."""
        state = self._state
        if state.reads.ask(request):
            self._start_round()
        else:
            state.effects.append(DropReads((request,)))

    def _start_round(self) -> None:
        """Start a round if reads wait, none is under way, and the commit index is known to be the cluster's."""
        state = self._state
        reads = state.reads
        if reads.confirming or not reads.waiting or state.commit_index < state.term_start:
            return
        reads.start_round(state.commit_index)
        self.read_rounds_total += 1
        if state.quorum == 1 and state.is_voter:
            state.effects.append(ServeReads(reads.finish_round(), reads.index))
        else:
            self._send_heartbeats()

    def _count_reads(self) -> None:
        """Release the round under way once a quorum has echoed it."""
        state = self._state
        reads = state.reads
        if not reads.confirming:
            return
        echoes = int(state.is_voter)
        for progress in self._voting_peers:
            if progress.round >= reads.round:
                echoes += 1
        if echoes >= state.quorum:
            state.effects.append(ServeReads(reads.finish_round(), reads.index))
            self._start_round()

    # --- time -------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Heartbeats; and step down when no quorum was heard for an election timeout (catalogue bug 12)."""
        state = self._state
        if state.clock - self._heartbeat_at >= state.settings.heartbeat_s:
            self._heartbeat_at = state.clock
            self._send_heartbeats()
        if self.transfer.target is not None:
            self.transfer.tick()
            if self.transfer.target is not None:
                self.transfer.push(self._progress[self.transfer.target])
        heard = int(state.is_voter)
        for progress in self._voting_peers:
            if state.clock - progress.heard_at < state.settings.election_timeout_s:
                heard += 1
        if heard < state.quorum:
            state.become_follower(state.term, None, "lost contact with a majority")

    def _send_heartbeats(self) -> None:
        state = self._state
        message = Heartbeat(state.term, state.commit_index, state.reads.round)
        for progress in self._peers:
            state.send(progress.node_id, message, urgent=True)
