"""
The consensus log: `core.ports.Log` on segment files, with one thread that writes and syncs whole groups.

The loop only queues. While the thread syncs one group, everything queued meanwhile becomes the next, so the number of
fsyncs adapts to the load by itself. Reading, dropping and all callbacks happen on the loop; the two sides share the
queue, the list of placed groups and a few plain fields, each written by one side only.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections import deque
from functools import partial
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from kvorum.core.entries import EntryKind, HardState
from kvorum.core.errors import OutOfSpaceError, StorageFailedError
from kvorum.observe.histogram import LatencyHistogram
from kvorum.storage.wal.layout import FILE_HEADER_BYTES, SEGMENT_BYTES, base_record, hard_state_record
from kvorum.storage.wal.recovery import list_segments, recover
from kvorum.storage.wal.system import REAL
from kvorum.storage.wal.writer import SegmentWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from kvorum.core.entries import Entry, EntryBatch
    from kvorum.core.ids import Index, Ticket
    from kvorum.core.ports import Base
    from kvorum.core.snapshot import Manifest
    from kvorum.storage.wal.recovery import Recovery
    from kvorum.storage.wal.segments import Segment, SegmentIndex
    from kvorum.storage.wal.stream import StreamState
    from kvorum.storage.wal.system import SystemCalls

GROUP_APPENDS_MAX: Final = 256
"""Appends merged into one group; with two buffers each they stay below the kernel's 1,024 per write."""
GROUP_BYTES_MAX: Final = 4 * 1024 * 1024
"""Bytes after which a group is closed, so that the first in it does not wait long for the last."""
SPACE_RETRY_S: Final = 0.5
"""Pause between two attempts while the disk is full: soon enough for an operator, rare enough for the log."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_Append: TypeAlias = "tuple[Ticket, HardState | None, EntryBatch | None]"
_Configurations: TypeAlias = "list[tuple[Index, bytes]]"
_Placement: TypeAlias = "tuple[Segment, int, int, Index, Index, Index, Index | None]"
"""Segment, offset, end, lowest, last and highest index of a durable group, and the base if it resets the log."""


class _Reset(NamedTuple):
    """A queued install of a snapshot; always a group of its own, for the BASE must find its head before it."""

    ticket: Ticket
    hard_state: HardState
    base: Base
    configuration: Entry

    def records(self) -> list[bytes]:
        """The group's body, in the form of a head (docs/formats/log.md section 2.5)."""
        return [
            hard_state_record(self.hard_state),
            self.configuration.record,
            base_record(self.base.index, self.base.term, self.base.time_ms),
        ]

    def follow(self, state: StreamState) -> None:
        """What the stream says once the group is durable."""
        state.restart(self.base.index, self.base.term, self.base.time_ms)
        state.hard_state = self.hard_state
        state.configurations = [(self.configuration.index, self.configuration.record)]


class SegmentedLog:
    """`core.ports.Log` in a directory; `open` is the only way to get one."""

    def __init__(
        self,
        directory: Path,
        recovery: Recovery,
        writer: SegmentWriter,
        *,
        run_on_loop: Callable[[Callable[[], None]], object],
        fail: Callable[[StorageFailedError], None],
        system: SystemCalls,
    ) -> None:
        self.recovered = recovery.state.recovered(recovery.torn_bytes, tuple(recovery.notes))
        self.fsync_histogram = LatencyHistogram(0.0005, 14)
        self._directory = directory
        self._run_on_loop = run_on_loop
        self._fail = fail
        self._system = system
        self._index: SegmentIndex = recovery.index
        self._committed: Index = 0
        # Loop to thread.
        self._queue: SimpleQueue[_Append | _Reset | list[Segment] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        # The thread's own.
        self._writer = writer
        self._state: StreamState = recovery.state
        self._carried: _Append | _Reset | list[Segment] | None = None
        # The loop's own.
        self._reported_ticket: Ticket = 0
        self._on_durable: Callable[[Ticket], None] = _nobody_listens
        self._on_space: Callable[[bool], None] = _nobody_listens
        # Thread to loop.
        self._placed: deque[_Placement] = deque()
        self._written_ticket: Ticket = 0
        self._report_due = False
        self._error: StorageFailedError | None = None
        self._appended_bytes = 0
        self._groups = 0
        self._full = False

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        run_on_loop: Callable[[Callable[[], None]], object],
        fail: Callable[[StorageFailedError], None],
        segment_bytes: int = SEGMENT_BYTES,
        system: SystemCalls = REAL,
        installed: Manifest | None = None,
    ) -> SegmentedLog:
        """
        Recover a log directory, or begin a log in an empty one.

        Args:
            directory: Must exist and be this process's alone.
            run_on_loop: Runs a callback on the loop from any thread: ``loop.call_soon_threadsafe``.
            fail: Called on the loop with the error after which this process must end, once.
            segment_bytes: Size of a segment file.
            system: The system calls; tests make them fail.
            installed: The snapshot that the store beside this log was installed from, if a crash may have come between
                the two: a log that does not reach its base yet is reset to it.

        Raises:
            OutOfSpaceError: The disk is full; what was there is there, try again when there is space.
            StorageFailedError: The log is damaged or the disk refuses; the text names file, offset and way out.

        Durable:
            Everything `recovered` says: the last good group was written again and synced.
        """
        recovery = recover(directory, system)
        writer = SegmentWriter(directory, segment_bytes, max(recovery.last_sequence, 1), system)
        try:
            _take_over(directory, recovery, writer, system)
            if installed is not None and recovery.state.base_index < installed.index:
                _follow_store(recovery, writer, installed)
        except OSError as error:
            # A start on a full disk is tried again and again: nothing may stay open.
            writer.close()
            msg = f"cannot begin a log segment in {directory}: {error}; free space or make it writable, and start again"
            raise (OutOfSpaceError if error.errno in _FULL else StorageFailedError)(msg) from error
        return cls(directory, recovery, writer, run_on_loop=run_on_loop, fail=fail, system=system)

    # --- the loop's side ---------------------------------------------------------------------------------------------

    def start(self, on_durable: Callable[[Ticket], None], on_space: Callable[[bool], None]) -> None:
        """Begin to write; see `core.ports.Log.start`."""
        assert self._thread is None, "a log starts once"
        self._on_durable = on_durable
        self._on_space = on_space
        self._thread = threading.Thread(target=self._run, name="kvorum-log", daemon=True)
        self._thread.start()

    def append(self, ticket: Ticket, hard_state: HardState | None, batch: EntryBatch | None) -> None:
        """Queue one `machine.Persist`; costs the loop the join of the batch, which its peers need anyway."""
        if self._error is not None:
            raise self._error
        if batch is not None:
            batch.block  # noqa: B018 - joined here once, so that the thread finds bytes and never races the loop for it
        self._queue.put((ticket, hard_state, batch))

    def reset(self, ticket: Ticket, hard_state: HardState, base: Base, configuration: Entry) -> None:
        """Queue the install of a snapshot; see `core.ports.Log.reset`. Read nothing until it is reported durable."""
        if self._error is not None:
            raise self._error
        assert configuration.kind == EntryKind.CONFIGURATION
        assert configuration.index <= base.index, "the configuration in force at the base"
        self._queue.put(_Reset(ticket, hard_state, base, configuration))

    def note_committed(self, index: Index) -> None:
        """Tell the log what is committed: older configurations need not go into the heads of new segments."""
        self._committed = index

    def read(self, first: Index, last: Index, bytes_max: int) -> list[Entry]:
        """Durable entries from ``first`` to at most ``last``, at least one, then until ``bytes_max`` is passed."""
        return self._index.read(first, last, bytes_max)

    @property
    def first_index(self) -> Index:
        """Lowest index that `read` can return."""
        return self._index.first_index

    def drop_before(self, index: Index) -> None:
        """Forget segments that hold only entries below ``index``; the thread deletes the files."""
        dropped = self._index.drop_before(index)
        if dropped:
            self._queue.put(dropped)

    async def stop(self) -> None:
        """Write and sync what is queued, then close. On a full disk what is queued stays unwritten, and unreported."""
        if self._thread is not None:
            self._stopping.set()
            self._queue.put(None)
            # Joining in a helper thread keeps the loop running, which the last reports need.
            await asyncio.to_thread(self._thread.join)
            self._report()
        self.close()

    def close(self) -> None:
        """Close the files of a log that was not started, or has stopped."""
        self._writer.close()
        self._index.close()

    def statistics(self) -> dict[str, float]:
        """Figures for metrics."""
        segments = self._index.segments
        return {
            "appended_bytes": self._appended_bytes,
            "groups": self._groups,
            "segments": len(segments),
            "size_bytes": sum(segment.end for segment in segments),
            "queued_appends": self._queue.qsize(),
            "disk_full": float(self._full),
            "first_index": self._index.first_index,
            "last_index": self._index.last_index,
        }

    def _report(self) -> None:
        """On the loop: take over what became durable since the last call, then say so once."""
        # Safety: cleared before the fields are read, or a group that is finished in between would go unreported.
        self._report_due = False
        placed, index = self._placed, self._index
        ticket = self._written_ticket
        while placed:
            segment, offset, end, first, last, highest, base = placed.popleft()
            if segment is not index.segments[-1]:
                index.add_segment(segment)
            if base is not None:
                index.restart(base)
            index.place(offset, end, first, last, highest)
        if ticket > self._reported_ticket:
            self._reported_ticket = ticket
            self._on_durable(ticket)

    def _space_changed(self, available: bool) -> None:  # noqa: FBT001 - the port's own callback has this shape
        self._full = not available
        self._on_space(available)

    # --- the thread's side -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (first := self._next()) is not None:
                self._work(first)
        except _StoppedWhileFullError:
            return
        except StorageFailedError as error:
            self._end(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, a log that stopped must stop the node
            self._end(StorageFailedError(f"the log in {self._directory} stopped: {type(error).__name__}: {error}"))

    def _work(self, first: _Append | _Reset | list[Segment]) -> None:
        """One round of the thread: delete what was dropped, or commit one group."""
        if isinstance(first, list):
            self._delete(first)
        elif isinstance(first, _Reset):
            self._commit_reset(first)
        else:
            self._commit(self._collect(first))

    def _end(self, error: StorageFailedError) -> None:
        self._error = error
        self._run_on_loop(partial(self._fail, error))

    def _next(self) -> _Append | _Reset | list[Segment] | None:
        carried, self._carried = self._carried, None
        return carried if carried is not None else self._queue.get()

    def _collect(self, first: _Append) -> list[_Append]:
        """One group: the first append and what else is queued by now."""
        group = [first]
        size = len(first[2].block) if first[2] else 0
        take = self._queue.get_nowait
        try:
            while size < GROUP_BYTES_MAX and len(group) < GROUP_APPENDS_MAX:
                item = take()
                if item is None:
                    self._queue.put(None)
                    break
                if isinstance(item, (list, _Reset)):
                    self._carried = item
                    break
                group.append(item)
                if item[2]:
                    size += len(item[2].block)
        except Empty:
            pass
        return group

    def _commit(self, group: list[_Append]) -> None:
        """Write one group, sync it, then report it; its order of steps is what makes an acknowledgement true."""
        parts: list[bytes] = []
        for _, hard_state, batch in group:
            if hard_state is not None:
                parts.append(hard_state_record(hard_state))
            if batch is not None:
                parts.append(batch.block)
        if parts:
            segment, offset, end = self._write_durably(parts)
            self._placed.append((segment, offset, end, *self._take_in(group), None))
        self._report_later(group[-1][0])

    def _commit_reset(self, reset: _Reset) -> None:
        """Write the one group that makes everything before it void."""
        segment, offset, end = self._write_durably(reset.records())
        reset.follow(self._state)
        self._placed.append((segment, offset, end, 0, 0, 0, reset.base.index))
        self._report_later(reset.ticket)

    def _write_durably(self, parts: list[bytes]) -> tuple[Segment, int, int]:
        offset, end = self._write(parts)
        started = perf_counter()
        self._writer.sync()
        self.fsync_histogram.observe(perf_counter() - started)
        self._writer.advance(end)
        assert self._writer.segment is not None
        self._appended_bytes += end - offset
        self._groups += 1
        return self._writer.segment, offset, end

    def _report_later(self, ticket: Ticket) -> None:
        # Safety: the ticket last, for the loop may read it at any moment (test_segmented_log_sync_failure_is_fatal).
        self._written_ticket = ticket
        if not self._report_due:
            self._report_due = True
            self._run_on_loop(self._report)

    def _write(self, parts: list[bytes]) -> tuple[int, int]:
        """Write a group, in a new segment if need be; wait as long as the disk is full."""
        size = sum(map(len, parts))
        full = False
        while True:
            try:
                # A segment that was begun before the disk filled up still waits for its head.
                if not self._writer.fresh and self._writer.has_room(size):
                    placed = self._writer.write(parts, size)
                else:
                    placed = self._begin_segment_with(parts, size)
            except OSError as error:
                if error.errno not in _FULL:
                    msg = f"cannot write the log in {self._directory}: {error}; check the disk, then start again"
                    raise StorageFailedError(msg) from error
                if not full:
                    full = True
                    self._run_on_loop(partial(self._space_changed, False))
                if self._stopping.wait(SPACE_RETRY_S):
                    raise _StoppedWhileFullError from error
            else:
                if full:
                    self._run_on_loop(partial(self._space_changed, True))
                return placed

    def _begin_segment_with(self, parts: list[bytes], size: int) -> tuple[int, int]:
        self._state.prune(self._committed)
        head = self._state.head()
        size += sum(map(len, head))
        if not (self._writer.fresh and self._writer.has_room(size)):
            assert self._writer.segment is not None
            self._writer.begin_segment(self._writer.segment.number + 1, size)
        return self._writer.write([*head, *parts], size)

    def _take_in(self, group: list[_Append]) -> tuple[Index, Index, Index]:
        """Follow the stream: what the next segment's head must say, and the bounds of this group for the index."""
        state = self._state
        lowest = last = highest = 0
        for _, hard_state, batch in group:
            if hard_state is not None:
                state.hard_state = hard_state
            if batch is not None:
                entries = batch.entries
                first, last = entries[0].index, entries[-1].index
                state.extend(first, entries[-1], _configurations_in(entries))
                lowest = min(lowest, first) if lowest else first
                highest = max(highest, last)
        return lowest, last, highest

    def _delete(self, segments: list[Segment]) -> None:
        try:
            for segment in segments:
                self._system.unlink(segment.path)
            self._system.sync_directory(self._directory)
        except OSError as error:
            msg = f"cannot delete old segments in {self._directory}: {error}; check the disk, then start the node again"
            raise StorageFailedError(msg) from error


def _nobody_listens(_: object) -> None:
    """Before `start` there is nothing to report."""


class _StoppedWhileFullError(Exception):
    """The log is stopped while it waits for space; nothing that is queued was acknowledged."""


def _configurations_in(entries: Sequence[Entry]) -> _Configurations:
    configuration = EntryKind.CONFIGURATION
    return [(entry.index, entry.record) for entry in entries if entry.kind == configuration]


def _take_over(directory: Path, recovery: Recovery, writer: SegmentWriter, system: SystemCalls) -> None:
    """
    Begin this life's first segment with the last good group, then remove what became void.

    That group may stand in the page cache only, left there by an fsync that failed in the last life. In the new file
    it has the same sequence, which makes void the old copy and any torn bytes behind it, whatever becomes of them.
    """
    number = max((number for number, _ in list_segments(directory, system)), default=0) + 1
    parts = [*(recovery.last_head or recovery.state.head()), recovery.last_body]
    size = sum(map(len, parts))
    writer.begin_segment(number, size)
    assert writer.segment is not None
    try:
        offset, end = writer.write(parts, size)
    except OSError:
        # Nothing in it was synced, so it says nothing; attempts on a full disk must not leave one file each.
        system.unlink(writer.segment.path)
        raise
    assert offset == FILE_HEADER_BYTES
    writer.sync()
    writer.advance(end)
    recovery.index.add_segment(writer.segment)
    recovery.index.place(offset, end, *recovery.last_bounds)
    # Safety: only now, with its successor durable, may anything old go (test_recovery_interrupted_anywhere_recovers).
    # From the newest on: a torn head without the segment before it would look like a log that lost its beginning
    # (test_recovery_killed_while_it_deletes_void_files_recovers).
    for file in reversed(recovery.files):
        if not file.kept_end:
            system.unlink(file.path)
        elif system.file_size(file.path) > file.kept_end:
            # Also gives back what was preallocated, or a crash loop would fill the disk with empty segments.
            system.truncate(file.path, file.kept_end)
    system.sync_directory(directory)


def _follow_store(recovery: Recovery, writer: SegmentWriter, installed: Manifest) -> None:
    """Finish the install of a snapshot that a crash interrupted: its store is in place, so its base is the log's."""
    state = recovery.state
    # A vote counts in its own term only, and no log may be ahead of its hard state.
    behind = state.hard_state.term < installed.term
    hard_state = HardState(installed.term, None) if behind else state.hard_state
    reset = _Reset(0, hard_state, installed.base, installed.configuration)
    parts = reset.records()
    size = sum(map(len, parts))
    if not writer.has_room(size):
        assert writer.segment is not None
        parts = [*state.head(), *parts]
        size = sum(map(len, parts))
        writer.begin_segment(writer.segment.number + 1, size)
        recovery.index.add_segment(writer.segment)
    offset, end = writer.write(parts, size)
    writer.sync()
    writer.advance(end)
    reset.follow(state)
    recovery.index.restart(installed.index)
    recovery.index.place(offset, end, 0, 0, 0)
    recovery.notes.append(f"the log goes on behind the snapshot that was installed, at index {installed.index}")
