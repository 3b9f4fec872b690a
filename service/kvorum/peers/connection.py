"""
The two ends of one TCP connection: reassembly of frames, the handshake, and nothing about who dials when.

Bytes are read straight into a buffer of our own and copied once, when a whole frame has been checked.
"""

from __future__ import annotations

import asyncio
import socket
import zlib
from typing import TYPE_CHECKING, Final, Protocol, cast

from kvorum.core.errors import RemoteError
from kvorum.core.limits import PEER_FRAME_BYTES_MAX
from kvorum.peers.frames import (
    FRAME_HEADER,
    FRAME_HEADER_BYTES,
    PROTOCOL_VERSION,
    FrameKind,
    Handshake,
    HandshakeKind,
    decode_greeting,
    decode_handshake,
    decode_ping,
    encode_greeting,
    encode_handshake,
    encode_ping,
    frame_header,
)
from kvorum.peers.limits import (
    HANDSHAKE_TIMEOUT_S,
    PING_TICKS_MAX,
    QUIET_TICKS_MAX,
    RECEIVE_BUFFER_BYTES,
    STREAM_REQUEST_BYTES_MAX,
    STREAM_STALL_S,
    STREAM_WRITE_HIGH_BYTES,
    TICK_S,
    WRITE_HIGH_BYTES,
    WRITE_LOW_BYTES,
)

if TYPE_CHECKING:
    from kvorum.core.ids import Incarnation, NodeId
    from kvorum.core.ports import Greeting, PeerHandler

_unpack_header = FRAME_HEADER.unpack_from
_crc32 = zlib.crc32
_FIRST_FOREIGN: Final = FrameKind.FIRST_FOREIGN
_REASON_BYTES_MAX: Final = 1024
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3))


def tune(transport: asyncio.BaseTransport, user_timeout_s: float = PING_TICKS_MAX * TICK_S) -> None:
    """
    Send small frames at once and let the kernel notice a peer that vanished with its machine.

    ``user_timeout_s`` is how long written bytes may stay unacknowledged or unwanted before the connection is dead.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in _KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(user_timeout_s * 1000))


def address_of(transport: asyncio.BaseTransport) -> str:
    """Where the other end of a connection is, for log lines only."""
    peername = transport.get_extra_info("peername")
    return f"{peername[0]}:{peername[1]}" if peername else "an unknown address"


class FramedConnection(asyncio.BufferedProtocol):
    """Handshake first, then frames; whatever is damaged ends the connection with a reason."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done with the reason once the connection is gone."""
        self.greeting: Greeting | None = None
        """What the peer said of itself; None until it is admitted."""
        self.frames_received = 0
        self.bytes_received = 0
        self._view = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self._filled = 0
        self._reason: str | None = None
        self._timeout: asyncio.TimerHandle | None = None

    # --- asyncio.BufferedProtocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the handshake clock."""
        # uvloop's transports have the methods of `asyncio.Transport` but do not derive from it.
        self.transport = stream = cast("asyncio.Transport", transport)
        stream.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)
        tune(stream)
        loop = asyncio.get_running_loop()
        self._timeout = loop.call_later(HANDSHAKE_TIMEOUT_S, self.fail, f"no handshake within {HANDSHAKE_TIMEOUT_S} s")

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the size is ours to choose
        """Room for the next read; there always is some."""
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take every whole message that has come."""
        if self._reason is not None:
            return
        self._filled += nbytes
        self.bytes_received += nbytes
        try:
            at = 0 if self.greeting is not None else self._take_handshake()
            if self.greeting is not None:
                self._take_frames(at)
        except RemoteError as error:
            self.fail(str(error))

    def eof_received(self) -> bool:
        """Close our side as well."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits for the end."""
        if self._timeout is not None:
            self._timeout.cancel()
        if self._reason is None:
            self._reason = f"connection lost: {exc}" if exc is not None else "connection closed by the peer"
        if not self.over.done():
            self.over.set_result(self._reason)

    # --- for owners ---

    @property
    def closing(self) -> bool:
        """True from `fail` or `finish` on; frames are no longer taken."""
        return self._reason is not None

    def fail(self, reason: str) -> None:
        """Cut the connection now; `over` follows later, from the loop."""
        if self._reason is None:
            self._reason = reason
            assert self.transport is not None
            self.transport.abort()

    def finish(self, reason: str) -> None:
        """Close once written bytes have left."""
        if self._reason is None:
            self._reason = reason
            assert self.transport is not None
            self.transport.close()

    # --- for the two ends ---

    def _greeted(self, handshake: Handshake) -> None:
        """Judge the peer's handshake message: set ``greeting`` or end the connection."""
        raise NotImplementedError

    def _frame_received(self, kind: int, payload: bytes) -> None:
        raise NotImplementedError

    # --- reassembly ---

    def _take_handshake(self) -> int:
        taken = decode_handshake(self._view[: self._filled])
        if taken is None:
            return 0
        handshake, end = taken
        self._greeted(handshake)
        if self._timeout is not None and self.greeting is not None:
            self._timeout.cancel()
        return end

    def _take_frames(self, at: int) -> None:
        view, end = self._view, self._filled
        wanted = FRAME_HEADER_BYTES
        while end - at >= FRAME_HEADER_BYTES:
            length, kind, flags, crc = _unpack_header(view, at)
            wanted = FRAME_HEADER_BYTES + length
            if length > PEER_FRAME_BYTES_MAX or flags:
                msg = f"frame of kind {kind}, flags {flags}, {length} bytes; at most {PEER_FRAME_BYTES_MAX} are taken"
                raise RemoteError(msg)
            following = at + wanted
            if following > end:
                break
            payload = bytes(view[at + FRAME_HEADER_BYTES : following])
            if _crc32(payload, kind) != crc:
                msg = f"frame of kind {kind} and {length} bytes damaged on the way (CRC does not match)"
                raise RemoteError(msg)
            self.frames_received += 1
            self._frame_received(kind, payload)
            if self._reason is not None:
                return
            at = following
            wanted = FRAME_HEADER_BYTES
        self._keep_rest(at, wanted)

    def _keep_rest(self, at: int, wanted: int) -> None:
        """Make room for the rest of a frame of ``wanted`` bytes that begins at ``at``."""
        rest = self._filled - at
        # A frame larger than the buffer gets one that fits it exactly, so that its bytes move once more and not many
        # times; after it the usual size returns.
        fitting = max(wanted, RECEIVE_BUFFER_BYTES)
        if len(self._view) != fitting:
            view = memoryview(bytearray(fitting))
            view[:rest] = self._view[at : self._filled]
            self._view = view
        elif rest and at:
            self._view[:rest] = self._view[at : self._filled]
        self._filled = rest


class DialledConnection(FramedConnection):
    """Our end of a link we dialled: greets first, sends frames, receives pongs."""

    def __init__(self, peer: NodeId, handler: PeerHandler, owner: LinkOwner) -> None:
        super().__init__()
        self._peer = peer
        self._handler = handler
        self._owner = owner
        self._unanswered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say who we are."""
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.write(encode_handshake(HandshakeKind.HELLO, encode_greeting(self._handler.greet())))

    def connection_lost(self, exc: Exception | None) -> None:
        """Take no more frames, then tell the end."""
        self._owner.broken()
        super().connection_lost(exc)

    def fail(self, reason: str) -> None:
        """Take no more frames from now on."""
        self._owner.broken()
        super().fail(reason)

    def pause_writing(self) -> None:
        """The peer is slower than we are: bulk frames wait."""
        self._owner.writing_paused()

    def resume_writing(self) -> None:
        """Room again."""
        self._owner.writing_resumed()

    def tick(self, now: float) -> None:
        """Ask whether the peer is alive; give up after `PING_TICKS_MAX` silent ticks."""
        # Ticks are counted and not seconds: after a pause of our own process one tick fires, before the pongs that
        # came meanwhile are read.
        if self._unanswered >= PING_TICKS_MAX:
            self.fail(f"no answer to pings for {PING_TICKS_MAX * TICK_S:.0f} s")
            return
        self._unanswered += 1
        assert self.transport is not None
        self.transport.write(encode_ping(FrameKind.PING, now))

    def _greeted(self, handshake: Handshake) -> None:
        if handshake.kind == HandshakeKind.REFUSED:
            said = handshake.body.decode(errors="replace")
            self.fail(f"refused by the peer: {said}")
            self._handler.turned_away(self._peer, said)
            return
        if handshake.version != PROTOCOL_VERSION or handshake.kind != HandshakeKind.ACCEPTED:
            self.fail(
                f"peer answers with version {handshake.version} of the peer protocol, kind {handshake.kind}; "
                f"this release speaks version {PROTOCOL_VERSION}"
            )
            return
        greeting = decode_greeting(handshake.body)
        if greeting.node_id != self._peer:
            reason: str | None = (
                f"the node there says it is node {greeting.node_id}, not {self._peer}; check the order of "
                "[consensus] endpoints on all nodes"
            )
        else:
            reason = self._handler.admit(greeting)
        if reason is not None:
            self.fail(f"not admitted here: {reason}")
            return
        self.greeting = greeting
        self._owner.established(self, greeting)

    def _frame_received(self, kind: int, payload: bytes) -> None:
        if kind != FrameKind.PONG:
            msg = f"frame of kind {kind} on a link that only brings pongs"
            raise RemoteError(msg)
        self._unanswered = 0
        self._owner.answered(decode_ping(payload))


class AcceptedConnection(FramedConnection):
    """Our end of a link a peer dialled: judges the caller, receives frames, answers pings."""

    def __init__(self, node_id: NodeId, handler: PeerHandler, owner: CallerOwner) -> None:
        super().__init__()
        self._node_id = node_id
        self._handler = handler
        self._owner = owner
        self._peer = -1
        self._incarnation = 0
        self._quiet_ticks = 0
        self._bytes_seen = 0
        self._streams = False
        """True once the caller asked for a stream: one request comes, and then nothing."""
        self._asking: asyncio.TimerHandle | None = None
        """Ends a caller that wants a stream and does not say which."""
        self._room = asyncio.Event()
        self._room.set()
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register, so that strangers are counted."""
        super().connection_made(transport)
        self.address = address_of(transport)
        self._owner.caller_came(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Deregister."""
        super().connection_lost(exc)
        self._room.set()
        if self._asking is not None:
            self._asking.cancel()
        self._owner.caller_left(self, self._reason or "")

    def pause_writing(self) -> None:
        """The peer takes a stream more slowly than it is made."""
        self._room.clear()

    def resume_writing(self) -> None:
        """Room again."""
        self._room.set()

    async def write_item(self, kind: int, payload: bytes) -> None:
        """
        Send one frame of a stream and wait until there is room for another, or the connection is gone.

        Raises:
            TimeoutError: The peer took nothing for `STREAM_STALL_S`.
        """
        if self.closing:
            return
        assert self.transport is not None
        self.transport.writelines((frame_header(kind, (payload,)), payload))
        if not self._room.is_set():
            async with asyncio.timeout(STREAM_STALL_S):
                await self._room.wait()

    def tick(self) -> None:
        """Drop a caller from whom nothing came for `QUIET_TICKS_MAX` ticks."""
        if self.bytes_received != self._bytes_seen:
            self._bytes_seen = self.bytes_received
            self._quiet_ticks = 0
            return
        self._quiet_ticks += 1
        if self._quiet_ticks >= QUIET_TICKS_MAX:
            self.fail(f"silent for {QUIET_TICKS_MAX * TICK_S:.0f} s")

    def _greeted(self, handshake: Handshake) -> None:
        if handshake.kind not in {HandshakeKind.HELLO, HandshakeKind.STREAM}:
            msg = f"handshake of kind {handshake.kind} where a hello belongs"
            raise RemoteError(msg)
        if handshake.version != PROTOCOL_VERSION:
            self._refuse(
                f"version {handshake.version} of the peer protocol; node {self._node_id} speaks "
                f"version {PROTOCOL_VERSION}: run the same release on all nodes"
            )
            return
        greeting = decode_greeting(handshake.body)
        if greeting.node_id == self._node_id:
            reason: str | None = f"node {self._node_id} is the node called itself; two nodes have one node id"
        else:
            reason = self._handler.admit(greeting)
        streams = handshake.kind == HandshakeKind.STREAM
        if reason is None and streams:
            reason = self._owner.stream_refused()
        if reason is not None:
            self._refuse(reason)
            return
        self.greeting = greeting
        self._peer, self._incarnation = greeting.node_id, greeting.incarnation
        self._streams = streams
        assert self.transport is not None
        if streams:
            # The patience with a slow taker is the stream's own, not that of heartbeats.
            tune(self.transport, STREAM_STALL_S)
            self.transport.set_write_buffer_limits(high=STREAM_WRITE_HIGH_BYTES)
            loop = asyncio.get_running_loop()
            self._asking = loop.call_later(HANDSHAKE_TIMEOUT_S, self.fail, "it asks for a stream and not for which")
        self.transport.write(encode_handshake(HandshakeKind.ACCEPTED, encode_greeting(self._handler.greet())))
        if streams:
            self._owner.stream_admitted(self)
        else:
            self._owner.caller_admitted(self, greeting)

    def _refuse(self, reason: str) -> None:
        assert self.transport is not None
        body = reason.encode()[:_REASON_BYTES_MAX]
        self.transport.write(encode_handshake(HandshakeKind.REFUSED, body))
        self.finish(f"refused: {reason}")

    def _frame_received(self, kind: int, payload: bytes) -> None:
        if self._streams:
            self._stream_asked(kind, payload)
        elif kind >= _FIRST_FOREIGN:
            self._handler.frame_received(self._peer, self._incarnation, kind, payload)
        elif kind == FrameKind.PING:
            assert self.transport is not None
            self.transport.write(encode_ping(FrameKind.PONG, decode_ping(payload)))
        else:
            msg = f"frame of kind {kind}, which this release does not know"
            raise RemoteError(msg)

    def _stream_asked(self, kind: int, payload: bytes) -> None:
        if kind != FrameKind.STREAM_REQUEST or self._asking is None or len(payload) > STREAM_REQUEST_BYTES_MAX:
            msg = f"frame of kind {kind} and {len(payload)} bytes where one request for a stream belongs"
            raise RemoteError(msg)
        self._asking.cancel()
        self._asking = None
        self._owner.stream_asked(self, self._peer, self._incarnation, payload)


class LinkOwner(Protocol):
    """What a dialled connection tells its link."""

    def established(self, connection: DialledConnection, greeting: Greeting) -> None:
        """Both sides admitted each other."""
        ...

    def broken(self) -> None:
        """The connection is as good as gone."""
        ...

    def writing_paused(self) -> None:
        """The transport holds enough."""
        ...

    def writing_resumed(self) -> None:
        """The transport takes more."""
        ...

    def answered(self, sent_at: float) -> None:
        """A pong came back for the ping of that time."""
        ...


class CallerOwner(Protocol):
    """What an accepted connection tells the listener."""

    def caller_came(self, connection: AcceptedConnection) -> None:
        """Somebody connected."""
        ...

    def caller_admitted(self, connection: AcceptedConnection, greeting: Greeting) -> None:
        """It is a peer."""
        ...

    def caller_left(self, connection: AcceptedConnection, reason: str) -> None:
        """It is gone."""
        ...

    def stream_refused(self) -> str | None:
        """Why no stream can be served now; None if one can."""
        ...

    def stream_admitted(self, connection: AcceptedConnection) -> None:
        """It is a peer that is about to ask for a stream."""
        ...

    def stream_asked(
        self, connection: AcceptedConnection, peer: NodeId, incarnation: Incarnation, request: bytes
    ) -> None:
        """Serve it this stream."""
        ...
