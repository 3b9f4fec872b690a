"""
The conflict rule (contract section 5.3).

A commit conflicts iff an item of its conflict set was written at a version above its read version.

Exact, in log order, the same on every replica. Everything is looked up through the overlay of the group's earlier
entries first, because a write batch cannot be read: two commits of one group that conflict must not both pass.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import islice
from typing import TYPE_CHECKING, Final

from kvorum.core.errors import ErrorCode, Refusal
from kvorum.statemachine.layout import (
    CHANGE_DEFAULT_KEY_OFFSET,
    CHANGE_FAMILY_OFFSET,
    CHANGES_END,
    CURRENT_DEFAULT,
    DEFAULT_FAMILY_ID,
    changes_key,
    current_prefix,
    parse_changes,
    row_version,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from kvorum.core.ids import Index
    from kvorum.core.operations import AtomicCommit, KeyRange
    from kvorum.core.ports import View
    from kvorum.statemachine.families import FamilyEntry

SLICE_ROWS: Final = 256
"""Rows looked at between two yields: well below a millisecond."""

SLICE_RANGES: Final = 16
"""Conflict ranges checked between two yields: two iterators and some rows each."""

FIRST_LEG_ROWS: Final = 64
"""Rows of a range that are scanned before the changes are walked as well; most ranges of transactions are shorter."""


class Overlay:
    """Newest version of each key written by the earlier entries of the group, by `current` key."""

    def __init__(self, changes: Sequence[bytes]) -> None:
        self._changes = changes
        self._taken = 0
        self._sorted: list[bytes] = []
        self.versions: dict[bytes, Index] = {}
        self.newest: Index = 0

    def catch_up(self) -> None:
        """Take in the change records staged since the last call; a group without conflict sets never pays for this."""
        changes, versions = self._changes, self.versions
        for position in range(self._taken, len(changes)):
            record = changes[position]
            self.newest = int.from_bytes(record[:8], "big")
            if record[CHANGE_FAMILY_OFFSET] == DEFAULT_FAMILY_ID:
                versions[CURRENT_DEFAULT + record[CHANGE_DEFAULT_KEY_OFFSET:]] = self.newest
                continue
            for version, _, family_id, key in parse_changes(record):
                versions[current_prefix(family_id) + key] = version
        self._taken = len(changes)

    def range_written(self, begin: bytes, end: bytes, read_version: Index) -> Generator[None, None, bool]:
        """Whether a key with begin <= key < end was written above a version."""
        if self.newest <= read_version:
            return False
        if len(self._sorted) != len(self.versions):
            self._sorted = sorted(self.versions)
        keys, versions = self._sorted, self.versions
        for position in range(bisect_left(keys, begin), bisect_left(keys, end)):
            if versions[keys[position]] > read_version:
                return True
            if position % SLICE_ROWS == SLICE_ROWS - 1:
                yield
        return False


class ConflictCheck:
    """The checks of one group against one state of the store."""

    def __init__(
        self,
        view: View,
        changes: Sequence[bytes],
        family_of: Callable[[bytes], FamilyEntry | None],
        low_watermark: Index,
        last_commit_version: Index,
    ) -> None:
        self._view = view
        self._overlay = Overlay(changes)
        self._family_of = family_of
        self.low_watermark = low_watermark
        self._last_commit_version = last_commit_version

    def refusal(self, commit: AtomicCommit, index: Index) -> Generator[None, None, Refusal | None]:
        """
        Decide one commit in the order of the contract: future, too old, conflict.

        Yields where the caller may serve others; the result is the generator's return value. Must be run after all
        earlier entries of the group were staged.
        """
        if not commit.conflict_keys and not commit.conflict_ranges:
            return None
        read_version = commit.read_version
        if read_version < 0:
            return Refusal(ErrorCode.INVALID_ARGUMENT, f"read version {read_version} is negative; take a new one")
        if read_version >= index:
            text = f"read version {read_version} is not below this commit's own version {index}; take a new one"
            return Refusal(ErrorCode.FUTURE_VERSION, text)
        if read_version < self.low_watermark:
            text = (
                f"read version {read_version} is older than the history kept, which begins at {self.low_watermark}; "
                "start again with a new read version"
            )
            too_old = ErrorCode.CONFLICT if commit.existing_style else ErrorCode.TRANSACTION_TOO_OLD
            return Refusal(too_old, text)
        self._overlay.catch_up()
        written = yield from self._keys_written(commit.conflict_keys, read_version)
        if not written:
            written = yield from self._ranges_written(commit.conflict_ranges, read_version)
        if not written:
            return None
        text = f"a key read by this transaction was written after read version {read_version}; start it again"
        return Refusal(ErrorCode.CONFLICT, text)

    def _keys_written(self, keys: Sequence[bytes], read_version: Index) -> Generator[None, None, bool]:
        """Whether one of these keys of the default family was written above a version."""
        versions = self._overlay.versions
        stored = self._last_commit_version > read_version
        for start in range(0, len(keys), SLICE_ROWS):
            if start:
                yield
            wanted = [CURRENT_DEFAULT + key for key in keys[start : start + SLICE_ROWS]]
            if versions and any(versions.get(key, 0) > read_version for key in wanted):
                return True
            if not stored:
                continue
            for row in self._view.multi_get(wanted):
                if row is not None and row_version(row) > read_version:
                    return True
        return False

    def _ranges_written(self, ranges: Sequence[KeyRange], read_version: Index) -> Generator[None, None, bool]:
        """Whether a key of one of these ranges was written above a version."""
        stored = self._last_commit_version > read_version
        for count, wanted in enumerate(ranges):
            if count % SLICE_RANGES == SLICE_RANGES - 1:
                yield
            family = self._family_of(wanted.family)
            if family is None or wanted.begin >= wanted.end:
                continue
            begin, end = family.current + wanted.begin, family.current + wanted.end
            if (yield from self._overlay.range_written(begin, end, read_version)):
                return True
            if not stored:
                continue
            if wanted.end == wanted.begin + b"\x00":
                row = self._view.get(begin)
                written = row is not None and row_version(row) > read_version
            else:
                written = yield from self._stored_range_written(family, wanted, read_version)
            if written:
                return True
        return False

    def _stored_range_written(
        self, family: FamilyEntry, wanted: KeyRange, read_version: Index
    ) -> Generator[None, None, bool]:
        """
        Scan the range and walk the changes since the read version side by side; whichever ends first decides.

        Both are exact – a delete leaves a row in `current` until the watermark passes it –, so which one it is cannot
        be seen, and the cost is at most twice the smaller of the two.
        """
        rows = self._view.iterate(family.current + wanted.begin, family.current + wanted.end)
        legs: list[Iterator[bool]] = [(row_version(row) > read_version for _, row in rows)]
        leg_rows = FIRST_LEG_ROWS
        while True:
            for leg in legs:
                verdicts = list(islice(leg, leg_rows))
                if any(verdicts):
                    return True
                if len(verdicts) < leg_rows:
                    return False
            if len(legs) == 1:
                legs.append(self._changes_in(family.family_id, wanted, read_version))
                leg_rows = SLICE_ROWS
            yield

    def _changes_in(self, family_id: int, wanted: KeyRange, read_version: Index) -> Iterator[bool]:
        """One verdict per change above the read version: whether it lies in the range."""
        _, begin, end = wanted
        for _, row in self._view.iterate(changes_key(read_version + 1), CHANGES_END):
            for version, _, changed_family, key in parse_changes(row):
                yield version > read_version and changed_family == family_id and begin <= key < end
