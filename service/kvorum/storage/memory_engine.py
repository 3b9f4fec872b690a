"""
A storage engine in memory for tests and the simulator; it passes the same conformance suite as RocksDB.

It keeps RocksDB's promises and no better ones: what was not flushed is lost in a crash, except that a full write
buffer goes to "disk" on its own, so a crash leaves some prefix of the batches that is at least what was flushed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Final, TypeAlias

from kvorum.core.errors import LocalError, OutOfSpaceError, WriteStalledError
from kvorum.core.ports import EngineStatistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kvorum.core.ports import View, WriteBatch

WRITE_BUFFER_BATCHES: Final = 4096
"""Batches after which the buffer is written out, as a full memtable would be; bounds what a crash can lose."""

_FULL: Final = "the engine was told that there is no space"

_Change: TypeAlias = tuple[bytes, bytes | None, bytes | None]
"""(key, value, None) puts, (key, None, None) deletes, (begin, None, end) deletes a range."""


class MemoryBatch:
    """Changes that take effect together or not at all."""

    __slots__ = ("changes", "spent")

    def __init__(self) -> None:
        self.changes: list[_Change] = []
        self.spent = False

    def put(self, key: bytes, value: bytes) -> None:
        """Set a key."""
        self.changes.append((key, value, None))

    def delete(self, key: bytes) -> None:
        """Remove a key; removing a missing key is no error."""
        self.changes.append((key, None, None))

    def delete_range(self, begin: bytes, end: bytes) -> None:
        """Remove begin <= key < end."""
        self.changes.append((begin, None, end))


class _Map:
    """An ordered map; once somebody looks at it, it is copied before the next change."""

    __slots__ = ("keys", "values", "watched")

    def __init__(self, keys: list[bytes], values: dict[bytes, bytes]) -> None:
        self.keys = keys
        self.values = values
        self.watched = False

    def copy(self) -> _Map:
        return _Map(self.keys.copy(), self.values.copy())

    def apply(self, changes: Sequence[_Change]) -> None:
        keys, values = self.keys, self.values
        for key, value, end in changes:
            if value is not None:
                if key not in values:
                    insort(keys, key)
                values[key] = value
            elif end is None:
                if values.pop(key, None) is not None:
                    del keys[bisect_left(keys, key)]
            elif key < end:
                first, last = bisect_left(keys, key), bisect_left(keys, end)
                for removed in keys[first:last]:
                    del values[removed]
                del keys[first:last]

    def iterate(self, begin: bytes, end: bytes, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        keys, values = self.keys, self.values
        first, last = bisect_left(keys, begin), bisect_left(keys, end)
        positions = range(last - 1, first - 1, -1) if reverse else range(first, last)
        return ((keys[position], values[keys[position]]) for position in positions)


class _FrozenView:
    """A view of a map that nobody changes any more."""

    def __init__(self, frozen: _Map) -> None:
        self._map = frozen

    def get(self, key: bytes) -> bytes | None:
        """Value of a key, or None."""
        return self._map.values.get(key)

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of many keys in their order."""
        return [self._map.values.get(key) for key in keys]

    def iterate(self, begin: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with begin <= key < end, in order or from the upper end down."""
        return self._map.iterate(begin, end, reverse=reverse)


class MemoryEngine:
    """
    `core.ports.StorageEngine` in memory.

    Set ``stalled`` to make writes behave as behind a write stall, ``full`` to have no space: as RocksDB does, it takes
    writes until a flush has failed and refuses them from then on, until `go_on`.
    """

    def __init__(self) -> None:
        self.stalled = False
        self.full = False
        self.refusing = False
        """A flush has failed for want of space."""
        self._map = _Map([], {})
        self._flushed = self._map.copy()
        self._unflushed: list[list[_Change]] = []
        self.written_batches = 0
        """How many batches were ever written: what `flush` may be told to end with."""
        self._closed = False

    def get(self, key: bytes) -> bytes | None:
        """Value of a key, or None."""
        return self._map.values.get(key)

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of many keys in their order."""
        return [self._map.values.get(key) for key in keys]

    def iterate(self, begin: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with begin <= key < end, in order or from the upper end down, as of this moment."""
        self._map.watched = True
        return self._map.iterate(begin, end, reverse=reverse)

    def batch(self) -> WriteBatch:
        """An empty batch for `write`."""
        return MemoryBatch()

    def write(self, batch: WriteBatch) -> None:
        """
        Make a batch visible; it is spent afterwards, also after an error.

        Raises:
            WriteStalledError: The engine was told to stall; nothing was written.
            OutOfSpaceError: A flush has failed; nothing was written.
        """
        assert isinstance(batch, MemoryBatch), "a batch of another engine"
        if self._closed or batch.spent:
            msg = "write to a closed engine" if self._closed else "this batch was written before; build a new one"
            raise LocalError(msg)
        batch.spent = True
        if self.stalled:
            msg = "the engine was told to stall"
            raise WriteStalledError(msg)
        if self.refusing:
            raise OutOfSpaceError(_FULL)
        if self._map.watched:
            self._map = self._map.copy()
        self._map.apply(batch.changes)
        self._unflushed.append(batch.changes)
        self.written_batches += 1
        if len(self._unflushed) >= WRITE_BUFFER_BATCHES:
            self.refusing = self.full
            if not self.full:
                self.flush()

    def snapshot(self) -> View:
        """A view that stays as it is now until dropped."""
        self._map.watched = True
        return _FrozenView(self._map)

    def flush(self, batches: int | None = None) -> None:
        """
        Make what was written survive `crashed`.

        Args:
            batches: Only the first so many ever written: those from before a flush began that ends now. None: all.

        Raises:
            OutOfSpaceError: There is no space; nothing is lost.
        """
        if self.full or self.refusing:
            self.refusing = True
            raise OutOfSpaceError(_FULL)
        later = 0 if batches is None else self.written_batches - batches
        count = max(len(self._unflushed) - later, 0)
        for changes in self._unflushed[:count]:
            self._flushed.apply(changes)
        del self._unflushed[:count]

    def go_on(self) -> None:
        """There is space again: take writes."""
        self.full = self.refusing = False

    def statistics(self) -> EngineStatistics:
        """Figures for status and metrics."""
        return EngineStatistics(keys=len(self._map.keys))

    def close(self) -> None:
        """Refuse further writes."""
        self._closed = True

    def crashed(self, unflushed_batches_kept: int = 0) -> MemoryEngine:
        """What a new process finds after a crash: everything flushed and the first few batches written since."""
        survivor = MemoryEngine()
        survivor._map = self._flushed.copy()
        for changes in self._unflushed[:unflushed_batches_kept]:
            survivor._map.apply(changes)
        survivor._flushed = survivor._map.copy()
        survivor.full = self.full
        return survivor
