"""The bytes of the handshake and of frames, as docs/formats/peer-frames.md says them."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.core.errors import RemoteError
from kvorum.core.ports import Greeting
from kvorum.peers import frames
from kvorum.peers.frames import HandshakeKind

GREETING = Greeting(b"C" * 16, b"B" * 16, 2, 0x1122334455667788, "node-2.kvorum:9090", "0.1.0")


def test_frame_header_of_known_parts_has_the_documented_bytes() -> None:
    """Length, kind, no flags, and the CRC of all parts started from the kind."""
    crc = zlib.crc32(b"hello", 16).to_bytes(4, "big")
    assert b"\x00\x00\x00\x05\x10\x00" + crc == frames.frame_header(16, (b"hel", b"", b"lo"))


def test_handshake_of_a_known_greeting_has_the_documented_bytes() -> None:
    """A hello is magic, version, kind, length, CRC, then the greeting field by field."""
    body = (
        b"C" * 16 + b"B" * 16 + b"\x00\x00\x00\x02" + bytes.fromhex("1122334455667788") + b"\x00\x12\x00\x05"
        b"node-2.kvorum:90900.1.0"
    )
    head = b"\x8bkvpeer\n\x01\x00" + len(body).to_bytes(2, "big") + zlib.crc32(body).to_bytes(4, "big")
    assert head + body == frames.encode_handshake(HandshakeKind.HELLO, frames.encode_greeting(GREETING))


@given(
    st.builds(
        Greeting,
        st.binary(min_size=16, max_size=16),
        st.binary(min_size=16, max_size=16),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**64 - 1),
        st.text(max_size=200),
        st.text(max_size=50),
    ),
    st.binary(max_size=30),
)
def test_greeting_any_survives_the_wire_and_later_fields_are_skipped(greeting: Greeting, later: bytes) -> None:
    """Every greeting is read back as it was, whatever a later release appends."""
    message = frames.encode_handshake(HandshakeKind.ACCEPTED, frames.encode_greeting(greeting) + later)
    taken = frames.decode_handshake(message + b"rest")
    assert taken is not None
    handshake, end = taken
    assert (frames.PROTOCOL_VERSION, HandshakeKind.ACCEPTED, len(message)) == (handshake.version, handshake.kind, end)
    assert greeting == frames.decode_greeting(handshake.body)


def test_handshake_cut_anywhere_waits_for_more() -> None:
    """No prefix of a handshake is taken for a whole one, and none for damage."""
    message = frames.encode_handshake(HandshakeKind.HELLO, frames.encode_greeting(GREETING))
    assert all(frames.decode_handshake(message[:cut]) is None for cut in range(len(message)))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "does not speak kvorum's peer protocol"),
        (b"\x80\x01\x00\x01", "does not speak"),
        (b"\x8bkvpeer\r\n", "does not speak"),
        (b"\x8bkvpeer\n\x01\x00\xff\xff\x00\x00\x00\x00", "65535 bytes; at most 4096"),
        (b"\x8bkvpeer\n\x01\x00\x00\x01\x00\x00\x00\x00x", "CRC does not match"),
    ],
)
def test_handshake_of_a_stranger_is_refused_with_the_reason(damage: bytes, said: str) -> None:
    """Other protocols, newline conversion, absurd lengths and flipped bits are told apart."""
    with pytest.raises(RemoteError, match=said):
        frames.decode_handshake(damage)


@pytest.mark.parametrize("body", [b"", b"short", frames.encode_greeting(GREETING)[:-1], b"\xff" * 200])
def test_greeting_that_cannot_be_read_is_a_remote_error(body: bytes) -> None:
    """A body that is too short, or lies about its lengths, is the peer's fault."""
    with pytest.raises(RemoteError, match="greeting"):
        frames.decode_greeting(body)


def test_ping_carries_the_time_there_and_back() -> None:
    """The time stamp of a ping is read back exactly; another length is the peer's fault."""
    frame = frames.encode_ping(frames.FrameKind.PING, 1234.5678)
    assert 1234.5678 == frames.decode_ping(frame[frames.FRAME_HEADER_BYTES :])
    with pytest.raises(RemoteError):
        frames.decode_ping(b"1234567")
