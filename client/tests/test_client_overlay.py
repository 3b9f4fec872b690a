"""The pure parts of a transaction, against models."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum_client import InvalidRequestError, UnreadableError
from kvorum_client.overlay import UNDECIDED, ConflictSet, Overlay, RangeRead, must_be_stampable

KEYS = st.binary(min_size=1, max_size=3).map(lambda raw: bytes(byte % 4 for byte in raw))
BOUNDS = st.binary(max_size=3).map(lambda raw: bytes(byte % 4 for byte in raw))
STORES = st.dictionaries(KEYS, st.binary(max_size=2), max_size=30)
WRITES = st.dictionaries(KEYS, st.none() | st.binary(max_size=2), max_size=15)


def serve(store: dict[bytes, bytes], begin: bytes, end: bytes, limit: int, *, reverse: bool):
    """What the server answers to one page request."""
    inside = sorted((key for key in store if begin <= key < end), reverse=reverse)
    page, rest = inside[:limit], inside[limit:]
    return [(key, store[key]) for key in page], rest[0] if rest else None


def read_all(store, own, begin, end, *, limit, reverse, page_pairs):
    overlay = Overlay()
    for key, value in own.items():
        overlay.write("default", key, value)
    read = RangeRead(
        overlay.between("default", begin, end), begin, end, limit=limit, reverse=reverse, page_pairs=page_pairs
    )
    requests = 0
    while (page := read.next_page()) is not None:
        assert page.limit >= 1
        requests += 1
        read.feed(*serve(store, page.begin, page.end, page.limit, reverse=reverse))
    return read, requests


@given(STORES, WRITES, BOUNDS, BOUNDS, st.none() | st.integers(0, 8), st.booleans(), st.integers(1, 5))
def test_range_read_any_writes_gives_what_the_merged_store_holds(store, own, begin, end, limit, reverse, page_pairs):
    """A range read equals the same read of the store with the own writes applied, whatever the paging."""
    read, requests = read_all(store, own, begin, end, limit=limit, reverse=reverse, page_pairs=page_pairs)

    merged = dict(store)
    for key, value in own.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    expected = [(key, merged[key]) for key in sorted(merged, reverse=reverse) if begin <= key < end]
    if limit is not None:
        expected = expected[:limit]
    assert expected == read.pairs
    assert requests <= len(store) + len(own) + 2


@given(STORES, WRITES, BOUNDS, BOUNDS, st.none() | st.integers(0, 8), st.booleans(), STORES)
def test_range_read_span_decides_the_result(store, own, begin, end, limit, reverse, other):
    """Changing the store outside the part read changes nothing, and the part ends at the last pair of a full limit."""
    read, _ = read_all(store, own, begin, end, limit=limit, reverse=reverse, page_pairs=100)

    changed = {key: value for key, value in store.items() if read.read_begin <= key < read.read_end}
    changed |= {key: value for key, value in other.items() if not read.read_begin <= key < read.read_end}
    again, _ = read_all(changed, own, begin, end, limit=limit, reverse=reverse, page_pairs=100)
    assert read.pairs == again.pairs
    if limit and len(read.pairs) == limit:
        last = read.pairs[-1].key
        assert (read.read_begin if reverse else read.read_end) == (last if reverse else last + b"\x00")
    elif limit is None:
        assert (begin, end) == (read.read_begin, read.read_end)


@given(
    st.lists(st.tuples(st.sampled_from(["default", "other"]), KEYS)),
    st.lists(st.tuples(st.sampled_from(["default", "other"]), BOUNDS, BOUNDS)),
    st.lists(KEYS, max_size=20),
)
def test_conflict_set_normalised_covers_exactly_what_was_added(keys, ranges, probes):
    """The normalised form covers a key iff some added key or range does, without overlap."""
    conflicts = ConflictSet()
    for family, key in keys:
        conflicts.add_key(family, key)
    for family, begin, end in ranges:
        conflicts.add_range(family, begin, end)

    singles, spans = conflicts.normalised()

    for family in ("default", "other"):
        for probe in [*probes, *(key for _, key in keys), *(key + b"\x00" for _, key in keys)]:
            added = (family, probe) in keys or any(f == family and b <= probe < e for f, b, e in ranges)
            covered = (family == "default" and probe in singles) or any(
                f == family and b <= probe < e for f, b, e in spans
            )
            assert added == covered
    assert len(singles) == len(set(singles))
    for (one, _, end), (two, begin, _) in pairwise(spans):
        assert one != two or end < begin
    assert all(begin < end for _, begin, end in spans)


def test_overlay_versionstamped_value_read_back_is_refused():
    """A value that only the commit decides cannot be read before."""
    overlay = Overlay()
    overlay.write("default", b"k", UNDECIDED)

    with pytest.raises(UnreadableError, match="versionstamped value"):
        overlay.lookup("default", b"k")
    overlay.write("default", b"k", b"plain")
    assert overlay.lookup("default", b"k") == (True, b"plain")


def test_overlay_versionstamped_key_makes_its_possible_places_unreadable():
    """Ranges that may hold the new key are refused, others are not."""
    overlay = Overlay()
    overlay.write_stamped_key("default", b"log/" + bytes(10))

    with pytest.raises(UnreadableError, match="versionstamped"):
        overlay.between("default", b"log/", b"log0")
    with pytest.raises(UnreadableError, match="versionstamped"):
        overlay.lookup("default", b"log/0123456789")
    assert overlay.between("default", b"a", b"log/") == []
    assert overlay.lookup("default", b"log/") == (False, None)
    assert overlay.between("other", b"log/", b"log0") == []


def test_stamp_buffer_shorter_than_a_stamp_is_refused_before_sending():
    """Nine bytes have no room for a stamp."""
    must_be_stampable(bytes(10))
    with pytest.raises(InvalidRequestError, match="at least 10 bytes"):
        must_be_stampable(bytes(9))
