"""Contract section 3.6."""

from __future__ import annotations

import pytest

from kvorum.core.errors import ErrorCode
from kvorum.core.operations import APPLIED, Applied, Mutation, MutationKind


def stamped_key(buffer, value=b"v", family=b""):
    """A SET_VERSIONSTAMPED_KEY."""
    return Mutation(MutationKind.VERSIONSTAMPED_KEY, family, buffer, value)


def stamped_value(key, buffer, family=b""):
    """A SET_VERSIONSTAMPED_VALUE."""
    return Mutation(MutationKind.VERSIONSTAMPED_VALUE, family, key, buffer)


@pytest.mark.parametrize(
    ("buffer", "expected"),
    [
        ("757365725f73636f72655f" + "00" * 10, "757365725f73636f72655f00000000000012340000"),
        ("31323334353637383930", "00000000000012340000"),
    ],
)
def test_stamped_key_carries_its_own_commit_version(store, buffer, expected):
    """The last ten bytes are replaced, whatever they were; the length stays."""
    store.fill_to(4659)

    outcome = store.one(stamped_key(bytes.fromhex(buffer)))

    assert Applied(generated_keys=(bytes.fromhex(expected),)) == outcome
    assert b"v" == store.executor.get(b"", bytes.fromhex(expected))


def test_stamped_value_needs_no_zero_tail(store):
    """The table's value example: stored and returned bytes are the same."""
    store.fill_to(4660)
    expected = bytes.fromhex("61616100000000000012350000")

    outcome = store.one(stamped_value(b"k", bytes.fromhex("6161610102030405060708090a")))

    assert Applied(generated_values=(expected,)) == outcome
    assert expected == store.executor.get(b"", b"k")


def test_ordinals_count_keys_and_values_of_a_commit_together(store):
    """The table's commit example."""
    store.fill_to(4661)
    key = b"a/" + b"x" * 10

    outcome = store.one(
        store.commit(0, store.set(b"s", b"1"), stamped_key(key), stamped_value(b"v", b"y" * 10), stamped_key(key))
    )

    first, second = (bytes.fromhex("612f0000000000001236000" + ordinal) for ordinal in "02")
    assert (first, second) == outcome.generated_keys
    assert (bytes.fromhex("00000000000012360001"),) == outcome.generated_values
    assert [b"v", b"v"] == [store.executor.get(b"", key) for key in outcome.generated_keys]
    assert outcome.generated_values[0] == store.executor.get(b"", b"v")


@pytest.mark.parametrize("length", [0, 9])
@pytest.mark.parametrize("make", [stamped_key, lambda buffer: stamped_value(b"k", buffer)], ids=["key", "value"])
@pytest.mark.parametrize("alone", [True, False])
def test_short_stamp_buffer_refuses_the_whole_write(store, length, make, alone):
    """Below ten bytes nothing is applied, not even the operations before it, nor a family made."""
    mutation = make(b"x" * length)
    operation = mutation if alone else store.commit(0, store.set(b"a", b"1", b"fam"), mutation)

    outcome = store.one(operation)

    assert ErrorCode.INVALID_OPERATION == outcome.code
    assert "at least 10 bytes" in outcome.text
    assert 0 == store.executor.last_commit_version
    assert not store.executor.family_exists_at(b"fam", 1)


def test_last_mutation_on_a_key_wins_and_makes_the_only_row(store):
    """A commit's net effect per key is one row, also for a stamped value that is overwritten."""
    outcome = store.one(
        store.commit(
            0, stamped_value(b"k", b"x" * 10), store.set(b"k", b"2"), store.set(b"d", b"1"), store.delete(b"d")
        )
    )

    assert 1 == len(outcome.generated_values)
    assert b"2" == store.executor.get(b"", b"k")
    assert None is store.executor.get(b"", b"d")
    assert 2 == store.executor.statistics().mutations


def test_stamps_go_to_their_family(store):
    """A stamped write names a family like any other and creates it."""
    (key,) = store.one(stamped_key(b"x" * 10, b"1", b"fam")).generated_keys

    assert b"1" == store.executor.get(b"fam", key)
    assert None is store.executor.get(b"", key)
    assert APPLIED == store.one(store.set(b"a", b"1"))
