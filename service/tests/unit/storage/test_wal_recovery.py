"""The log after crashes and damage: every cut boots, every lie is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvorum.core.entries import EntryKind, HardState
from kvorum.core.errors import StorageFailedError
from kvorum.storage.wal.inspect import inspect_log
from kvorum.storage.wal.layout import FILE_HEADER_BYTES, Group, decode_file_header, encode_file_header, group_at
from kvorum.storage.wal.recovery import recover
from kvorum.storage.wal.segmented_log import SegmentedLog
from kvorum.storage.wal.system import REAL, SystemCalls
from tests.unit.storage.log_under_test import SEGMENT_BYTES, LogUnderTest, configuration, entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    OpenLog = Callable[..., LogUnderTest]


def groups_of(path: Path) -> list[Group]:
    data = path.read_bytes()
    header = decode_file_header(data[:FILE_HEADER_BYTES])
    assert header is not None
    found, offset = [], FILE_HEADER_BYTES
    while isinstance(group := group_at(data, offset, header.salt), Group):
        found.append(group)
        offset = group.end
    return found


def reopened(path: Path, target: Path) -> LogUnderTest:
    """Open a copy, so that the damaged original can be damaged again."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(path, target)
    return LogUnderTest(target)


@pytest.fixture
def written(open_log: OpenLog) -> Path:
    """A log of one segment whose last group holds a vote and entries 4 to 6, which replace 4 and 5."""
    log = open_log()
    log.append(entry(1, 1, configuration(0, 1, 2).encode(), EntryKind.CONFIGURATION))
    log.fill(2, 5)
    log.append(*(entry(index, 2) for index in range(4, 7)), hard_state=HardState(2, 1))
    log.stop()
    return log.path


def test_recovery_cut_at_every_byte_of_the_last_group_boots(written: Path, tmp_path: Path) -> None:
    """Wherever the last write was cut, the log before it is there, whole, and the cut is reported."""
    [file] = written.glob("*.log")
    data = file.read_bytes()
    last = groups_of(file)[-1]
    for cut in range(last.offset, last.end):
        for filler in (b"", bytes(len(data) - cut)):
            file.write_bytes(data[:cut] + filler)
            log = reopened(written, tmp_path / "copy")
            log.stop()

            assert log.recovered.last_index == 5
            assert log.recovered.terms == ((1, 1),)
            assert log.recovered.hard_state == HardState()
            assert bool(log.recovered.notes) == (data[last.offset : cut].rstrip(b"\0") != b"")
            assert log.recovered.torn_bytes == len(data[last.offset : cut].rstrip(b"\0"))


def test_recovery_after_a_cut_goes_on_writing(written: Path, tmp_path: Path) -> None:
    """After a torn tail the log takes new entries, and later starts see neither the tail nor a second report."""
    [file] = written.glob("*.log")
    last = groups_of(file)[-1]
    os.truncate(file, last.end - 3)
    log = LogUnderTest(written)

    assert log.recovered.torn_bytes == last.end - 3 - last.offset

    log.append(entry(6, 3))
    log.stop()
    again = LogUnderTest(written)
    again.stop()

    assert again.recovered.torn_bytes == 0
    assert again.recovered.terms == ((1, 1), (6, 3))


def test_recovery_flipped_byte_in_the_last_group_is_cut(written: Path, tmp_path: Path) -> None:
    """Damage that nothing good follows cannot be told from a torn write."""
    [file] = written.glob("*.log")
    data = file.read_bytes()
    last = groups_of(file)[-1]
    for position in range(last.offset, last.end):
        damaged = bytearray(data)
        damaged[position] ^= 0x40
        file.write_bytes(damaged)
        log = reopened(written, tmp_path / "copy")
        log.stop()

        assert log.recovered.last_index == 5
        assert log.recovered.torn_bytes > 0
        assert f"{file.name} at {last.offset}" in log.recovered.notes[0]


def test_recovery_flipped_byte_before_the_last_group_is_refused(written: Path, tmp_path: Path) -> None:
    """Damage with a good group behind it may have cost acknowledged entries: the node stops and says where."""
    [file] = written.glob("*.log")
    data = file.read_bytes()
    groups = groups_of(file)
    for position in range(groups[-1].offset):
        damaged = bytearray(data)
        damaged[position] ^= 0x01
        file.write_bytes(damaged)

        with pytest.raises(StorageFailedError, match="rebuild this member|start the one that wrote it") as refused:
            recover(written)

        assert str(file) in str(refused.value)
        if position >= FILE_HEADER_BYTES:
            hit = next(group for group in groups if group.offset <= position < group.end)
            assert f"offset {hit.offset}" in str(refused.value)
            assert "intact" in str(refused.value)


def test_recovery_zeroed_group_before_the_last_is_refused(written: Path) -> None:
    """A lost write in the middle is damage, though a zero length looks like the end."""
    [file] = written.glob("*.log")
    data = bytearray(file.read_bytes())
    lost = groups_of(file)[2]
    data[lost.offset : lost.end] = bytes(lost.end - lost.offset)
    file.write_bytes(data)

    with pytest.raises(StorageFailedError, match=f"offset {lost.offset}: zero length with data behind it"):
        recover(written)


@pytest.fixture
def rolled(open_log: OpenLog) -> Path:
    """A log of several segments."""
    log = open_log()
    log.append(hard_state=HardState(1, 0))
    log.fill(1, 60, payload=bytes(range(250)) * 2)
    log.stop()
    return log.path


def test_recovery_damage_in_an_older_segment_is_refused(rolled: Path, tmp_path: Path) -> None:
    """Any byte of an older segment that belongs to a group matters, its last group included."""
    files = sorted(rolled.glob("*.log"))
    for file in files[:-1]:
        data = file.read_bytes()
        groups = groups_of(file)
        for position in (3, 20, groups[0].offset + 2, groups[0].end - 1, groups[-1].offset + 1, groups[-1].end - 1):
            damaged = bytearray(data)
            damaged[position] ^= 0x10
            file.write_bytes(damaged)
            with pytest.raises(StorageFailedError, match=f"{file.name}.*rebuild this member"):
                recover(rolled)
        file.write_bytes(data[: groups[-1].offset])
        with pytest.raises(StorageFailedError, match=f"{file.name} at offset {groups[-1].offset}: the log ends too"):
            recover(rolled)
        file.write_bytes(data)

    assert recover(rolled).state.last_index == 60


def test_recovery_missing_segment_is_refused(rolled: Path) -> None:
    """A segment that somebody removed from the middle is missed; one removed from the front was dropped."""
    files = sorted(rolled.glob("*.log"))
    kept = files[1].read_bytes()
    files[1].unlink()

    with pytest.raises(StorageFailedError, match="ends too early, but groups from sequence"):
        recover(rolled)

    files[1].write_bytes(kept)
    files[0].unlink()

    assert recover(rolled).state.base_index > 0


def test_recovery_torn_head_of_the_newest_segment_is_cut(rolled: Path, tmp_path: Path) -> None:
    """A crash while a new segment was begun loses the group that was in its first write, and nothing else."""
    file = max(rolled.glob("*.log"))
    data = file.read_bytes()
    head = groups_of(file)[0]
    previous = inspect_log(rolled).segments[-2].last_index
    for cut in (0, 5, FILE_HEADER_BYTES, FILE_HEADER_BYTES + 1, head.end - 1):
        file.write_bytes(data[:cut] + bytes(SEGMENT_BYTES - cut))
        log = reopened(rolled, tmp_path / "copy")
        log.append(entry(previous + 1, 7))
        log.stop()

        assert log.recovered.last_index == previous
        assert recover(log.path).state.terms[-1] == (previous + 1, 7)


def test_recovery_damaged_head_with_groups_behind_it_is_refused(rolled: Path) -> None:
    """The newest segment's head is no torn write if a later group is intact."""
    log = LogUnderTest(rolled)
    log.fill(61, 64)
    log.stop()
    file = max(rolled.glob("*.log"))
    data = bytearray(file.read_bytes())
    data[FILE_HEADER_BYTES + 30] ^= 1
    file.write_bytes(data)

    with pytest.raises(StorageFailedError, match=f"{file.name} at offset {FILE_HEADER_BYTES}: the segment's head"):
        recover(rolled)


def test_recovery_lost_only_segment_is_not_an_empty_log(rolled: Path) -> None:
    """When older segments were dropped and the remaining one is unreadable, the node does not start from nothing."""
    log = LogUnderTest(rolled)
    log.log.drop_before(10**6)
    log.stop()
    [file] = rolled.glob("*.log")
    data = bytearray(file.read_bytes())
    data[FILE_HEADER_BYTES + 30] ^= 1
    file.write_bytes(data)

    with pytest.raises(StorageFailedError, match="no segment has an intact head"):
        recover(rolled)


def test_recovery_of_another_format_names_both(written: Path) -> None:
    """A log of a later release is refused with the two version numbers."""
    [file] = written.glob("*.log")
    data = file.read_bytes()
    header = data[:7] + b"\x02" + data[8:20]
    file.write_bytes(header + zlib.crc32(header).to_bytes(4, "big") + data[24:])

    with pytest.raises(StorageFailedError, match="has log format 2; this release reads 1"):
        recover(written)


def test_recovery_renamed_segment_is_refused(written: Path) -> None:
    """A segment knows its own number."""
    [file] = written.glob("*.log")
    file.rename(file.with_name(file.name.replace("1.log", "5.log")))

    with pytest.raises(StorageFailedError, match="says it is segment 1"):
        recover(written)


def test_recovery_rewrites_the_last_group_before_it_is_trusted(written: Path) -> None:
    """The last good group may be in the page cache only: it is written and synced again before open returns."""
    [old] = written.glob("*.log")
    last = groups_of(old)[-1]
    synced: list[str] = []

    def sync_data(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        os.fdatasync(descriptor)

    log = LogUnderTest(written, system=replace(REAL, sync_data=sync_data))
    [head] = groups_of(log.files()[-1])
    log.stop()

    assert synced == [log.files()[-1].name]
    assert head.sequence == last.sequence
    assert old.stat().st_size == last.offset
    assert log.recovered.last_index == 6


def test_recovery_killed_while_it_deletes_void_files_recovers(tmp_path: Path) -> None:
    """A torn segment behind the only good one, and a second crash among the deletions: the log still opens."""
    directory = tmp_path / "log"
    log = LogUnderTest(directory, segment_bytes=1024)
    log.fill(1, 3, payload=bytes(range(250)) * 3)
    log.log.drop_before(10**6)
    log.stop()
    [only] = directory.glob("*.log")
    torn = only.with_name(only.name.replace("3.log", "4.log"))
    torn.write_bytes(encode_file_header(4, 77) + bytes(20) + b"torn" + bytes(1000))
    deleted: list[Path] = []

    def unlink(path: Path) -> None:
        if deleted:
            raise ZeroDivisionError
        deleted.append(path)
        path.unlink()

    with pytest.raises(ZeroDivisionError):
        LogUnderTest(directory, segment_bytes=1024, system=replace(REAL, unlink=unlink))

    assert deleted == [torn]
    assert recover(directory).state.last_index == 3


def images_of(life: Callable[[SystemCalls], None], directory: Path, images: Path) -> Iterator[tuple[Path, str]]:
    """
    What a crash at each system call of a life would leave, each write also cut at a few points.

    Yields:
        The image of the directory and the name of the call it was taken at.
    """
    taken: list[tuple[Path, str]] = []

    def image(call: str) -> Path:
        target = images / f"{len(taken):04d}"
        shutil.copytree(directory, target)
        taken.append((target, call))
        return target

    def write(descriptor: int, buffers, offset: int) -> int:
        data = b"".join(buffers)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        content = len(data.rstrip(b"\0"))
        for cut in sorted({0, 1, 4, 19, 20, 21, content // 2, content - 1, content}):
            if 0 <= cut <= content:
                with (image("write") / path.name).open("r+b") as copy:
                    copy.seek(offset)
                    copy.write(data[:cut])
        return os.pwritev(descriptor, buffers, offset)

    def watched(name: str) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            image(name)
            getattr(REAL, name)(*arguments)

        return call

    life(
        SystemCalls(
            allocate=watched("allocate"),
            write=write,
            sync_data=watched("sync_data"),
            sync_file=watched("sync_file"),
            sync_directory=watched("sync_directory"),
        )
    )
    yield from taken


@pytest.mark.slow
def test_recovery_interrupted_anywhere_recovers(tmp_path: Path) -> None:
    """A crash at any system call of a life, and again at any of the recovery after it, loses nothing acknowledged."""
    directory = tmp_path / "log"
    acknowledged: dict[int, tuple[int, HardState]] = {}
    progress: list[tuple[int, HardState]] = []

    def life(system: SystemCalls) -> None:
        log = LogUnderTest(directory, segment_bytes=1024, system=system)
        for index in range(1, 9):
            state = HardState(index, index % 3)
            log.append(entry(index, index, bytes([index]) * 200), hard_state=state)
            progress.append((index, state))
            acknowledged[len(list((tmp_path / "first").iterdir()))] = progress[-1]
        log.stop()

    directory.mkdir()
    (tmp_path / "first").mkdir()
    known: tuple[int, HardState] = (0, HardState())
    seconds = 0
    for number, (image, _) in enumerate(images_of(life, directory, tmp_path / "first")):
        known = acknowledged.get(number, known)
        check_recovered(image, known)
        if number % 7 == 0:
            second = tmp_path / "second"
            shutil.rmtree(second, ignore_errors=True)
            second.mkdir()
            for inner, _ in images_of(lambda system, at=image: LogUnderTest(at, 1024, system).stop(), image, second):
                check_recovered(inner, known)
                seconds += 1
        shutil.rmtree(image)

    assert number > 100
    assert seconds > 200


def check_recovered(image: Path, known: tuple[int, HardState]) -> None:
    index, hard_state = known
    found = recover(image).state

    assert index <= found.last_index <= index + 1
    assert found.hard_state.term in {hard_state.term, hard_state.term + 1}
    if found.last_index == index:
        assert found.hard_state == hard_state
    assert [term for _, term in found.terms] == list(range(1, found.last_index + 1))


APPEND_UNTIL_KILLED = """
import asyncio, os, sys
from pathlib import Path
from kvorum.core.entries import Entry, EntryBatch, HardState
from kvorum.storage.wal.segmented_log import SegmentedLog

async def main():
    loop = asyncio.get_running_loop()
    log = SegmentedLog.open(
        Path(sys.argv[1]), segment_bytes=64 * 1024, run_on_loop=loop.call_soon_threadsafe, fail=print
    )
    first = log.recovered.last_index + 1
    ticket = reported = 0
    def durable(ticket):
        nonlocal reported
        reported = ticket
        os.write(1, b"%d\\n" % (first + ticket - 1))
    log.start(durable, print)
    while True:
        # A slow disk does not let the pile of what is still to be written grow without end.
        for _ in range(20 if ticket < reported + 400 else 0):
            ticket += 1
            index = first + ticket - 1
            log.append(ticket, HardState(index, 1), EntryBatch([Entry.create(index, 1, 1, 0, b"%d" % index * 40)]))
        await asyncio.sleep(0)

asyncio.run(main())
"""


def appended_until_killed(directory: Path, enough: int) -> int:
    """Let a process append until it has reported so much, kill it; the last entry that it reported."""
    command = [sys.executable, "-c", APPEND_UNTIL_KILLED, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            acknowledged = next((index for line in child.stdout if (index := int(line)) > enough), 0)
        finally:
            child.kill()
        rest, _ = child.communicate()
    return max([acknowledged, *map(int, rest.rpartition(b"\n")[0].split())])


@pytest.mark.slow
def test_recovery_after_sigkill_has_everything_acknowledged(tmp_path: Path) -> None:
    """A process killed while it appends loses nothing that it had reported, life after life."""
    reached = 0
    for _ in range(4):
        acknowledged = appended_until_killed(tmp_path, reached + 300)
        log = LogUnderTest(tmp_path, segment_bytes=64 * 1024)
        log.stop()
        entries = log.log.read(1, log.recovered.last_index, 10**9)

        assert reached < acknowledged <= log.recovered.last_index
        assert log.recovered.hard_state.term == log.recovered.last_index
        assert [found.payload for found in entries] == [b"%d" % found.index * 40 for found in entries]
        assert len(entries) == log.recovered.last_index

        reached = log.recovered.last_index


def test_recovery_needs_no_loop_and_no_thread(written: Path) -> None:
    """Opening alone reads and repairs; nothing runs before start."""
    log = SegmentedLog.open(written, run_on_loop=pytest.fail, fail=pytest.fail, segment_bytes=SEGMENT_BYTES)

    assert log.recovered.last_index == 6
    assert [found.term for found in log.read(1, 6, 10**6)] == [1, 1, 1, 2, 2, 2]
