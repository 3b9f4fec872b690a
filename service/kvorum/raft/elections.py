"""
Elections: PreVote, votes, and who becomes leader (Raft paper 5.2 and 5.4.1, dissertation 9.6).

A node that hears no leader first asks whether it *would* be elected; only with a majority of such answers does it raise
its term. So a node that was cut off comes back with the term it left with and disturbs nobody (catalogue bug 9).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvorum.core.machine import Role
from kvorum.raft.messages import VoteReply, VoteRequest
from kvorum.raft.settings import FIRST_STAND_JITTER_S, FIRST_STAND_S, FIRST_STAND_STAGGER_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvorum.core.ids import NodeId
    from kvorum.raft.messages import TimeoutNow
    from kvorum.raft.state import RaftState


class Elections:
    """A node's candidacies and the votes it gives. ``lead`` is called when an election is won."""

    def __init__(self, state: RaftState, lead: Callable[[], None]) -> None:
        self._state = state
        self._lead = lead
        self._prevote = False
        """A candidate only asks so far; its term has not been raised."""
        self._transfer = False
        """The leader asked for the candidacy under way."""
        self._answers: dict[NodeId, bool] = {}
        """Per voter, its answer to the candidacy under way; a repeated grant counts once (catalogue bug 5)."""
        self._asked_at = 0.0
        self._timer_armed = False
        self.stood_total = 0
        self.won_total = 0
        self.lost_total = 0
        self.timed_out_total = 0
        self.prevotes_lost_total = 0

    @property
    def is_asking(self) -> bool:
        """Whether a candidate is in the PreVote phase."""
        return self._state.role == Role.CANDIDATE and self._prevote

    # --- standing ---------------------------------------------------------------------------------

    def tick(self) -> None:
        """Stand when the timeout has passed; repeat unanswered questions each heartbeat interval."""
        state = self._state
        if not self._timer_armed:
            self._arm_first_timer()
        if state.clock >= state.election_deadline:
            state.restart_election_timer()
            if state.may_stand:
                self._stand()
        elif state.role == Role.CANDIDATE and state.clock - self._asked_at >= state.settings.heartbeat_s:
            self._ask()

    def _arm_first_timer(self) -> None:
        """Early and staggered by rank: a fresh cluster must serve at once, and its nodes must not split the votes."""
        state = self._state
        self._timer_armed = True
        if state.has_seen_leader:
            return
        rank = sum(voter < state.node_id for voter in state.voters)
        delay_s = FIRST_STAND_S + rank * FIRST_STAND_STAGGER_S + state.drawn * FIRST_STAND_JITTER_S
        state.election_deadline = min(delay_s, state.election_deadline)

    def _stand(self) -> None:
        """Ask everyone whether they would vote for this node."""
        state = self._state
        if state.role == Role.CANDIDATE:
            if self._prevote:
                self.prevotes_lost_total += 1
            else:
                self.timed_out_total += 1
        state.role = Role.CANDIDATE
        state.leader = None
        state.reason = "heard no leader for an election timeout" if state.has_seen_leader else "no leader known yet"
        self._prevote = True
        self._transfer = False
        self._answers = {state.node_id: True}
        if state.quorum == 1 and state.is_voter:
            self._campaign()
        else:
            self._ask()

    def _campaign(self) -> None:
        """Raise the term and ask for votes."""
        state = self._state
        assert state.may_stand, "only voters stand"
        state.enter_term(state.term + 1, state.node_id)
        state.reason = "stands for election"
        self.stood_total += 1
        self._prevote = False
        self._answers = {state.node_id: True}
        if state.quorum == 1 and state.is_voter:
            self._win()
        else:
            state.restart_election_timer()
            self._ask()

    def timeout_told(self, sender: NodeId, _: TimeoutNow) -> None:
        """
        The leader hands over to this node: stand at once, without PreVote (dissertation 3.10).

        A configuration counts from its append on, so the forced candidacy cannot miss one that is committed and not
        yet applied (catalogue bug 17); who is no voter in its own log stays quiet (catalogue bug 16).
        """
        state = self._state
        if state.role != Role.FOLLOWER or not state.is_voter or state.leader != sender:
            return
        state.role = Role.CANDIDATE
        state.leader = None
        self._transfer = True
        self._campaign()
        state.reason = f"node {sender} handed over" if state.role == Role.CANDIDATE else state.reason

    def _ask(self) -> None:
        """Ask every voter that has not answered yet; the own vote must be durable first, `send` sees to that."""
        state = self._state
        self._asked_at = state.clock
        term = state.term + 1 if self._prevote else state.term
        request = VoteRequest(
            term, state.log.last_index, state.log.last_term, prevote=self._prevote, transfer=self._transfer
        )
        for voter in sorted(state.voters - self._answers.keys()):
            state.send(voter, request, urgent=True)

    def peer_reachable(self, peer: NodeId) -> None:
        """A link came up: a candidate asks at once what it could not ask before."""
        state = self._state
        if state.role == Role.CANDIDATE and peer in state.voters and peer not in self._answers:
            self._ask()

    def _win(self) -> None:
        self.won_total += 1
        self._lead()

    # --- voting -----------------------------------------------------------------------------------

    def vote_requested(self, sender: NodeId, request: VoteRequest) -> None:
        """
        Answer a candidate.

        Whether this node is a voter in its *own* configuration does not matter: it may not know yet that it was made
        one, and the candidate asks only voters of its configuration (dissertation 4.1).
        """
        state = self._state
        if request.prevote:
            granted = (
                request.term > state.term
                and not state.trusts_leader
                and state.log.is_behind_or_equal(request.last_index, request.last_term)
            )
            term = request.term if granted else state.term
            state.send(sender, VoteReply(term, prevote=True, granted=granted), urgent=True)
            return
        if request.term > state.term:
            if state.trusts_leader and not request.transfer:
                # Not even the term is taken over: a removed or isolated node must not depose a healthy leader. If the
                # candidate's term is real, the leader learns of it from the candidate's answer to its next message.
                return
            state.become_follower(request.term, None, f"node {sender} stands for election")
        granted = (
            request.term == state.term
            and (state.voted_for == sender or (state.voted_for is None and state.leader is None))
            and state.log.is_behind_or_equal(request.last_index, request.last_term)
        )
        if granted:
            state.vote_for(sender)
            state.restart_election_timer()
        state.send(sender, VoteReply(state.term, prevote=False, granted=granted), urgent=True)

    def vote_answered(self, sender: NodeId, reply: VoteReply) -> None:
        """Count an answer to the candidacy under way; everything older is ignored (catalogue bug 5)."""
        state = self._state
        is_prevote_grant = reply.prevote and reply.granted
        if reply.term > state.term and not is_prevote_grant:
            state.become_follower(reply.term, None, f"node {sender} is in a later term")
            return
        if state.role != Role.CANDIDATE or reply.prevote != self._prevote or sender not in state.voters:
            return
        if reply.granted and reply.term != (state.term + 1 if self._prevote else state.term):
            return
        if not reply.granted and reply.term < state.term and not reply.prevote:
            return
        answers = self._answers
        answers[sender] = reply.granted or answers.get(sender, False)
        granted = sum(answers[voter] for voter in answers if voter in state.voters)
        if granted >= state.quorum:
            if self._prevote:
                self._campaign()
            else:
                self._win()
        elif len(answers) - granted > len(state.voters) - state.quorum:
            self._lose()

    def _lose(self) -> None:
        """A majority refused: wait as a follower; the timer that was drawn when it stood goes on."""
        if self._prevote:
            self.prevotes_lost_total += 1
        else:
            self.lost_total += 1
        self._state.become_follower(self._state.term, None, "a majority refused its vote")
