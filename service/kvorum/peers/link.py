"""One outgoing link: dials a peer for ever, queues frames while it stands, tells its owner when it comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import zlib
from collections import deque
from typing import TYPE_CHECKING, Final

from kvorum.core.errors import LocalError
from kvorum.core.limits import PEER_FRAME_BYTES_MAX, PEER_QUEUE_BYTES_MAX
from kvorum.observe.histogram import LatencyHistogram
from kvorum.peers.connection import DialledConnection
from kvorum.peers.dialling import dial
from kvorum.peers.frames import FRAME_HEADER, FRAME_HEADER_BYTES, FrameKind
from kvorum.peers.limits import (
    BACKOFF_S_MAX,
    BACKOFF_S_MIN,
    CONNECT_TIMEOUT_S,
    FRAME_OVERHEAD_BYTES,
    STEADY_S,
    STOP_FLUSH_S,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

    from kvorum.core.ids import NodeId
    from kvorum.core.ports import Greeting, PeerHandler
    from kvorum.peers.quiet_log import QuietLog

DNS_REASONS: Final[dict[int | None, str]] = {
    socket.EAI_NONAME: "unknown_name",
    socket.EAI_AGAIN: "try_again",
    None: "other",
}
"""What the resolver says, as the metrics spell it."""

_FIRST_FOREIGN: Final = FrameKind.FIRST_FOREIGN
_pack_header = FRAME_HEADER.pack
_crc32 = zlib.crc32


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """
    Host and port of ``host:port``; an IPv6 host stands in brackets.

    Raises:
        ValueError: There is no port, or it is no port number.
    """
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        msg = f"{endpoint!r} is not host:port"
        raise ValueError(msg)
    return host.removeprefix("[").removesuffix("]"), int(port)


class OutgoingLink:
    """
    Frames from this node to one peer.

    Bulk frames wait in a queue of our own while the transport holds more than it should; urgent ones pass that queue.
    """

    def __init__(
        self,
        peer: NodeId,
        endpoints: Mapping[NodeId, str],
        handler: PeerHandler,
        chance: random.Random,
        log: QuietLog,
    ) -> None:
        self._peer = peer
        self._endpoints = endpoints
        self._handler = handler
        self._chance = chance
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._connection: DialledConnection | None = None
        self._transport: asyncio.Transport | None = None
        """Where frames go; None while the link is down, whatever the socket thinks."""
        self._dialled = ""
        """The endpoint of the present connection, or of the last attempt."""
        self._leaving = False
        self._up_since: float | None = None
        """Since when the handler believes the link is up."""
        self._paused = False
        self._waiting: deque[tuple[bytes, ...]] = deque()
        self._waiting_bytes = 0
        self._hurry = asyncio.Event()
        self._backoff_s = BACKOFF_S_MIN
        self._bytes_sent = 0
        self._frames_sent = 0
        self._frames_refused = 0
        self._dials = 0
        self._dials_failed = 0
        self.dns_failures = dict.fromkeys(DNS_REASONS.values(), 0)
        """Dials that failed because the peer's name was not found, by reason."""
        self._links_lost = 0
        self._round_trip_s = 0.0
        self.round_trips = LatencyHistogram(0.00005, 16)

    # --- sending ---

    def send(self, kind: int, parts: Sequence[bytes], *, urgent: bool) -> bool:
        """See `core.ports.PeerLinks.send`."""
        transport = self._transport
        if transport is None:
            self._frames_refused += 1
            return False
        length = 0
        crc = kind
        for part in parts:
            length += len(part)
            crc = _crc32(part, crc)
        if length > PEER_FRAME_BYTES_MAX or kind < _FIRST_FOREIGN:
            msg = f"frame of kind {kind} and {length} bytes must not be sent; the largest is {PEER_FRAME_BYTES_MAX}"
            raise LocalError(msg)
        header = _pack_header(length, kind, 0, crc)
        size = FRAME_HEADER_BYTES + length
        if self._paused and not self._make_room(transport, size):
            return False
        self._bytes_sent += size
        self._frames_sent += 1
        if self._paused and not urgent:
            self._waiting.append((header, *parts))
            self._waiting_bytes += size + FRAME_OVERHEAD_BYTES
        else:
            transport.writelines((header, *parts))
        return True

    def _make_room(self, transport: asyncio.Transport, size: int) -> bool:
        """Drop the link if a frame of this size is more than may wait for one peer."""
        waiting = self._waiting_bytes + transport.get_write_buffer_size()
        if waiting + size + FRAME_OVERHEAD_BYTES <= PEER_QUEUE_BYTES_MAX:
            return True
        self._frames_refused += 1
        assert self._connection is not None
        self._connection.fail(f"{waiting} bytes wait for it, more than it may fall behind")
        return False

    def _forget_transport(self) -> None:
        self._transport = None
        self._paused = False
        self._waiting.clear()
        self._waiting_bytes = 0

    # --- LinkOwner ---

    def established(self, connection: DialledConnection, greeting: Greeting) -> None:
        """Frames may leave from now on."""
        assert self._transport is None
        assert self._up_since is None
        self._transport = connection.transport
        self._up_since = self._loop.time()
        self._log.forget(f"link {self._peer}")
        self._log.info("peer link up", peer=self._peer, endpoint=self._dialled)
        self._handler.link_up(self._peer, greeting)

    def broken(self) -> None:
        """Nothing leaves any more; `run` reports it when the connection is gone."""
        self._forget_transport()

    def writing_paused(self) -> None:
        """Bulk frames wait from now on."""
        self._paused = self._transport is not None

    def writing_resumed(self) -> None:
        """Hand waiting frames to the transport until it has enough again."""
        self._paused = False
        waiting, transport = self._waiting, self._transport
        while waiting and transport is not None and not self._paused:
            frame = waiting.popleft()
            self._waiting_bytes -= sum(map(len, frame)) + FRAME_OVERHEAD_BYTES
            transport.writelines(frame)  # may call `writing_paused` at once

    def answered(self, sent_at: float) -> None:
        """Note a round trip."""
        self._round_trip_s = self._loop.time() - sent_at
        self.round_trips.observe(self._round_trip_s)

    # --- dialling ---

    def tick(self, now: float) -> None:
        """Ping, if the link stands."""
        if self._transport is not None and self._connection is not None and not self._connection.closing:
            self._connection.tick(now)

    def hurry(self) -> None:
        """The peer is certainly there: dial now and not at the end of the pause."""
        if self._transport is None:
            self._hurry.set()

    async def run(self) -> None:
        """Dial, live, pause, until `leave` or cancellation."""
        while True:
            reason = await self._live_once()
            if self._leaving:
                return
            self._log.warning(
                "peer link down",
                subject=f"link {self._peer}",
                reason=reason,
                peer=self._peer,
                endpoint=self._dialled,
            )
            pause = self._backoff_s * (0.5 + 0.5 * self._chance.random())
            self._backoff_s = min(2 * self._backoff_s, BACKOFF_S_MAX)
            # The first part is slept in any case, so that two nodes that hurry each other cannot spin.
            await asyncio.sleep(BACKOFF_S_MIN / 2)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause - BACKOFF_S_MIN / 2):
                    await self._hurry.wait()

    def moved(self, endpoints: Mapping[NodeId, str]) -> None:
        """Dial what this says from now on; a connection to another endpoint than that ends."""
        self._endpoints = endpoints
        endpoint = endpoints[self._peer]
        if self._dialled in {"", endpoint}:
            return
        self._hurry.set()
        if self._connection is not None and self._connection.transport is not None:
            self._part(f"the peer moved to {endpoint}")

    def leave(self, task: asyncio.Task[None]) -> None:
        """The peer is none any more: close the link and end the task of `run`; a link that was up is reported down."""
        self._leaving = True
        if self._up_since is not None:
            self._part("it is no member of the cluster any more")
        else:
            task.cancel()

    def _part(self, reason: str) -> None:
        """Close the connection once what was written has left, soon in any case."""
        connection = self._connection
        assert connection is not None
        assert connection.transport is not None
        self._forget_transport()
        connection.finish(reason)
        self._loop.call_later(STOP_FLUSH_S, connection.transport.abort)

    async def _live_once(self) -> str:
        """Dial and wait until the connection is over; returns why."""
        self._hurry.clear()
        self._dials += 1
        try:
            self._dialled = self._endpoints[self._peer]
            host, port = split_endpoint(self._dialled)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await dial(self._loop, self._new_connection, host, port)
        except TimeoutError:
            self._dials_failed += 1
            return f"no connection within {CONNECT_TIMEOUT_S} s"
        except (OSError, ValueError) as error:
            self._dials_failed += 1
            if isinstance(error, socket.gaierror):
                self.dns_failures[DNS_REASONS.get(error.errno, "other")] += 1
            return f"cannot connect: {error}"
        if self._dialled != self._endpoints[self._peer]:
            connection.fail("the peer moved while it was dialled")
        try:
            # Shielded: cancelling this task must not cancel the future that `connection_lost` sets.
            reason = await asyncio.shield(connection.over)
        except asyncio.CancelledError:
            connection.finish("this node stops")
            raise
        self._ended(reason)
        return reason

    def _new_connection(self) -> DialledConnection:
        self._connection = DialledConnection(self._peer, self._handler, self)
        return self._connection

    def _ended(self, reason: str) -> None:
        self._connection = None
        self._forget_transport()
        since, self._up_since = self._up_since, None
        if since is None:
            self._dials_failed += 1
            return
        self._links_lost += 1
        if self._loop.time() - since >= STEADY_S:
            self._backoff_s = BACKOFF_S_MIN
        self._handler.link_down(self._peer, reason)

    async def drained(self) -> None:
        """Wait until the last connection is gone; after the task of `run` was cancelled."""
        if self._connection is not None and self._connection.transport is not None:
            await self._connection.over

    def cut(self) -> None:
        """End the connection without waiting for anything."""
        if self._connection is not None and self._connection.transport is not None:
            self._connection.transport.abort()

    def statistics(self) -> dict[str, float]:
        """Figures of this link; see `TcpPeerLinks.statistics`."""
        return {
            "up": float(self._transport is not None),
            "bytes_sent": self._bytes_sent,
            "frames_sent": self._frames_sent,
            "frames_refused": self._frames_refused,
            "dials": self._dials,
            "dials_failed": self._dials_failed,
            "links_lost": self._links_lost,
            "bytes_waiting": self._waiting_bytes,
            "round_trip_s": self._round_trip_s,
        }
