"""
Where entries lie: the segment files of a log and a sparse index into them, for reading back and for dropping.

Used on the loop only. Knows durable groups and nothing else; who writes them is `segmented_log`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvorum.core.entries import Entry, EntryKind, parse_records
from kvorum.core.errors import StorageFailedError
from kvorum.storage.wal.layout import Flaw, group_at
from kvorum.storage.wal.system import REAL

if TYPE_CHECKING:
    from pathlib import Path

    from kvorum.core.ids import Index
    from kvorum.storage.wal.system import SystemCalls

WAY_OUT: Final = (
    "rebuild this member from its peers; until then the others carry on, and an empty directory may not take its seat"
)
ANCHOR_SPACING_BYTES: Final = 64 * 1024
"""Log bytes per index row: a read parses at most this much in vain, and 1 GiB of log costs 16,384 rows."""
OPEN_FILES_MAX: Final = 8
"""Segments kept open for reading; a follower that catches up reads one after the other."""


@dataclass(slots=True)
class Segment:
    """One segment file and what is known of its contents."""

    path: Path
    number: int
    salt: int
    end: int
    """First byte behind its last durable group."""
    index_max: Index = 0
    """Highest index of any entry in it, replaced ones included; 0 if it holds none."""


class SegmentIndex:
    """
    Finds durable entries by index.

    One anchor per `ANCHOR_SPACING_BYTES` of log: from its group on, and up to the next anchor's index, entries lie in
    order. An entry that replaces older ones always gets an anchor of its own and removes those above it, so an index
    always leads to its newest entry.
    """

    def __init__(self, system: SystemCalls = REAL) -> None:
        self._system = system
        self.first_index: Index = 1
        """Lowest index that can be read."""
        self.last_index: Index = 0
        self.segments: list[Segment] = []
        self._indexes: list[Index] = []
        self._places: list[tuple[Segment, int]] = []
        self._open: dict[int, int] = {}

    def restart(self, base_index: Index) -> None:
        """Forget every entry; the next one follows this base. Segments that end before here may all be dropped."""
        self._indexes.clear()
        self._places.clear()
        for segment in self.segments:
            segment.index_max = 0
        self.first_index = base_index + 1
        self.last_index = base_index

    def add_segment(self, segment: Segment) -> None:
        """A new segment, behind all others."""
        assert not self.segments or segment.number > self.segments[-1].number
        self.segments.append(segment)

    def place(self, offset: int, end: int, first: Index, last: Index, highest: Index) -> None:
        """
        Note a durable group of the newest segment.

        Args:
            offset: Of its frame.
            end: First byte behind it.
            first: Lowest index in it; 0 if it holds no entries.
            last: Index of its last entry.
            highest: Highest index in it, which is above ``last`` if its own entries replace each other.
        """
        segment = self.segments[-1]
        segment.end = end
        if not first:
            return
        assert first <= self.last_index + 1, "a gap in the log"
        segment.index_max = max(segment.index_max, highest)
        if first <= self.last_index:
            keep = bisect_left(self._indexes, first)
            del self._indexes[keep:], self._places[keep:]
            self._indexes.append(first)
            self._places.append((segment, offset))
            self.first_index = min(self.first_index, first)
        else:
            anchored, anchor = self._places[-1] if self._places else (None, 0)
            if anchored is not segment or offset - anchor >= ANCHOR_SPACING_BYTES:
                self._indexes.append(first)
                self._places.append((segment, offset))
        self.last_index = last

    def read(self, first: Index, last: Index, bytes_max: int) -> list[Entry]:
        """
        Entries from ``first`` to at most ``last``: at least one, then until ``bytes_max`` is passed.

        Raises:
            StorageFailedError: The file no longer holds what was written to it.
        """
        assert self.first_index <= first <= last <= self.last_index, "only durable entries can be read"
        wanted: list[Entry] = []
        size = 0
        row = bisect_right(self._indexes, first) - 1
        while row < len(self._indexes) and first <= last and (size < bytes_max or not wanted):
            segment, offset = self._places[row]
            following = row + 1
            stop, end = last + 1, segment.end
            if following < len(self._indexes):
                stop = min(stop, self._indexes[following])
                next_segment, next_offset = self._places[following]
                end = next_offset if next_segment is segment else segment.end
            for entry in self._extent(segment, offset, end, first, stop):
                wanted.append(entry)
                size += len(entry.record)
                first = entry.index + 1
                if size >= bytes_max:
                    break
            row = following
        assert wanted, "the index led to no entry"
        return wanted

    def _extent(self, segment: Segment, offset: int, end: int, first: Index, stop: Index) -> list[Entry]:
        """Newest entries with first <= index < stop in the groups between two offsets of a segment."""
        data = self._load(segment, offset, end)
        found: list[Entry] = []
        at = 0
        while at < len(data) and not (found and found[-1].index >= stop - 1 and at > 0):
            group = group_at(data, at, segment.salt)
            if group is None or isinstance(group, Flaw):
                reason = group.reason if group else "zero length"
                msg = f"{segment.path} is damaged at offset {offset + at}: {reason}; {WAY_OUT}"
                raise StorageFailedError(msg)
            for entry in parse_records(data, group.body, group.end):
                if entry.kind >= EntryKind.HARD_STATE:
                    if entry.kind == EntryKind.BASE:
                        # What stands before it only describes: the configurations in a head are no entries here.
                        found.clear()
                    continue
                index = entry.index
                while found and found[-1].index >= index:
                    found.pop()
                if first <= index < stop:
                    found.append(entry)
            at = group.end
        return found

    def _load(self, segment: Segment, offset: int, end: int) -> bytes:
        try:
            descriptor = self._open.get(segment.number)
            if descriptor is None:
                if len(self._open) >= OPEN_FILES_MAX:
                    self._system.close(self._open.pop(next(iter(self._open))))
                descriptor = self._open[segment.number] = self._system.open_to_read(segment.path)
            return self._system.read(descriptor, end - offset, offset)
        except OSError as error:
            msg = f"cannot read {segment.path} at offset {offset}: {error}; {WAY_OUT}"
            raise StorageFailedError(msg) from error

    def drop_before(self, index: Index) -> list[Segment]:
        """Forget the oldest segments as long as they hold only entries below an index; never the newest segment."""
        dropped: list[Segment] = []
        while len(self.segments) > 1 and self.segments[0].index_max < index:
            dropped.append(self.segments.pop(0))
        if dropped:
            gone = {segment.number for segment in dropped}
            kept = next(
                (row for row, place in enumerate(self._places) if place[0].number not in gone), len(self._places)
            )
            del self._indexes[:kept], self._places[:kept]
            # Everything below the first anchor lay in what was dropped.
            self.first_index = max(self.first_index, self._indexes[0] if self._indexes else self.last_index + 1)
            for number in gone & self._open.keys():
                self._system.close(self._open.pop(number))
        return dropped

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._open.values():
            self._system.close(descriptor)
        self._open.clear()
