"""
The sweep: removes rows that no readable version needs any more. Local and physical; replicas need not agree on it.

For each key, of the `history` rows at or below the watermark only the newest is kept, and not even that one if it is a
tombstone: then it goes together with its `current` row, if that still is this very tombstone. The newest row is never
dropped otherwise, because a later blind overwrite relies on finding it there. Changes at or below the watermark go as
one range. Reads below the watermark are refused by rule, so nobody ever looks for what is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvorum.core.errors import WriteStalledError
from kvorum.statemachine.layout import (
    CHANGES,
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

SLICE_ROWS: Final = 1000
"""History rows walked in one slice: about three milliseconds, below the five an apply slice may take."""


def sweep(engine: StorageEngine, low_watermark: Index, slice_rows: int = SLICE_ROWS) -> Iterator[int]:
    """
    One pass over the whole store, in key order.

    Each slice walks with a fresh iterator, decides on live rows only and writes one batch, so writes may go on between
    slices. A slice that the engine stalls is done again at the next step.

    Args:
        engine: The store.
        low_watermark: Must be at or below the watermark stored there; nothing that it does not cover is touched.
        slice_rows: Rows after which a slice ends, at a key's end if it comes within as many rows again.

    Yields:
        Rows removed by each slice.
    """
    if slice_rows < 2:
        msg = f"a slice of {slice_rows} rows would never get on"
        raise AssertionError(msg)
    position: bytes | None = HISTORY
    while position is not None:
        batch = engine.batch()
        removed, following = _sweep_slice(engine, batch, position, low_watermark, slice_rows)
        if _written(engine, batch):
            position = following
            yield removed
        else:
            yield 0
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
    engine: StorageEngine, batch: WriteBatch, position: bytes, low_watermark: Index, slice_rows: int
) -> tuple[int, bytes | None]:
    """Stage one slice from ``position``; returns rows removed and where the next slice begins, None at the end."""
    watermark = pack_u64(low_watermark)
    removed = examined = 0
    kept: bytes | None = None
    """Newest row so far, at or below the watermark, of the key being walked."""
    for key, _ in engine.iterate(position, CHANGES):
        examined += 1
        if kept is not None and kept[:-HISTORY_SUFFIX_BYTES] != key[:-HISTORY_SUFFIX_BYTES]:
            removed += _settle(engine, batch, kept)
            kept = None
        if examined > slice_rows and (kept is None or examined > 2 * slice_rows):
            # A key with very many versions is cut here; the next slice begins with the row that is the newest so far.
            return removed, kept if kept is not None else key
        if key[-HISTORY_SUFFIX_BYTES:-1] > watermark:
            if kept is not None:
                removed += _settle(engine, batch, kept)
                kept = None
            continue
        if kept is not None:
            batch.delete(kept)
            removed += 1
        kept = key
    if kept is not None:
        removed += _settle(engine, batch, kept)
    return removed, None


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
