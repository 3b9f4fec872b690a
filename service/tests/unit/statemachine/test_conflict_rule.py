"""Contract section 5.3, clause by clause."""

from __future__ import annotations

import pytest

from kvorum.core.errors import ErrorCode
from kvorum.core.operations import APPLIED, KeyRange

SAME_GROUP = [False, True]
"""Whether the commit shares its group with the writes before it: the overlay must say what the store would."""


def decide(store, same_group, before, commit):
    """Outcome code of a commit after other writes, in their group or in a later one."""
    if same_group:
        outcome = store.group(*before, commit)[-1]
    else:
        store.group(*before)
        outcome = store.one(commit)
    return getattr(outcome, "code", None)


@pytest.mark.parametrize("same_group", SAME_GROUP)
@pytest.mark.parametrize("read_version", [0, 1, 2, 3])
def test_conflict_key_written_above_the_read_version_refuses_the_commit(store, same_group, read_version):
    """A key conflicts iff its last write is above the read version."""
    before = [store.set(b"x", b"1"), store.set(b"k", b"1"), store.set(b"y", b"1")]
    commit = store.commit(read_version, store.set(b"z", b"1"), keys=[b"k"])

    assert (ErrorCode.CONFLICT if read_version < 2 else None) == decide(store, same_group, before, commit)
    assert (None if read_version < 2 else b"1") == store.executor.get(b"", b"z")


@pytest.mark.parametrize("same_group", SAME_GROUP)
@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.delete(b"k"),
        lambda store: store.commit(0, store.delete(b"k")),
        lambda store: store.commit(0, store.set(b"k", b"1")),
    ],
    ids=["delete of a missing key", "delete in a commit", "set in a commit"],
)
def test_every_kind_of_write_counts(store, same_group, write):
    """Deletes of missing keys and writes inside commits conflict like sets."""
    commit = store.commit(1, keys=[b"k"])

    assert ErrorCode.CONFLICT == decide(store, same_group, [store.NOOP, write(store)], commit)


@pytest.mark.parametrize("same_group", SAME_GROUP)
@pytest.mark.parametrize(
    ("begin", "end", "conflicts"),
    [
        (b"b", b"d", True),
        (b"c", b"c\x00", True),
        (b"a", b"c", False),
        (b"c\x00", b"z", False),
        (b"c", b"c", False),
        (b"d", b"a", False),
        (b"", b"\xff\xff", True),
    ],
)
def test_conflict_range_holds_its_begin_and_not_its_end(store, same_group, begin, end, conflicts):
    """Ranges are [begin, end) of their family; an empty one holds nothing."""
    before = [store.set(b"b", b"0"), store.set(b"c", b"0"), store.NOOP, store.delete(b"c")]
    commit = store.commit(3, ranges=[KeyRange(b"", begin, end)])

    assert (ErrorCode.CONFLICT if conflicts else None) == decide(store, same_group, before, commit)


@pytest.mark.parametrize("same_group", SAME_GROUP)
def test_conflict_items_are_isolated_by_family(store, same_group):
    """The same key in another family is another key; an unknown family was never written."""
    before = [store.set(b"k", b"1", b"fam")]
    free = store.commit(0, keys=[b"k"], ranges=[KeyRange(b"", b"a", b"z"), KeyRange(b"unknown", b"a", b"z")])
    taken = store.commit(0, ranges=[KeyRange(b"fam", b"k", b"k\x00")])

    assert None is decide(store, same_group, before, free)
    assert ErrorCode.CONFLICT == store.code(taken)


@pytest.mark.parametrize("many", ["rows", "changes", "both"])
@pytest.mark.parametrize("written", [False, True])
def test_long_range_is_decided_by_rows_or_changes_alike(store, many, written):
    """Whichever of the two walks is the shorter, the verdict is the same."""
    rows, noise = (2000, 3) if many == "rows" else (3, 2000) if many == "changes" else (2000, 2000)
    for first in range(0, rows, 500):
        store.group(*[store.set(b"m%05d" % n, b"v") for n in range(first, min(rows, first + 500))])
    read_version = store.executor.applied_index
    for first in range(0, noise, 500):
        store.group(*[store.set(b"z%05d" % n, b"v") for n in range(first, min(noise, first + 500))])
    if written:
        store.one(store.delete(b"m%05d" % (rows - 1)))

    commit = store.commit(read_version, ranges=[KeyRange(b"", b"m", b"n")])

    assert (ErrorCode.CONFLICT if written else None) == store.code(commit)


def test_two_commits_of_one_group_that_conflict_do_not_both_pass(store):
    """The overlay shows the first commit to the second."""
    first = store.commit(0, store.set(b"a", b"1"), keys=[b"b"])
    second = store.commit(0, store.set(b"b", b"1"), keys=[b"a"])

    one, two = store.group(first, second)

    assert APPLIED == one
    assert ErrorCode.CONFLICT == two.code


def test_refused_commit_of_the_group_does_not_conflict_with_later_ones(store):
    """Only what is applied is written."""
    store.one(store.set(b"a", b"1"))
    refused = store.commit(0, store.set(b"b", b"1"), keys=[b"a"])

    outcomes = store.group(refused, store.commit(1, store.set(b"c", b"1"), keys=[b"b"]))

    assert [ErrorCode.CONFLICT, None] == [getattr(outcome, "code", None) for outcome in outcomes]


def test_write_write_never_conflicts(store):
    """A commit's own keys count only if they are in its conflict set too."""
    store.one(store.set(b"a", b"1"))

    assert None is store.code(store.commit(0, store.set(b"a", b"2")))
    assert b"2" == store.executor.get(b"", b"a")


@pytest.mark.parametrize("read_version", [-5, 0, 10**9])
def test_read_version_is_not_looked_at_without_a_conflict_set(store, read_version):
    """Blind commits pass with any read version."""
    store.one(store.set(b"a", b"1"))

    assert None is store.code(store.commit(read_version, store.set(b"a", b"2")))


@pytest.mark.parametrize("item", ["keys", "ranges"])
def test_order_of_checks_is_future_then_too_old_then_conflict(store, item):
    """The first failing check of the contract's order answers."""
    conflict = {"keys": [b"a"]} if item == "keys" else {"ranges": [KeyRange(b"", b"a", b"b")]}
    store.group(*[store.set(b"a", b"1")] * 5)
    store.raise_watermark(4)
    own = store.executor.applied_index + 1

    assert ErrorCode.INVALID_ARGUMENT == store.code(store.commit(-1, **conflict))
    assert ErrorCode.FUTURE_VERSION == store.code(store.commit(own + 1, **conflict))
    assert ErrorCode.CONFLICT == store.code(store.commit(3, **conflict))
    assert ErrorCode.TRANSACTION_TOO_OLD == store.code(store.commit(3, existing_style=False, **conflict))
    assert ErrorCode.CONFLICT == store.code(store.commit(4, existing_style=False, **conflict))
    assert None is store.code(store.commit(5, **conflict))


def test_read_version_just_below_the_own_index_is_no_future(store):
    """The highest version that an honest client can hold is the index before its own."""
    assert ErrorCode.FUTURE_VERSION == store.code(store.commit(1, keys=[b"a"]))
    assert None is store.code(store.commit(1, keys=[b"a"]))


def test_many_conflict_items_are_checked_in_slices(store):
    """A hundred thousand items pause on the way and are still exact."""
    store.one(store.set(b"hit", b"1"))
    keys = [b"miss%06d" % n for n in range(3000)]
    ranges = [KeyRange(b"", b"r%06d" % n, b"s") for n in range(3000)]

    steps = list(store.executor.apply(store.entries(store.commit(0, keys=[*keys, b"hit"]))))
    assert ErrorCode.CONFLICT == steps[-1][0].code
    assert len(steps) > 10
    steps = list(store.executor.apply(store.entries(store.commit(0, ranges=[*ranges, KeyRange(b"", b"h", b"i")]))))
    assert ErrorCode.CONFLICT == steps[-1][0].code
    assert len(steps) > 10


def test_range_over_a_large_group_is_checked_in_slices(store):
    """A walk over the overlay pauses too, and passes what is not above the read version."""
    writes = [store.set(b"k%04d" % n, b"v") for n in range(700)]
    inside = KeyRange(b"", b"k", b"k0600")
    commits = [
        store.commit(600, ranges=[inside]),
        store.commit(699, ranges=[inside]),
        store.commit(700, keys=[b"k0699"]),
    ]

    *_, outcomes = steps = list(store.executor.apply(store.entries(*writes, *commits)))

    assert [None, None, None] == [getattr(outcome, "code", None) for outcome in outcomes[700:]]
    assert len(steps) > 6
