"""
What a leader knows of one follower, and how fast it may send to it.

::

              accepted
      PROBE ───────────▶ REPLICATE
       │ ▲                   │ │
       │ └───────────────────┘ │  rejected, link broken, or no progress for a while
       │ ▲ stream over,        │
       ▼ │ or not needed       │
      SNAPSHOT ◀───────────────┘  entries it needs are gone from the log

PROBE: where the logs agree is unknown; one append per heartbeat. REPLICATE: it is known; appends are sent ahead of
their answers, within a window of messages and bytes. SNAPSHOT: a stream of the state is under way; no appends, only
heartbeats.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from kvorum.core.limits import INFLIGHT_BYTES_MAX

if TYPE_CHECKING:
    from kvorum.core.ids import Incarnation, Index, NodeId

PROBE: Final = 0
REPLICATE: Final = 1
SNAPSHOT: Final = 2
STATE_NAMES: Final = ("probe", "replicate", "snapshot")


class Progress:
    """One follower or learner, for one term of one leader."""

    __slots__ = (
        "_in_flight",
        "_messages_max",
        "advanced_at",
        "commit_told",
        "heard_at",
        "in_flight_bytes",
        "incarnation",
        "match",
        "next",
        "node_id",
        "probe_sent",
        "round",
        "seen_match",
        "seen_verified",
        "state",
    )

    def __init__(
        self,
        node_id: NodeId,
        next_index: Index,
        messages_max: int,
        clock: float,
        incarnation: Incarnation = 0,
    ) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        """Data directory that holds the seat: another one has forgotten what this one acknowledged."""
        self.match: Index = 0
        """Everything up to here is durable on it and equal to the leader's log."""
        self.next: Index = next_index
        """First entry that was not sent, or in PROBE is not known to agree."""
        self.state = PROBE
        self.probe_sent = False
        """In PROBE: an append is out; the next waits for its answer or for a heartbeat's."""
        self.in_flight_bytes = 0
        self._in_flight: deque[tuple[Index, int]] = deque()
        self._messages_max = messages_max
        self.commit_told: Index = 0
        """Commit index of the last message to it."""
        self.round = 0
        """Highest read round it has echoed."""
        self.heard_at = clock
        """Machine clock when its last answer of this term arrived."""
        self.advanced_at = clock
        self.seen_match: Index = 0
        self.seen_verified: Index = 0

    @property
    def may_send(self) -> bool:
        """Whether one more append fits."""
        if self.state != REPLICATE:
            return self.state == PROBE and not self.probe_sent
        return len(self._in_flight) < self._messages_max and self.in_flight_bytes < INFLIGHT_BYTES_MAX

    @property
    def in_flight(self) -> int:
        """Append messages without an answer, in REPLICATE."""
        return len(self._in_flight)

    def sent(self, last_index: Index, size: int) -> None:
        """An append that ends at ``last_index`` is on its way; ``size`` is 0 for one without entries."""
        if self.state == PROBE:
            self.probe_sent = True
        elif size:
            self._in_flight.append((last_index, size))
            self.in_flight_bytes += size
            self.next = last_index + 1

    def accepted(self, index: Index) -> bool:
        """The follower holds everything up to ``index``; True if that is news."""
        advanced = index > self.match
        if advanced:
            self.match = index
            if self.next <= index:
                self.next = index + 1
            in_flight = self._in_flight
            while in_flight and in_flight[0][0] <= index:
                self.in_flight_bytes -= in_flight.popleft()[1]
        if self.state == PROBE and index >= self.match:
            self.state = REPLICATE
            self.probe_sent = False
            self.next = self.match + 1
        assert self.match < self.next, "matched beyond what was sent"
        return advanced

    def is_stale_rejection(self, prev_index: Index) -> bool:
        """Whether a rejection answers a message that later events have overtaken (catalogue bug 27)."""
        if self.state == PROBE:
            return prev_index != self.next - 1
        return self.state == SNAPSHOT or prev_index <= self.match

    def probe_from(self, next_index: Index) -> None:
        """Something was lost or does not agree: look again, never below what is known to agree."""
        self.state = PROBE
        self.probe_sent = False
        self.next = max(next_index, self.match + 1)
        self._in_flight.clear()
        self.in_flight_bytes = 0

    def await_snapshot(self) -> None:
        """What it needs is gone: nothing more is sent until it was given the state."""
        self.probe_from(self.match + 1)
        self.state = SNAPSHOT

    def is_stuck(self, verified: Index, clock: float, patience_s: float) -> bool:
        """
        Whether appends seem lost: sent ones are unanswered and the follower's log does not grow either.

        Called for each echo of a heartbeat. A disk that takes long looks the same; probing then costs one small
        message per heartbeat. A follower that was restarted has forgotten what was verified, and without an append it
        would never learn what is committed.
        """
        is_settled = self.match + 1 == self.next and verified >= self.match
        if is_settled or self.match != self.seen_match or verified != self.seen_verified:
            self.seen_match = self.match
            self.seen_verified = verified
            self.advanced_at = clock
            return False
        return self.state == REPLICATE and clock - self.advanced_at >= patience_s
