"""
One connection to one node: calls go out at once, replies come back in the order of the calls.

A connection that failed to answer in time is *retired*: it takes no new calls, what is in flight may still finish, and
it closes when nobody waits on it any more, for everything behind a stuck reply is stuck as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

from kvorum_client.errors import KvorumError, ProtocolViolationError
from kvorum_client.wire import MessageScanner

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvorum_client.wire import Method

_SEQUENCE_MAX: Final = 2**31 - 1
_KEEPALIVE_IDLE_S: Final = 5
_KEEPALIVE_INTERVAL_S: Final = 2
_KEEPALIVE_PROBES: Final = 3
_UNACKNOWLEDGED_MS: Final = 10_000


class ConnectionLostError(KvorumError):
    """The connection broke after the call was handed to it: a write may have been done. Never leaves this package."""

    outcome_known = False


class _Call:
    __slots__ = ("method", "reply", "sequence")

    def __init__(self, method: Method, sequence: int, reply: asyncio.Future[Any]) -> None:
        self.method = method
        self.sequence = sequence
        self.reply = reply


class Connection(asyncio.Protocol):
    """Pipelined calls over one transport. A connector creates it; the callbacks run on the loop."""

    def __init__(self, endpoint: str, on_lost: Callable[[Connection], None], on_room: Callable[[], None]) -> None:
        self._endpoint = endpoint
        self._on_room = on_room
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._calls: deque[_Call] = deque()
        self._sequence = 0
        self._buffer = bytearray()
        self._scanner = MessageScanner()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self.failure: ProtocolViolationError | None = None
        """What the peer sent that is no reply."""
        self.retired = False
        """True once no new call may be given to it."""
        self.paused = False
        """True while the peer reads more slowly than we write."""

    # --- for the pool -------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Calls whose reply has not come yet, including those nobody waits for any more."""
        return len(self._calls)

    def call(self, method: Method, request: object) -> asyncio.Future[Any]:
        """
        Send one call now; the future gives the reply struct.

        Cancelling the future forgets the reply and leaves the connection in order.

        Raises:
            Exception: Whatever is wrong with the request's fields; nothing was sent then.
        """
        assert self._transport is not None, "call before the connection stands"
        assert not self.retired, "call on a retired connection"
        self._sequence = sequence = self._sequence % _SEQUENCE_MAX + 1
        message = method.encode(request, sequence)
        reply: asyncio.Future[Any] = self._loop.create_future()
        self._calls.append(_Call(method, sequence, reply))
        self._transport.write(message)
        return reply

    def retire(self) -> None:
        """Take no new calls, and close as soon as nobody waits for a reply."""
        self.retired = True
        if all(call.reply.done() for call in self._calls):
            self.abort()

    def abort(self) -> None:
        """Close now; calls in flight fail."""
        self.retired = True
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the transport is gone."""
        if self._transport is not None:
            await asyncio.shield(self._closed)

    # --- for asyncio --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the socket up: no delay for small calls, and dead peers found within seconds."""
        # Not checked by isinstance: other loops' transports only look like asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in {socket.AF_INET, socket.AF_INET6}:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)

    def data_received(self, data: bytes) -> None:
        """Cut the stream into replies and hand each to its call."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while start < len(buffer):
                end = self._scanner.find_end(buffer, start)
                if not end:
                    break
                self._deliver(bytes(buffer[start:end]))
                start = end
        except ProtocolViolationError as problem:
            problem.endpoint = self._endpoint
            self.failure = problem
            self.abort()
            buffer.clear()
            return
        if start == len(buffer):
            buffer.clear()
        elif start:
            del buffer[:start]

    def _deliver(self, message: bytes) -> None:
        if not self._calls:
            text = "a reply came that nobody asked for"
            raise ProtocolViolationError(text)
        call = self._calls.popleft()
        try:
            reply = call.method.decode(message, call.sequence)
        except Exception as problem:
            if not call.reply.done():
                call.reply.set_exception(_as_violation(problem, self._endpoint))
            if not isinstance(problem, ProtocolViolationError):
                raise _as_violation(problem, self._endpoint) from problem
            raise
        if not call.reply.done():
            call.reply.set_result(reply)
        self._on_room()
        if self.retired:
            self.retire()

    def pause_writing(self) -> None:
        """Hold back new calls until the transport has sent what it holds."""
        self.paused = True

    def resume_writing(self) -> None:
        """Let new calls through again."""
        self.paused = False
        self._on_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is in flight; what was sent may have been done."""
        self.retired = True
        if not self._closed.done():
            self._closed.set_result(None)
        calls, self._calls = self._calls, deque()
        for call in calls:
            if not call.reply.done():
                text = f"the connection to {self._endpoint} was lost during {call.method.name}: {exc or 'closed'}"
                call.reply.set_exception(self.failure or ConnectionLostError(text, endpoint=self._endpoint))
        self._on_lost(self)


def _as_violation(problem: Exception, endpoint: str) -> ProtocolViolationError:
    if isinstance(problem, ProtocolViolationError):
        return problem
    return ProtocolViolationError(f"the reply cannot be read: {problem}", endpoint=endpoint)
