"""
Numbers for writes that must take effect once: which client id and request id each of them carries.

The cluster keeps the latest 128 outcomes of a client id and lets 64 of its writes be undecided at once. So a client
has several ids (lanes); a lane takes a new write only while fewer than 64 of its writes are open and the oldest of
them is fewer than 96 numbers back: then no outcome is forgotten before its last retry has asked for it, and there is
room for late arrivals of writes that were given up.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import TYPE_CHECKING, Final

from kvorum_client.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvorum_client.retry import Deadline

CLIENT_ID_BYTES: Final = 16
OPEN_MAX: Final = 64
SPREAD_MAX: Final = 96
LANES_MAX: Final = 32
"""2,048 open writes, as many as eight connections with 256 calls each can carry; more wait."""


def random_client_id() -> bytes:
    """An id that no other client has."""
    return secrets.token_bytes(CLIENT_ID_BYTES)


class Lane:
    """One client id with its open writes."""

    __slots__ = ("client_id", "next_id", "open")

    def __init__(self, client_id: bytes) -> None:
        self.client_id = client_id
        self.next_id = 0
        self.open: dict[int, None] = {}
        """Request ids without an outcome, oldest first."""

    @property
    def has_room(self) -> bool:
        """Whether one more write may be opened."""
        is_open = self.open
        return not is_open or (len(is_open) < OPEN_MAX and self.next_id - next(iter(is_open)) < SPREAD_MAX)

    def take(self) -> int:
        """Open a write."""
        request_id = self.next_id
        self.next_id += 1
        self.open[request_id] = None
        return request_id


class Sessions:
    """Gives each write its pair and takes it back when the write is decided, or given up."""

    def __init__(self, new_id: Callable[[], bytes]) -> None:
        self._new_id = new_id
        self._lanes: list[Lane] = []
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self, deadline: Deadline) -> tuple[Lane, int]:
        """
        Open a write, waiting for room if need be.

        Raises:
            UnavailableError: There was none in time; nothing was sent.
        """
        while True:
            lane = self._free_lane()
            if lane is not None:
                return lane, lane.take()
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                async with asyncio.timeout(max(0.0, deadline.remaining)):
                    await turn
            except TimeoutError:
                text = f"{LANES_MAX * OPEN_MAX} writes of this client are open; none was decided in time"
                raise UnavailableError(text) from None
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake_one()
                raise

    def release(self, lane: Lane, request_id: int) -> None:
        """The write is decided or given up."""
        del lane.open[request_id]
        if self._waiting:
            self._wake_one()

    def _free_lane(self) -> Lane | None:
        # Always the first one with room, so that a client that writes little has one id and not many.
        for lane in self._lanes:
            if lane.has_room:
                return lane
        if len(self._lanes) >= LANES_MAX:
            return None
        lane = Lane(self._new_id())
        self._lanes.append(lane)
        return lane

    def _wake_one(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
