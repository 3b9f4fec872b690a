"""The log view against a plain list."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.core.entries import Entry, EntryKind
from kvorum.raft.log_view import UNKNOWN_TERM, LogView

PAYLOAD = b"x" * 31
RECORD_BYTES = 60


def entry(index: int, term: int) -> Entry:
    return Entry.create(index, term, EntryKind.COMMAND, 0, PAYLOAD)


class Disk:
    """Everything that was ever appended, as the log files would hold it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.reads = 0

    def read(self, first: int, last: int, bytes_max: int) -> list[Entry]:
        self.reads += 1
        taken = self.entries[first - 1 : last]
        count = max(1, bytes_max // RECORD_BYTES)
        return taken[:count]


def recovered_view(terms: list[int], bytes_max: int = 10_000) -> tuple[LogView, Disk]:
    disk = Disk()
    disk.entries = [entry(index, term) for index, term in enumerate(terms, 1)]
    runs = [(index, term) for index, term in enumerate(terms, 1) if index == 1 or terms[index - 2] != term]
    return LogView(disk, (0, 0), len(terms), runs, bytes_max), disk


def check(view: LogView, terms: list[int]) -> None:
    assert view.last_index == len(terms)
    assert view.last_term == (terms[-1] if terms else 0)
    assert view.term_at(0) == 0
    assert view.term_at(len(terms) + 1) == UNKNOWN_TERM
    for index, term in enumerate(terms, 1):
        assert view.term_at(index) == term
    for index in range(len(terms) + 2):
        for term in range(5):
            expected = max((i for i in range(min(index, len(terms)) + 1) if ([0, *terms])[i] <= term), default=0)
            assert expected == view.last_at_most(index, term)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(st.integers(0, 1), min_size=1, max_size=5)),
        st.tuples(st.just("truncate"), st.integers(0, 30)),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(steps, st.integers(60, 600), st.lists(st.integers(1, 2), max_size=4).map(sorted))
def test_view_after_any_appends_and_truncations_equals_a_list(
    todo: list[tuple[str, list[int] | int]], bytes_max: int, recovered: list[int]
) -> None:
    """Terms, hints and slices agree with a plain list of terms, however small the cache is."""
    terms = list(recovered)
    view, disk = recovered_view(terms, bytes_max)
    for name, argument in todo:
        if isinstance(argument, list):
            entries = []
            for rise in argument:
                terms.append(min((terms[-1] if terms else 1) + rise, 4))
                entries.append(entry(len(terms), terms[-1]))
            durable = len(disk.entries)
            disk.entries.extend(entries)
            view.append(entries, RECORD_BYTES * len(entries), durable)
        elif name == "truncate" and argument < len(terms):
            view.truncate_after(argument)
            del terms[argument:]
            del disk.entries[argument:]
        check(view, terms)
        for first in range(1, len(terms) + 1):
            got = view.slice(first, len(terms), 3, 2 * RECORD_BYTES)
            assert 1 <= len(got) <= 2
            assert [(e.index, e.term) for e in got] == list(enumerate(terms, 1))[first - 1 : first - 1 + len(got)]


def test_slice_of_recent_entries_costs_no_read() -> None:
    """Entries of this life come from memory, older ones from the reader."""
    view, disk = recovered_view([1, 1])
    view.append([entry(3, 2), entry(4, 2)], 2 * RECORD_BYTES, 2)

    assert [3, 4] == [e.index for e in view.slice(3, 4, 10, 10_000)]
    assert disk.reads == 0
    assert [2] == [e.index for e in view.slice(2, 4, 10, 10_000)]
    assert disk.reads == 1
    assert view.is_cached(3)
    assert not view.is_cached(2)


def test_cache_over_its_bound_drops_the_oldest_durable_entries_only() -> None:
    """What is not durable stays in memory, whatever the bound says: the reader could not give it back."""
    view, _ = recovered_view([], 5 * RECORD_BYTES)
    for index in range(1, 11):
        view.append([entry(index, 1)], RECORD_BYTES, durable_index=0)
    assert view.cached_bytes == 10 * RECORD_BYTES

    view.append([entry(11, 1)], RECORD_BYTES, durable_index=7)

    assert not view.is_cached(7)
    assert view.is_cached(8)
    assert view.cached_bytes == 4 * RECORD_BYTES


def test_slice_larger_than_its_bound_holds_one_entry() -> None:
    """A single entry that is larger than a message still travels (catalogue bug 75)."""
    view, _ = recovered_view([])
    view.append([entry(1, 1), entry(2, 1)], 2 * RECORD_BYTES, 0)

    assert [1] == [e.index for e in view.slice(1, 2, 10, 1)]


@pytest.mark.parametrize(
    ("last_index", "last_term", "expected"),
    [(3, 2, True), (4, 2, True), (2, 2, False), (1, 3, True), (99, 1, False), (0, 0, False)],
)
def test_up_to_date_test_compares_term_before_length(last_index: int, last_term: int, *, expected: bool) -> None:
    """Catalogue bug 7: (term, index) in this order, against a log that ends with entry 3 of term 2."""
    view, _ = recovered_view([1, 2, 2])

    assert expected == view.is_behind_or_equal(last_index, last_term)


def test_view_above_a_base_knows_the_base_term_only() -> None:
    """A log whose head was dropped answers for its base and for nothing before it."""
    view = LogView(Disk(), (10, 3), 12, [(11, 3), (12, 4)])

    assert [UNKNOWN_TERM, 3, 3, 4, UNKNOWN_TERM] == [view.term_at(index) for index in (9, 10, 11, 12, 13)]
    assert view.last_at_most(12, 2) == 10


@settings(max_examples=300)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=30).map(sorted),
    st.lists(st.integers(1, 4), max_size=10).map(sorted),
    st.data(),
)
def test_cut_log_answers_like_the_whole_one_from_its_base_on(
    recovered: list[int], appended: list[int], data: st.DataObject
) -> None:
    """Terms, reads and appends behind the base do not notice what is gone."""
    view, disk = recovered_view(recovered, bytes_max=300)
    terms = list(recovered)
    for term in appended:
        terms.append(max(term, terms[-1]))
        disk.entries.append(entry(len(terms), terms[-1]))
        view.append(disk.entries[-1:], RECORD_BYTES, len(terms))
    for _ in range(3):
        index = data.draw(st.integers(view.base_index, view.last_index))
        view.cut(index)
        assert (index, terms[index - 1] if index else 0) == (view.base_index, view.base_term)
        assert [terms[at - 1] for at in range(max(index, 1), len(terms) + 1)] == [
            view.term_at(at) for at in range(max(index, 1), len(terms) + 1)
        ]
        assert view.term_at(index - 1) == UNKNOWN_TERM
        for at in range(index + 1, len(terms) + 1):
            assert view.slice(at, at, 1, 1)[0] == disk.entries[at - 1]
            assert view.last_at_most(at, terms[at - 1]) == at
        terms.append(terms[-1])
        disk.entries.append(entry(len(terms), terms[-1]))
        view.append(disk.entries[-1:], RECORD_BYTES, len(terms))
    assert (len(terms), terms[-1]) == (view.last_index, view.last_term)
