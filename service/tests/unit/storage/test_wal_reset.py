"""The group with which an installed snapshot resets the log: alone, torn anywhere, dropped behind, finished late."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from kvorum.core.entries import Entry, EntryKind, HardState
from kvorum.core.ports import Base
from kvorum.core.snapshot import Manifest
from kvorum.storage.wal.segmented_log import SegmentedLog
from tests.unit.storage.log_under_test import SEGMENT_BYTES, LogUnderTest, configuration, entry
from tests.unit.storage.test_wal_recovery import groups_of, reopened

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    OpenLog = Callable[..., LogUnderTest]

MEMBERS = configuration(0, 1, 2)
CONFIGURED = Entry.create(90, 3, EntryKind.CONFIGURATION, 5, MEMBERS.encode())
MANIFEST = Manifest(bytes(16), 100, 4, 1234, CONFIGURED)


def reset(log: LogUnderTest, index: int = 100) -> None:
    log.ticket += 1
    log.log.reset(log.ticket, HardState(5, 1), Base(index, 4), CONFIGURED)
    log.run_until(lambda: log.durable >= log.ticket)


def begin(open_log: OpenLog) -> LogUnderTest:
    log = open_log()
    log.append(entry(1, 1, configuration(0, 1).encode(), EntryKind.CONFIGURATION), hard_state=HardState(1, 0))
    log.fill(2, 5)
    return log


def test_reset_cut_at_every_byte_leaves_the_old_log_or_the_new_one(open_log: OpenLog, tmp_path: Path) -> None:
    """A torn install is no install: the entries before it are all there."""
    log = begin(open_log)
    reset(log)
    log.stop()
    [file] = log.path.glob("*.log")
    data = file.read_bytes()
    last = groups_of(file)[-1]
    for cut in range(last.offset, last.end + 1):
        file.write_bytes(data[:cut])
        again = reopened(log.path, tmp_path / "copy")
        found = again.recovered
        indexes = [kept.index for kept in again.entries()]
        again.stop()

        if cut < last.end:
            assert (found.base_index, found.last_index, found.hard_state) == (0, 5, HardState(1, 0))
            assert found.configurations == ((1, configuration(0, 1)),)
            assert indexes == [1, 2, 3, 4, 5]
        else:
            assert (found.base_index, found.last_index, found.hard_state) == (100, 100, HardState(5, 1))
            assert found.configurations == ((90, MEMBERS),)
            assert indexes == []


def test_reset_in_the_middle_of_a_segment_is_found_behind_later_groups(open_log: OpenLog, tmp_path: Path) -> None:
    """Recovery meets the base between other groups, and a second life and a second reset change nothing about it."""
    log = begin(open_log)
    reset(log)
    log.fill(101, 103, term=5)
    reset(log, 200)
    log.fill(201, 204, term=6)
    log.stop()
    for _ in range(2):
        again = LogUnderTest(log.path)
        found = again.recovered
        indexes = [kept.index for kept in again.entries()]
        again.stop()

        assert (found.base_index, found.base_term, found.last_index) == (200, 4, 204)
        assert found.terms == ((201, 6),)
        assert indexes == [201, 202, 203, 204]


def test_reset_frees_the_older_segments(open_log: OpenLog) -> None:
    """Every segment before the one with the base may go, although its entries have indexes above the base."""
    log = begin(open_log)
    log.fill(6, 300, payload=bytes(500))
    reset(log)
    log.fill(101, 102, term=5)
    assert len(log.files()) > 3
    log.log.drop_before(101)
    log.append(entry(103, 5))
    log.stop()

    assert len(log.files()) == 1
    again = LogUnderTest(log.path)
    assert [kept.index for kept in again.entries()] == [101, 102, 103]
    again.stop()


def test_reset_in_one_go_with_appends_keeps_their_order(open_log: OpenLog) -> None:
    """What was queued before the reset is void, what was queued behind it counts, however the thread groups them."""
    log = begin(open_log)
    for index in range(6, 40):
        log.queue(entry(index))
    log.ticket += 1
    log.log.reset(log.ticket, HardState(5, None), Base(100, 4), CONFIGURED)
    for index in range(101, 140):
        log.queue(entry(index, 5))
    log.run_until(lambda: log.durable >= log.ticket)

    assert [kept.index for kept in log.entries()] == list(range(101, 140))
    log.stop()


@pytest.mark.parametrize("entries", [0, 5, 60])
def test_log_that_missed_an_install_follows_its_store_at_start(open_log: OpenLog, entries: int) -> None:
    """A crash between the store's switch and the log's reset is finished at the next start, once."""
    log = open_log()
    if entries:
        log.append(entry(1, 1, configuration(0, 1).encode(), EntryKind.CONFIGURATION), hard_state=HardState(6, 0))
        log.fill(2, entries, payload=bytes(200))
    log.stop()
    for _ in range(2):
        opened = open_installed(log.path)
        found = opened.recovered
        assert (found.base_index, found.base_term, found.last_index) == (100, 4, 100)
        assert found.configurations == ((90, MEMBERS),)
        assert found.hard_state == (HardState(6, 0) if entries else HardState(4))
        assert opened.first_index == 101
    later = LogUnderTest(log.path)
    later.fill(101, 105, term=6)
    later.stop()
    assert open_installed(log.path).recovered.last_index == 105


def open_installed(path: Path) -> SegmentedLog:
    log = SegmentedLog.open(
        path, run_on_loop=lambda _: None, fail=lambda _: None, segment_bytes=SEGMENT_BYTES, installed=MANIFEST
    )
    log._writer.close()
    return log


def test_install_at_start_interrupted_anywhere_is_repeated(open_log: OpenLog, tmp_path: Path) -> None:
    """Cut at any byte, what the interrupted start wrote is void, and the next start finishes the install."""
    log = begin(open_log)
    log.stop()
    open_installed(log.path)
    newest = max(log.path.glob("*.log"))
    data = newest.read_bytes()
    last = groups_of(newest)[-1]
    for cut in range(last.offset, last.end):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(log.path, copy)
        (copy / newest.name).write_bytes(data[:cut])
        assert open_installed(copy).recovered.base_index == 100
