"""
Streams of the simulated network: the answer to `PeerLinks.fetch`, made at one process and taken at another.

The maker runs in a task of its own and stays a few items ahead; items travel like frames, wait at a cut, and are lost
with the connection. A connection breaks when either process vanishes, on purpose, or when the taker waits too long.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final

from kvorum.core.errors import RemoteError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from kvorum.core.ids import Incarnation
    from kvorum_sim.network import SimulatedLinks, SimulatedNetwork

ITEMS_AHEAD: Final = 2
"""Items made and not taken yet: what the socket buffers of a real stream hold."""
IDLE_S: Final = 15.0
"""How long the taker waits for an item, as `peers.limits.STREAM_IDLE_S`."""
TICK_S: Final = 0.1


class SimulatedStream:
    """One connection that carries one stream."""

    def __init__(self, network: SimulatedNetwork, taker: SimulatedLinks, maker: SimulatedLinks) -> None:
        self.taker = taker
        self.maker = maker
        self._network = network
        self._items: deque[tuple[float, bytes]] = deque()
        self._last_due = 0.0
        self._end: tuple[float, str] | None = None
        self._broken = ""
        self._changed = asyncio.Event()
        self._making: asyncio.Task[None] | None = None

    def break_off(self, reason: str) -> None:
        """The connection is gone, with everything on its way."""
        if not self._broken:
            self._broken = reason
            self._items.clear()
            if self._making is not None:
                self._making.cancel()
            self._changed.set()

    async def items(self, incarnation: Incarnation, request: bytes) -> AsyncGenerator[bytes, None]:
        """
        What the maker sends; called by the taker.

        Raises:
            RemoteError: The maker's own, or the connection broke.
        """
        maker, network = self.maker, self._network
        self._making = network.loop.create_task(self._make(incarnation, request))
        self._making.add_done_callback(self._made)
        try:
            while True:
                item = await self._next()
                if item is None:
                    return
                network.frames_delivered += 1
                yield item
        finally:
            self.break_off(f"node {self.taker.node_id} closed the stream from node {maker.node_id}")

    async def _next(self) -> bytes | None:
        """The next item, once it has arrived; None at the end."""
        network, loop = self._network, self._network.loop
        patience = loop.time() + IDLE_S
        while True:
            now = loop.time()
            if self._broken:
                self._fail(self._broken)
            due = self._items[0][0] if self._items else self._end[0] if self._end is not None else None
            held = network.is_cut(self.maker.node_id, self.taker.node_id)
            if due is not None and due <= now and not held:
                if self._items:
                    self._changed.set()
                    return self._items.popleft()[1]
                assert self._end is not None
                if self._end[1]:
                    self._fail(self._end[1])
                return None
            if now >= patience:
                self._fail("it is silent")
            # Times between "nothing there yet" and "there, but held by a cut" need no precision: look again soon.
            wake = patience if due is None else due if due > now else now + TICK_S
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(wake, patience)):
                    await self._changed.wait()

    async def _make(self, incarnation: Incarnation, request: bytes) -> None:
        """Draw items as there is room for them; runs on the maker's side."""
        network = self._network
        reason = ""
        items: AsyncIterator[bytes] | None = None
        try:
            items = self.maker.handler.serve_stream(self.taker.node_id, incarnation, request)
            async for item in items:
                due = network.loop.time() + network.delay() + len(item) / network.bytes_per_s
                self._last_due = max(self._last_due, due)
                self._items.append((self._last_due, item))
                self._changed.set()
                while len(self._items) >= ITEMS_AHEAD:
                    self._changed.clear()
                    await self._changed.wait()
        except RemoteError as error:
            reason = str(error) or "the stream cannot be made"
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()
        self._end = (max(self._last_due, network.loop.time() + network.delay()), reason)
        self._changed.set()

    def _made(self, task: asyncio.Task[None]) -> None:
        """A maker that failed has met a defect, or its disk: not the taker's affair."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.break_off("connection reset by the peer")
            self._network.loop.call_exception_handler(
                {"message": f"the stream from node {self.maker.node_id} failed", "exception": error, "task": task}
            )

    def _fail(self, reason: str) -> None:
        msg = f"stream from node {self.maker.node_id}: {reason}"
        raise RemoteError(msg)
