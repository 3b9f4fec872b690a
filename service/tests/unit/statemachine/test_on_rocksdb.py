"""The state machine on the engine that production uses."""

from __future__ import annotations

import os
import threading

from kvorum.core.operations import KeyRange
from kvorum.statemachine.sweep import sweep
from kvorum.storage.rocksdict_engine import RocksdictEngine

FAMILIES = [b"", b"f", b"g"]


def test_store_on_rocksdb_is_the_store_in_memory(make_store, tmp_path):
    """The same log gives the same outcomes, reads and hash on the real engine, also after opening it again."""
    memory = make_store()
    rocks = make_store(RocksdictEngine.open(tmp_path / "store"))
    written = [make_store.set(b"%d" % (n % 17), b"v" * (n * 9 % 1500), FAMILIES[n % 3]) for n in range(300)]
    ranges = [KeyRange(FAMILIES[n % 3], b"1", b"2") for n in range(300)]
    log = [
        write if n % 5 else make_store.commit(max(0, n - 4), make_store.delete(b"%d" % n), write, ranges=[ranges[n]])
        for n, write in enumerate(written)
    ]
    for first in range(0, 300, 50):
        assert memory.group(*log[first : first + 50]) == rocks.group(*log[first : first + 50])
    watermark = 200
    for store in (memory, rocks):
        store.raise_watermark(watermark)
    list(sweep(rocks.engine, watermark, 7))
    for family in FAMILIES:
        for query in ({}, {"reverse": True, "limit": 3}, {"begin": b"1", "end": b"2", "offset": 1}):
            for version in (None, watermark, 250):
                assert memory.scan(version, family=family, **query) == rocks.scan(version, family=family, **query)
    assert memory.hash() == rocks.hash()
    rocks.engine.close()

    reopened = make_store(RocksdictEngine.open(tmp_path / "store"))

    assert memory.hash() == reopened.hash()
    assert memory.executor.last_commit_version == reopened.executor.last_commit_version
    reopened.engine.close()


def test_sweep_gives_space_back_on_disk(make_store, tmp_path):
    """Forty versions of a thousand keys shrink to one each, by RocksDB's own compaction behind the deletions."""
    path = tmp_path / "store"
    store = make_store(RocksdictEngine.open(path))
    for _ in range(40):
        for first in range(0, 1000, 250):
            store.group(*[store.set(b"%06d" % n, os.urandom(500)) for n in range(first, first + 250)])
    store.engine.flush()
    store.raise_watermark(store.executor.applied_index)
    before, full = store.hash(), _bytes_of(path)
    assert full > 20_000_000
    sweeper = store.executor.sweeper
    assert sweeper.due()
    sweeper.start()
    while sweeper.step():
        pass
    store.engine.flush()

    wait, turns = threading.Event(), 0
    while _bytes_of(path) > full / 10 and turns < 400:
        turns += wait.wait(0.05) or 1

    assert _bytes_of(path) <= full / 10
    assert before == store.hash()
    assert not sweeper.due()
    store.engine.close()


def _bytes_of(path):
    """Bytes of the table files."""
    return sum(file.stat().st_size for file in path.glob("*.sst"))
