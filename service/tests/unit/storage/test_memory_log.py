"""What the simulator's log adds to the port: crashes, slow and full disks on a virtual clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvorum.core.entries import Entry, EntryBatch, EntryKind, HardState
from kvorum.storage.wal.memory_log import MemoryLog

if TYPE_CHECKING:
    from collections.abc import Callable


class World:
    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.durable: list[int] = []
        self.space: list[bool] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        self.timers.append((delay, callback))

    def fire(self) -> None:
        self.timers.pop(0)[1]()


@pytest.fixture
def world() -> World:
    return World()


def started(world: World) -> MemoryLog:
    log = MemoryLog(world.call_later, 0.25)
    log.start(world.durable.append, world.space.append)
    return log


def batch(*indexes: int) -> EntryBatch:
    return EntryBatch([Entry.create(index, 1, EntryKind.COMMAND, 0, b"x") for index in indexes])


def test_memory_log_syncs_one_group_at_a_time(world: World) -> None:
    """What is appended during a sync waits for the next one, and each takes the delay."""
    log = started(world)
    log.append(1, None, batch(1))
    log.append(2, None, batch(2))
    log.append(3, None, batch(3))

    assert [delay for delay, _ in world.timers] == [0.25]

    world.fire()

    assert world.durable == [1]

    world.fire()

    assert world.durable == [1, 3]
    assert world.timers == []


@pytest.mark.parametrize("survives", [False, True])
def test_memory_log_crash_keeps_what_was_durable(world: World, *, survives: bool) -> None:
    """A crash loses what was queued; the group being synced may have made it, untold."""
    log = started(world)
    log.append(1, HardState(1, 0), batch(1))
    world.fire()
    log.append(2, HardState(2, 0), batch(2))
    log.append(3, HardState(3, 0), batch(3))
    found = log.crash(syncing_survives=survives)
    while world.timers:
        world.fire()

    assert world.durable == [1]
    assert found.recovered.last_index == (2 if survives else 1)
    assert found.recovered.hard_state == HardState(2 if survives else 1, 0)


def test_memory_log_full_disk_steps_aside_and_resumes(world: World) -> None:
    """While full nothing new is synced; afterwards everything queued is."""
    log = started(world)
    log.set_full(full=True)
    log.set_full(full=True)
    log.append(1, None, batch(1))

    assert world.timers == []

    log.set_full(full=False)
    world.fire()

    assert world.durable == [1]
    assert world.space == [False, True]
