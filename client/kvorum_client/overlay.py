"""
What a transaction knows before its commit: its own writes laid over what the server shows, and what it has read.

Pure: no I/O, no clock. `Overlay` holds the writes, `RangeRead` merges one range read with them page by page, and
`ConflictSet` collects exactly the keys and ranges that the server's answers were taken from.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Final, NamedTuple

from kvorum_client.errors import InvalidRequestError, UnreadableError
from kvorum_client.results import KeyValue

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STAMP_BYTES: Final = 10
"""Length of a versionstamp, which replaces the end of a buffer at commit."""

DEFAULT_FAMILY: Final = "default"
"""The family meant by None and by the empty name."""

DEFAULT_END: Final = b"\xff"
"""Upper bound of a range that names none, as everywhere in the contract."""


class Undecided:
    """The value of a key that only the commit will know."""

    __slots__ = ()


UNDECIDED: Final = Undecided()
Written = bytes | Undecided | None
"""What this transaction wrote: a value, a value known at commit only, or a deletion."""


def family_name(family: str | None) -> str:
    """One name for one family, however it was spelt."""
    return family or DEFAULT_FAMILY


class Overlay:
    """The writes of one transaction, by family, in key order."""

    def __init__(self) -> None:
        self._written: dict[str, dict[bytes, Written]] = {}
        self._order: dict[str, list[bytes]] = {}
        self._stamped: dict[str, list[tuple[bytes, bytes]]] = {}

    def write(self, family: str, key: bytes, value: Written) -> None:
        """Remember the newest write of a key."""
        written = self._written.setdefault(family, {})
        if key not in written:
            insort(self._order.setdefault(family, []), key)
        written[key] = value

    def write_stamped_key(self, family: str, buffer: bytes) -> None:
        """Remember that some key of this form will exist; which one, only the commit knows."""
        prefix = buffer[:-STAMP_BYTES]
        self._stamped.setdefault(family, []).append((prefix + bytes(STAMP_BYTES), prefix + b"\xff" * STAMP_BYTES))

    def lookup(self, family: str, key: bytes) -> tuple[bool, bytes | None]:
        """
        Whether this transaction decides the key, and then its value.

        Raises:
            UnreadableError: The value, or whether the key exists, is known at commit only.
        """
        for low, high in self._stamped.get(family, ()):
            if low <= key <= high and len(key) == len(low):
                text = "this key may be the one that a versionstamped write of this transaction creates"
                raise UnreadableError(text)
        written = self._written.get(family)
        if written is None or key not in written:
            return False, None
        value = written[key]
        if isinstance(value, Undecided):
            text = "this transaction wrote the key with a versionstamped value, which only the commit decides"
            raise UnreadableError(text)
        return True, value

    def between(self, family: str, begin: bytes, end: bytes) -> list[tuple[bytes, Written]]:
        """
        Own writes with begin <= key < end, ascending; a copy.

        Raises:
            UnreadableError: A versionstamped key may fall inside.
        """
        for low, high in self._stamped.get(family, ()):
            if low < end and begin <= high:
                text = "this range may hold a key that a versionstamped write of this transaction creates"
                raise UnreadableError(text)
        order = self._order.get(family)
        if not order or begin >= end:
            return []
        written = self._written[family]
        return [(key, written[key]) for key in order[bisect_left(order, begin) : bisect_left(order, end)]]


class PageRequest(NamedTuple):
    """What to ask the server for next: begin <= key < end, at most ``limit`` pairs."""

    begin: bytes
    end: bytes
    limit: int


class RangeRead:
    """
    One range read of a transaction: ask with `next_page`, answer with `feed`, until `next_page` gives None.

    Then ``pairs`` is the result and ``[read_begin, read_end)`` exactly the part of the range it was taken from: with a
    limit that was reached, only up to the last pair returned.
    """

    def __init__(
        self,
        own: Sequence[tuple[bytes, Written]],
        begin: bytes,
        end: bytes,
        *,
        limit: int | None,
        reverse: bool,
        page_pairs: int,
    ) -> None:
        self.pairs: list[KeyValue] = []
        self.read_begin = begin
        self.read_end = end
        self._begin = begin
        self._end = end
        self._reverse = reverse
        self._limit = limit
        self._page_pairs = page_pairs
        self._own = dict(own)
        self._own_order = [key for key, _ in own]
        self._done = begin >= end or limit == 0
        if limit == 0:
            self.read_end = begin

    def next_page(self) -> PageRequest | None:
        """The next question to the server, or None when the read is complete."""
        if self._done:
            return None
        wanted = self._page_pairs
        if self._limit is not None:
            # Own writes can hide that many of the server's pairs; asking for a few more saves a round trip.
            wanted = min(wanted, self._limit - len(self.pairs) + len(self._own_between(self._begin, self._end)))
        return PageRequest(self._begin, self._end, wanted)

    def feed(self, page: Iterable[tuple[bytes, bytes]], next_key: bytes | None) -> None:
        """Merge one answer; ``next_key`` is the first key it left out, None if it left out nothing."""
        assert not self._done, "fed after the end"
        if next_key is None:
            low, high = self._begin, self._end
        elif self._reverse:
            low, high = next_key + b"\x00", self._end
        else:
            low, high = self._begin, next_key
        assert self._begin <= low <= high <= self._end, "the server left the range"
        merged = dict(page)
        for key in self._own_between(low, high):
            value = self._own[key]
            if value is None:
                merged.pop(key, None)
            elif isinstance(value, Undecided):
                text = "the range holds a versionstamped value of this transaction, which only the commit decides"
                raise UnreadableError(text)
            else:
                merged[key] = value
        for key in sorted(merged, reverse=self._reverse):
            self.pairs.append(KeyValue(key, merged[key]))
            if len(self.pairs) == self._limit:
                self._finish_at(key)
                return
        if next_key is None:
            self._done = True
        elif self._reverse:
            self._end = low
        else:
            self._begin = high

    def _own_between(self, begin: bytes, end: bytes) -> list[bytes]:
        return self._own_order[bisect_left(self._own_order, begin) : bisect_left(self._own_order, end)]

    def _finish_at(self, last: bytes) -> None:
        self._done = True
        if self._reverse:
            self.read_begin = last
        else:
            self.read_end = last + b"\x00"


class ConflictSet:
    """What a transaction's outcome depends on: single keys and ranges, by family."""

    def __init__(self) -> None:
        self._keys: dict[str, set[bytes]] = {}
        self._ranges: dict[str, list[tuple[bytes, bytes]]] = {}

    def add_key(self, family: str, key: bytes) -> None:
        """Depend on one key."""
        self._keys.setdefault(family, set()).add(key)

    def add_range(self, family: str, begin: bytes, end: bytes) -> None:
        """Depend on begin <= key < end; an empty range depends on nothing."""
        if begin < end:
            self._ranges.setdefault(family, []).append((begin, end))

    def __bool__(self) -> bool:
        return bool(self._keys or self._ranges)

    def normalised(self) -> tuple[list[bytes], list[tuple[str, bytes, bytes]]]:
        """
        The smallest equal form: keys of the default family, and ranges of all families.

        Overlapping and touching ranges are joined, keys inside a range are dropped, and a key of another family
        becomes the range that holds only it.
        """
        keys: list[bytes] = []
        ranges: list[tuple[str, bytes, bytes]] = []
        for family in sorted(self._keys.keys() | self._ranges.keys()):
            spans = list(self._ranges.get(family, ()))
            singles = self._keys.get(family, set())
            if family != DEFAULT_FAMILY:
                spans += [(key, key + b"\x00") for key in singles]
                singles = set()
            joined = _joined(spans)
            ranges += [(family, begin, end) for begin, end in joined]
            keys += sorted(key for key in singles if not _covers(joined, key))
        return keys, ranges


def _joined(spans: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    joined: list[tuple[bytes, bytes]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            if end > joined[-1][1]:
                joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined


def _covers(joined: Sequence[tuple[bytes, bytes]], key: bytes) -> bool:
    at = bisect_left(joined, (key + b"\x00", b""))
    return at > 0 and key < joined[at - 1][1]


def must_be_stampable(buffer: bytes) -> None:
    """
    Check a versionstamp buffer before it is sent.

    Raises:
        InvalidRequestError: It has no room for the stamp.
    """
    if len(buffer) < STAMP_BYTES:
        text = f"a versionstamped buffer needs at least 10 bytes for the stamp, this one has {len(buffer)}"
        raise InvalidRequestError(text)
