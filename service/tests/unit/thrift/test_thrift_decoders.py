"""The fast decoders and the general one agree on every message of the hot methods; templates equal the encoder."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.core.errors import LocalError
from kvorum.thrift.adapter.methods import shaped
from kvorum.thrift.protocol import codec, replies
from kvorum.thrift.protocol.fast import FAST_DECODERS
from kvorum.thrift.protocol.scanner import MalformedError, Progress, Scanner

FIELDS = {
    "get": ("key", "column_family", "deadline_ms", "consistency"),
    "setKey": ("key", "value", "column_family", "deadline_ms", "client_id", "request_id"),
    "deleteKey": ("key", "column_family", "deadline_ms", "client_id", "request_id"),
    "getReadVersion": ("deadline_ms", "consistency"),
}
NAMES = st.text("az\u00e9\u6f22\0", max_size=10)
VALUES = {
    "key": st.binary(max_size=40),
    "value": st.binary(max_size=400),
    "column_family": NAMES,
    "deadline_ms": st.integers(-(2**63), 2**63 - 1),
    "consistency": st.sampled_from(["", "local", "LEADER", "read_index", "nonsense"]) | NAMES | st.just("n" * 300),
    "client_id": st.binary(max_size=17),
    "request_id": st.integers(-(2**63), 2**63 - 1),
}
SEQIDS = st.integers(-(2**31), 2**31 - 1)


@st.composite
def calls(draw):
    """A method, a sequence id and some of its fields."""
    method = draw(st.sampled_from(sorted(FIELDS)))
    present = {name: draw(VALUES[name]) for name in FIELDS[method] if draw(st.integers(0, 3))}
    return method, draw(SEQIDS), present


def general(data: bytes):
    """What scanner and thriftpy2 make of the message at the start: end, raw sequence id, fields; None if not one."""
    scanner = Scanner(1 << 20, {})
    try:
        if scanner.scan(data, 0, 100_000) != Progress.DONE:
            return None
    except MalformedError:
        return None
    method = scanner.name.decode()
    if method not in FAST_DECODERS:
        return None
    fields = codec.decode_request(method, data, scanner.body, scanner.end)
    return scanner.end, scanner.seqid, None if fields is None else shaped(method, fields)


@given(calls(), st.binary(max_size=4))
def test_fast_and_general_decoder_agree_on_every_call(wire, call, behind: bytes) -> None:
    """Whatever fields a client sends, a fast decoder gives the general decoder's fields or leaves it to that one."""
    method, seqid, present = call
    data = wire.message(method, seqid, **present) + behind
    found = FAST_DECODERS[method](data, 0)
    expected = general(data)

    assert expected is not None
    assert expected[1] == struct.pack(">i", seqid)
    assert found in (None, expected)


@given(calls())
def test_fast_decoder_takes_every_call_without_identity(wire, call) -> None:
    """The shapes existing clients send never fall to the general decoder."""
    method, seqid, present = call
    for name in FIELDS[method]:
        if name in ("key", "value"):
            present.setdefault(name, b"x")
    present.pop("client_id", None)
    present.pop("request_id", None)
    data = b"junk" + wire.message(method, seqid, **present)

    assert FAST_DECODERS[method](data, 4) is not None


@given(calls(), st.data())
def test_fast_decoder_never_accepts_what_the_general_refuses(wire, call, data) -> None:
    """Cut short or with any byte changed, a message decodes as the general decoder says, or not at all."""
    method, seqid, present = call
    changed = bytearray(wire.message(method, seqid, **present))
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(changed[: data.draw(st.integers(0, len(changed)))])
    found = FAST_DECODERS[method](changed, 0)

    assert found is None or found == general(changed)


@given(SEQIDS, st.binary(max_size=300), st.integers(0, 2**63 - 1))
def test_reply_templates_equal_the_general_encoder(seqid: int, value: bytes, version: int) -> None:
    """A fixed reply is byte for byte what the encoder writes."""
    raw = struct.pack(">i", seqid)

    assert codec.encode_reply("setKey", raw, {"success": True}) == replies.SET_HEAD + raw + replies.SET_TAIL
    assert codec.encode_reply("deleteKey", raw, {"success": True}) == replies.DELETE_HEAD + raw + replies.DELETE_TAIL
    assert codec.encode_reply("get", raw, {"value": value, "found": True}) == replies.found_reply(raw, value)
    assert (
        codec.encode_reply("get", raw, {"value": b"", "found": False})
        == replies.GET_HEAD + raw + replies.GET_MISSING_TAIL
    )
    assert codec.encode_reply(
        "getReadVersion", raw, {"read_version": version, "success": True}
    ) == replies.version_reply(raw, version)
    assert codec.encode_reply(
        "atomicCommit", raw, {"success": True, "committed_version": version}
    ) == replies.commit_reply(raw, version)


@given(
    st.sampled_from(["getRange", "snapshotGetRange"]),
    st.lists(st.tuples(st.binary(max_size=10), st.binary(max_size=10)), max_size=5),
    st.none() | st.binary(max_size=10),
)
def test_range_template_equals_the_general_encoder(method: str, pairs, next_key) -> None:
    """A range reply put together from pieces is what the encoder writes."""
    make = codec.key_value_encoder()
    fields = {"key_values": [make(k, v) for k, v in pairs], "success": True, "has_more": next_key is not None}
    if next_key is not None:
        fields["next_key"] = next_key
    template = replies.RANGE_TEMPLATES[method]
    built = template.head(b"seqi", len(pairs)) + replies.encode_pairs(pairs) + template.tail(next_key)

    assert codec.encode_reply(method, b"seqi", fields) == built


def test_reply_without_a_required_field_is_a_defect() -> None:
    """thriftpy2 would leave the field out in silence; here it is an error."""
    with pytest.raises(LocalError, match="found"):
        codec.encode_reply("get", b"seqi", {"value": b""})


def test_absent_request_decodes_to_nothing() -> None:
    """No argument at all is told from an empty request."""
    assert codec.decode_request("ping", b"\0", 0, 1) is None
    assert codec.decode_request("ping", b"\x0c\x00\x01\0\0", 0, 5) == {"message": None, "timestamp": None}
