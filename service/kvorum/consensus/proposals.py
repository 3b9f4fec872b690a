"""
Writes that wait for their log entry: admission, forwarding, and outcomes that are certain.

Every proposal carries a tag (incarnation, boot nonce, sequence), so this node recognises its own entries when it
applies them and answers from its own apply, whoever led. Three rules make outcomes certain and keep order:

1. Terms never fall along a log. When an entry of a later term is applied here, a proposal sent in an earlier term
   that has not been applied is certainly dead: it is proposed again, in the original order, while the leader wait
   lasts, else refused with UNAVAILABLE.
2. A node sends nothing in a new term while a proposal it sent in an earlier one is undecided, so a revived proposal
   never lands behind a younger one. Whatever is found dead although a younger one was applied is refused instead.
3. A follower numbers its forwards within a term and the leader takes them in unbroken sequence. After a new link the
   follower sends everything undecided again; the leader skips what it already took.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from kvorum.consensus import frames
from kvorum.core.codec import TAG_BYTES
from kvorum.core.entries import HEADER_BYTES
from kvorum.core.errors import ErrorCode, Refusal
from kvorum.core.limits import APPEND_BYTES_MAX, ENTRY_BYTES_MAX, WAITING_PROPOSAL_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvorum.core.entries import Entry
    from kvorum.core.ids import NodeId, Term
    from kvorum.core.operations import Applied
    from kvorum.core.ports import PendingWrite

_SEQUENCE: Final = struct.Struct(">Q")
_PREFIX_END: Final = HEADER_BYTES + 16
_FORWARD_ITEMS_MAX: Final = 0xFFFF
_EXPIRED_TEXT: Final = (
    "the write was proposed but not decided in time; it may still take effect: read the key before trying again"
)


class Host(Protocol):
    """What the proposals need of their ConsensusManager."""

    @property
    def term(self) -> Term:
        """Current term."""
        ...

    @property
    def leader(self) -> NodeId | None:
        """Known leader of the current term."""
        ...

    @property
    def node_id(self) -> NodeId:
        """This node."""
        ...

    def room(self) -> int:
        """How many more entries the leader may append before some are applied."""
        ...

    def append(self, payloads: list[bytes]) -> None:
        """Propose as the leader."""
        ...

    def send(self, peer: NodeId, kind: int, parts: Sequence[bytes]) -> bool:
        """Give one frame to a peer; False if it certainly did not leave."""
        ...

    def flush_soon(self) -> None:
        """Call `Proposals.flush` once, at the end of this turn of the loop."""
        ...

    def clock(self) -> float:
        """Monotonic seconds."""
        ...

    def unavailable(self, why: str) -> Refusal:
        """An UNAVAILABLE refusal with the leader hint, if any."""
        ...


class _Proposal:
    """One write of a client of this node."""

    __slots__ = ("deadline", "payload", "pending", "position", "received", "resent", "sequence", "term")

    def __init__(self, sequence: int, payload: bytes, pending: PendingWrite, received: float, deadline: float) -> None:
        self.sequence = sequence
        self.payload = payload
        self.pending = pending
        self.received = received
        self.deadline = deadline
        self.term = 0  # 0: not sent in any term that still counts
        self.position = -1
        self.resent = False


class _Forwarded:
    """One write of another node's client, waiting for room on this leader."""

    __slots__ = ("expires", "origin", "payload", "position")

    def __init__(self, origin: NodeId, position: int, payload: bytes, expires: float) -> None:
        self.origin = origin
        self.position = position
        self.payload = payload
        self.expires = expires


class Proposals:
    """The one place that knows which writes of this node are undecided; see the module text."""

    def __init__(
        self, host: Host, tag_prefix: bytes, *, leader_wait_s: float, outstanding_max: int, first_position: int = 0
    ) -> None:
        """
        Begin with nothing under way.

        Args:
            host: Whoever sends and appends.
            tag_prefix: Incarnation and boot nonce, as in every tag of this process.
            leader_wait_s: How long a write may wait for a leader that takes it.
            outstanding_max: Writes that may be undecided at once.
            first_position: Where the stream of forwards begins in each term. Safety: different for each process, or
                a reply meant for the process before this one would refuse a write that was in fact proposed.
        """
        self._host = host
        self._prefix = tag_prefix
        self._leader_wait_s = leader_wait_s
        self._outstanding_max = outstanding_max
        self._sequence = 0
        self._queue: deque[_Proposal | _Forwarded] = deque()
        self._queue_bytes = 0
        self._outstanding: dict[int, _Proposal] = {}
        self._applied_term: Term = 0
        self._applied_sequence = 0
        self._sent_term: Term = 0
        self._first_position = first_position
        self._next_position = first_position
        self._resync = True
        self._refused_term: Term = 0
        self._expected: dict[bytes, int] = {}
        self._led_term: Term = 0
        self.forwarded_total = 0
        self.refused_total = 0
        self.timeouts_total = 0
        self.revived_total = 0
        self.committed_total = 0

    @property
    def pending_count(self) -> int:
        """Writes of this node's clients that are not answered yet, and forwards waiting for room."""
        return len(self._queue) + len(self._outstanding)

    # --- from routing ---

    def propose(self, body: bytes, pending: PendingWrite, received: float, deadline: float) -> None:
        """
        Take one write; ``pending`` is told exactly once.

        Args:
            body: Operation bytes of `core.codec`, without tag.
            pending: Who waits.
            received: When the request was complete, monotonic seconds.
            deadline: When it must be answered.
        """
        size = len(body)
        if self._queue_bytes > WAITING_PROPOSAL_BYTES_MAX:
            self.refused_total += 1
            pending.decided(0, Refusal(ErrorCode.OVERLOADED, "too many writes wait on this node; back off and retry"))
            return
        if size + TAG_BYTES + HEADER_BYTES > ENTRY_BYTES_MAX:
            self.refused_total += 1
            pending.decided(0, Refusal(ErrorCode.TOO_LARGE, f"the write needs a log entry above {ENTRY_BYTES_MAX} B"))
            return
        if deadline <= self._host.clock():
            # It waited behind earlier requests of its connection for longer than its own deadline.
            self.refused_total += 1
            pending.decided(0, self._host.unavailable("the deadline of the write passed before it could be proposed"))
            return
        self._sequence = sequence = self._sequence + 1
        payload = self._prefix + _SEQUENCE.pack(sequence) + body
        self._queue.append(_Proposal(sequence, payload, pending, received, deadline))
        self._queue_bytes += len(payload)
        self._host.flush_soon()

    # --- sending ---

    def flush(self) -> None:
        """Send what may be sent now: as leader into the log, else to the leader."""
        if not self._queue:
            return
        host = self._host
        leader = host.leader
        if leader is None or not self._may_send_in(host.term):
            return
        if leader == host.node_id:
            self._append(host.room())
        elif host.term != self._refused_term:
            self._forward(leader)

    def _may_send_in(self, term: Term) -> bool:
        """Rule 2 of the module text; also opens the forward stream of a new term."""
        if term == self._sent_term:
            return True
        if any(proposal.term < term for proposal in self._outstanding.values()):
            return False
        self._sent_term = term
        self._next_position = self._first_position
        self._resync = True
        return True

    def _append(self, room: int) -> None:
        queue, outstanding, term = self._queue, self._outstanding, self._sent_term
        payloads: list[bytes] = []
        total = 0
        while queue and len(payloads) < room and total < APPEND_BYTES_MAX:
            item = queue.popleft()
            payload = item.payload
            total += len(payload)
            payloads.append(payload)
            if type(item) is _Proposal:
                item.term = term
                outstanding[item.sequence] = item
        if payloads:
            self._queue_bytes -= total
            self._host.append(payloads)
            if queue:
                self._host.flush_soon()

    def _forward(self, leader: NodeId) -> None:
        """Send own proposals to the leader, as far as the bound on undecided ones allows."""
        now = self._host.clock()
        while self._queue and len(self._outstanding) < self._outstanding_max:
            batch: list[_Proposal] = []
            total = 0
            room = min(self._outstanding_max - len(self._outstanding), _FORWARD_ITEMS_MAX)
            for item in self._queue:
                if len(batch) == room or total >= APPEND_BYTES_MAX:
                    break
                assert type(item) is _Proposal, "a follower holds no forwards of others"
                batch.append(item)
                total += len(item.payload)
            if not self._send_forward(leader, batch, self._next_position, now):
                return
            for item in batch:
                self._queue.popleft()
                item.term = self._sent_term
                item.position = self._next_position
                item.resent = False
                self._next_position += 1
                self._outstanding[item.sequence] = item
            self._queue_bytes -= total
            self.forwarded_total += len(batch)

    def _send_forward(self, leader: NodeId, batch: Sequence[_Proposal], first: int, now: float) -> bool:
        wait = self._leader_wait_s
        items = [
            frames.ForwardItem(
                max(0, int((min(p.received + wait, p.deadline) - now) * 1000)),
                p.payload,
            )
            for p in batch
        ]
        parts = frames.encode_forward(self._sent_term, first, items, resync=self._resync)
        if not self._host.send(leader, frames.FORWARD, parts):
            return False
        self._resync = False
        return True

    def link_restored(self, peer: NodeId) -> None:
        """Our link to a peer stands again: frames given to the old one may be lost, so send the undecided again."""
        if peer == self._host.leader and self._sent_term == self._host.term:
            self._resend(peer, 0)
        self.flush()

    def _resend(self, leader: NodeId, position: int) -> None:
        """Go back: everything undecided of this term from ``position`` on, in order."""
        undecided = [
            p for p in self._outstanding.values() if p.term == self._sent_term and p.position >= max(position, 0)
        ]
        undecided.sort(key=lambda proposal: proposal.position)
        for proposal in undecided:
            # Safety: all of them, also those that a full link keeps from leaving now: their first copy may be taken.
            proposal.resent = True
        now = self._host.clock()
        while undecided:
            run, total = [undecided[0]], len(undecided[0].payload)
            for proposal in undecided[1:]:
                if proposal.position != run[-1].position + 1 or total >= APPEND_BYTES_MAX:
                    break
                run.append(proposal)
                total += len(proposal.payload)
            del undecided[: len(run)]
            self._resync = True  # positions between two runs were decided here: the leader must not wait for them
            if not self._send_forward(leader, run, run[0].position, now):
                self._resync = True
                return
        # The next new forward may follow a decided position that the leader never saw.
        self._resync = True

    # --- the leader's side of forwards ---

    def forward_received(self, origin: NodeId, payload: bytes) -> None:
        """Take a follower's forwards into the queue in unbroken sequence, or say why not."""
        forward = frames.decode_forward(payload)
        host = self._host
        if host.leader != host.node_id or host.term != forward.term:
            self._reply(origin, frames.ForwardReply(frames.NOT_LEADER, forward.term, forward.first))
            return
        if not forward.items:
            return
        if self._led_term != host.term:
            self._led_term = host.term
            self._expected.clear()
        stream = forward.items[0].payload[:16]
        expected = self._expected.get(stream, 0)
        if forward.first > expected:
            if not forward.resync:
                self._reply(origin, frames.ForwardReply(frames.GAP, forward.term, expected))
                return
            expected = forward.first
        now = host.clock()
        for position, item in enumerate(forward.items, forward.first):
            if position < expected:
                continue
            expected = position + 1
            if self._queue_bytes > WAITING_PROPOSAL_BYTES_MAX:
                refusal = Refusal(ErrorCode.OVERLOADED, "too many writes wait on the leader; back off and retry")
                self._reply(origin, frames.ForwardReply(frames.REFUSED, forward.term, position, refusal))
                continue
            self._queue.append(_Forwarded(origin, position, item.payload, now + item.wait_ms / 1000))
            self._queue_bytes += len(item.payload)
        self._expected[stream] = expected
        self.flush()

    def _reply(self, origin: NodeId, reply: frames.ForwardReply) -> None:
        self._host.send(origin, frames.FORWARD_REPLY, frames.encode_forward_reply(reply))

    # --- the follower's side of replies ---

    def forward_reply_received(self, peer: NodeId, payload: bytes) -> None:
        """Learn that forwards were not taken."""
        reply = frames.decode_forward_reply(payload)
        if reply.term != self._sent_term:
            return
        if reply.kind == frames.GAP:
            if peer == self._host.leader and reply.term == self._host.term:
                self._resend(peer, reply.position)
        elif reply.kind == frames.NOT_LEADER:
            self._refused_term = reply.term
            self._take_back(
                [
                    p
                    for p in self._outstanding.values()
                    if p.term == reply.term and p.position >= reply.position and not p.resent
                ]
            )
        elif reply.kind == frames.REFUSED and reply.refusal is not None:
            for proposal in list(self._outstanding.values()):
                if proposal.term == reply.term and proposal.position == reply.position:
                    del self._outstanding[proposal.sequence]
                    self.refused_total += 1
                    proposal.pending.decided(0, reply.refusal)

    # --- what the log decides ---

    def applied(self, entries: Sequence[Entry], outcomes: Sequence[Applied | Refusal | None]) -> None:
        """One applied group: answer those of this node, and bury what a later term shows to be dead."""
        if entries[-1].term == self._applied_term:
            self._answer(entries, outcomes)
            return
        start = 0
        for at, entry in enumerate(entries):
            if entry.term != self._applied_term:
                self._answer(entries[start:at], outcomes[start:at])
                start = at
                self._applied_term = entry.term
                self._take_back([p for p in self._outstanding.values() if p.term < entry.term])
        self._answer(entries[start:], outcomes[start:])
        self._host.flush_soon()

    def _answer(self, entries: Sequence[Entry], outcomes: Sequence[Applied | Refusal | None]) -> None:
        prefix, pop, unpack = self._prefix, self._outstanding.pop, _SEQUENCE.unpack_from
        for entry, outcome in zip(entries, outcomes, strict=True):
            record = entry.record
            if outcome is not None and record[HEADER_BYTES:_PREFIX_END] == prefix:
                sequence = unpack(record, _PREFIX_END)[0]
                self._applied_sequence = max(self._applied_sequence, sequence)
                proposal = pop(sequence, None)
                if proposal is not None:
                    self.committed_total += 1
                    proposal.pending.decided(entry.index, outcome)
        if self._queue:
            self._host.flush_soon()

    def _take_back(self, proposals: list[_Proposal]) -> None:
        """These are certainly not in the log: propose them again first, in their order, or refuse them."""
        now = self._host.clock()
        proposals.sort(key=lambda proposal: proposal.sequence, reverse=True)
        for proposal in proposals:
            del self._outstanding[proposal.sequence]
            if proposal.sequence < self._applied_sequence:
                # Safety: the leader never had it, but had younger ones (it was mute for a moment, or a reply got lost).
                self.refused_total += 1
                proposal.pending.decided(0, self._host.unavailable("the leader changed before it took the write"))
                continue
            proposal.term = 0
            self._queue.appendleft(proposal)
            self._queue_bytes += len(proposal.payload)
            self.revived_total += 1
        if proposals:
            self.expire(now)

    def leadership_changed(self) -> None:
        """Forwards of others that wait here die with our leadership; their own nodes revive them (rule 1)."""
        host = self._host
        leader = host.leader
        if leader != host.node_id and self._queue:
            kept: deque[_Proposal | _Forwarded] = deque(item for item in self._queue if type(item) is _Proposal)
            self._queue = kept
            self._queue_bytes = sum(len(item.payload) for item in kept)
        if leader is not None and leader != host.node_id and self._sent_term == host.term != self._refused_term:
            # The leader of the same term again, after a doubt: its link may have come back while nobody led.
            self._resend(leader, 0)
        host.flush_soon()

    # --- time ---

    def expire(self, now: float) -> None:
        """Answer whoever ran out of time; called a few times a second and after a revival."""
        if self._queue:
            self._expire_queue(now)
        late = [p for p in self._outstanding.values() if now >= p.deadline]
        for proposal in late:
            del self._outstanding[proposal.sequence]
            self.timeouts_total += 1
            proposal.pending.decided(0, Refusal(ErrorCode.TIMEOUT, _EXPIRED_TEXT))

    def _expire_queue(self, now: float) -> None:
        wait = self._leader_wait_s
        late: list[_Proposal | _Forwarded] = []
        kept: deque[_Proposal | _Forwarded] = deque()
        for item in self._queue:
            expires = min(item.received + wait, item.deadline) if isinstance(item, _Proposal) else item.expires
            (late if now >= expires else kept).append(item)
        if not late:
            return
        self._queue = kept
        self._queue_bytes -= sum(len(item.payload) for item in late)
        self.refused_total += len(late)
        why = "no leader with a quorum took the write in time"
        for item in late:
            if isinstance(item, _Proposal):
                item.pending.decided(0, self._host.unavailable(why))
            else:
                refusal = Refusal(ErrorCode.UNAVAILABLE, "the leader had no room for the write in time; retry")
                self._reply(item.origin, frames.ForwardReply(frames.REFUSED, self._led_term, item.position, refusal))

    def shut_down(self) -> None:
        """Refuse what was never sent; what was sent may still be answered by the log, or ends as unknown."""
        queue, self._queue, self._queue_bytes = self._queue, deque(), 0
        for item in queue:
            if isinstance(item, _Proposal):
                item.pending.decided(0, Refusal(ErrorCode.UNAVAILABLE, "this node is shutting down; use another one"))

    def snapshot_installed(self) -> None:
        """Whether what was sent is in the log can no longer be seen: it may be part of the snapshot."""
        self._give_up_outstanding()
        self._host.flush_soon()

    def abandon(self) -> None:
        """End of the process: what waits was never sent, what was sent is unknown."""
        self.shut_down()
        self._give_up_outstanding()

    def _give_up_outstanding(self) -> None:
        outstanding, self._outstanding = self._outstanding, {}
        for proposal in outstanding.values():
            proposal.pending.decided(0, Refusal(ErrorCode.TIMEOUT, _EXPIRED_TEXT))
