"""
The bytes between two nodes: one handshake each way, then frames (docs/formats/peer-frames.md says every byte).

All integers are unsigned and big-endian.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from kvorum.core.errors import RemoteError
from kvorum.core.ports import Greeting

if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC: Final = b"\x8bkvpeer\n"
"""First bytes of either direction: not ASCII, with a line feed, so other protocols and newline conversion show."""

PROTOCOL_VERSION: Final = 1

FRAME_HEADER: Final = struct.Struct(">IBBI")
"""Payload length, kind, flags (0 in version 1), CRC-32 of the payload started from the kind."""
FRAME_HEADER_BYTES: Final = FRAME_HEADER.size

HANDSHAKE_HEADER: Final = struct.Struct(">8sBBHI")
"""Magic, protocol version, `HandshakeKind`, body length, CRC-32 of the body started from the kind."""
HANDSHAKE_HEADER_BYTES: Final = HANDSHAKE_HEADER.size
HANDSHAKE_BODY_BYTES_MAX: Final = 4096
"""A greeting has some 100 bytes; a longer one is not a greeting."""

_GREETING: Final = struct.Struct(">16s16sIQHH")
_STAMP: Final = struct.Struct(">d")


class HandshakeKind:
    """What a handshake message is."""

    HELLO: Final = 0
    ACCEPTED: Final = 1
    REFUSED: Final = 2
    STREAM: Final = 3
    """Like HELLO, but this connection is to carry one stream to the dialler and nothing else."""


class FrameKind:
    """Kinds below `FIRST_FOREIGN` belong to the links themselves; the owner of the links numbers the others."""

    PING: Final = 1
    PONG: Final = 2
    STREAM_REQUEST: Final = 3
    STREAM_ITEM: Final = 4
    STREAM_END: Final = 5
    FIRST_FOREIGN: Final = 16


class Handshake(NamedTuple):
    """One handshake message as it came, whatever its version."""

    version: int
    kind: int
    body: bytes


def frame_header(kind: int, parts: Sequence[bytes]) -> bytes:
    """Header of a frame whose payload is these parts, one after the other."""
    length = 0
    crc = kind
    for part in parts:
        length += len(part)
        crc = zlib.crc32(part, crc)
    return FRAME_HEADER.pack(length, kind, 0, crc)


def encode_ping(kind: int, sent_at: float) -> bytes:
    """A whole PING or PONG frame; the time is the dialler's own and comes back as it went."""
    payload = _STAMP.pack(sent_at)
    return frame_header(kind, (payload,)) + payload


def decode_ping(payload: bytes) -> float:
    """
    Time stamp of a PING or PONG.

    Raises:
        RemoteError: The payload is not eight bytes long.
    """
    if len(payload) != _STAMP.size:
        msg = f"ping of {len(payload)} bytes"
        raise RemoteError(msg)
    (sent_at,) = _STAMP.unpack(payload)
    return float(sent_at)


def encode_handshake(kind: int, body: bytes, version: int = PROTOCOL_VERSION) -> bytes:
    """A whole handshake message; this outer form stays the same in every later version."""
    assert len(body) <= HANDSHAKE_BODY_BYTES_MAX
    return HANDSHAKE_HEADER.pack(MAGIC, version, kind, len(body), zlib.crc32(body, kind)) + body


def handshake_bytes(header: bytes) -> int:
    """
    Length of the whole message that begins with this header of `HANDSHAKE_HEADER_BYTES`.

    Raises:
        RemoteError: This is no header, or it announces too much.
    """
    magic, _, _, length, _ = HANDSHAKE_HEADER.unpack(header)
    if magic != MAGIC:
        msg = f"does not speak kvorum's peer protocol (first bytes {magic!r})"
        raise RemoteError(msg)
    if length > HANDSHAKE_BODY_BYTES_MAX:
        msg = f"handshake of {length} bytes; at most {HANDSHAKE_BODY_BYTES_MAX} are taken"
        raise RemoteError(msg)
    return HANDSHAKE_HEADER_BYTES + int(length)


def decode_handshake(data: bytes | bytearray | memoryview) -> tuple[Handshake, int] | None:
    """
    Read the handshake message that ``data`` begins with.

    Returns:
        The message and its length, or None while bytes are missing.

    Raises:
        RemoteError: These are not, or no longer, bytes of a handshake.
    """
    have = len(data)
    prefix = bytes(data[: len(MAGIC)])
    if not MAGIC.startswith(prefix):
        msg = f"does not speak kvorum's peer protocol (first bytes {prefix!r}); is a client or a probe using this port?"
        raise RemoteError(msg)
    if have < HANDSHAKE_HEADER_BYTES:
        return None
    _, version, kind, length, crc = HANDSHAKE_HEADER.unpack_from(data)
    if length > HANDSHAKE_BODY_BYTES_MAX:
        msg = f"handshake of {length} bytes; at most {HANDSHAKE_BODY_BYTES_MAX} are taken"
        raise RemoteError(msg)
    end = HANDSHAKE_HEADER_BYTES + length
    if have < end:
        return None
    body = bytes(data[HANDSHAKE_HEADER_BYTES:end])
    if zlib.crc32(body, kind) != crc:
        msg = "handshake damaged on the way (CRC does not match)"
        raise RemoteError(msg)
    return Handshake(version, kind, body), end


def encode_greeting(greeting: Greeting) -> bytes:
    """Body of HELLO and ACCEPTED."""
    endpoint, version = greeting.client_endpoint.encode(), greeting.version.encode()
    head = _GREETING.pack(
        greeting.cluster_id,
        greeting.birth_id,
        greeting.node_id,
        greeting.incarnation,
        len(endpoint),
        len(version),
    )
    return head + endpoint + version


def decode_greeting(body: bytes) -> Greeting:
    """
    Inverse of `encode_greeting`; bytes after the last known field belong to later releases and are skipped.

    Raises:
        RemoteError: The body is too short or holds no text where text belongs.
    """
    try:
        cluster_id, birth_id, node_id, incarnation, endpoint_bytes, version_bytes = _GREETING.unpack_from(body)
        middle = _GREETING.size + endpoint_bytes
        end = middle + version_bytes
        if end > len(body):
            msg = f"greeting of {len(body)} bytes where {end} are announced"
            raise RemoteError(msg)
        endpoint = body[_GREETING.size : middle].decode()
        return Greeting(cluster_id, birth_id, node_id, incarnation, endpoint, body[middle:end].decode())
    except (struct.error, UnicodeDecodeError) as error:
        msg = f"greeting cannot be read: {error}"
        raise RemoteError(msg) from None
