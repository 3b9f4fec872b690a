"""The log in normal life: appending, groups, segments, reading, dropping, restarting."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from kvorum.core.entries import EntryBatch, EntryKind, HardState
from kvorum.core.errors import OutOfSpaceError, StorageFailedError
from kvorum.core.ports import RecoveredLog
from kvorum.storage.wal.inspect import inspect_log
from kvorum.storage.wal.segmented_log import GROUP_APPENDS_MAX, SegmentedLog
from kvorum.storage.wal.system import REAL
from tests.unit.storage.log_under_test import SEGMENT_BYTES, configuration, entry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.storage.log_under_test import LogUnderTest

    OpenLog = Callable[..., LogUnderTest]


def test_segmented_log_fresh_directory_is_an_empty_log(open_log: OpenLog) -> None:
    """A log that was never written to knows nothing."""
    assert open_log().recovered == RecoveredLog(HardState(), 0, 0, 0, (), ())


def test_segmented_log_restart_finds_what_was_durable(open_log: OpenLog) -> None:
    """Entries, terms, the vote and the configurations come back, byte by byte."""
    first = entry(1, 1, configuration(0, 1, 2).encode(), EntryKind.CONFIGURATION)
    entries = [first, entry(2, 1), entry(3, 3, b""), entry(4, 3, bytes(2000))]
    log = open_log()
    log.append(hard_state=HardState(1, 0))
    log.append(*entries[:2])
    log.append(*entries[2:], hard_state=HardState(3, None))
    log.stop()
    again = open_log()

    assert again.recovered == RecoveredLog(
        HardState(3, None), 0, 0, 4, ((1, 1), (3, 3)), ((1, configuration(0, 1, 2)),)
    )
    assert again.entries() == entries
    assert [found.record for found in again.entries()] == [wanted.record for wanted in entries]


def test_segmented_log_restarted_often_loses_and_grows_nothing(open_log: OpenLog) -> None:
    """A crash loop leaves no trail of preallocated segments behind."""
    log = open_log()
    log.fill(1, 10)
    log.append(hard_state=HardState(4, 2))
    for _ in range(10):
        log.stop()
        log = open_log()
        assert log.recovered.last_index == 10
        assert log.recovered.hard_state == HardState(4, 2)

    assert len(log.files()) == 2
    assert sum(file.stat().st_size for file in log.files()) < 2 * SEGMENT_BYTES


def test_segmented_log_appends_queued_meanwhile_share_one_sync(open_log: OpenLog) -> None:
    """While one group is synced the next collects, and one fsync covers all of it."""
    entered, let_go = threading.Event(), threading.Event()
    syncs: list[int] = []

    def sync_data(descriptor: int) -> None:
        syncs.append(descriptor)
        if len(syncs) == 2:
            entered.set()
            assert let_go.wait(120)
        os.fdatasync(descriptor)

    log = open_log(system=replace(REAL, sync_data=sync_data), segment_bytes=1024 * 1024)
    log.queue(entry(1))
    assert entered.wait(120)
    for index in range(2, 102):
        log.queue(entry(index))

    assert log.durable == 0

    let_go.set()
    log.run_until(lambda: log.durable == 101)

    assert len(syncs) == 3
    assert log.log.statistics()["groups"] == 2
    assert log.log.fsync_histogram.count == 2
    assert [found.index for found in log.entries()] == list(range(1, 102))


def test_segmented_log_group_is_bounded(open_log: OpenLog) -> None:
    """However much is queued, one write never takes more buffers than the kernel allows."""
    log = open_log(segment_bytes=1024 * 1024)
    for index in range(1, 3 * GROUP_APPENDS_MAX + 1):
        log.queue(entry(index), hard_state=HardState(index, None))
    log.run_until(lambda: log.durable == 3 * GROUP_APPENDS_MAX)

    assert log.log.statistics()["groups"] >= 3
    assert len(log.entries()) == 3 * GROUP_APPENDS_MAX


def test_segmented_log_empty_append_is_reported_in_order(open_log: OpenLog) -> None:
    """A ticket with nothing to persist becomes durable with what went before it, and writes no empty group."""
    log = open_log()
    log.append()
    log.append(entry(1))
    log.append()
    log.stop()

    assert open_log().recovered.last_index == 1


def test_segmented_log_rolls_into_new_segments(open_log: OpenLog) -> None:
    """A full segment is followed by another; nothing is lost at the seam."""
    log = open_log()
    log.append(hard_state=HardState(1, 1))
    log.fill(1, 100, payload=bytes(500))

    assert len(log.files()) > 5
    assert [found.index for found in log.entries()] == list(range(1, 101))

    log.stop()
    again = open_log()

    assert again.recovered.last_index == 100
    assert again.recovered.hard_state == HardState(1, 1)
    assert [found.index for found in again.entries()] == list(range(1, 101))


def test_segmented_log_entry_larger_than_a_segment_gets_a_larger_one(open_log: OpenLog) -> None:
    """The segment size is no limit for an entry."""
    log = open_log()
    log.append(entry(1))
    log.append(entry(2, payload=os.urandom(5 * SEGMENT_BYTES)))
    log.append(entry(3))
    log.stop()
    again = open_log()

    assert [found.index for found in again.entries()] == [1, 2, 3]
    assert len(again.entries()[1].payload) == 5 * SEGMENT_BYTES


def test_segmented_log_conflict_never_resurrects_the_longer_tail(open_log: OpenLog) -> None:
    """An entry at an index discards everything read before at or above it, in memory and after restarts."""
    log = open_log()
    log.append(*(entry(index, 1) for index in range(1, 11)))
    log.append(entry(6, 2))

    assert [(found.index, found.term) for found in log.entries()] == [(i, 1) for i in range(1, 6)] + [(6, 2)]

    for _ in range(3):
        log.stop()
        log = open_log()
        assert log.recovered.last_index == 6
        assert log.recovered.terms == ((1, 1), (6, 2))
        assert log.entries()[-1] == entry(6, 2)
    log.append(entry(7, 3))
    log.stop()
    log = open_log()

    assert [(found.index, found.term) for found in log.entries()][4:] == [(5, 1), (6, 2), (7, 3)]


def test_segmented_log_conflict_inside_one_group_keeps_the_newest(open_log: OpenLog) -> None:
    """Batches that replace each other may meet in one group."""
    let_go = threading.Event()
    calls: list[int] = []

    def sync_data(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            assert let_go.wait(120)
        os.fdatasync(descriptor)

    log = open_log(system=replace(REAL, sync_data=sync_data))
    log.queue(*(entry(index, 1) for index in range(1, 5)))
    while len(calls) < 2:
        pass
    log.queue(*(entry(index, 1) for index in range(5, 9)))
    log.queue(*(entry(index, 2) for index in range(3, 7)))
    log.queue(entry(7, 3))
    let_go.set()
    log.run_until(lambda: log.durable == 4)
    expected = [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2), (7, 3)]

    assert log.log.statistics()["groups"] == 2
    assert [(found.index, found.term) for found in log.entries()] == expected
    assert [found.term for found in log.log.read(6, 7, 9999)] == [2, 3]

    log.stop()
    again = open_log()

    assert again.recovered.last_index == 7
    assert [(found.index, found.term) for found in again.entries()] == expected


def test_segmented_log_conflicting_configuration_is_forgotten(open_log: OpenLog) -> None:
    """A configuration that was replaced before it committed is not recovered, also not from a segment's head."""
    log = open_log()
    kind = EntryKind.CONFIGURATION
    log.append(entry(1, 1, configuration(0, 1, 2).encode(), kind))
    log.append(entry(2, 1, configuration(0, 1, 2, 3).encode(), kind))
    log.fill(3, 40, payload=bytes(500))
    log.append(entry(2, 2))
    log.fill(3, 40, 2, payload=bytes(500))
    log.stop()
    again = open_log()

    assert again.recovered.configurations == ((1, configuration(0, 1, 2)),)


def test_segmented_log_vote_survives_without_any_entry_behind_it(open_log: OpenLog) -> None:
    """A vote is durable when its ticket is reported, and a later conflict does not take it back."""
    log = open_log()
    log.fill(1, 3)
    log.append(entry(2, 2), hard_state=HardState(2, 1))
    log.append(hard_state=HardState(5, 2))
    log.stop()

    assert open_log().recovered.hard_state == HardState(5, 2)


@pytest.mark.parametrize("bytes_max", [1, 700, 5000, 10**9])
def test_segmented_log_read_is_bounded_by_bytes(open_log: OpenLog, bytes_max: int) -> None:
    """A read returns at least one entry and stops as soon as its bytes are passed."""
    log = open_log()
    log.fill(1, 60, payload=bytes(400))
    for first in range(1, 61):
        found = log.log.read(first, 55 if first <= 55 else 60, bytes_max)
        size = [len(one.record) for one in found]

        assert [one.index for one in found] == list(range(first, first + len(found)))
        assert sum(size[:-1]) < bytes_max
        assert sum(size) >= bytes_max or found[-1].index in {55, 60}


def test_segmented_log_read_of_what_is_not_durable_is_a_defect(open_log: OpenLog) -> None:
    """The core keeps recent entries itself; asking for them here is a bug in the caller."""
    log = open_log()
    log.append(entry(1))
    for first, last in ((0, 1), (1, 2), (2, 2)):
        with pytest.raises(AssertionError, match="durable"):
            log.log.read(first, last, 100)


def test_segmented_log_read_of_a_damaged_file_fails_loudly(open_log: OpenLog) -> None:
    """A flipped bit under a running node is never handed to a follower."""
    log = open_log()
    log.fill(1, 3, payload=bytes(100))
    [file] = log.files()
    with file.open("r+b") as raw:
        raw.seek(-(SEGMENT_BYTES - int(log.log.statistics()["size_bytes"])) - 10, os.SEEK_END)
        raw.write(b"!")

    with pytest.raises(StorageFailedError, match=r"0001\.log is damaged at offset \d+: checksum .*rebuild this member"):
        log.log.read(1, 3, 10**6)


def test_segmented_log_drop_deletes_whole_segments_only(open_log: OpenLog) -> None:
    """Dropping forgets segments strictly behind the index, never the active one, and a restart agrees."""
    log = open_log()
    settled = configuration(0, 1, 2)
    log.append(entry(1, 1, settled.encode(), EntryKind.CONFIGURATION), hard_state=HardState(1, 2))
    log.fill(2, 100, payload=bytes(500))
    before = len(log.files())
    log.log.note_committed(90)
    log.log.drop_before(50)
    first = log.log.first_index

    assert 1 < first <= 50
    assert [found.index for found in log.entries()] == list(range(first, 101))

    log.append(entry(101))

    assert len(log.files()) < before

    log.stop()
    again = open_log()

    assert again.recovered.base_index == first - 1
    assert again.recovered.base_term == 1
    assert again.recovered.hard_state == HardState(1, 2)
    assert again.recovered.configurations == ((1, settled),)
    assert [found.index for found in again.entries()] == list(range(first, 102))

    again.log.drop_before(10**6)
    again.append(entry(102))

    assert len(again.files()) == 1
    assert again.entries()[-1] == entry(102)


def test_segmented_log_base_lies_under_a_conflict_that_reaches_below_it(open_log: OpenLog) -> None:
    """When the segment with an entry's predecessor is gone, that entry itself becomes the base."""
    log = open_log()
    log.fill(1, 30, payload=bytes(500))
    head = inspect_log(log.path).segments[-1]
    low = head.base_index - 1
    log.fill(low, low + 2, 2)
    log.fill(low + 3, 60, 2, bytes(500))
    log.log.drop_before(head.base_index + 1)
    log.stop()

    assert inspect_log(log.path).segments[0].path == head.path

    again = open_log()

    assert again.recovered.base_index == low
    assert again.recovered.base_term == 2
    assert again.recovered.last_index == 60
    assert again.recovered.terms == ((low + 1, 2),)
    assert [found.term for found in again.log.read(low + 1, 60, 10**9)] == [2] * (60 - low)


def test_segmented_log_head_keeps_only_configurations_that_may_count(open_log: OpenLog) -> None:
    """A new segment names the newest committed configuration and each later one, and no older one."""
    log = open_log()
    for index in range(1, 7):
        log.append(entry(index, 1, configuration(*range(index)).encode(), EntryKind.CONFIGURATION))
    log.log.note_committed(4)
    log.fill(7, 40, payload=bytes(500))

    assert inspect_log(log.path).segments[-1].head_configurations == (4, 5, 6)

    log.log.note_committed(40)
    log.fill(41, 60, payload=bytes(500))

    assert inspect_log(log.path).segments[-1].head_configurations == (6,)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_segmented_log_failed_sync_is_fatal(open_log: OpenLog, number: int) -> None:
    """A failed fsync is never tried again and nothing behind the last good one is acknowledged, ENOSPC or not."""
    broken = threading.Event()
    syncs: list[int] = []

    def sync_data(descriptor: int) -> None:
        syncs.append(descriptor)
        if broken.is_set():
            raise OSError(number, os.strerror(number))
        os.fdatasync(descriptor)

    log = open_log(system=replace(REAL, sync_data=sync_data))
    log.append(entry(1))
    broken.set()
    log.queue(entry(2))
    log.queue(entry(3))
    while not log.failures:
        log.run_one()

    assert log.durable == 1
    assert len(syncs) == 3
    assert "fsync of" in str(log.failures[0])
    assert "start the node again" in str(log.failures[0])

    with pytest.raises(StorageFailedError):
        log.queue(entry(4))

    log.stop()

    assert log.durable == 1
    assert len(log.failures) == 1


@pytest.mark.parametrize("call", ["sync_file", "sync_directory"])
def test_segmented_log_failed_sync_of_a_new_segment_is_fatal(open_log: OpenLog, call: str) -> None:
    """A new segment whose name or header may be lost is not written to."""
    broken = threading.Event()

    def fail_when_broken(target: object) -> None:
        if broken.is_set():
            raise OSError(errno.EIO, "Input/output error")
        getattr(REAL, call)(target)

    log = open_log(system=replace(REAL, **{call: fail_when_broken}))
    log.append(entry(1))
    broken.set()
    index = 2
    while not log.failures:
        log.queue(entry(index, payload=bytes(900)))
        index += 1
        log.run_one()

    assert len(log.files()) == 1
    assert log.durable < index - 1


def test_segmented_log_failed_write_is_fatal(open_log: OpenLog) -> None:
    """EIO at a write ends the node at once."""
    broken = threading.Event()

    def write(descriptor: int, buffers, offset: int) -> int:
        if broken.is_set():
            raise OSError(errno.EIO, "Input/output error")
        return os.pwritev(descriptor, buffers, offset)

    log = open_log(system=replace(REAL, write=write))
    broken.set()
    log.queue(entry(1))
    while not log.failures:
        log.run_one()

    assert "cannot write the log" in str(log.failures[0])
    assert log.durable == 0


@pytest.mark.slow
@pytest.mark.parametrize("where", ["write", "partial write", "allocate", "header"])
def test_segmented_log_full_disk_steps_aside_and_resumes(open_log: OpenLog, where: str) -> None:
    """Without space nothing is acknowledged; with space again everything queued is written, once, in order."""
    full = threading.Event()

    def refuse() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write(descriptor: int, buffers, offset: int) -> int:
        if full.is_set():
            if where == "write" or (where == "header" and offset == 0):
                refuse()
            if where == "partial write":
                data = b"".join(buffers)[: sum(map(len, buffers)) // 2]
                if len(data) < 40:
                    refuse()
                return os.pwrite(descriptor, data, offset)
        return os.pwritev(descriptor, buffers, offset)

    def allocate(descriptor: int, offset: int, size: int) -> None:
        if full.is_set() and where == "allocate":
            refuse()
        os.posix_fallocate(descriptor, offset, size)

    log = open_log(system=replace(REAL, write=write, allocate=allocate))
    log.fill(1, 3)
    full.set()
    index = 4
    while not log.space:
        log.queue(entry(index, payload=bytes(900)))
        index += 1
        log.run_one()
    acknowledged = log.durable
    for _ in range(20):
        log.queue(entry(index, payload=bytes(900)))
        index += 1

    assert log.space == [False]
    assert log.log.statistics()["disk_full"] == 1

    full.clear()
    log.run_until(lambda: log.durable == log.ticket)

    assert acknowledged < log.durable
    assert log.space == [False, True]
    assert log.log.statistics()["disk_full"] == 0

    log.stop()
    again = open_log()

    assert [found.index for found in again.entries()] == list(range(1, index))


def test_segmented_log_stopped_on_a_full_disk_acknowledges_nothing(open_log: OpenLog) -> None:
    """Stopping does not wait for space, and what was never acknowledged may be gone."""
    full = threading.Event()

    def write(descriptor: int, buffers, offset: int) -> int:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.pwritev(descriptor, buffers, offset)

    log = open_log(system=replace(REAL, write=write))
    log.append(entry(1))
    full.set()
    log.queue(entry(2))
    while not log.space:
        log.run_one()
    log.stop()

    assert log.durable == 1
    assert open_log().recovered.last_index == 1


def test_segmented_log_stop_writes_what_is_queued(open_log: OpenLog) -> None:
    """Stopping is orderly: everything queued is synced and reported before it returns."""
    log = open_log()
    for index in range(1, 51):
        log.queue(entry(index))
    log.stop()

    assert log.durable == 50
    assert open_log().recovered.last_index == 50


def test_segmented_log_on_asyncio_reports_on_the_loop(tmp_path) -> None:
    """With the loop's own call_soon_threadsafe, callbacks come in the loop's thread and stop loses none of them."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        seen: list[tuple[int, int]] = []
        log = SegmentedLog.open(
            tmp_path, run_on_loop=loop.call_soon_threadsafe, fail=pytest.fail, segment_bytes=SEGMENT_BYTES
        )
        log.start(lambda ticket: seen.append((ticket, threading.get_ident())), lambda _: None)
        for index in range(1, 21):
            log.append(index, None, EntryBatch([entry(index)]))
        await log.stop()

        assert seen[-1] == (20, threading.get_ident())
        assert {thread for _, thread in seen} == {threading.get_ident()}

    asyncio.run(scenario())


def test_segmented_log_unwritable_directory_is_a_clear_error(tmp_path, open_log: OpenLog) -> None:
    """A disk that is full when the node starts is said so, and may be tried again any number of times."""
    opened: set[int] = set()

    def create(path: Path) -> int:
        opened.add(descriptor := REAL.create(path))
        return descriptor

    def close(descriptor: int) -> None:
        opened.remove(descriptor)
        REAL.close(descriptor)

    def allocate(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write(descriptor: int, buffers, offset: int) -> int:
        if offset:
            raise OSError(errno.ENOSPC, "No space left on device")
        return REAL.write(descriptor, buffers, offset)

    for failing in ({"allocate": allocate}, {"write": write}):
        with pytest.raises(OutOfSpaceError, match="cannot begin a log segment .*free space"):
            open_log(system=replace(REAL, create=create, close=close, **failing))
        assert not opened
    for number, kind in ((errno.EIO, StorageFailedError), (errno.EDQUOT, OutOfSpaceError)):

        def fail(descriptor: int, offset: int, size: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with pytest.raises(StorageFailedError) as caught:
            open_log(system=replace(REAL, allocate=fail))
        assert type(caught.value) is kind

    assert list((tmp_path / "log").iterdir()) == []
