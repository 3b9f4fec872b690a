"""A segmented log on real files, driven from a plain test: its loop is a queue that the test empties."""

from __future__ import annotations

import asyncio
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import pytest

from kvorum.core.cluster import Configuration, Member
from kvorum.core.entries import Entry, EntryBatch, EntryKind, HardState
from kvorum.storage.wal.segmented_log import SegmentedLog
from kvorum.storage.wal.system import REAL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvorum.core.errors import StorageFailedError
    from kvorum.core.ports import RecoveredLog
    from kvorum.storage.wal.system import SystemCalls

SEGMENT_BYTES = 8 * 1024
PATIENCE_S = 120.0


def entry(index: int, term: int = 1, payload: bytes = b"payload", kind: int = EntryKind.COMMAND) -> Entry:
    return Entry.create(index, term, kind, 1000 + index, payload)


def configuration(*nodes: int) -> Configuration:
    return Configuration.of(Member(node, f"client{node}:1", f"peer{node}:1") for node in nodes)


class LogUnderTest:
    """A log, what it reported, and the shortest ways to use it."""

    def __init__(self, path: Path, segment_bytes: int = SEGMENT_BYTES, system: SystemCalls = REAL) -> None:
        self.path = path
        path.mkdir(exist_ok=True)
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.failures: list[StorageFailedError] = []
        self.space: list[bool] = []
        self.durable = 0
        self.ticket = 0
        self.log = SegmentedLog.open(
            path, segment_bytes=segment_bytes, run_on_loop=self._calls.put, fail=self.failures.append, system=system
        )
        self.log.start(self._durable, self.space.append)

    def _durable(self, ticket: int) -> None:
        assert ticket > self.durable, "reported once, in order"
        self.durable = ticket

    @property
    def recovered(self) -> RecoveredLog:
        return self.log.recovered

    def queue(self, *entries: Entry, hard_state: HardState | None = None) -> int:
        """Append and do not wait."""
        self.ticket += 1
        self.log.append(self.ticket, hard_state, EntryBatch(entries) if entries else None)
        return self.ticket

    def append(self, *entries: Entry, hard_state: HardState | None = None) -> None:
        """Append and wait until it is durable: one group per call."""
        ticket = self.queue(*entries, hard_state=hard_state)
        self.run_until(lambda: self.durable >= ticket)

    def fill(self, first: int, last: int, term: int = 1, payload: bytes = b"payload") -> None:
        """One group per entry."""
        for index in range(first, last + 1):
            self.append(entry(index, term, payload))

    def run_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert not self.failures, self.failures
            self.run_one()

    def run_one(self) -> None:
        try:
            self._calls.get(timeout=PATIENCE_S)()
        except Empty:
            pytest.fail("the log reported nothing")

    def entries(self) -> list[Entry]:
        """Every entry, read back in small portions."""
        found: list[Entry] = []
        at, last = self.log.first_index, int(self.log.statistics()["last_index"])
        while at <= last:
            found += self.log.read(at, last, 500)
            at = found[-1].index + 1
        return found

    def stop(self) -> None:
        asyncio.run(self.log.stop())

    def files(self) -> list[Path]:
        return sorted(self.path.glob("*.log"))
