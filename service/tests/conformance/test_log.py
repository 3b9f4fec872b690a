"""What `core.ports.Log` promises, checked against the real log and the simulator's."""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING, Protocol

import pytest

from kvorum.core.cluster import Configuration, Member
from kvorum.core.entries import Entry, EntryBatch, EntryKind, HardState
from kvorum.core.ports import Base
from kvorum.storage.wal.memory_log import MemoryLog
from tests.unit.storage.log_under_test import LogUnderTest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kvorum.core.ports import Log

CONFIGURATION = Configuration.of(Member(node, f"c{node}:1", f"p{node}:1") for node in range(3))


def entry(index: int, term: int = 1, payload: bytes = b"payload", kind: int = EntryKind.COMMAND) -> Entry:
    return Entry.create(index, term, kind, 0, payload)


class LogDriver(Protocol):
    """How a test drives a log whose loop is not asyncio's."""

    log: Log
    durable: list[int]

    def wait(self, ticket: int) -> None: ...
    def restart(self) -> LogDriver: ...
    def stop(self) -> None: ...


class RealDriver:
    def __init__(self, path: Path) -> None:
        self._under_test = LogUnderTest(path)
        self.log: Log = self._under_test.log
        self.durable: list[int] = []
        self._under_test.log._on_durable = self._heard

    def _heard(self, ticket: int) -> None:
        self.durable.append(ticket)

    def wait(self, ticket: int) -> None:
        self._under_test.run_until(lambda: bool(self.durable) and self.durable[-1] >= ticket)

    def restart(self) -> RealDriver:
        self.stop()
        return RealDriver(self._under_test.path)

    def stop(self) -> None:
        self._under_test.stop()


class MemoryDriver:
    def __init__(self, log: MemoryLog | None = None) -> None:
        self.now = 0.0
        self.durable: list[int] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self.log: MemoryLog = log.crash(self.call_later) if log else MemoryLog(self.call_later)
        self.log.start(self.durable.append, lambda _: None)

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + delay, len(self._timers), callback))

    def wait(self, ticket: int) -> None:
        while not self.durable or self.durable[-1] < ticket:
            self.now, _, callback = heapq.heappop(self._timers)
            callback()

    def restart(self) -> MemoryDriver:
        self.stop()
        return MemoryDriver(self.log)

    def stop(self) -> None:
        asyncio.run(self.log.stop())


@pytest.fixture(params=["segmented", "memory"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LogDriver]:
    made = RealDriver(tmp_path) if request.param == "segmented" else MemoryDriver()
    yield made
    made.stop()


def test_log_fresh_knows_nothing(driver: LogDriver) -> None:
    """A new log is empty."""
    assert driver.log.recovered.last_index == 0
    assert driver.log.recovered.hard_state == HardState()


def test_log_append_returns_before_it_is_durable(driver: LogDriver) -> None:
    """Nothing is reported from within append; tickets become durable in order, several at a time."""
    for ticket in range(1, 30):
        driver.log.append(ticket, HardState(ticket, None), EntryBatch([entry(ticket)]))

    assert driver.durable == []

    driver.wait(29)

    assert driver.durable == sorted(set(driver.durable))
    assert len(driver.log.read(1, 29, 10**6)) == 29


def test_log_restart_recovers_entries_vote_and_configurations(driver: LogDriver) -> None:
    """A new life finds what the last one had made durable."""
    configured = entry(1, 1, CONFIGURATION.encode(), EntryKind.CONFIGURATION)
    driver.log.append(1, HardState(1, 2), EntryBatch([configured, entry(2, 1)]))
    driver.log.append(2, HardState(4, None), EntryBatch([entry(2, 3), entry(3, 4)]))
    driver.wait(2)
    again = driver.restart()
    recovered = again.log.recovered

    assert recovered.hard_state == HardState(4, None)
    assert (recovered.base_index, recovered.last_index) == (0, 3)
    assert recovered.terms == ((1, 1), (2, 3), (3, 4))
    assert recovered.configurations == ((1, CONFIGURATION),)
    assert again.log.read(1, 3, 10**6) == [configured, entry(2, 3), entry(3, 4)]

    again.stop()


def test_log_read_is_bounded(driver: LogDriver) -> None:
    """At least one entry, then until the bytes are passed; what is not durable is not asked for."""
    driver.log.append(1, None, EntryBatch([entry(index, payload=bytes(100)) for index in range(1, 11)]))
    driver.wait(1)

    assert [found.index for found in driver.log.read(3, 9, 1)] == [3]
    assert [found.index for found in driver.log.read(3, 9, 300)] == [3, 4, 5]
    assert [found.index for found in driver.log.read(9, 10, 10**6)] == [9, 10]
    with pytest.raises(AssertionError):
        driver.log.read(10, 11, 1)


def test_log_drop_keeps_everything_from_the_index_on(driver: LogDriver) -> None:
    """Dropping may keep more, never less."""
    configured = entry(1, 1, CONFIGURATION.encode(), EntryKind.CONFIGURATION)
    driver.log.append(1, None, EntryBatch([configured]))
    for ticket in range(2, 101):
        driver.log.append(ticket, None, EntryBatch([entry(ticket, payload=bytes(300))]))
        driver.wait(ticket)
    driver.log.note_committed(100)
    driver.log.drop_before(80)

    assert [found.index for found in driver.log.read(80, 100, 10**6)] == list(range(80, 101))

    again = driver.restart()

    assert 0 < again.log.recovered.base_index < 80
    assert again.log.recovered.base_term == 1
    assert again.log.recovered.last_index == 100
    assert again.log.recovered.configurations == ((1, CONFIGURATION),)

    again.stop()


def test_log_stop_makes_durable_what_is_queued(driver: LogDriver) -> None:
    """An orderly end loses nothing."""
    for ticket in range(1, 21):
        driver.log.append(ticket, None, EntryBatch([entry(ticket)]))

    assert driver.restart().log.recovered.last_index == 20
    assert driver.durable[-1] == 20


def test_log_reset_forgets_entries_and_goes_on_behind_the_base(driver: LogDriver) -> None:
    """After an install the log begins behind the snapshot, in this life and in the next, and the vote is kept."""
    configured = entry(900, 7, CONFIGURATION.encode(), EntryKind.CONFIGURATION)
    driver.log.append(1, HardState(3, 1), EntryBatch([entry(index) for index in range(1, 8)]))
    driver.log.reset(2, HardState(8, 2), Base(1000, 7), configured)
    driver.log.append(3, None, EntryBatch([entry(1001, 8), entry(1002, 8)]))
    driver.wait(3)

    assert [found.index for found in driver.log.read(1001, 1002, 10**6)] == [1001, 1002]

    recovered = driver.restart().log.recovered

    assert (recovered.base_index, recovered.base_term, recovered.last_index) == (1000, 7, 1002)
    assert recovered.terms == ((1001, 8),)
    assert recovered.hard_state == HardState(8, 2)
    assert recovered.configurations == ((900, CONFIGURATION),)


def test_log_knows_the_time_of_its_base(driver: LogDriver) -> None:
    """Entries never get an earlier time than the one before: that of the base outlives reset, restart and drop."""
    configured = entry(900, 7, CONFIGURATION.encode(), EntryKind.CONFIGURATION)
    driver.log.append(1, HardState(8, 2), EntryBatch([entry(1)]))
    driver.log.reset(2, HardState(8, 2), Base(1000, 7, 123_456), configured)
    driver.wait(2)
    driver = driver.restart()
    assert (driver.log.recovered.last_index, driver.log.recovered.base_time_ms) == (1000, 123_456)
    timed = [Entry.create(index, 8, EntryKind.COMMAND, 200_000 + index, bytes(1000)) for index in range(1001, 1040)]
    for ticket, each in enumerate(timed, 1):
        driver.log.append(ticket, None, EntryBatch([each]))
        driver.wait(ticket)
    driver.log.drop_before(1039)
    driver.log.append(40, None, EntryBatch([entry(1040, 8)]))
    driver.wait(40)
    recovered = driver.restart().log.recovered

    assert recovered.base_index > 1001
    assert recovered.base_time_ms == 200_000 + recovered.base_index


def test_log_reset_then_drop_keeps_what_follows(driver: LogDriver) -> None:
    """What an install made void can be dropped at once, and nothing behind the base goes with it."""
    configured = entry(900, 7, CONFIGURATION.encode(), EntryKind.CONFIGURATION)
    for index in range(1, 50):
        driver.log.append(index, None, EntryBatch([entry(index, payload=bytes(1000))]))
    driver.wait(49)
    driver.log.reset(50, HardState(8, None), Base(1000, 7), configured)
    driver.wait(50)
    driver.log.drop_before(1001)
    driver.log.append(51, None, EntryBatch([entry(1001, 8)]))
    driver.wait(51)
    again = driver.restart().log

    assert again.recovered.base_index == 1000
    assert [found.index for found in again.read(1001, 1001, 10**6)] == [1001]
