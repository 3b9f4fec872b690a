"""Finding message ends, and refusing what is no message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thriftpy2.protocol.cybin import TCyBinaryProtocol
from thriftpy2.thrift import TApplicationException, TMessageType
from thriftpy2.transport.memory import TCyMemoryBuffer

import kvorum_idl
from kvorum_client import ProtocolViolationError
from kvorum_client.wire import MessageScanner, Method


def encode(name: str, result: object, kind: int = TMessageType.REPLY, sequence: int = 7) -> bytes:
    out = TCyMemoryBuffer(b"", 4096)
    protocol = TCyBinaryProtocol(out)
    protocol.write_message_begin(name, kind, sequence)
    protocol.write_struct(result)
    return out.getvalue()


def range_reply(pairs: list[tuple[bytes, bytes]]) -> bytes:
    reply = kvorum_idl.GetRangeResponse(
        key_values=[kvorum_idl.KeyValue(key=key, value=value) for key, value in pairs], success=True, has_more=False
    )
    return encode("getRange", kvorum_idl.TransactionalKV.getRange_result(success=reply))


@given(
    st.lists(st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=300)), max_size=6), min_size=1, max_size=4),
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
)
def test_scanner_any_segmentation_finds_every_message_end(messages, cuts):
    """However the stream is cut into segments, the scanner finds exactly the message boundaries."""
    encoded = [range_reply(pairs) for pairs in messages]
    stream = b"".join(encoded)
    scanner, buffer, found, at, turn = MessageScanner(), bytearray(), [], 0, 0
    while at < len(stream):
        step = cuts[turn % len(cuts)]
        turn += 1
        buffer += stream[at : at + step]
        at += step
        while end := scanner.find_end(buffer, 0):
            found.append(bytes(buffer[:end]))
            del buffer[:end]

    assert encoded == found
    assert not buffer


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "strict Thrift"),
        (bytes.fromhex("80010002 00000003 676574 00000007 0b0000 ffffffff"), "claims"),
        (bytes.fromhex("80010002 00000003 676574 00000007 0f0000 0c 7fffffff"), "claims"),
        (bytes.fromhex("80010002 00000003 676574 00000007 630000 00000000"), "type 99"),
        (bytes.fromhex("80010002 00000003 676574 00000007") + bytes.fromhex("0c0000") * 80, "nested"),
        (bytes.fromhex("80010002 0000ffff 676574"), "method name"),
    ],
)
def test_scanner_bytes_that_are_no_reply_are_refused(data, match):
    """Bad starts, absurd lengths, unknown types and deep nesting end the connection instead of waiting for ever."""
    with pytest.raises(ProtocolViolationError, match=match):
        MessageScanner().find_end(data, 0)


def test_method_reply_of_another_call_is_refused():
    """A reply must carry the sequence number and the name of its call."""
    method = Method("getRange", "GetRange")

    with pytest.raises(ProtocolViolationError, match="number 8"):
        method.decode(range_reply([]), 8)
    with pytest.raises(ProtocolViolationError, match="expected the reply to get "):
        Method("get", "Get").decode(range_reply([]), 7)


def test_method_unknown_to_the_server_says_so():
    """An application exception becomes an error that names the method."""
    problem = TApplicationException(TApplicationException.UNKNOWN_METHOD, "unknown method watch")
    data = encode("get", problem, TMessageType.EXCEPTION)

    with pytest.raises(ProtocolViolationError, match="cannot do get: unknown method"):
        Method("get", "Get").decode(data, 7)


def test_method_request_written_is_what_a_server_reads():
    """A call carries its name, number and fields."""
    method = Method("setKey", "Set")
    data = method.encode(method.request({"key": b"k\x00", "value": b"", "column_family": None}), 3)

    protocol = TCyBinaryProtocol(TCyMemoryBuffer(data, len(data)))
    assert protocol.read_message_begin() == ("setKey", TMessageType.CALL, 3)
    arguments = protocol.read_struct(kvorum_idl.TransactionalKV.setKey_args())
    assert (arguments.request.key, arguments.request.value) == (b"k\x00", b"")
    assert arguments.request.column_family is None


def test_method_bad_field_leaves_the_encoder_clean():
    """A request that cannot be written leaves nothing behind for the next one."""
    method = Method("setKey", "Set")
    with pytest.raises(Exception, match="key"):
        method.encode(method.request({"key": 5, "value": b""}), 3)

    data = method.encode(method.request({"key": b"k", "value": b""}), 4)
    assert MessageScanner().find_end(data, 0) == len(data)
