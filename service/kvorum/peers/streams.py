"""
Streams: one answer of any length over a connection of its own, beside the links and never in their way.

The node that wants it dials, greets with a handshake of kind STREAM, and asks; items come back until an end. Both ends
hold a few items at most: what the taker does not take, the maker does not make.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from typing import TYPE_CHECKING, Final, NoReturn, cast

from kvorum.core.errors import LocalError, RemoteError
from kvorum.core.limits import PEER_FRAME_BYTES_MAX
from kvorum.peers.connection import tune
from kvorum.peers.dialling import dial
from kvorum.peers.frames import (
    FRAME_HEADER,
    FRAME_HEADER_BYTES,
    HANDSHAKE_HEADER_BYTES,
    PROTOCOL_VERSION,
    FrameKind,
    Handshake,
    HandshakeKind,
    decode_greeting,
    decode_handshake,
    encode_greeting,
    encode_handshake,
    frame_header,
    handshake_bytes,
)
from kvorum.peers.limits import (
    CONNECT_TIMEOUT_S,
    HANDSHAKE_TIMEOUT_S,
    STREAM_IDLE_S,
    STREAM_REQUEST_BYTES_MAX,
    STREAM_STALL_S,
)
from kvorum.peers.link import split_endpoint

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from kvorum.core.ids import NodeId
    from kvorum.core.ports import PeerHandler
    from kvorum.peers.connection import AcceptedConnection

_READ_BUFFER_BYTES: Final = 256 * 1024
_REASON_BYTES_MAX: Final = 1024


async def serve_items(connection: AcceptedConnection, make: Callable[[], AsyncIterator[bytes]]) -> None:
    """
    Send every item that ``make`` promises, each once the peer has room for it, then the end.

    A `RemoteError` of the maker becomes the text of the end.

    Ends early, without an error, when the peer goes.
    """
    reason = ""
    items: AsyncIterator[bytes] | None = None
    try:
        items = make()
        async for item in items:
            if len(item) > PEER_FRAME_BYTES_MAX:
                msg = f"an item of {len(item)} bytes must not be sent; the largest is {PEER_FRAME_BYTES_MAX}"
                raise LocalError(msg)
            await connection.write_item(FrameKind.STREAM_ITEM, item)
            if connection.closing:
                return
            # Others have their turn, even if the maker never waits and the peer takes everything at once.
            await asyncio.sleep(0)
    except RemoteError as error:
        reason = str(error) or "the stream cannot be made"
    except TimeoutError:
        connection.fail(f"took nothing of its stream for {STREAM_STALL_S:.0f} s")
        return
    except BaseException:
        connection.fail("the stream failed")
        raise
    finally:
        await _close(items)
    with contextlib.suppress(TimeoutError):
        await connection.write_item(FrameKind.STREAM_END, reason.encode()[:_REASON_BYTES_MAX])
    connection.finish("the stream is complete")


async def _close(items: AsyncIterator[bytes] | None) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()


class StreamReader:
    """The taking end of one stream, over one connection."""

    def __init__(self, peer: NodeId, endpoint: str, handler: PeerHandler) -> None:
        self._peer = peer
        self._endpoint = endpoint
        self._handler = handler
        self._writer: asyncio.StreamWriter | None = None
        self._cut = ""

    def cut(self, reason: str) -> None:
        """End it from outside; whoever waits for an item hears the reason."""
        self._cut = reason
        if self._writer is not None:
            self._writer.transport.abort()

    async def items(self, request: bytes) -> AsyncGenerator[bytes, None]:
        """
        Everything the peer makes of the request.

        Raises:
            RemoteError: See `core.ports.PeerLinks.fetch`.
        """
        if len(request) > STREAM_REQUEST_BYTES_MAX:
            msg = f"a request of {len(request)} bytes must not be sent; the largest is {STREAM_REQUEST_BYTES_MAX}"
            raise LocalError(msg)
        try:
            reader = await self._dial()
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                await self._shake_hands(reader)
            assert self._writer is not None
            self._writer.write(frame_header(FrameKind.STREAM_REQUEST, (request,)) + request)
            while True:
                async with asyncio.timeout(STREAM_IDLE_S):
                    kind, payload = await _read_frame(reader)
                if kind == FrameKind.STREAM_END:
                    break
                if kind != FrameKind.STREAM_ITEM:
                    self._fail(f"frame of kind {kind} in a stream")
                yield payload
            if payload:
                self._fail(payload.decode(errors="replace"))
        except TimeoutError:
            self._fail("it is silent")
        except EOFError:
            self._fail("the connection was closed in the middle")
        except OSError as error:
            self._fail(str(error) or type(error).__name__)
        finally:
            if self._writer is not None:
                self._writer.transport.abort()

    async def _dial(self) -> asyncio.StreamReader:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_READ_BUFFER_BYTES, loop=loop)
        try:
            host, port = split_endpoint(self._endpoint)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                transport, protocol = await dial(
                    loop, lambda: asyncio.StreamReaderProtocol(reader, loop=loop), host, port
                )
        except TimeoutError:
            self._fail(f"no connection within {CONNECT_TIMEOUT_S} s")
        except (OSError, ValueError) as error:
            self._fail(f"cannot connect: {error}")
        # uvloop's transports are write transports without saying so.
        self._writer = writer = asyncio.StreamWriter(cast("asyncio.WriteTransport", transport), protocol, reader, loop)
        tune(writer.transport)
        return reader

    async def _shake_hands(self, reader: asyncio.StreamReader) -> None:
        assert self._writer is not None
        self._writer.write(encode_handshake(HandshakeKind.STREAM, encode_greeting(self._handler.greet())))
        answer = await _read_handshake(reader)
        if answer.kind == HandshakeKind.REFUSED:
            self._fail(f"refused: {answer.body.decode(errors='replace')}")
        if answer.version != PROTOCOL_VERSION or answer.kind != HandshakeKind.ACCEPTED:
            self._fail(f"version {answer.version} of the peer protocol, kind {answer.kind}, is not understood")
        greeting = decode_greeting(answer.body)
        if greeting.node_id != self._peer:
            self._fail(f"the node there says it is node {greeting.node_id}")
        reason = self._handler.admit(greeting)
        if reason is not None:
            self._fail(f"not admitted here: {reason}")

    def _fail(self, reason: str) -> NoReturn:
        msg = f"stream from node {self._peer} at {self._endpoint}: {self._cut or reason}"
        raise RemoteError(msg) from None


async def _read_handshake(reader: asyncio.StreamReader) -> Handshake:
    data = await reader.readexactly(HANDSHAKE_HEADER_BYTES)
    data += await reader.readexactly(handshake_bytes(data) - len(data))
    taken = decode_handshake(data)
    assert taken is not None, "a whole handshake was read"
    return taken[0]


async def _read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    length, kind, flags, crc = FRAME_HEADER.unpack(await reader.readexactly(FRAME_HEADER_BYTES))
    if length > PEER_FRAME_BYTES_MAX or flags:
        msg = f"frame of kind {kind}, flags {flags}, {length} bytes in a stream"
        raise RemoteError(msg)
    payload = await reader.readexactly(length)
    if zlib.crc32(payload, kind) != crc:
        msg = f"item of {length} bytes damaged on the way (CRC does not match)"
        raise RemoteError(msg)
    return kind, payload
