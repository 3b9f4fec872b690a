"""
The default storage engine: RocksDB through rocksdict, one column family, without RocksDB's own write-ahead log.

The consensus log is the durability; what RocksDB has not flushed is applied again from it. rocksdict raises bare
``Exception`` for everything, so this module is also where its texts become `core.errors`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DbClosedError,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteOptions,
)
from rocksdict import WriteBatch as RocksdictBatch

from kvorum.core.errors import LocalError, OutOfSpaceError, StorageFailedError, WriteStalledError
from kvorum.core.ports import EngineStatistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rocksdict import RdictIter

    from kvorum.core.ports import View, WriteBatch

_MEBIBYTE: Final = 1024 * 1024
_CACHE_HITS: Final = re.compile(r"^rocksdb\.block\.cache\.hit COUNT : (\d+)", re.MULTILINE)
_CACHE_MISSES: Final = re.compile(r"^rocksdb\.block\.cache\.miss COUNT : (\d+)", re.MULTILINE)
_MEMTABLE_BYTES: Final = 4 * _MEBIBYTE
_MEMTABLES_MAX: Final = 16
"""
A write buffer is gathered as up to this many memtables of about this size, which one flush writes out as one file.

An insert searches a skip list: one that fits the processor's cache costs a third of one of 64 MiB (decision 0020).
"""
_MEMTABLE_BLOOM_RATIO: Final = 0.01
"""Share of a memtable's memory for its bloom filter: 14 bits a row of 60 bytes; a larger filter misses the cache."""

_DELETIONS_WINDOW: Final = 10_000
_DELETIONS_TRIGGER: Final = 2_500
"""
So many deletions among that many entries make a file worth compacting.

Fewer compactions would be enough while writes go on, but what the sweep deletes last would then stay on disk when they
end: with 7,500 it did (decision 0022).
"""

_BACKGROUND_NICENESS: Final = 10
"""Of RocksDB's threads: a tenth of a processor that the loop wants too, all of one that it does not (decision 0022)."""

_FULL: Final = ("No space left on device", "Disk quota exceeded")
"""
ENOSPC and EDQUOT as RocksDB spells them.

It keeps what it could not flush, refuses every write meanwhile, and goes on by itself: it looks every five seconds
whether a memtable's worth of space is free (after ENOSPC; after EDQUOT it has to be opened again).
"""

_INFO_LOG_FILES_MAX: Final = 2
_INFO_LOG_BYTES_MAX: Final = 4 * _MEBIBYTE


@dataclass(frozen=True, slots=True)
class EngineTuning:
    """Knobs of the engine that an operator may turn (section ``[rocksdb]``)."""

    write_buffer_size_mb: int = 64
    """What is gathered in memory before it is flushed in the background."""
    max_write_buffer_number: int = 4
    """So many of them may be in memory, full ones included; beyond it writes stall."""
    block_cache_size_mb: int = 128
    bloom_bits_per_key: int = 10
    """About 1 % false positives; a get of a missing key then costs no block read."""
    background_jobs: int = 2
    """Threads for flush and compaction together."""
    compression: bool = True
    """LZ4: 3 % of a put and 7 % of a cached get with data that does not compress; saves disk with data that does."""


def _options(tuning: EngineTuning) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    # A hit rate that status can show costs about 0.1 us per get; RocksDB's periodic dumps of it would cost disk.
    options.enable_statistics()
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    options.set_keep_log_file_num(_INFO_LOG_FILES_MAX)
    options.set_max_log_file_size(_INFO_LOG_BYTES_MAX)
    options.set_max_background_jobs(tuning.background_jobs)
    buffer_bytes = tuning.write_buffer_size_mb * _MEBIBYTE
    memtables = min(max(1, buffer_bytes // _MEMTABLE_BYTES), _MEMTABLES_MAX)
    options.set_write_buffer_size(buffer_bytes // memtables)
    options.set_min_write_buffer_number_to_merge(memtables)
    options.set_max_write_buffer_number(memtables * tuning.max_write_buffer_number)
    # The loop is the only writer: without provision for others a write is some per cent cheaper.
    options.set_allow_concurrent_memtable_write(False)
    options.set_compression_type(DBCompressionType.lz4() if tuning.compression else DBCompressionType.none())
    # A bloom filter per memtable: a get of a key that is not in one skips its search (4.6 to 3.6 us per get).
    options.set_memtable_whole_key_filtering(True)
    options.set_memtable_prefix_bloom_ratio(_MEMTABLE_BLOOM_RATIO)
    # A file in which the sweep has deleted much is compacted soon, whatever its size: so its space is given back, and
    # later iterators need not step over the tombstones.
    options.add_compact_on_deletion_collector_factory(_DELETIONS_WINDOW, _DELETIONS_TRIGGER, 0.0)
    # Background writes reach the disk in small steps, so that a flush does not make the log's fdatasync wait for it.
    options.set_bytes_per_sync(_MEBIBYTE)
    table = BlockBasedOptions()
    table.set_bloom_filter(tuning.bloom_bits_per_key, block_based=False)
    table.set_block_cache(Cache(tuning.block_cache_size_mb * _MEBIBYTE))
    options.set_block_based_table_factory(table)
    return options


class RocksdictEngine:
    """`core.ports.StorageEngine` on one RocksDB directory."""

    def __init__(self, database: Rdict, options: Options, path: Path) -> None:
        self._database = database
        self._options = options
        self._path = path
        self._write = database.write
        # Hot path: the bound C methods themselves, without a Python frame around them. An I/O error in a read is
        # therefore rocksdict's own bare Exception; whoever reads treats any exception as a failed read.
        self.get = database.get  # type: ignore[method-assign]
        self.multi_get = database.get  # type: ignore[method-assign, assignment]

    @classmethod
    def open(cls, path: Path, tuning: EngineTuning | None = None) -> RocksdictEngine:
        """
        Open a directory, creating it if it is missing.

        Raises:
            OutOfSpaceError: The disk is full: even opening writes a little.
            StorageFailedError: It cannot be created, is damaged, or another process has it open.
        """
        options = _options(tuning or EngineTuning())
        try:
            # RocksDB starts its threads while it opens, and a thread is as nice as the one that started it.
            with ThreadPoolExecutor(1, "rocksdb-open", _be_nice) as opener:
                database = opener.submit(Rdict, str(path), options).result()
        except Exception as error:
            if _is_full(str(error)):
                msg = f"cannot open the RocksDB directory {path}: {error}; free space or enlarge the volume"
                raise OutOfSpaceError(msg) from error
            msg = (
                f"cannot open the RocksDB directory {path}: {error}; if no other process uses it and the disk is "
                "healthy, move it aside and start again: the store is built again from the log"
            )
            raise StorageFailedError(msg) from error
        write_options = WriteOptions()
        write_options.disable_wal = True  # type: ignore[method-assign, assignment]  # an attribute, whatever the stub says
        # rocksdict's write holds the interpreter lock: a stalled write that waited would freeze heartbeats with it.
        write_options.no_slowdown = True
        database.set_write_options(write_options)
        return cls(database, options, path)

    def get(self, key: bytes) -> bytes | None:
        """Value of a key, or None."""
        value: bytes | None = self._database.get(key)
        return value

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of many keys in their order."""
        values: list[bytes | None] = self._database[list(keys)]  # type: ignore[assignment]
        return values

    def iterate(self, begin: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with begin <= key < end, in order or from the upper end down, as of this moment."""
        if begin >= end:
            return iter(())
        bounds = ReadOptions()
        bounds.set_iterate_upper_bound(end)
        cursor = self._database.iter(bounds)
        # rocksdict's ready-made item iterators end silently at an I/O error; the raw one can be asked for its status.
        # Its setter for the lower bound sets the upper one, so that end is compared here.
        if reverse:
            cursor.seek_to_last()
            return self._walk_down(cursor, begin, bounds)
        cursor.seek(begin)
        return self._walk_up(cursor, bounds)

    # Safety: the options own the bytes of the upper bound and rocksdict's iterator does not keep them alive; freed,
    # they end a scan anywhere. The generators below hold them as long as the cursor (conformance tests).

    def _walk_up(self, cursor: RdictIter, bounds: ReadOptions) -> Iterator[tuple[bytes, bytes]]:
        valid, key, value, advance = cursor.valid, cursor.key, cursor.value, cursor.next
        while valid():
            yield key(), value()
            advance()
        _must_be_healthy(cursor, self._path)
        del bounds

    def _walk_down(self, cursor: RdictIter, begin: bytes, bounds: ReadOptions) -> Iterator[tuple[bytes, bytes]]:
        valid, key, value, advance = cursor.valid, cursor.key, cursor.value, cursor.prev
        while valid():
            found: bytes = key()
            if found < begin:
                break
            yield found, value()
            advance()
        _must_be_healthy(cursor, self._path)
        del bounds

    def batch(self) -> WriteBatch:
        """An empty batch; it is rocksdict's own, so that filling it costs no Python frame per call."""
        return RocksdictBatch(raw_mode=True)

    def write(self, batch: WriteBatch) -> None:
        """
        Make a batch visible; it is spent afterwards, also after an error.

        Raises:
            WriteStalledError: Memtables or level 0 are full; nothing was written.
            OutOfSpaceError: An earlier flush met a full disk; nothing was written.
            StorageFailedError: The disk failed.
        """
        try:
            self._write(batch)  # type: ignore[arg-type]
        except Exception as error:
            raise self._translated(error) from error

    def snapshot(self) -> View:
        """A view that stays as it is now until dropped. It pins memtables and files: drop it when done."""
        return _IteratorView(self._database.iter(ReadOptions()), self._path)

    def flush(self) -> None:
        """
        Block until everything written before is durable; releases the interpreter lock, so call it in a thread.

        Raises:
            OutOfSpaceError: The disk is full; nothing is lost, flush again later.
            StorageFailedError: The disk failed.
        """
        try:
            self._database.flush(wait=True)
        except Exception as error:
            raise self._translated(error) from error

    def statistics(self) -> EngineStatistics:
        """Figures for status and metrics; estimates, never a scan."""
        figure = self._database.property_int_value
        counters = self._options.get_statistics() or ""
        hits, misses = (
            int(found.group(1)) if (found := pattern.search(counters)) else 0
            for pattern in (_CACHE_HITS, _CACHE_MISSES)
        )
        return EngineStatistics(
            keys=figure("rocksdb.estimate-num-keys") or 0,
            bytes_on_disk=figure("rocksdb.total-sst-files-size") or 0,
            cache_hit_rate_percent=100 * hits // (hits + misses) if hits + misses else 0,
            compaction_pending_bytes=figure("rocksdb.estimate-pending-compaction-bytes") or 0,
        )

    def close(self) -> None:
        """Release everything; RocksDB writes out what is in memory on its way, which only shortens the next replay."""
        try:
            self._database.close()
        except Exception as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> Exception:
        text = str(error)
        if text.startswith("Result incomplete"):
            return WriteStalledError(text)
        if isinstance(error, DbClosedError) or "already consumed" in text:
            return LocalError(f"storage engine in {self._path} used wrongly: {text}")
        kind = OutOfSpaceError if _is_full(text) else StorageFailedError
        return kind(f"RocksDB in {self._path} failed: {text}")


def _be_nice() -> None:
    """Put the calling thread behind others. Only Linux has a niceness per thread; elsewhere all stays as it is."""
    if sys.platform == "linux":
        # Refused only by an unusual sandbox, in which RocksDB then competes with the loop.
        with contextlib.suppress(OSError):
            os.nice(_BACKGROUND_NICENESS)


def _is_full(text: str) -> bool:
    return any(spelt in text for spelt in _FULL)


def _must_be_healthy(cursor: RdictIter, path: Path) -> None:
    """An iterator that is no longer valid has reached its end, or an error that looks like one."""
    try:
        cursor.status()
    except Exception as error:
        msg = f"RocksDB in {path} failed while iterating: {error}; move it aside and start again: the log rebuilds it"
        raise StorageFailedError(msg) from error


class _IteratorView:
    """
    A consistent view made of one iterator.

    rocksdict's own Snapshot binds gets but not its iterators, which see later writes. One raw iterator is a view of
    the moment it was made, so every read here goes through it; readers that take turns seek back to where they were.
    """

    def __init__(self, cursor: RdictIter, path: Path) -> None:
        self._cursor = cursor
        self._path = path
        self._user: object = None

    def get(self, key: bytes) -> bytes | None:
        """Value of a key, or None."""
        self._user = None
        cursor = self._cursor
        cursor.seek(key)
        if not cursor.valid():
            _must_be_healthy(cursor, self._path)
            return None
        value: bytes | None = cursor.value() if cursor.key() == key else None
        return value

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of many keys in their order."""
        return [self.get(key) for key in keys]

    def iterate(self, begin: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with begin <= key < end, in order or from the upper end down."""
        if begin >= end:
            return iter(())
        return self._walk_down(begin, end) if reverse else self._walk_up(begin, end)

    def _walk_up(self, begin: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        cursor, me, position = self._cursor, object(), begin
        while True:
            if self._user is not me:
                cursor.seek(position)
                self._user = me
            if not cursor.valid():
                break
            key: bytes = cursor.key()
            if key >= end:
                return
            value: bytes = cursor.value()
            cursor.next()
            position = key + b"\0"
            yield key, value
        _must_be_healthy(cursor, self._path)

    def _walk_down(self, begin: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        cursor, me, position = self._cursor, object(), end
        while True:
            if self._user is not me:
                cursor.seek_for_prev(position)
                self._user = me
                if cursor.valid() and cursor.key() == position:
                    cursor.prev()
            if not cursor.valid():
                break
            key: bytes = cursor.key()
            if key < begin:
                return
            value: bytes = cursor.value()
            cursor.prev()
            position = key
            yield key, value
        _must_be_healthy(cursor, self._path)
