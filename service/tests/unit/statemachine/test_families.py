"""Contract section 4, and the rows of the catalogue."""

from __future__ import annotations

import pytest

from kvorum.statemachine.families import FAMILIES_MAX, family_entry


def test_default_family_exists_from_the_start(store):
    """It exists at version 0, before anything was written."""
    assert store.executor.family_exists_at(b"", 0)
    assert not store.executor.family_exists_at(b"x", 10**6)


def test_first_applied_mutation_creates_a_family_at_its_version(store):
    """Not at the group's end, and not by a refused commit."""
    store.group(
        store.set(b"a", b"1"),
        store.commit(0, store.set(b"a", b"1", b"refused"), keys=[b"a"]),
        store.delete(b"a", b"deleted first"),
        store.commit(0, store.set(b"a", b"1", b"x"), store.set(b"a", b"1", b"y")),
        store.set(b"b", b"1", b"x"),
    )

    created = {
        name: next((version for version in range(6) if store.executor.family_exists_at(name, version)), None)
        for name in (b"refused", b"deleted first", b"x", b"y")
    }

    assert {b"refused": None, b"deleted first": 3, b"x": 4, b"y": 4} == created


def test_same_key_in_two_families_is_two_keys(store):
    """In gets, snapshot reads and ranges."""
    store.group(store.set(b"k", b"1"), store.set(b"k", b"2", b"a"), store.set(b"k", b"3", b"b"), store.delete(b"k"))

    assert [None, b"2", b"3"] == [store.executor.get(family, b"k") for family in (b"", b"a", b"b")]
    assert [b"1", None, b"3"] == [
        store.executor.read_at(family, b"k", version) for family, version in ((b"", 3), (b"a", 1), (b"b", 3))
    ]
    assert [[], [(b"k", b"2")], [(b"k", b"3")]] == [store.scan(family=family).pairs for family in (b"", b"a", b"b")]


def test_reads_of_an_unknown_family_find_nothing(store):
    """Neither a get nor a read in the past raises."""
    assert None is store.executor.get(b"nobody", b"k")
    assert None is store.executor.read_at(b"nobody", b"k", 0)


def test_hundreds_of_families_keep_their_ids_across_a_restart(make_store, store):
    """Ids are given in log order; the catalogue is read again at open."""
    store.group(*[store.set(b"k", b"%d" % n, b"family %d" % n) for n in range(300)])

    reopened = make_store(store.engine)
    reopened.one(reopened.set(b"k", b"new", b"one more"))

    assert [b"%d" % n for n in range(300)] == [reopened.executor.get(b"family %d" % n, b"k") for n in range(300)]
    assert b"new" == reopened.executor.get(b"one more", b"k")
    assert 302 == reopened.executor.statistics().families


@pytest.mark.parametrize("family_id", [-1, FAMILIES_MAX])
def test_family_id_out_of_bounds_is_a_defect(family_id):
    """The next family's prefix must always exist, because it bounds a family's rows."""
    with pytest.raises(AssertionError):
        family_entry(family_id, 0)
