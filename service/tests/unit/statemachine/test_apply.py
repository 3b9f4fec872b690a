"""How groups of log entries become state, and what happens when that fails."""

from __future__ import annotations

import pytest

from kvorum.core.codec import TAG
from kvorum.core.entries import Entry, EntryKind
from kvorum.core.errors import ErrorCode, LocalError, StartupError, WriteStalledError
from kvorum.core.operations import APPLIED, Mutation
from kvorum.statemachine.layout import CHANGES, FORMAT_KEY, HISTORY, INLINE_VALUE_BYTES_MAX, STATE_KEY, VERSION_LIMIT


def test_plain_writes_in_one_group_take_effect_in_log_order(store):
    """A later set or delete of a key in the same group wins."""
    outcomes = store.group(
        store.set(b"a", b"1"), store.set(b"a", b"2"), store.set(b"b", b"3"), store.delete(b"b"), store.set(b"c", b"")
    )

    assert [APPLIED] * 5 == outcomes
    assert b"2" == store.executor.get(b"", b"a")
    assert None is store.executor.get(b"", b"b")
    assert b"" == store.executor.get(b"", b"c")
    assert None is store.executor.get(b"", b"missing")


def test_every_version_inside_a_group_stays_readable(store):
    """Group borders differ between nodes, so each entry's own version can be read."""
    store.group(store.set(b"a", b"1"), store.set(b"a", b"2"), store.delete(b"a"), store.set(b"a", b"4"))

    values = [store.executor.read_at(b"", b"a", version) for version in range(5)]

    assert [None, b"1", b"2", None, b"4"] == values


@pytest.mark.parametrize("size", [0, 1, INLINE_VALUE_BYTES_MAX, INLINE_VALUE_BYTES_MAX + 1, 100_000])
def test_value_of_any_size_reads_the_same_by_every_way(store, size):
    """Values above the inline bound are in history only, which no reader notices."""
    value, older = b"x" * size, b"y" * size
    store.group(store.set(b"k", older), store.commit(0, store.set(b"k", value)))

    assert value == store.executor.get(b"", b"k")
    assert older == store.executor.read_at(b"", b"k", 1)
    assert value == store.executor.read_at(b"", b"k", 2)
    assert [(b"k", value)] == store.scan().pairs
    assert [(b"k", older)] == store.scan(version=1).pairs


def test_entries_that_no_client_waits_for_move_the_applied_index_only(store):
    """No-ops have no outcome and are no client commits."""
    outcomes = store.group(store.NOOP, store.set(b"a", b"1"), store.NOOP)

    assert [None, APPLIED, None] == outcomes
    assert 3 == store.executor.applied_index
    assert 2 == store.executor.last_commit_version


def test_last_commit_version_counts_empty_commits_and_skips_refused_ones(store):
    """An empty commit takes a version; a refused one leaves no trace."""
    store.group(store.set(b"a", b"1"), store.commit(0), store.commit(0, store.set(b"b", b"2"), keys=[b"a"]))

    assert 2 == store.executor.last_commit_version
    assert 3 == store.executor.applied_index
    assert None is store.executor.get(b"", b"b")


def test_group_is_invisible_until_its_outcomes_are_yielded(store):
    """A large group pauses between slices, and reads in a pause show the state before it."""
    store.one(store.set(b"k", b"old"))
    steps = store.executor.apply(store.entries(*[store.set(b"k", b"%d" % n) for n in range(1000)]))
    pauses = 0
    for step in steps:
        if step is not None:
            break
        pauses += 1
        assert b"old" == store.executor.get(b"", b"k")
        assert 1 == store.executor.applied_index

    assert pauses >= 4
    assert b"999" == store.executor.get(b"", b"k")


def test_one_huge_commit_is_staged_in_slices(store):
    """A commit of ten thousand operations pauses too."""
    commit = store.commit(0, *[store.set(b"%05d" % n, b"v") for n in range(10_000)])

    steps = list(store.executor.apply(store.entries(commit)))

    assert steps.count(None) >= 50
    assert [APPLIED] == steps[-1]
    assert 10_000 == store.executor.statistics().mutations


def test_dropped_group_has_changed_nothing(store):
    """A generator that is not run to its end can be forgotten."""
    entries = store.entries(*[store.set(b"k%d" % n, b"v", b"new family") for n in range(300)])
    next(store.executor.apply(entries))

    assert 0 == store.executor.applied_index
    assert not store.executor.family_exists_at(b"new family", 300)
    assert [APPLIED] * 300 == store.last(store.executor.apply(entries))


def test_stalled_write_changes_nothing_and_the_group_can_be_applied_again(store):
    """Neither the store nor the memory of the executor moves when the engine asks to wait."""
    entries = store.entries(store.set(b"a", b"1"), store.set(b"b", b"2", b"fam"))
    before = store.hash()
    store.engine.stalled = True

    for _ in range(2):
        with pytest.raises(WriteStalledError):
            store.executor.apply_group(entries)

    assert (0, 0) == (store.executor.applied_index, store.executor.last_commit_version)
    assert not store.executor.family_exists_at(b"fam", 2)
    assert before == store.hash()
    assert 0 == store.executor.statistics().groups
    store.engine.stalled = False
    assert [APPLIED, APPLIED] == store.executor.apply_group(entries)
    assert b"2" == store.executor.get(b"fam", b"b")


@pytest.mark.parametrize("kept", range(5))
def test_replay_after_a_crash_gives_the_state_of_an_undisturbed_run(make_store, kept):
    """Catalogue 66: whatever prefix of the groups survived, the log from its applied index on restores the rest."""
    undisturbed, crashing = make_store(), make_store()
    operations = [
        store_set
        for n in range(8)
        for store_set in (make_store.set(b"k%d" % (n % 3), b"%d" % n), make_store.set(b"x", b"%d" % n, b"f%d" % n))
    ]
    entries = undisturbed.entries(*operations)
    undisturbed.executor.apply_group(entries)
    for first in range(0, 16, 4):
        crashing.executor.apply_group(entries[first : first + 4])

    revived = make_store(crashing.engine.crashed(kept))
    missing = entries[revived.executor.applied_index :]
    revived.executor.apply_group(missing)

    assert max(0, 4 * (kept - 1)) == 16 - len(missing)
    assert undisturbed.hash() == revived.hash()
    assert undisturbed.executor.last_commit_version == revived.executor.last_commit_version


def test_opening_again_finds_everything(make_store, store):
    """Applied index, last commit version, families and data survive a restart."""
    store.group(store.set(b"a", b"1"), store.set(b"b", b"2", b"fam"), store.NOOP)

    reopened = make_store(store.engine)

    assert 3 == reopened.executor.applied_index
    assert 2 == reopened.executor.last_commit_version
    assert b"2" == reopened.executor.get(b"fam", b"b")
    assert not reopened.executor.family_exists_at(b"fam", 1)
    assert reopened.executor.family_exists_at(b"fam", 2)
    assert store.hash() == reopened.hash()


def test_entries_out_of_sequence_are_refused_loudly(store):
    """A gap, a repetition or a hole inside the group stops the node instead of being applied."""
    one, two, three = store.entries(*[store.set(b"a", b"1")] * 3)
    store.executor.apply_group([one])

    for wrong in ([one], [three], [two, two], [two, store.entry_of(4, store.NOOP)]):
        with pytest.raises(LocalError, match="do not follow applied index 1"):
            store.executor.apply_group(wrong)


def test_two_groups_staged_at_once_cannot_both_be_written(store):
    """The second of two interleaved applies of the same entries is stopped."""
    entries = store.entries(*[store.set(b"a", b"1")] * 300)
    slow = store.executor.apply(entries)
    next(slow)
    store.executor.apply_group(entries)

    with pytest.raises(LocalError, match="another group was applied"):
        list(slow)


@pytest.mark.parametrize(
    "body",
    [
        b"\x01\x00\x00\x00\x00\x05key",
        b"\x02\x00\x00\x00\x00\x05key",
        b"\x63\x00\x00\x00\x00\x01kv",
    ],
    ids=["set cut short", "delete cut short", "unknown opcode"],
)
def test_unreadable_command_stops_the_node(store, body):
    """The entry was committed, so guessing is forbidden."""
    entry = Entry.create(1, 1, EntryKind.COMMAND, 0, TAG.pack(0, 0, 0) + body)

    with pytest.raises(LocalError):
        store.executor.apply_group([entry])
    assert 0 == store.executor.applied_index


def test_unknown_kind_of_entry_stops_the_node(store):
    """A newer release may have written it."""
    with pytest.raises(LocalError, match="kind 9"):
        store.executor.apply_group([Entry.create(1, 1, 9, 0, b"")])


def test_store_of_another_format_version_is_refused_by_both_names(make_store, store):
    """The start-up error names the version found and the version read."""
    batch = store.engine.batch()
    batch.put(FORMAT_KEY, b"\x07")
    store.engine.write(batch)

    with pytest.raises(StartupError, match=r"format version 7.* up to 2"):
        make_store(store.engine)


def test_foreign_rows_are_not_taken_for_an_empty_store(make_store, store):
    """An engine that holds rows but no format row is somebody else's."""
    batch = store.engine.batch()
    batch.delete(FORMAT_KEY)
    store.engine.write(batch)

    with pytest.raises(StartupError, match="no kvorum format row"):
        make_store(store.engine)


def test_empty_group_does_nothing(store):
    """No entries, no outcomes, no write."""
    assert [] == store.executor.apply_group([])
    assert [] == store.last(store.executor.apply([]))
    assert 0 == store.executor.statistics().groups


@pytest.mark.parametrize(("version", "code"), [(-1, ErrorCode.INVALID_ARGUMENT), (2, ErrorCode.TRANSACTION_TOO_OLD)])
def test_unreadable_version_is_refused_with_its_code(store, version, code):
    """Negative versions and those below the watermark are refused by rule."""
    store.group(*[store.set(b"a", b"1")] * 5)
    store.raise_watermark(3)

    assert code == store.executor.check_readable(version).code
    assert None is store.executor.check_readable(3)
    assert None is store.executor.check_readable(5)


def test_statistics_count_what_was_done(store):
    """Figures for metrics come from one place."""
    store.group(store.set(b"a", b"1"), store.commit(0, keys=[b"a"]), store.NOOP)

    statistics = store.executor.statistics()

    assert (3, 1, 0, 1) == (
        statistics.applied_index,
        statistics.last_commit_version,
        statistics.low_watermark,
        statistics.families,
    )
    assert (1, 3, 1) == (statistics.groups, statistics.entries, statistics.mutations)
    assert (1, 1) == (statistics.conflicts, statistics.refusals)


def test_store_without_its_state_row_is_refused(make_store, store):
    """A format row alone is damage, not an empty store."""
    batch = store.engine.batch()
    batch.delete(STATE_KEY)
    store.engine.write(batch)

    with pytest.raises(StartupError, match="no state row"):
        make_store(store.engine)


def test_mutation_of_unknown_kind_inside_a_commit_stops_the_node(store):
    """A newer release may have written it; nothing of the commit is applied."""
    with pytest.raises(LocalError, match="unknown kind 9"):
        store.one(store.commit(0, store.set(b"a", b"1"), Mutation(9, b"", b"k" * 10, b"v" * 10)))
    assert None is store.executor.get(b"", b"a")


def test_value_lost_from_history_is_never_answered_as_missing(store):
    """A row that points to nothing is a defect to stop at, not an absent key."""
    store.one(store.set(b"k", b"x" * 2000))
    batch = store.engine.batch()
    batch.delete_range(HISTORY, CHANGES)
    store.engine.write(batch)

    with pytest.raises(AssertionError, match="no history row"):
        store.executor.get(b"", b"k")


def test_index_that_reaches_into_the_flag_byte_stops_the_node(store):
    """Versions stay below 2**56, because the byte above them is a row's flag."""
    store.executor.applied_index = VERSION_LIMIT - 1

    with pytest.raises(AssertionError, match="not below"):
        store.executor.apply_group([store.entry_of(VERSION_LIMIT, store.NOOP)])


def test_watermark_of_the_state_row_is_shown(store):
    """Status reads it from here."""
    store.group(*[store.NOOP] * 4)
    store.raise_watermark(2)

    assert 2 == store.executor.low_watermark
