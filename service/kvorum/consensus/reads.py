"""
Reads that wait: for a confirmed index from the leader, then for this node's own apply to reach it.

Reads that arrive in one turn of the loop share one question, questions share one round of the leader (Raft
dissertation 6.4). A question whose answer may be lost (leader changed, link broke) is asked again; reading twice is
harmless. Everything ends within its bound: the leader wait for an index, the deadline for the apply.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from kvorum.consensus import frames
from kvorum.core.errors import ErrorCode, Refusal
from kvorum.observe.histogram import LatencyHistogram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvorum.core.ids import Index, NodeId
    from kvorum.core.ports import PendingRead

WAITING_READS_MAX: Final = 200_000
"""Reads waiting on one node: every connection's backlog is bounded already, this bounds their sum."""


class _Waiting(NamedTuple):
    pending: PendingRead
    received: float
    deadline: float
    confirm: bool


class _Remote(NamedTuple):
    origin: NodeId
    request: int


class _ForApply(NamedTuple):
    """Ordered by index, then by arrival."""

    ready_at: Index
    number: int
    deadline: float
    refusal: Refusal
    pending: PendingRead


ASK_AGAIN_S: Final = 0.5
"""A question to the leader without an answer for this long is asked again: the answer may be lost with its own link."""

_LATE: Final = Refusal(ErrorCode.TIMEOUT, "the read was not finished in time; retry")


class Host(Protocol):
    """What the reads need of their ConsensusManager."""

    @property
    def leader(self) -> NodeId | None:
        """Known leader."""
        ...

    @property
    def node_id(self) -> NodeId:
        """This node."""
        ...

    @property
    def may_serve(self) -> bool:
        """This node leads and knows the commit index of its predecessors."""
        ...

    @property
    def applied_index(self) -> Index:
        """What reads on this node show."""
        ...

    def ask_machine(self, request: int) -> None:
        """Have the algorithm confirm leadership for this request."""
        ...

    def send(self, peer: NodeId, kind: int, parts: Sequence[bytes]) -> bool:
        """Give one frame to a peer; False if it certainly did not leave."""
        ...

    def clock(self) -> float:
        """Monotonic seconds."""
        ...

    def flush_soon(self) -> None:
        """Call `Reads.flush` once, at the end of this turn of the loop."""
        ...

    def unavailable(self, why: str) -> Refusal:
        """An UNAVAILABLE refusal with the leader hint, if any."""
        ...


class Reads:
    """Questions under way and reads behind them; see the module text."""

    def __init__(self, host: Host, *, leader_wait_s: float, first_request: int = 1) -> None:
        """
        Begin with nothing under way.

        Args:
            host: Whoever asks and sends.
            leader_wait_s: How long a read may wait for an index.
            first_request: Number of the first question. Safety: different for each process, or a late answer to the
                process before this one would serve a newer read at an older index.
        """
        self._host = host
        self._leader_wait_s = leader_wait_s
        self._asking: list[_Waiting] = []
        self._asked: dict[int, list[_Waiting]] = {}
        self._asked_at: dict[int, float] = {}
        """When each question went to another node; this node's own are always answered or dropped."""
        self._confirming: dict[int, float] = {}
        """When each of this node's own questions to its algorithm was asked."""
        self.index_times = LatencyHistogram(0.0001, 16)
        """From a question until its index is known; one question serves all reads of a turn of the loop."""
        self._remote: dict[int, _Remote] = {}
        self._numbers = count(first_request)
        self._arrivals = count()
        self._for_apply: list[_ForApply] = []

    @property
    def pending_count(self) -> int:
        """Reads that are not served yet."""
        return len(self._asking) + sum(map(len, self._asked.values())) + len(self._for_apply)

    # --- asking ---

    def ask(self, pending: PendingRead, received: float, deadline: float, *, confirm: bool) -> None:
        """
        Serve ``pending`` once it is linearizable here (or, without ``confirm``, as fresh as the leader's own state).

        Args:
            pending: Who waits; told exactly once.
            received: When the request was complete, monotonic seconds.
            deadline: When it must be answered.
            confirm: Whether a quorum must confirm the leader.
        """
        if len(self._asking) >= WAITING_READS_MAX:
            pending.refused(self._host.unavailable("too many reads wait on this node"))
            return
        self._asking.append(_Waiting(pending, received, deadline, confirm))
        self._host.flush_soon()

    def flush(self) -> None:
        """Ask for everything that is waiting, if there is somebody to ask."""
        if not self._asking:
            return
        host = self._host
        leader = host.leader
        if leader is None:
            return
        if leader != host.node_id:
            self._ask_leader(leader)
            return
        waiting, self._asking = self._asking, []
        unconfirmed = [w for w in waiting if not w.confirm]
        if unconfirmed and not host.may_serve:
            self._asking = unconfirmed
        elif unconfirmed:
            self._serve_at(host.applied_index, unconfirmed)
        confirmed = [w for w in waiting if w.confirm] if unconfirmed else waiting
        if confirmed:
            request = next(self._numbers)
            self._asked[request] = confirmed
            self._confirming[request] = host.clock()
            host.ask_machine(request)

    def _ask_leader(self, leader: NodeId) -> None:
        waiting, self._asking = self._asking, []
        for confirm in (True, False):
            batch = [w for w in waiting if w.confirm is confirm]
            if not batch:
                continue
            request = next(self._numbers)
            if self._host.send(leader, frames.READ_INDEX, frames.encode_read(request, confirm=confirm)):
                self._asked[request] = batch
                self._asked_at[request] = self._host.clock()
            else:
                self._asking += batch

    def ask_again(self) -> None:
        """The leader or the link to it changed: answers may be lost."""
        for request in list(self._asked):
            self._asking += self._asked.pop(request)
        self._asked_at.clear()
        self._confirming.clear()
        self._host.flush_soon()

    # --- answers ---

    def confirmed(self, requests: Sequence[int], index: Index) -> None:
        """The algorithm confirmed these requests at ``index``."""
        for request in requests:
            remote = self._remote.pop(request, None)
            if remote is not None:
                parts = frames.encode_read_reply(remote.request, index)
                self._host.send(remote.origin, frames.READ_INDEX_REPLY, parts)
            else:
                self._note_index_time(self._confirming.pop(request, None))
                self._serve_at(index, self._asked.pop(request, []))

    def dropped(self, requests: Sequence[int]) -> None:
        """Leadership was lost before these were confirmed."""
        for request in requests:
            remote = self._remote.pop(request, None)
            if remote is not None:
                parts = frames.encode_read_reply(remote.request, None)
                self._host.send(remote.origin, frames.READ_INDEX_REPLY, parts)
            else:
                self._confirming.pop(request, None)
                self._asking += self._asked.pop(request, [])
        self._host.flush_soon()

    def question_received(self, origin: NodeId, payload: bytes) -> None:
        """A follower asks for an index."""
        number, confirm = frames.decode_read(payload)
        host = self._host
        if host.leader != host.node_id or (not confirm and not host.may_serve):
            host.send(origin, frames.READ_INDEX_REPLY, frames.encode_read_reply(number, None))
        elif not confirm:
            host.send(origin, frames.READ_INDEX_REPLY, frames.encode_read_reply(number, host.applied_index))
        else:
            request = next(self._numbers)
            self._remote[request] = _Remote(origin, number)
            host.ask_machine(request)

    def answer_received(self, payload: bytes) -> None:
        """The leader named an index, or said that it does not lead."""
        request, index = frames.decode_read_reply(payload)
        asked_at = self._asked_at.pop(request, None)
        batch = self._asked.pop(request, None)
        if batch is None:
            return
        if index is None:
            self._asking += batch  # the tick asks again: at once would spin on a node that has just lost its leadership
        else:
            self._note_index_time(asked_at)
            self._serve_at(index, batch)

    def _note_index_time(self, asked_at: float | None) -> None:
        if asked_at is not None:
            self.index_times.observe(self._host.clock() - asked_at)

    # --- waiting for the own apply ---

    def _serve_at(self, index: Index, batch: Sequence[_Waiting]) -> None:
        if self._host.applied_index >= index:
            for waiting in batch:
                waiting.pending.serve()
            return
        for waiting in batch:
            self.wait_applied(index, waiting.pending, waiting.deadline, _LATE)

    def wait_applied(self, index: Index, pending: PendingRead, expires: float, refusal: Refusal) -> None:
        """Serve ``pending`` when ``index`` is applied here, or refuse it with ``refusal`` at ``expires``."""
        heapq.heappush(self._for_apply, _ForApply(index, next(self._arrivals), expires, refusal, pending))

    def applied(self, index: Index) -> None:
        """This node now shows everything up to ``index``."""
        waiting = self._for_apply
        while waiting and waiting[0].ready_at <= index:
            heapq.heappop(waiting).pending.serve()

    # --- time ---

    def expire(self, now: float) -> None:
        """Refuse whoever ran out of time; called a few times a second."""
        for request in [r for r, asked_at in self._asked_at.items() if now >= asked_at + ASK_AGAIN_S]:
            del self._asked_at[request]
            self._asking += self._asked.pop(request, [])
        late = [w for w in self._asking if now >= min(w.received + self._leader_wait_s, w.deadline)]
        if late:
            self._asking = [w for w in self._asking if now < min(w.received + self._leader_wait_s, w.deadline)]
        for request, batch in list(self._asked.items()):
            expired = [w for w in batch if now >= min(w.received + self._leader_wait_s, w.deadline)]
            if expired:
                late += expired
                kept = [w for w in batch if now < min(w.received + self._leader_wait_s, w.deadline)]
                if kept:
                    self._asked[request] = kept
                else:
                    del self._asked[request]
        for waiting in late:
            waiting.pending.refused(self._host.unavailable("no leader confirmed the read in time"))
        if any(now >= entry.deadline for entry in self._for_apply):
            overdue = sorted(entry for entry in self._for_apply if now >= entry.deadline)
            self._for_apply = [entry for entry in self._for_apply if now < entry.deadline]
            heapq.heapify(self._for_apply)
            for entry in overdue:
                entry.pending.refused(entry.refusal)

    def shut_down(self) -> None:
        """Refuse everything: this node goes away."""
        refusal = Refusal(ErrorCode.UNAVAILABLE, "this node is shutting down; use another one")
        waiting = [w.pending for w in self._asking]
        waiting += [w.pending for batch in self._asked.values() for w in batch]
        waiting += [entry.pending for entry in self._for_apply]
        self._asking, self._asked, self._for_apply = [], {}, []
        self._confirming.clear()
        for pending in waiting:
            pending.refused(refusal)
