"""Contract section 3.3: the tables of the effective end and of the worked example, and the rest of its rules."""

from __future__ import annotations

import pytest

from kvorum.core.limits import KEY_BYTES_CEILING
from kvorum.statemachine.ranges import RangeQuery, effective_end

STORED = ["61", "62", "6200", "63", "64", "ff01"]
FIRST_FIVE = "61 62 6200 63 64"


@pytest.mark.parametrize(
    ("end", "offset", "expected"),
    [
        ("74657374", 1, "74657375"),
        ("746573ff", 1, "74657400"),
        ("7465ffff", 1, "74660000"),
        ("74657400", -1, "746573ff"),
        ("ff", 1, "ff00"),
        ("ffffff", 1, "ffffff00"),
        ("ff", 256, "ffff"),
        ("ff", 257, "ffff00"),
        ("fe", 1, "ff"),
        ("fe", 2, "ff00"),
        ("", 1, "01"),
        ("", -1, ""),
        ("", 255, "ff"),
        ("", 256, "ff00"),
        ("00", -1, ""),
        ("000000", -1, ""),
        ("61", -1, "60"),
        ("61", -97, "00"),
        ("61", -98, ""),
        ("61", 0, "61"),
        ("", 0, ""),
        ("0100", -(2**31), ""),
        ("ff" * 8, -(2**31), "ffffffff7fffffff"),
    ],
)
def test_effective_end_follows_the_contracts_table(end, offset, expected):
    """Byte arithmetic in closed form."""
    assert bytes.fromhex(expected) == effective_end(bytes.fromhex(end), offset)


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_effective_end_equals_counting_one_by_one(length):
    """The closed form is what adding one at a time gives."""
    for start in (0, 1, 254, 255, 256**length - 2, 256**length - 1):
        if not 0 <= start < 256**length:
            continue
        end = start.to_bytes(length, "big")
        counted = end
        for offset in range(1, 1200):
            counted = effective_end(counted, 1)
            assert counted == effective_end(end, offset)


def test_effective_end_far_above_every_key_is_not_built():
    """Eight megabytes of ff are never made."""
    assert None is effective_end(b"a", 2**31 - 1)
    assert None is effective_end(b"\xff" * KEY_BYTES_CEILING, 257)
    assert b"\xff" * KEY_BYTES_CEILING + b"\x00" == effective_end(b"\xff" * KEY_BYTES_CEILING, 1)


@pytest.mark.parametrize(
    ("query", "keys", "next_key"),
    [
        ({}, FIRST_FIVE, None),
        ({"limit": 0}, FIRST_FIVE, None),
        ({"limit": -10}, FIRST_FIVE, None),
        ({"limit": 5}, FIRST_FIVE, None),
        ({"begin": "62", "begin_or_equal": False}, "6200 63 64", None),
        ({"begin": "61", "end": "63", "end_or_equal": True}, "61 62 6200 63", None),
        ({"begin": "61", "end": "64", "end_offset": -1}, "61 62 6200", None),
        ({"end": "62", "end_offset": 1}, "61 62 6200", None),
        ({"limit": 2}, "61 62", "6200"),
        ({"offset": -3, "limit": 1}, "61", "62"),
        ({"offset": 2, "limit": 2}, "6200 63", "64"),
        ({"offset": 9}, "", None),
        ({"reverse": True, "limit": 2}, "64 63", "6200"),
        ({"reverse": True, "limit": 2, "offset": 1}, "63 6200", "62"),
        ({"begin": "62", "end": "62", "end_or_equal": True}, "62", None),
        ({"begin": "62", "end": "62"}, "", None),
        ({"begin": "62", "end": "62", "begin_or_equal": False, "end_or_equal": True}, "", None),
        ({"end": ""}, "", None),
        ({"end": "", "end_or_equal": True}, "", None),
        ({"begin": "64", "end": "61"}, "", None),
        ({"begin": "ff", "end": "ffff"}, "ff01", None),
        ({"begin": "61", "end": "62", "end_offset": 2147483647}, "61 62 6200 63 64 ff01", None),
        ({"end_offset": 2}, FIRST_FIVE, None),
        ({"end_offset": 3}, FIRST_FIVE + " ff01", None),
    ],
)
@pytest.mark.parametrize("when", ["newest", "past", "newest in a family", "past in a family"])
def test_worked_example_gives_the_contracts_answer(store, query, keys, next_key, when):
    """At the newest version and at a past one, in every family."""
    family = b"fam" if "family" in when else b""
    store.group(*[store.set(bytes.fromhex(key), key.encode(), family) for key in STORED])
    version = None
    if "past" in when:
        version = store.executor.applied_index
        store.group(*[store.set(bytes.fromhex(key), b"newer", family) for key in STORED[::2]])
        store.group(*[store.delete(bytes.fromhex(key), family) for key in STORED[1::3]])
        store.one(store.set(b"b1", b"younger than the version", family))
    arguments = {name: bytes.fromhex(value) if name in ("begin", "end") else value for name, value in query.items()}

    result = store.scan(version=version, family=family, **arguments)

    assert [(bytes.fromhex(key), key.encode()) for key in keys.split()] == result.pairs
    assert (next_key is not None, next_key and bytes.fromhex(next_key)) == (result.has_more, result.next_key)


@pytest.mark.parametrize("reverse", [False, True])
def test_reply_is_cut_at_its_bytes_and_goes_on_at_the_next_key(store, reverse):
    """Pages by next_key give every pair once, in order; a page holds at least one pair."""
    store.group(*[store.set(b"%02d" % n, b"v" * 50) for n in range(20)], store.set(b"20", b"v" * 500))
    pages, arguments = [], {}
    while True:
        result = store.scan(bytes_max=150, reverse=reverse, **arguments)
        pages.append(result.pairs)
        if not result.has_more:
            break
        arguments = {"end": result.next_key, "end_or_equal": True} if reverse else {"begin": result.next_key}

    pairs = [pair for page in pages for pair in page]
    assert [b"%02d" % n for n in range(21)] == sorted(key for key, _ in pairs)
    assert pairs == sorted(pairs, reverse=reverse)
    assert {1, 2} == {len(page) for page in pages}


def test_has_more_ignores_tombstones_behind_the_limit(store):
    """Deleted keys do not qualify, so exactly `limit` matches is the whole answer."""
    store.group(*[store.set(b"%d" % n, b"v") for n in range(4)], store.delete(b"2"), store.delete(b"3"))

    assert ([b"0", b"1"], False) == ([key for key, _ in store.scan(limit=2).pairs], store.scan(limit=2).has_more)
    assert (True, b"2") == store.scan(version=4, limit=2)[1:]


def test_scan_sees_one_state_however_long_it_takes(store):
    """Writes between its slices do not show, large values included."""
    for first in range(0, 1000, 200):
        store.group(*[store.set(b"%04d" % n, b"%d" % n * 600) for n in range(first, first + 200)])
    steps = store.executor.scan(RangeQuery(limit=0))
    assert None is next(steps)

    store.group(*[store.delete(b"%04d" % n) for n in range(900, 1000)], store.set(b"0950a", b"new"))

    assert [(b"%04d" % n, b"%d" % n * 600) for n in range(1000)] == store.last(steps).pairs


def test_unknown_family_is_an_empty_range(store):
    """A range of a family nobody wrote answers nothing, without error."""
    assert ([], False, None) == store.scan(family=b"nobody")


def test_range_stays_inside_its_family(store):
    """Neighbouring families do not leak into a range that is open at the top."""
    store.group(store.set(b"\xff\xff", b"1", b"a"), store.set(b"", b"x", b"b"), store.set(b"\x00", b"2", b"b"))

    assert [(b"\xff\xff", b"1")] == store.scan(family=b"a", end=b"a", end_offset=2**31 - 1).pairs
