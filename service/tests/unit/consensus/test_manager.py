"""The manager's own driving: time on a slow loop, and the end of a process."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import structlog

from kvorum.consensus.manager import ConsensusManager, ManagerSettings, Surroundings
from kvorum.core.cluster import Configuration, Member
from kvorum.core.codec import encode_operation
from kvorum.core.entries import Entry, EntryKind
from kvorum.core.operations import AtomicCommit, Mutation, MutationKind
from kvorum.core.snapshot import Manifest
from kvorum.statemachine.executor import KvStoreExecutor
from kvorum.statemachine.layout import STATE_KEY, pack_state
from kvorum.storage.memory_engine import MemoryEngine
from kvorum.storage.wal.memory_log import MemoryLog

if TYPE_CHECKING:
    from collections.abc import Callable


class SlowLoop:
    """A loop on which every turn takes a while; timers that are due run in the next turn."""

    def __init__(self, turn_s: float) -> None:
        self.now = 0.0
        self.turn_s = turn_s
        self.booked: list[tuple[float, Callable[[], None]]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.booked.append((self.now, callback))

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.booked.append((self.now + delay_s, callback))

    def turn(self) -> None:
        """Run what is due."""
        self.now += self.turn_s
        due = [callback for when, callback in self.booked if when <= self.now]
        self.booked = [(when, callback) for when, callback in self.booked if when > self.now]
        for callback in due:
            callback()


def build(
    loop: SlowLoop, log: MemoryLog | None = None, state: KvStoreExecutor | None = None, seed: int = 1
) -> ConsensusManager:
    """A cluster of one on memory."""
    return ConsensusManager(
        ManagerSettings(node_id=0, configuration=Configuration.of([Member(0, "node:9090", "")])),
        Surroundings(
            loop=loop,
            clock=lambda: loop.now,
            wall_ms=lambda: int(loop.now * 1000),
            randomness=random.Random(seed),
            log=log or MemoryLog(loop.call_later),
            links=None,
            state=state or KvStoreExecutor(MemoryEngine()),
            flush=loop.call_soon,
            incarnation=1,
            cluster_id=None,
            on_born=lambda _: None,
            on_refused=lambda _: None,
            logger=structlog.get_logger(),
        ),
    )


def test_time_goes_on_where_every_turn_of_the_loop_is_slow():
    """A stall postpones one tick; a loop that is slow for good still elects and sends heartbeats."""
    loop = SlowLoop(0.3)
    subject = build(loop)
    subject.start()
    for _ in range(40):
        loop.turn()

    assert subject.may_serve


def test_node_serves_nothing_before_it_shows_what_its_log_held_at_the_start():
    """A restarted leader whose no-op commits at once still has a log to apply: until then its state is an old one."""
    loop = SlowLoop(0.02)
    log = MemoryLog(loop.call_later)
    former = build(loop, log)
    former.start()
    body = encode_operation(AtomicCommit(0, (Mutation(MutationKind.SET, b"", b"key", b"value"),)))
    for _ in range(20):
        loop.turn()
        for _ in range(300):
            former.propose(body, Waiter(), loop.now, loop.now + 10)
    for _ in range(200):
        loop.turn()
    held = former.applied_index
    loop.booked.clear()
    subject = build(loop, log.crash(loop.call_later))
    subject.start()
    seen = []
    for _ in range(400):
        loop.turn()
        seen.append((subject.is_leader, subject.may_serve, subject.applied_index >= held))

    assert (True, False, False) in seen, "it led while it still applied: only then does this test see anything"
    assert [moment for moment in seen if moment[1] and not moment[2]] == []
    assert subject.may_serve
    assert subject.alone


def test_each_process_numbers_what_it_asks_peers_from_a_place_of_its_own():
    """An answer meant for the former life of a node fits no question and no forward of its present one."""
    lives = [build(SlowLoop(0.02), seed=seed) for seed in range(20)]

    assert len({life.proposals._first_position // 2**20 for life in lives}) == len(lives)
    assert len({next(life.reads._numbers) // 2**20 for life in lives}) == len(lives)


def test_stop_leaves_nothing_that_touches_the_storage_later():
    """Storage closes right after: neither ticks nor the rest of a replay may run into it."""
    loop = SlowLoop(0.02)
    subject = build(loop)
    subject.start()
    for _ in range(100):
        loop.turn()
    assert subject.may_serve
    asyncio.run(subject.stop(0.0))
    for _ in range(5):
        loop.turn()

    assert [] == loop.booked


class HangingLog(MemoryLog):
    """A disk that, from some moment on, does not answer."""

    hangs = False

    def append(self, *arguments: object) -> None:
        """Keep what is appended while the disk hangs."""
        if self.hangs:
            self.kept.append(arguments)
        else:
            super().append(*arguments)

    def recover(self) -> None:
        """The disk answers again."""
        self.hangs = False
        for arguments in self.kept:
            super().append(*arguments)


def test_space_ends_with_the_first_and_comes_back_with_the_last_that_lacks_it():
    """Log, store and reserve each have their own view of the disk; the node takes part when all of them go on."""
    loop = SlowLoop(0.02)
    subject = build(loop)
    subject.start()
    for _ in range(100):
        loop.turn()
    assert subject.may_serve
    subject.space_changed("reserve", False)
    subject.space_changed("log", False)
    subject.applier.flush_refused()
    subject.space_changed("reserve", True)
    subject.space_changed("log", True)
    assert not subject.is_leader
    assert ("disk_space", False) in subject.readiness()
    assert "disk of this node is full" in subject.unavailable("no leader").text
    for _ in range(60):
        loop.turn()

    assert subject.may_serve, "the next flush succeeded"
    assert ("disk_space", True) in subject.readiness()


def test_time_of_entries_does_not_fall_after_an_install_and_a_restart():
    """With nothing behind the base the log alone knows the time of before; the leader's first no-op keeps to it."""
    loop = SlowLoop(0.02)
    engine = MemoryEngine()
    KvStoreExecutor(engine)
    batch = engine.batch()
    batch.put(STATE_KEY, pack_state(1000, 0, 0))
    engine.write(batch)
    first = Configuration.of([Member(0, "node:9090", "")])
    configured = Entry.create(900, 7, EntryKind.CONFIGURATION, 0, first.encode())
    manifest = Manifest(bytes(16), 1000, 7, 5_000_000, configured)
    log = MemoryLog(loop.call_later).crash(loop.call_later, installed=manifest)
    subject = build(loop, log, KvStoreExecutor(engine))
    subject.start()
    assert subject.applied_time_ms == 5_000_000
    for _ in range(100):
        loop.turn()

    assert subject.may_serve
    assert [entry.time_ms for entry in log.read(1001, 1001, 1)] == [5_000_000], "the clock shows a few seconds only"


class Waiter:
    told = False

    def decided(self, *_: object) -> None:
        self.told = True


def test_a_sync_that_hangs_silences_the_node_until_it_ends():
    """A leader whose disk does not answer neither works nor leaves; silent, it lets the others elect."""
    loop = SlowLoop(0.02)
    log = HangingLog(loop.call_later)
    log.kept = []
    subject = build(loop, log)
    subject.start()
    for _ in range(100):
        loop.turn()
    assert subject.is_leader
    log.hangs = True
    waiter = Waiter()
    subject.propose(b"\x01\x00\x00\x00\x00\x01kv", waiter, loop.now, loop.now + 60)
    for _ in range(90):
        loop.turn()
    assert subject.is_leader, "a slow disk is not a dead one"
    for _ in range(20):
        loop.turn()
    assert not subject.is_leader
    assert ("log_writable", False) in subject.readiness()
    log.recover()
    for _ in range(20):
        loop.turn()

    assert subject.is_leader
    assert waiter.told
