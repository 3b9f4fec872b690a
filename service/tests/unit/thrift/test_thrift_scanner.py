"""The scanner finds the end of every message, in any fragments, and refuses what must not reach a decoder."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.thrift.protocol.scanner import (
    I32,
    I64,
    LIST,
    MAP,
    STRING,
    STRUCT,
    ListRule,
    Malformed,
    MalformedError,
    Progress,
    Scanner,
)

LIMIT = 1 << 20
HEAD = b"\x80\x01\x00\x01\x00\x00\x00\x01m\x00\x00\x00\x07"


def field(kind: int, number: int, value: bytes) -> bytes:
    return struct.pack(">Bh", kind, number) + value


def string(value: bytes) -> bytes:
    return struct.pack(">i", len(value)) + value


def scanner(rules=None) -> Scanner:
    return Scanner(LIMIT, {b"m": rules or {}})


def reason_of(data: bytes) -> str:
    with pytest.raises(MalformedError) as caught:
        scanner().scan(data, 0, 1000)
    return caught.value.reason


def whole(data: bytes, rules=None) -> Scanner:
    made = scanner(rules)
    while (progress := made.scan(data, 0, 1000)) == Progress.TIRED:
        pass
    assert progress == Progress.DONE
    return made


def value(depth: int):
    """A wire value: its type and bytes."""
    plain = st.one_of(
        st.tuples(st.just(2), st.binary(min_size=1, max_size=1)),
        st.tuples(st.just(I32), st.binary(min_size=4, max_size=4)),
        st.tuples(st.just(I64), st.binary(min_size=8, max_size=8)),
        st.tuples(st.just(STRING), st.binary(max_size=20).map(string)),
    )
    if depth == 0:
        return plain
    inner = value(depth - 1)
    fields = st.lists(st.tuples(inner, st.integers(-5, 300)), max_size=4)
    structs = fields.map(lambda fs: b"".join(field(kind, n, data) for (kind, data), n in fs) + b"\0")
    return st.one_of(
        plain,
        st.tuples(st.just(STRUCT), structs),
        st.tuples(st.just(LIST), st.lists(structs, max_size=5).map(lambda xs: list_of(STRUCT, xs))),
        st.tuples(st.just(14), st.lists(st.binary(max_size=3).map(string), max_size=5).map(lambda xs: list_of(11, xs))),
        st.tuples(
            st.just(LIST), st.lists(st.binary(min_size=8, max_size=8), max_size=5).map(lambda xs: list_of(10, xs))
        ),
        st.tuples(
            st.just(MAP),
            st.lists(st.tuples(st.binary(max_size=3).map(string), structs), max_size=4).map(
                lambda xs: struct.pack(">BBi", STRING, STRUCT, len(xs)) + b"".join(k + v for k, v in xs)
            ),
        ),
    )


def list_of(kind: int, elements) -> bytes:
    return struct.pack(">Bi", kind, len(elements)) + b"".join(elements)


MESSAGES = st.lists(st.tuples(value(3), st.integers(0, 30)), max_size=4).map(
    lambda fs: HEAD + b"".join(field(kind, n, data) for (kind, data), n in fs) + b"\0"
)


@given(MESSAGES, st.binary(max_size=10))
def test_scanner_any_message_ends_where_it_ends(data: bytes, behind: bytes) -> None:
    """Bytes behind a message change nothing about where it ends, its name and its sequence id."""
    found = whole(data + behind)

    assert (len(data), b"m", b"\0\0\0\x07", len(HEAD)) == (found.end, found.name, found.seqid, found.body)


@given(MESSAGES, st.integers(1, 7), st.integers(1, 5))
def test_scanner_fragments_give_the_same_end(data: bytes, step: int, steps: int) -> None:
    """However the bytes arrive and however small the turns, the walk ends at the same place and never early."""
    made = scanner()
    arrived = bytearray()
    for start in range(0, len(data), step):
        assert made.end == 0
        arrived += data[start : start + step]
        while (progress := made.scan(arrived, 0, steps)) == Progress.TIRED:
            pass

    assert Progress.DONE == progress
    assert len(data) == made.end


@given(st.binary(max_size=300))
def test_scanner_garbage_behind_a_good_header_is_refused_or_starved(data: bytes) -> None:
    """No bytes make the scanner raise anything but `MalformedError` or pass the end of what is there."""
    made = scanner()
    try:
        progress = made.scan(HEAD + data, 0, 100_000)
    except MalformedError:
        return

    assert progress in (Progress.DONE, Progress.STARVED)
    assert made.end <= len(HEAD) + len(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"G", Malformed.START),
        (b"\x80\x02", Malformed.START),
        (b"\x00\x00\x00\x03get\x01\x00\x00\x00\x00\x00", Malformed.START),
        (b"\x80\x01\x00\x02", Malformed.MESSAGE_TYPE),
        (b"\x80\x01\x00\x03", Malformed.MESSAGE_TYPE),
        (b"\x80\x01\x00\x04", Malformed.MESSAGE_TYPE),
        (b"\x80\x01\x00\x01\x00\x00\x01\x01", Malformed.NAME),
        (b"\x80\x01\x00\x01\xff\xff\xff\xff", Malformed.NAME),
        (b"\x80\x01\x00\x01\x00\x00\x00\x01\xff\x00\x00\x00\x00", Malformed.NAME),
        (HEAD + field(STRING, 1, b"\xff\xff\xff\xff"), Malformed.LENGTH),
        (HEAD + field(STRING, 1, b"\x7f\xff\xff\xff"), Malformed.LENGTH),
        (HEAD + field(LIST, 1, b"\x0b\xff\xff\xff\xff"), Malformed.LENGTH),
        (HEAD + field(LIST, 1, b"\x0c\x7f\xff\xff\xff"), Malformed.LENGTH),
        (HEAD + field(LIST, 1, b"\x0a\x00\x02\x00\x01"), Malformed.LENGTH),
        (HEAD + field(MAP, 1, b"\x0b\x0b\xff\xff\xff\xff"), Malformed.LENGTH),
        (HEAD + field(1, 1, b""), Malformed.WIRE_TYPE),
        (HEAD + field(5, 1, b""), Malformed.WIRE_TYPE),
        (HEAD + field(16, 1, b""), Malformed.WIRE_TYPE),
        (HEAD + field(18, 1, string(b"")), Malformed.WIRE_TYPE),
        (HEAD + field(200, 1, b""), Malformed.WIRE_TYPE),
        (HEAD + field(LIST, 9, b"\x01\x00\x00\x00\x00"), Malformed.WIRE_TYPE),
        (HEAD + field(LIST, 9, b"\x00\x7f\xff\xff\xff"), Malformed.WIRE_TYPE),
        (HEAD + field(MAP, 9, b"\x0b\x07\x00\x00\x00\x00"), Malformed.WIRE_TYPE),
        (HEAD + (field(STRUCT, 1, b"") * 64), Malformed.NESTING),
        (HEAD + field(LIST, 1, b"") + list_of(LIST, [b""])[:5] * 64, Malformed.NESTING),
    ],
)
def test_scanner_malformed_input_has_its_reason(data: bytes, reason: str) -> None:
    """Each way of being malformed is found as soon as its bytes are there, and named."""
    assert reason == reason_of(data)


def test_scanner_deepest_legal_nesting_passes() -> None:
    """64 structs, the arguments included, are legal."""
    data = HEAD + field(STRUCT, 1, b"") * 63 + b"\0" * 64

    assert len(data) == whole(data).end


def test_scanner_message_at_the_limit_passes_and_above_is_refused() -> None:
    """The limit is one for the whole message, header included."""
    room = LIMIT - len(HEAD) - 3 - 4 - 1

    assert LIMIT == whole(HEAD + field(STRING, 1, string(bytes(room))) + b"\0").end
    assert Malformed.LENGTH == reason_of(HEAD + field(STRING, 1, string(bytes(room + 1))) + b"\0")


def test_scanner_waits_for_a_long_value_without_looking_again() -> None:
    """What is needed next is known, so fragments of a large value cost nothing."""
    made = scanner()
    head = HEAD + field(STRING, 1, struct.pack(">i", 100_000))

    assert Progress.STARVED == made.scan(head, 0, 100)
    assert made.need > 100_000


def test_scanner_a_million_empty_structs_take_few_steps() -> None:
    """A run of empty structs is passed at once."""
    data = HEAD + field(LIST, 1, list_of(STRUCT, [b"\0" * 1_000_000])[:1] + struct.pack(">i", 1_000_000))
    data += b"\0" * 1_000_000 + b"\0"
    made = scanner()

    assert Progress.DONE == made.scan(data, 0, 200)
    assert len(data) == made.end


RULES = {2: ListRule(STRUCT, 3), 3: ListRule(STRING, 2)}


def test_scanner_lists_that_fit_are_left_alone() -> None:
    """A list of the right type and size is no business of the scanner."""
    request = field(LIST, 2, list_of(STRUCT, [b"\0"] * 3)) + field(LIST, 3, list_of(STRING, [string(b"a")] * 2))
    found = whole(HEAD + field(STRUCT, 1, request + b"\0") + b"\0", RULES)

    assert ([], set()) == (found.cuts, found.oversized)


@pytest.mark.parametrize("kind", [STRING, I64, LIST])
def test_scanner_list_of_another_type_is_cut_out(kind: int) -> None:
    """A decoder never sees a list with other elements, so the field counts as missing."""
    elements = {STRING: [string(b"ab")], I64: [bytes(8)], LIST: [list_of(STRING, [])]}[kind]
    bad = field(LIST, 2, list_of(kind, elements))
    before = field(I64, 1, bytes(8))
    data = HEAD + field(STRUCT, 1, before + bad + field(I64, 4, bytes(8)) + b"\0") + b"\0"
    found = whole(data, RULES)
    start = len(HEAD) + 3 + len(before)

    assert [(start, start + len(bad))] == found.cuts
    assert set() == found.oversized


def test_scanner_list_with_too_many_elements_is_cut_out_and_named() -> None:
    """Too many elements are never made; the field is remembered."""
    big = field(LIST, 2, list_of(STRUCT, [field(I32, 1, bytes(4)) + b"\0"] * 4))
    found = whole(HEAD + field(STRUCT, 1, big + b"\0") + b"\0", RULES)

    assert [(len(HEAD) + 3, len(HEAD) + 3 + len(big))] == found.cuts
    assert {2} == found.oversized


def test_scanner_lists_elsewhere_are_not_judged() -> None:
    """The rules are for the fields of the request alone, not for deeper or foreign structs."""
    big = field(LIST, 2, list_of(STRUCT, [b"\0"] * 9))
    deeper = field(STRUCT, 1, field(STRUCT, 7, big + b"\0") + b"\0")
    foreign = field(STRUCT, 2, big + b"\0")
    found = whole(HEAD + deeper + foreign + b"\0", RULES)

    assert ([], set()) == (found.cuts, found.oversized)
