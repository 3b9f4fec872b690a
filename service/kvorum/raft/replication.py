"""
The leader's side of replication: append, send ahead, count, commit, confirm reads (Raft paper 5.3 and 5.4.2).

Entries leave for the followers while the leader's own fsync is still under way; the leader counts itself only up to
what its disk has reported. One batch object goes to the disk and to every follower in step, so its bytes are joined
once, and those followers share one message, so it is encoded once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvorum.core.entries import EntryBatch, EntryKind, create_entries
from kvorum.core.limits import ENTRY_BYTES_MAX, UNCOMMITTED_BYTES_MAX
from kvorum.core.machine import DropReads, Role, Send, ServeReads
from kvorum.raft.messages import AppendRequest, CommitNotice, Heartbeat
from kvorum.raft.progress import PROBE, REPLICATE, STATE_NAMES, Progress
from kvorum.raft.quorum import agreed_index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvorum.core.entries import Entry
    from kvorum.core.ids import Index, NodeId
    from kvorum.raft.messages import AppendReply, HeartbeatReply
    from kvorum.raft.state import RaftState

CATCH_UP_MESSAGES_MAX: Final = 2
"""Appends that one answer of a lagging follower releases: its window doubles per round trip, the loop never stalls."""

PATIENCE_HEARTBEATS: Final = 3
"""Heartbeat intervals without progress after which sent appends are taken for lost."""


class Replicator:
    """What a node does while it leads; idle otherwise."""

    def __init__(self, state: RaftState) -> None:
        self._state = state
        self._progress: dict[NodeId, Progress] = {}
        self._peers: list[Progress] = []
        self._voting_peers: list[Progress] = []
        self._configuration_version = -1
        self._heartbeat_at = 0.0
        self._uncommitted: list[tuple[Index, int]] = []
        self.uncommitted_bytes = 0
        self._commit_to_tell = False
        self.read_rounds_total = 0
        self.probes_total = 0

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
        self._adopt_configuration()
        self.propose(EntryKind.NOOP, (b"",), 0)

    def _adopt_configuration(self) -> None:
        """Follow the members of the configuration in force; what is known of those that stay is kept."""
        state = self._state
        self._configuration_version = state.configuration_version
        known = self._progress
        self._progress = {}
        for member in state.configuration.members:
            peer = member.node_id
            if peer != state.node_id:
                self._progress[peer] = known.get(peer) or Progress(
                    peer, state.log.last_index + 1, state.settings.appends_in_flight_max, state.clock
                )
        self._peers = list(self._progress.values())
        self._voting_peers = [progress for progress in self._peers if progress.node_id in state.voters]

    # --- appending --------------------------------------------------------------------------------

    def propose(self, kind: int, payloads: Sequence[bytes], time_ms: int) -> None:
        """Append entries at the end of the log, in as few batches as the bounds of a message allow."""
        state = self._state
        assert payloads, "a proposal has at least one payload"
        assert self.uncommitted_bytes <= UNCOMMITTED_BYTES_MAX, "the caller must push back on proposals"
        first = state.log.last_index + 1
        entries = create_entries(first, state.term, kind, max(time_ms, self._last_time_ms()), payloads)
        configuration = kind == EntryKind.CONFIGURATION
        batch = EntryBatch(entries)
        if len(entries) > state.settings.max_batch_entries or len(batch.block) > state.settings.append_bytes_max:
            for part in self._split(entries):
                self._append(part, configuration=configuration)
        else:
            self._append(batch, configuration=configuration)
        if configuration:
            self.maybe_commit()

    def _last_time_ms(self) -> int:
        """Time of the newest entry: entries never get an earlier time than their predecessor."""
        log = self._state.log
        if log.last_index == log.base_index:
            return 0
        return log.slice(log.last_index, log.last_index, 1, 1)[0].time_ms

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
        if progress.commit_told < state.commit_index:
            # It was still probed when the commit index moved, and was told nothing.
            self._commit_to_tell = True
        if progress.next <= state.log.last_index:
            self._fill(progress)

    def _look_back(self, progress: Progress, reply: AppendReply) -> None:
        """The logs differ before ``next``; the hint lets both sides skip whole terms."""
        if progress.is_stale_rejection(reply.index):
            return
        agreed = self._state.log.last_at_most(min(reply.hint_index, reply.index - 1), reply.hint_term)
        self._probe(progress, agreed + 1)

    def _probe(self, progress: Progress, next_index: Index) -> None:
        self.probes_total += 1
        progress.probe_from(next_index)
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
        elif progress.state == PROBE:
            progress.probe_sent = False
            self._fill(progress)

    def peer_reset(self, peer: NodeId, *, reachable: bool) -> None:
        """What was sent to this peer may be lost; find out where it stands."""
        progress = self._progress.get(peer)
        if progress is None:
            return
        progress.probe_from(progress.match + 1)
        if reachable:
            self._fill(progress)
        else:
            progress.probe_sent = True

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
        self._start_round()

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

    # --- figures ----------------------------------------------------------------------------------

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
