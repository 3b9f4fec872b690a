"""
The sweep: removes rows that no readable version needs any more. Local and physical; replicas need not agree on it.

For each key, of the `history` rows at or below the watermark only the newest is kept, and not even that one if it is a
tombstone: then it goes together with its `current` row, if that still is this very tombstone. The newest row is never
dropped otherwise, because a later blind overwrite relies on finding it there. Changes at or below the watermark go as
one range. Reads below the watermark are refused by rule, so nobody ever looks for what is gone.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple

from kvorum.core.errors import WriteStalledError
from kvorum.statemachine.layout import (
    CHANGES,
    CHANGES_END,
    HISTORY,
    HISTORY_SUFFIX_BYTES,
    KIND_DELETE,
    ROW_HEAD_BYTES,
    TOMBSTONE,
    changes_key,
    current_key_of_history,
    pack_u64,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvorum.core.ids import Index
    from kvorum.core.ports import StorageEngine, WriteBatch
    from kvorum.statemachine.layout import StateRow

SLICE_ROWS: Final = 1000
"""History rows walked in one slice: about three milliseconds, below the five an apply slice may take."""

STEP_ROWS: Final = 400
"""The same for a pass that goes on beside the writes of clients: a little more than one millisecond."""

SWEEP_ROWS_MIN: Final = 10_000
"""Fewer versions than this are not worth a pass."""

SWEEP_BYTES_MIN: Final = 256 * 1024 * 1024
"""Unless their values are large: this much of them is always worth one."""

SWEEP_SHARE: Final = 2
"""A pass begins when what may be garbage is one part in this many of what the last pass left."""

TRAIL_BYTES_MAX: Final = 4 * 1024 * 1024
"""Most bytes of the marks in a trail; beyond it every other one goes, and later ones are twice as far apart."""


class _Slice(NamedTuple):
    """What a slice came to."""

    examined: int
    removed: int
    following: bytes | None
    """Where the next slice begins; None at the end of the store."""
    kept: bytes | None
    """Newest row so far, at or below the watermark, of the key in which the slice ended; the next one decides on it."""


class Trail:
    """
    Marks where the last pass removed rows.

    Until RocksDB has compacted removed rows away, an iterator steps over all that lie between two live ones inside a
    single call: a hundred milliseconds and more for a key that was overwritten very often. So a pass leaves a mark
    after each slice's worth of removed rows, and a slice of the next pass ends at the next mark at the latest.
    """

    def __init__(self) -> None:
        self._marks: list[bytes] = []
        self._fresh: list[bytes] = []
        self._fresh_bytes = 0
        self._spacing = 0
        self._unmarked = 0
        self.examined = 0
        """Rows that the present pass has looked at."""

    def begin(self, slice_rows: int) -> None:
        """A pass begins; one that was given up halfway leaves marks only for what it did."""
        self._marks, self._fresh = self._fresh, []
        self._fresh_bytes = self._unmarked = self.examined = 0
        self._spacing = slice_rows

    def end_of_slice(self, position: bytes) -> bytes:
        """How far a slice that begins here may go at most."""
        following = bisect_right(self._marks, position)
        return self._marks[following] if following < len(self._marks) else CHANGES

    def note(self, done: _Slice) -> None:
        """Take in a slice that was written."""
        self.examined += done.examined
        self._unmarked += done.removed
        if self._unmarked < self._spacing or done.following is None:
            return
        self._unmarked = 0
        self._fresh.append(done.following)
        self._fresh_bytes += len(done.following)
        if self._fresh_bytes > TRAIL_BYTES_MAX:
            self._fresh = self._fresh[::2]
            self._fresh_bytes = sum(map(len, self._fresh))
            self._spacing *= 2


class Sweeper:
    """Decides when a pass is worth its cost, and carries it out slice by slice, beside the writes of clients."""

    def __init__(self, engine: StorageEngine, state: StateRow) -> None:
        """Find out from the store what was swept before."""
        self._engine = engine
        self._low_watermark = state.low_watermark
        self._swept_to = _oldest_change(engine, state.applied_index)
        self._rows_kept = engine.statistics().keys // 2
        self._entries = 0
        self._rows = 0
        self._large_bytes = 0
        self._steps: Iterator[int] | None = None
        self._pass_watermark: Index = 0
        self._removed = 0
        self._trail = Trail()
        self.removed_total = 0
        """Rows removed by this process."""

    @property
    def active(self) -> bool:
        """Whether a pass is under way."""
        return self._steps is not None

    def note(self, state: StateRow, entries: int, rows: int, large_bytes: int) -> None:
        """Take in a group that was applied: its entries, the versions it wrote, and bytes of large values in them."""
        self._low_watermark = state.low_watermark
        self._entries += entries
        self._rows += rows
        self._large_bytes += large_bytes

    def due(self) -> bool:
        """
        Whether enough has fallen below the watermark since the last pass to be worth another one.

        How much of it is garbage only the pass can tell; so its cost is at most a few rows per write.
        """
        fallen = self._low_watermark - self._swept_to
        if fallen <= 0:
            return False
        if self._large_bytes >= SWEEP_BYTES_MIN:
            return self._large_bytes >= self._engine.statistics().bytes_on_disk // SWEEP_SHARE
        rows = fallen * max(1, self._rows // max(1, self._entries))
        return rows >= max(SWEEP_ROWS_MIN, self._rows_kept // SWEEP_SHARE)

    def start(self) -> None:
        """Begin a pass at the present watermark, instead of one that is under way."""
        self._pass_watermark = self._low_watermark
        self._steps = sweep(self._engine, self._low_watermark, STEP_ROWS, self._trail)
        self._large_bytes = self._removed = 0

    def step(self) -> bool:
        """Sweep one slice of the pass under way, a millisecond or two; False when there is nothing more to do."""
        if self._steps is None:
            return False
        removed = next(self._steps, None)
        if removed is not None:
            self._removed += removed
            self.removed_total += removed
            return True
        self._steps = None
        self._swept_to = self._pass_watermark
        self._rows_kept = max(0, self._trail.examined - self._removed)
        return False


def _oldest_change(engine: StorageEngine, applied_index: Index) -> Index:
    """Up to where the store was swept, by the changes that are left."""
    for key, _ in engine.iterate(CHANGES, CHANGES_END):
        return int.from_bytes(key[1:9], "big") - 1
    return applied_index


def sweep(
    engine: StorageEngine, low_watermark: Index, slice_rows: int = SLICE_ROWS, trail: Trail | None = None
) -> Iterator[int]:
    """
    One pass over the whole store, in key order.

    Each slice walks with a fresh iterator, decides on live rows only and writes one batch, so writes may go on between
    slices. A slice that the engine stalls is done again at the next step.

    Args:
        engine: The store.
        low_watermark: Must be at or below the watermark stored there; nothing that it does not cover is touched.
        slice_rows: Rows after which a slice ends.
        trail: What the last pass with it left behind, and where this one leaves its own.

    Yields:
        Rows removed by each slice.
    """
    if slice_rows < 1:
        msg = f"a slice of {slice_rows} rows would never get on"
        raise AssertionError(msg)
    trail = trail or Trail()
    trail.begin(slice_rows)
    watermark = pack_u64(low_watermark)
    position: bytes | None = HISTORY
    kept: bytes | None = None
    while position is not None:
        batch = engine.batch()
        done = _sweep_slice(engine, batch, position, trail.end_of_slice(position), kept, watermark, slice_rows)
        if done.removed and not _written(engine, batch):
            yield 0
            continue
        position, kept = done.following, done.kept
        trail.note(done)
        yield done.removed
    while True:
        batch = engine.batch()
        batch.delete_range(CHANGES, changes_key(low_watermark + 1))
        if _written(engine, batch):
            return
        yield 0


def _written(engine: StorageEngine, batch: WriteBatch) -> bool:
    """Write a batch; False if the engine asks to wait."""
    try:
        engine.write(batch)
    except WriteStalledError:
        return False
    return True


def _sweep_slice(
    engine: StorageEngine,
    batch: WriteBatch,
    position: bytes,
    end: bytes,
    kept: bytes | None,
    watermark: bytes,
    slice_rows: int,
) -> _Slice:
    """Stage the rows from ``position`` to before ``end``, but at most ``slice_rows``; ``kept`` as in `_Slice`."""
    removed = examined = 0
    for key, _ in engine.iterate(position, end):
        if examined == slice_rows:
            return _Slice(examined, removed, key, kept)
        examined += 1
        if kept is not None and kept[:-HISTORY_SUFFIX_BYTES] != key[:-HISTORY_SUFFIX_BYTES]:
            removed += _settle(engine, batch, kept)
            kept = None
        if key[-HISTORY_SUFFIX_BYTES:-1] > watermark:
            if kept is not None:
                removed += _settle(engine, batch, kept)
                kept = None
            continue
        if kept is not None:
            batch.delete(kept)
            removed += 1
        kept = key
    if end < CHANGES:
        return _Slice(examined, removed, end, kept)
    if kept is not None:
        removed += _settle(engine, batch, kept)
    return _Slice(examined, removed, None, None)


def _settle(engine: StorageEngine, batch: WriteBatch, newest: bytes) -> int:
    """Decide on the newest row at or below the watermark: a value stays, a tombstone goes; returns rows removed."""
    if newest[-1:] != KIND_DELETE:
        return 0
    batch.delete(newest)
    current_key = current_key_of_history(newest)
    row = engine.get(current_key)
    if row is None or row[:ROW_HEAD_BYTES] != TOMBSTONE + newest[-HISTORY_SUFFIX_BYTES + 1 : -1]:
        return 1
    batch.delete(current_key)
    return 2
