"""
Range reads (contract section 3.3): plain inclusive flags, byte arithmetic on the end, exact `has_more`.

A scan holds one iterator, so it sees one state of the store however long it takes, and does its work in slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from kvorum.core.limits import KEY_BYTES_CEILING
from kvorum.core.operations import DEFAULT_FAMILY
from kvorum.statemachine.layout import (
    CURRENT_KEY_OFFSET,
    FLAG_INLINE,
    FLAG_TOMBSTONE,
    KIND_SET,
    ROW_HEAD_BYTES,
    history_prefix_of_current,
    pack_u64,
    row_version,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvorum.core.ids import Index
    from kvorum.core.ports import View
    from kvorum.statemachine.families import FamilyEntry

SLICE_ROWS: Final = 256
"""Rows looked at between two yields: well below a millisecond at the newest version, about three in the past."""

DEFAULT_END: Final = b"\xff"
"""Upper bound of a range without an end: keys that start with ff are legal but outside the default range."""


@dataclass(frozen=True, slots=True)
class RangeQuery:
    """A range as the client asked for it; the defaults are the contract's."""

    family: bytes = DEFAULT_FAMILY
    begin: bytes | None = None
    begin_or_equal: bool = True
    end: bytes | None = None
    end_or_equal: bool = False
    end_offset: int = 0
    offset: int = 0
    limit: int = 1000
    """Zero or negative: no limit by count."""
    reverse: bool = False
    bytes_max: int = 8 * 1024 * 1024
    """Bound on keys plus values; at least one pair is returned if any qualifies."""


class RangeResult(NamedTuple):
    """Pairs in iteration order. ``next_key`` is the first qualifying key not returned, present iff ``has_more``."""

    pairs: list[tuple[bytes, bytes]]
    has_more: bool = False
    next_key: bytes | None = None


def effective_end(end: bytes, offset: int) -> bytes | None:
    """
    Move an end key by byte arithmetic, in closed form.

    Returns:
        The effective end, or None for "above every key", which is not built.
    """
    if offset == 0:
        return end
    value = int.from_bytes(end, "big") + offset
    if offset < 0:
        return value.to_bytes(len(end), "big") if end and value >= 0 else b""
    length = len(end) or 1
    modulus = 1 << 8 * length
    if value < modulus:
        return value.to_bytes(length, "big")
    more, last = divmod(value - modulus, 256)
    if length + more > KEY_BYTES_CEILING:
        return None
    return b"\xff" * (length + more) + bytes((last,))


def bounds(query: RangeQuery, family: FamilyEntry) -> tuple[bytes, bytes]:
    """`current` keys of a query: begin, inclusive, and end, exclusive. An empty range has begin >= end."""
    begin = family.current + (query.begin or b"")
    if not query.begin_or_equal:
        begin += b"\x00"
    end = effective_end(DEFAULT_END if query.end is None else query.end, query.end_offset)
    if end is None:
        return begin, family.current_end
    return begin, family.current + end + (b"\x00" if query.end_or_equal else b"")


def value_now(view: View, current_key: bytes, row: bytes) -> bytes | None:
    """Value of a `current` row, None for a tombstone."""
    flag = row[0]
    if flag == FLAG_INLINE:
        return row[ROW_HEAD_BYTES:]
    if flag == FLAG_TOMBSTONE:
        return None
    value = view.get(history_prefix_of_current(current_key) + b"\x00" + row[1:ROW_HEAD_BYTES] + KIND_SET)
    if value is None:
        msg = f"no history row for the value of version {row_version(row)}"
        raise AssertionError(msg)
    return value


def value_at(view: View, current_key: bytes, row: bytes, version: Index) -> bytes | None:
    """Newest value at or below a version of a key whose `current` row is given."""
    if row_version(row) <= version:
        return value_now(view, current_key, row)
    prefix = history_prefix_of_current(current_key)
    for key, value in view.iterate(prefix, prefix + pack_u64(version + 1), reverse=True):
        return value if key[-1:] == KIND_SET else None
    return None


def scan_range(
    view: View, query: RangeQuery, begin: bytes, end: bytes, version: Index | None
) -> Iterator[RangeResult | None]:
    """
    Answer a range from a consistent view: yields None between slices, then the result.

    ``version`` None is the newest state of the view. ``begin`` and ``end`` are those of `bounds`.
    """
    pairs: list[tuple[bytes, bytes]] = []
    if begin >= end:
        yield RangeResult(pairs)
        return
    skip = max(query.offset, 0)
    limit = query.limit if query.limit > 0 else -1
    bytes_left = query.bytes_max
    examined = 0
    for current_key, row in view.iterate(begin, end, reverse=query.reverse):
        examined += 1
        if examined % SLICE_ROWS == 0:
            yield None
        if version is None:
            if row[0] == FLAG_TOMBSTONE:
                continue
            value = row[ROW_HEAD_BYTES:] if row[0] == FLAG_INLINE else value_now(view, current_key, row)
        else:
            value = value_at(view, current_key, row, version)
        if value is None:
            continue
        if skip:
            skip -= 1
            continue
        key = current_key[CURRENT_KEY_OFFSET:]
        bytes_left -= len(key) + len(value)
        if len(pairs) == limit or (pairs and bytes_left < 0):
            yield RangeResult(pairs, has_more=True, next_key=key)
            return
        pairs.append((key, value))
    yield RangeResult(pairs)
