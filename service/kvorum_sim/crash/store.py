"""
The store under SIGKILL: a process applies the log through the real executor and RocksDB, is killed, and judged.

RocksDB runs without a log of its own, so a crash takes what was not flushed. What is left must be the log applied up
to one index, in every row: its state hash is compared with that of a store in memory that applied the very same
entries. Never less may be left than was flushed. A killed process keeps its page cache: this is not a power cut.

Forks, so it runs in a process of its own that never opens RocksDB itself::

    python -m kvorum_sim.crash.store DIRECTORY --cycles 30 --seed 1
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import struct
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from kvorum.core.codec import TAG_BYTES, encode_operation, identified
from kvorum.core.entries import Entry, EntryKind
from kvorum.core.errors import WriteStalledError
from kvorum.core.maintenance import Maintenance
from kvorum.core.operations import AtomicCommit, KeyRange, Mutation, MutationKind
from kvorum.statemachine.executor import KvStoreExecutor
from kvorum.storage.memory_engine import MemoryEngine
from kvorum.storage.rocksdict_engine import EngineTuning, RocksdictEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvorum.core.operations import WriteOperation

KEYS: Final = 300
GROUP_MAX: Final = 30
RETAINED: Final = 500
"""Entries whose versions stay readable."""
TUNING: Final = EngineTuning(write_buffer_size_mb=1, block_cache_size_mb=1)
"""A small memtable, so that RocksDB flushes by itself in the middle of everything: a torn group shows only there."""
FLUSH_EVERY_ENTRIES: Final = 400
REPORTS_MAX: Final = 120
"""Groups after which a process is killed at the latest."""
_REPORT: Final = struct.Struct(">cQ")
_APPLIED, _FLUSHING, _FLUSHED = b"a", b"b", b"f"


@dataclass(slots=True)
class StoreReport:
    """What came of all cycles."""

    cycles: int = 0
    applied: int = 0
    """Entries applied in the end."""
    flushes: int = 0
    killed_flushing: int = 0
    lost: int = 0
    """Entries that had been applied and were not there any more: what the log applies again."""
    cycles_with_loss: int = 0
    problems: list[str] = field(default_factory=list)


def entry_at(seed: int, index: int) -> Entry:
    """The entry of a log that every process agrees on."""
    chance = random.Random(seed * 1_000_003 + index)
    time_ms = 1000 + index
    if index % 100 == 0:
        payload = Maintenance(max(0, index - RETAINED), max(0, time_ms - 2000), 20).encode()
        return Entry.create(index, 1, EntryKind.MAINTENANCE, time_ms, payload)
    body = encode_operation(_operation(chance, index))
    if chance.random() < 0.3:
        body = identified(body, b"client%010d" % chance.randrange(30), index)
    return Entry.create(index, 1, EntryKind.COMMAND, time_ms, bytes(TAG_BYTES) + body)


def _operation(chance: random.Random, index: int) -> WriteOperation:
    family = chance.choice((b"", b"", b"f", b"g"))
    key = b"key%d" % chance.randrange(KEYS)
    fate = chance.random()
    if fate < 0.15:
        return Mutation(MutationKind.DELETE, family, key)
    value = b"%d:" % index + chance.randbytes(chance.choice((10, 100, 1000, 3000)))
    written = Mutation(MutationKind.SET, family, key, value)
    if fate < 0.7:
        return written
    others = tuple(Mutation(MutationKind.SET, b"", b"part%d" % part, b"%d" % index) for part in range(4))
    ranges = (KeyRange(family, b"key1", b"key2"),) if fate > 0.9 else ()
    return AtomicCommit(max(0, index - chance.randint(1, 20)), (written, *others), (), ranges)


# --- the process that is killed ---------------------------------------------------------------------------------------


def _apply_for_ever(path: Path, reports: int, seed: int, cycle: int) -> NoReturn:
    """Apply, sweep and flush as a node does, and say so."""
    engine = RocksdictEngine.open(path, TUNING)
    executor = KvStoreExecutor(engine)
    chance = random.Random(f"{seed} {cycle}")
    # A flush may begin between any two steps of the loop, and in some lives only RocksDB decides when one does.
    sys.setswitchinterval(1e-5)
    asks = chance.random() < 0.5

    def report(what: bytes, index: int) -> None:
        os.write(reports, _REPORT.pack(what, index))

    def flush(applied: int) -> None:
        report(_FLUSHING, applied)
        engine.flush()
        report(_FLUSHED, applied)

    flushing: threading.Thread | None = None
    flushed = executor.applied_index
    while True:
        first = executor.applied_index + 1
        _apply(executor, seed, first, first + chance.randint(1, GROUP_MAX))
        report(_APPLIED, executor.applied_index)
        sweeper = executor.sweeper
        if sweeper.active:
            sweeper.step()
        elif sweeper.due():
            sweeper.start()
        busy = flushing is not None and flushing.is_alive()
        if asks and not busy and executor.applied_index - flushed > FLUSH_EVERY_ENTRIES * chance.random():
            flushed = executor.applied_index
            flushing = threading.Thread(target=flush, args=(flushed,))
            flushing.start()


def _apply(executor: KvStoreExecutor, seed: int, first: int, end: int) -> None:
    entries = [entry_at(seed, index) for index in range(first, end)]
    while True:
        try:
            executor.apply_group(entries)
        except WriteStalledError:
            continue
        return


# --- the one that kills and judges ------------------------------------------------------------------------------------


def _forked(work: Callable[[int], object]) -> tuple[int, int]:
    """A child that does this with the writing end of a pipe; returns its process id and the reading end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            work(writing)
        finally:
            os._exit(1)
    os.close(writing)
    return child, reading


@dataclass(slots=True)
class _Life:
    """What one process said before it was killed."""

    applied: int = 0
    flushed: int = 0
    flushes: int = 0
    flushing: bool = False
    """It was killed with a flush under way."""


def _kill_somewhere(path: Path, seed: int, cycle: int) -> _Life:
    chance = random.Random(f"kill {seed} {cycle}")
    child, reading = _forked(lambda reports: _apply_for_ever(path, reports, seed, cycle))
    life = _Life()
    left = chance.randint(1, REPORTS_MAX)
    flushes = chance.randint(0, 3) if chance.random() < 0.4 else REPORTS_MAX
    with os.fdopen(reading, "rb") as reports:
        while left > 0:
            _take(life, reports.read(_REPORT.size))
            left -= 1
            if life.flushing and life.flushes >= flushes:
                break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while report := reports.read(_REPORT.size):
            _take(life, report)
    return life


def _take(life: _Life, report: bytes) -> None:
    assert len(report) == _REPORT.size, "the process that applies ended by itself"
    what, index = _REPORT.unpack(report)
    if what == _APPLIED:
        life.applied = index
    life.flushing = what == _FLUSHING or (life.flushing and what != _FLUSHED)
    if what == _FLUSHED:
        life.flushed = index
        life.flushes += 1


def _hash_of(executor: KvStoreExecutor) -> tuple[int, str]:
    found: tuple[int, str] | None = None
    for found in executor.state_hash():  # noqa: B007 - the last one is wanted
        pass
    assert found is not None
    return found


def _look(path: Path, answer: int) -> None:
    """Open the store and say its applied index and hash."""
    engine = RocksdictEngine.open(path, TUNING)
    text = json.dumps(_hash_of(KvStoreExecutor(engine))).encode()
    os.write(answer, text)
    os._exit(0)


def _found(path: Path) -> tuple[int, str]:
    child, reading = _forked(lambda answer: _look(path, answer))
    with os.fdopen(reading, "rb") as answers:
        text = answers.read()
    os.waitpid(child, 0)
    if not text:
        return -1, "the store does not open"
    index, digest = json.loads(text)
    return index, digest


def run(path: Path, cycles: int, seed: int) -> StoreReport:
    """Kill, open, compare, so many times, on the same store."""
    report = StoreReport()
    reference = KvStoreExecutor(MemoryEngine())
    flushed = 0
    for cycle in range(cycles):
        life = _kill_somewhere(path, seed, cycle)
        flushed = max(flushed, life.flushed)
        index, digest = _found(path)
        report.cycles += 1
        report.flushes += life.flushes
        report.killed_flushing += life.flushing
        lost = max(0, life.applied - index)
        report.lost += lost
        report.cycles_with_loss += lost > 0
        problem = _problem(reference, seed, index, digest, flushed)
        if problem:
            report.problems.append(f"seed {seed}, cycle {cycle}: {problem}")
            break
        # Nothing of this store is in memory any more, so what was found is on disk for good.
        flushed = max(flushed, index)
        report.applied = index
    return report


def _problem(reference: KvStoreExecutor, seed: int, index: int, digest: str, flushed: int) -> str:
    if index < 0:
        return digest
    if index < flushed:
        return f"it stands at {index}, and was flushed at {flushed}"
    while reference.applied_index < index:
        first = reference.applied_index + 1
        _apply(reference, seed, first, min(index, first + 99) + 1)
        sweeper = reference.sweeper
        if sweeper.due():
            sweeper.start()
        while sweeper.active and sweeper.step():
            pass
    wanted = _hash_of(reference)
    if wanted != (index, digest):
        return f"at {index} its rows are not those of the log applied up to there: hash {digest}, not {wanted[1]}"
    return ""


def main(arguments: list[str]) -> int:
    """Run cycles and print the report as JSON; 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(prog="python -m kvorum_sim.crash.store", description="Kill a store that applies.")
    parser.add_argument("directory", type=Path, help="empty, or not there yet")
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    taken = parser.parse_args(arguments)
    report = run(taken.directory, taken.cycles, taken.seed)
    sys.stdout.write(json.dumps(asdict(report)) + "\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
