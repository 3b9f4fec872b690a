"""
Handing leadership over without an outage (Raft dissertation 3.10), as far as the leader does it.

The leader stops taking proposals, lets the target catch up, and tells it to stand at once. The order is repeated each
heartbeat interval, because it may be lost. After an election timeout the leader goes on as if nothing had been asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvorum.raft.messages import TimeoutNow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvorum.core.ids import NodeId
    from kvorum.raft.progress import Progress
    from kvorum.raft.state import RaftState


def most_up_to_date(voters: Iterable[Progress]) -> Progress | None:
    """The voter that holds most, of equals the one heard last, of equals the first seat; None without voters."""
    return max(voters, key=lambda progress: (progress.match, progress.heard_at, -progress.node_id), default=None)


class Transfer:
    """The hand-over under way, if any."""

    __slots__ = ("_deadline", "_state", "_told_at", "target", "total")

    def __init__(self, state: RaftState) -> None:
        self._state = state
        self.target: NodeId | None = None
        self.total = 0
        """Hand-overs begun."""
        self._deadline = 0.0
        self._told_at: float | None = None

    def begin(self, target: NodeId) -> None:
        """Hand over to this voter from now on, for at most an election timeout."""
        self.target = target
        self.total += 1
        self._deadline = self._state.clock + self._state.settings.election_timeout_s
        self._told_at = None

    def clear(self) -> None:
        """Nothing is handed over (any more)."""
        self.target = None

    def tick(self) -> None:
        """Give up when the time has passed."""
        if self.target is not None and self._state.clock >= self._deadline:
            self.target = None

    def push(self, progress: Progress) -> None:
        """Tell the target to stand once it holds all of the log; again after each heartbeat interval."""
        state = self._state
        if progress.match != state.log.last_index:
            return
        if self._told_at is None or state.clock - self._told_at >= state.settings.heartbeat_s:
            self._told_at = state.clock
            state.send(progress.node_id, TimeoutNow(state.term), urgent=True)
