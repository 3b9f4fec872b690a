"""
What `core.ports.StorageEngine` promises, checked against every engine.

A further engine joins by a line in ``ENGINES``; nothing here knows more than the port.
"""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest

from kvorum.core.errors import LocalError
from kvorum.storage.memory_engine import MemoryEngine
from kvorum.storage.rocksdict_engine import RocksdictEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kvorum.core.ports import StorageEngine

ENGINES: dict[str, Callable[[Path], StorageEngine]] = {
    "rocksdict": RocksdictEngine.open,
    "memory": lambda _: MemoryEngine(),
}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorageEngine]:
    opened = ENGINES[request.param](tmp_path / "state")
    yield opened
    opened.close()


def put(engine: StorageEngine, **values: str) -> None:
    batch = engine.batch()
    for key, value in values.items():
        batch.put(key.encode(), value.encode())
    engine.write(batch)


def everything(engine: StorageEngine) -> list[tuple[bytes, bytes]]:
    return list(engine.iterate(b"", b"\xff" * 8))


def test_engine_get_of_missing_key_is_none(engine: StorageEngine) -> None:
    """A key that was never written has no value, and no empty one either."""
    assert engine.get(b"missing") is None
    assert engine.multi_get([b"missing", b"gone"]) == [None, None]


def test_engine_empty_value_is_a_value(engine: StorageEngine) -> None:
    """An empty value and a missing key are different things."""
    put(engine, key="")

    assert engine.get(b"key") == b""
    assert everything(engine) == [(b"key", b"")]


def test_engine_multi_get_keeps_the_order_of_its_keys(engine: StorageEngine) -> None:
    """Values come in the order in which they were asked for, repeated keys included."""
    put(engine, a="1", b="2")

    assert engine.multi_get([b"b", b"x", b"a", b"b"]) == [b"2", None, b"1", b"2"]
    assert engine.multi_get([]) == []


def test_engine_batch_is_invisible_until_written(engine: StorageEngine) -> None:
    """Filling a batch changes nothing."""
    batch = engine.batch()
    batch.put(b"key", b"value")

    assert engine.get(b"key") is None

    engine.write(batch)

    assert engine.get(b"key") == b"value"


def test_engine_batch_applies_its_changes_in_order(engine: StorageEngine) -> None:
    """The last change of a key in a batch wins, whatever its kind."""
    put(engine, a="old", b="old", c="old", d="old")
    batch = engine.batch()
    batch.delete(b"a")
    batch.put(b"a", b"new")
    batch.put(b"b", b"new")
    batch.delete(b"b")
    batch.put(b"bb", b"new")
    batch.delete_range(b"b", b"d")
    batch.put(b"c", b"newer")
    batch.delete(b"never there")
    engine.write(batch)

    assert everything(engine) == [(b"a", b"new"), (b"c", b"newer"), (b"d", b"old")]


def test_engine_batch_written_twice_is_a_defect(engine: StorageEngine) -> None:
    """A batch is spent by its write, so that no caller relies on writing it again."""
    batch = engine.batch()
    batch.put(b"key", b"value")
    engine.write(batch)

    with pytest.raises(LocalError):
        engine.write(batch)


def test_engine_delete_range_of_nothing_changes_nothing(engine: StorageEngine) -> None:
    """An empty or reversed range holds no key."""
    put(engine, a="1", b="2")
    batch = engine.batch()
    batch.delete_range(b"b", b"b")
    engine.write(batch)

    assert everything(engine) == [(b"a", b"1"), (b"b", b"2")]


@pytest.mark.parametrize("flushed", [False, True], ids=["in memory", "flushed"])
@pytest.mark.parametrize("reverse", [False, True], ids=["up", "down"])
def test_engine_iterates_in_unsigned_byte_order(engine: StorageEngine, *, reverse: bool, flushed: bool) -> None:
    """Any half-open range comes in byte order, or exactly backwards."""
    drawn = random.Random(7)
    keys = {drawn.randbytes(drawn.randrange(1, 4)) for _ in range(300)}
    keys |= {b"\x00", b"\x7f", b"\x80", b"\xff", b"\xff\xff"}
    batch = engine.batch()
    for key in keys:
        batch.put(key, key[::-1])
    engine.write(batch)
    if flushed:
        engine.flush()
    bounds = [*sorted(keys)[::37], b"", b"\x80", b"\xff" * 5]
    view = engine.snapshot()

    for begin in bounds:
        for end in bounds:
            expected = [(key, key[::-1]) for key in sorted(keys, reverse=reverse) if begin <= key < end]
            assert expected == list(engine.iterate(begin, end, reverse=reverse))
            assert expected == list(view.iterate(begin, end, reverse=reverse))


@pytest.mark.parametrize("reverse", [False, True], ids=["up", "down"])
def test_engine_iterator_shows_the_moment_it_was_made(engine: StorageEngine, *, reverse: bool) -> None:
    """Writes after an iterator was made are not in it, even if it was not asked for anything yet."""
    put(engine, a="1", b="2", c="3")
    before = engine.iterate(b"a", b"z", reverse=reverse)
    batch = engine.batch()
    batch.put(b"a", b"changed")
    batch.put(b"bb", b"new")
    batch.delete_range(b"c", b"d")
    engine.write(batch)
    engine.flush()
    expected = [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]

    assert list(before) == (expected[::-1] if reverse else expected)


def test_engine_iterator_dropped_half_way_is_harmless(engine: StorageEngine) -> None:
    """A reader may stop at its limit and leave the rest."""
    put(engine, a="1", b="2", c="3")
    reader = engine.iterate(b"a", b"z")

    assert next(reader) == (b"a", b"1")

    del reader
    put(engine, a="4")

    assert engine.get(b"a") == b"4"


def test_engine_snapshot_does_not_change(engine: StorageEngine) -> None:
    """Gets and iterators of a snapshot show the moment it was taken, however often and in whatever order."""
    put(engine, a="1", b="2", c="3")
    view = engine.snapshot()
    batch = engine.batch()
    batch.put(b"a", b"changed")
    batch.put(b"aa", b"new")
    batch.delete(b"b")
    engine.write(batch)
    engine.flush()

    assert view.get(b"a") == b"1"
    assert view.get(b"aa") is None
    assert view.get(b"z") is None
    assert view.multi_get([b"b", b"aa"]) == [b"2", None]
    assert list(view.iterate(b"a", b"z")) == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]
    assert list(view.iterate(b"a", b"c", reverse=True)) == [(b"b", b"2"), (b"a", b"1")]


def test_engine_snapshot_serves_readers_that_take_turns(engine: StorageEngine) -> None:
    """Iterators and gets on one snapshot do not disturb each other."""
    batch = engine.batch()
    for number in range(20):
        batch.put(b"%02d" % number, b"%d" % number)
    engine.write(batch)
    view = engine.snapshot()
    up, down = view.iterate(b"03", b"17"), view.iterate(b"03", b"17", reverse=True)
    seen_up, seen_down = [], []
    for number in range(14):
        seen_up.append(next(up)[0])
        assert view.get(b"%02d" % number) == b"%d" % number
        seen_down.append(next(down)[0])

    assert seen_up == [b"%02d" % number for number in range(3, 17)]
    assert seen_down == seen_up[::-1]
    assert next(up, None) is None
    assert next(down, None) is None


def test_engine_flush_in_a_thread_lets_writes_go_on(engine: StorageEngine) -> None:
    """A flush blocks its own thread only."""
    value = "v" * 1000
    for number in range(200):
        put(engine, **{f"before{number}": value})
    flushing = threading.Thread(target=engine.flush)
    flushing.start()
    for number in range(200):
        put(engine, **{f"during{number}": value})
    flushing.join()

    assert len(everything(engine)) == 400


def test_engine_statistics_are_never_negative(engine: StorageEngine) -> None:
    """Status shows these figures as they are."""
    put(engine, a="1", b="2")
    engine.flush()
    figures = engine.statistics()

    assert figures.keys == 2
    assert figures.bytes_on_disk >= 0
    assert 0 <= figures.cache_hit_rate_percent <= 100
    assert figures.compaction_pending_bytes >= 0


def test_engine_behaves_as_a_sorted_map_under_random_work(engine: StorageEngine) -> None:
    """A thousand random batches leave the same as a dictionary that is sorted when it is read."""
    drawn = random.Random(11)
    model: dict[bytes, bytes] = {}
    for step in range(1000):
        batch = engine.batch()
        for _ in range(drawn.randrange(1, 6)):
            key = b"%03d" % drawn.randrange(200)
            choice = drawn.random()
            if choice < 0.6:
                batch.put(key, b"%d" % step)
                model[key] = b"%d" % step
            elif choice < 0.9:
                batch.delete(key)
                model.pop(key, None)
            else:
                end = b"%03d" % min(999, int(key) + drawn.randrange(10))
                batch.delete_range(key, end)
                model = {kept: value for kept, value in model.items() if not key <= kept < end}
        engine.write(batch)
        if step % 250 == 0:
            engine.flush()

    assert sorted(model.items()) == everything(engine)


@pytest.mark.parametrize("reverse", [False, True])
def test_engine_bounds_outlive_the_call_that_made_the_iterator(engine: StorageEngine, *, reverse: bool) -> None:
    """A range ends where it was told to, whatever the process allocates between making the iterator and reading it."""
    put(engine, **{f"k{i:04d}": "v" for i in range(1000)})
    for round_number in range(200):
        begin = b"k%04d" % round_number
        pairs = engine.iterate(begin, b"k%04d" % (round_number + 7), reverse=reverse)
        rubbish = [bytes([byte]) * len(begin) for byte in range(256)]

        assert 7 == len(list(pairs))
        del rubbish
