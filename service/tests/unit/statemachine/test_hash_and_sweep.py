"""The state hash counts what a store means; the sweep removes only what nobody can read any more."""

from __future__ import annotations

from bisect import bisect_left

import pytest

from kvorum.core.entries import Entry, EntryKind
from kvorum.core.maintenance import Maintenance
from kvorum.core.operations import KeyRange
from kvorum.statemachine import sweep as sweep_module
from kvorum.statemachine.layout import CHANGES, CHANGES_END, HISTORY, STATE_KEY, history_version
from kvorum.statemachine.sweep import STEP_ROWS, Trail, sweep
from kvorum.storage.memory_engine import MemoryEngine


def history(store):
    """(key, version) of all history rows."""
    return [(key[9:-9], history_version(key)) for key, _ in store.engine.iterate(HISTORY, CHANGES)]


def filled(store):
    """Overwrites, deletes, a delete of a missing key and a second family, over twelve versions."""
    return store.group(
        store.set(b"a", b"1"),
        store.set(b"a", b"2"),
        store.set(b"b", b"3"),
        store.delete(b"b"),
        store.set(b"c", b"5", b"fam"),
        store.delete(b"missing"),
        store.set(b"a", b"7"),
        store.set(b"d", b"8"),
        store.delete(b"a"),
        store.set(b"b", b"x" * 2000),
        store.set(b"c", b"11", b"fam"),
        store.delete(b"d"),
    )


@pytest.mark.parametrize("watermark", range(13))
@pytest.mark.parametrize("slice_rows", [1, 2, 3, 1000])
def test_sweep_changes_no_readable_version_and_no_hash(store, watermark, slice_rows):
    """Every read and every conflict at or above the watermark is as before, wherever the slices end."""
    filled(store)
    store.raise_watermark(watermark)
    executor = store.executor
    keys = [(family, key) for family in (b"", b"fam") for key in (b"a", b"b", b"c", b"d", b"missing")]

    def readable():
        past = [executor.read_at(*key, version) for key in keys for version in range(watermark, 13)]
        ranges = [store.scan(version=version, family=b"").pairs for version in range(watermark, 13)]
        return past, ranges, [executor.get(*key) for key in keys], store.scan()

    before, digest = readable(), store.hash()
    for _ in range(2):
        list(sweep(store.engine, watermark, slice_rows))
        assert before == readable()
        assert digest == store.hash()

    for version in range(watermark, 12):
        conflict = store.commit(version, ranges=[KeyRange(b"", b"a", b"z")])
        assert "CONFLICT" == store.code(conflict)


def test_sweep_keeps_exactly_what_the_watermark_needs(store):
    """The newest row at or below it, unless that is a tombstone, and every row above."""
    filled(store)
    store.raise_watermark(8)

    removed = sum(sweep(store.engine, 8))

    assert [(b"a", 7), (b"a", 9), (b"b", 10), (b"d", 8), (b"d", 12), (b"c", 5), (b"c", 11)] == history(store)
    assert 6 == removed
    assert None is store.engine.get(b"\x01\0\0\0\0missing")
    assert None is not store.engine.get(b"\x01\0\0\0\0d")


def test_sweep_forgets_changes_up_to_the_watermark_only(store):
    """A row that holds one record above the watermark stays whole."""
    store.group(store.set(b"a", b"1"), store.set(b"b", b"2"))
    store.group(store.set(b"a", b"3"), store.set(b"b", b"4"))
    store.group(store.set(b"a", b"5"))
    store.raise_watermark(3)

    list(sweep(store.engine, 3))

    assert [4, 5] == [int.from_bytes(key[1:9], "big") for key, _ in store.engine.iterate(CHANGES, CHANGES_END)]


def test_key_with_more_versions_than_a_slice_is_swept_across_slices(store):
    """One busy key neither stops the sweep nor loses its newest row."""
    for _ in range(10):
        store.group(*[store.set(b"busy", b"v")] * 50)
    store.one(store.set(b"next", b"v"))
    store.raise_watermark(490)

    slices = list(sweep(store.engine, 490, 4))

    assert len(slices) > 50
    assert [(b"busy", version) for version in range(490, 501)] + [(b"next", 501)] == history(store)


def test_writes_between_slices_are_respected(store):
    """A tombstone that was overwritten after the pass began keeps its successor's row."""
    store.group(*[store.set(b"%02d" % n, b"v") for n in range(20)], *[store.delete(b"%02d" % n) for n in range(20)])
    store.raise_watermark(40)
    for _ in sweep(store.engine, 40, 2):
        store.group(store.set(b"05", b"new"), store.set(b"19", b"new"))

    assert [(b"05", b"new"), (b"19", b"new")] == store.scan().pairs
    assert b"new" == store.executor.read_at(b"", b"19", store.executor.applied_index)


def test_stalled_slice_is_done_again(store):
    """A write stall delays the sweep and loses nothing."""
    filled(store)
    store.raise_watermark(12)
    store.engine.stalled = True
    steps = sweep(store.engine, 12)
    assert [0, 0, 0] == [next(steps) for _ in range(3)]
    store.engine.stalled = False
    assert next(steps) > 0
    store.engine.stalled = True
    assert 0 == next(steps)
    store.engine.stalled = False
    assert [] == list(steps)

    assert [] == list(store.engine.iterate(CHANGES, CHANGES_END))


def test_hash_is_equal_for_equal_logs_and_differs_for_each_difference(make_store):
    """A value, a version, a family, a delete: each shows."""
    logs = [
        [make_store.set(b"a", b"1"), make_store.NOOP],
        [make_store.set(b"a", b"2"), make_store.NOOP],
        [make_store.NOOP, make_store.set(b"a", b"1")],
        [make_store.set(b"a", b"1", b"fam"), make_store.NOOP],
        [make_store.set(b"a", b"1"), make_store.delete(b"a")],
        [make_store.set(b"a", b"1"), make_store.delete(b"b")],
        [make_store.set(b"a", b"1"), make_store.commit(0)],
    ]

    def hash_of(log):
        fresh = make_store()
        fresh.group(*log)
        return fresh.hash()

    assert len(logs) == len({hash_of(log) for log in logs})
    assert [hash_of(log) for log in logs] == [hash_of(log) for log in logs]


def test_hash_shows_a_current_row_that_disagrees(store):
    """Both row spaces are read, so damage in either is seen."""
    filled(store)
    before = store.hash()
    batch = store.engine.batch()
    batch.delete(b"\x01\0\0\0\0b")
    store.engine.write(batch)

    assert before != store.hash()


def test_hash_is_of_the_moment_it_was_begun(store):
    """Writes between its slices do not count, and it says at which index it was taken."""
    for first in range(0, 1000, 250):
        store.group(*[store.set(b"%04d" % n, b"v") for n in range(first, first + 250)])
    expected = (1000, store.hash())
    steps = store.executor.state_hash()
    assert None is next(steps)

    store.group(store.set(b"0000", b"new"), store.delete(b"0999"))

    assert expected == store.last(steps)
    assert None is not store.engine.get(STATE_KEY)


def test_slice_too_small_to_get_on_is_a_defect(store):
    """The sweep would spin for ever."""
    with pytest.raises(AssertionError):
        next(sweep(store.engine, 0, 0))


class UncompactedEngine(MemoryEngine):
    """Remembers the history rows that were deleted, as RocksDB does, and counts how many an iterator steps over."""

    def __init__(self):
        super().__init__()
        self.removed = []
        self.stepped_over = 0

    def write(self, batch):
        gone = [key for key, value, end in batch.changes if value is None and end is None and key[:1] == HISTORY]
        super().write(batch)
        self.removed = sorted([*self.removed, *gone]) if gone else self.removed

    def iterate(self, begin, end, *, reverse=False):
        for key, value in super().iterate(begin, end, reverse=reverse):
            self._count(begin, key)
            begin = key
            yield key, value
        self._count(begin, end)

    def _count(self, begin, end):
        self.stepped_over += bisect_left(self.removed, end) - bisect_left(self.removed, begin)


def test_no_slice_steps_over_more_removed_rows_than_about_two_slices(make_store):
    """A key of which the last pass removed 8,000 rows does not make one long call of the next pass."""
    store = make_store(UncompactedEngine())
    sweeper = store.executor.sweeper

    def one_pass():
        index = store.executor.applied_index
        maintenance = Maintenance(low_watermark=index, idle_before_ms=0, sessions_max=1000).encode()
        store.executor.apply_group([Entry.create(index + 1, 1, EntryKind.MAINTENANCE, 1, maintenance)])
        sweeper.start()
        stepped_over, removed_before, going_on = [], sweeper.removed_total, True
        while going_on:
            store.engine.stepped_over = 0
            going_on = sweeper.step()
            stepped_over.append(store.engine.stepped_over)
        return stepped_over, sweeper.removed_total - removed_before

    store.one(store.set(b"before", b"v"))
    for _ in range(16):
        store.group(*[store.set(b"busy", b"v")] * 500)
    assert 7999 == one_pass()[1]
    store.group(store.set(b"busy", b"w"), store.set(b"next", b"v"))

    stepped_over, removed = one_pass()

    assert 1 == removed
    assert 7999 <= sum(stepped_over)
    assert max(stepped_over) <= 2 * STEP_ROWS
    assert [b"busy", b"next", b"before"] == [key for key, _ in history(store)]


def test_a_trail_needs_bounded_memory_and_marks_further_apart_then(store, monkeypatch):
    """Beyond its bound every other mark goes; a sweep along what is left does the same as one without."""
    monkeypatch.setattr(sweep_module, "TRAIL_BYTES_MAX", 200)
    trail = Trail()
    for _ in range(3):
        for first in range(0, 300, 100):
            store.group(*[store.set(b"%04d" % n, b"v") for n in range(first, first + 100)])
        store.raise_watermark(store.executor.applied_index)
        before = store.hash()
        list(sweep(store.engine, store.executor.low_watermark, 4, trail))

        assert sum(map(len, trail._fresh)) <= 200
        assert before == store.hash()
        assert 300 == len(history(store))
