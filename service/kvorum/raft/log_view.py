"""
The log as the algorithm sees it: where each term begins, the recent entries in memory, older ones through the reader.

It knows nothing of commits or durability; the caller says which entries are durable, because only those may leave the
memory: the reader can give back nothing else.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, Protocol

from kvorum.core.limits import CACHED_ENTRY_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvorum.core.entries import Entry
    from kvorum.core.ids import Index, Term

UNKNOWN_TERM: Final = -1
"""Term of an index that this log does not hold; equal to no real term."""

_KEEP_NUMERATOR: Final = 3
_KEEP_DENOMINATOR: Final = 4
"""An overfull cache is cut to three quarters, so that the cost of cutting is spread over many appends."""


class EntryReader(Protocol):
    """The part of `core.ports.Log` that the algorithm needs."""

    def read(self, first: Index, last: Index, bytes_max: int) -> list[Entry]:
        """Durable entries from ``first`` to at most ``last``, at least one, then until ``bytes_max`` is passed."""
        ...


class LogView:
    """Terms and entries from the base up to ``last_index``."""

    __slots__ = (
        "_bytes_max",
        "_cached",
        "_cached_bytes",
        "_cached_first",
        "_reader",
        "_run_firsts",
        "_run_terms",
        "base_index",
        "base_term",
        "last_index",
        "last_term",
    )

    def __init__(
        self,
        reader: EntryReader,
        base: tuple[Index, Term],
        last_index: Index,
        runs: Sequence[tuple[Index, Term]],
        bytes_max: int = CACHED_ENTRY_BYTES_MAX,
    ) -> None:
        self.base_index, self.base_term = base
        self.last_index = last_index
        self._run_firsts: list[Index] = [first for first, _ in runs]
        self._run_terms: list[Term] = [term for _, term in runs]
        assert self._run_firsts == sorted(set(self._run_firsts)), "runs of terms must ascend"
        assert self._run_terms == sorted(self._run_terms), "terms never fall along a log"
        assert not runs or self.base_index < runs[0][0] <= last_index, "runs of terms lie outside the log"
        assert bool(runs) == (last_index > self.base_index), "a log with entries has a run of terms"
        self.last_term: Term = self._run_terms[-1] if runs else self.base_term
        self._reader = reader
        self._cached: list[Entry] = []
        self._cached_first: Index = last_index + 1
        self._cached_bytes = 0
        self._bytes_max = bytes_max

    def term_at(self, index: Index) -> Term:
        """Term of the entry at ``index``, of the base at the base index, else `UNKNOWN_TERM`."""
        firsts = self._run_firsts
        if index > self.last_index or index < self.base_index:
            return UNKNOWN_TERM
        if index == self.base_index:
            return self.base_term
        if index >= firsts[-1]:
            return self.last_term
        return self._run_terms[bisect_right(firsts, index) - 1]

    def is_behind_or_equal(self, last_index: Index, last_term: Term) -> bool:
        """Whether a log that ends so is at least as up to date as this one (Raft paper 5.4.1: term before length)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def last_at_most(self, index: Index, term: Term) -> Index:
        """
        Highest index, not above ``index``, whose entry has at most this term.

        What both sides of a rejected append need to skip whole terms: entries of a higher term than the other side has
        at an index cannot agree with it there.
        """
        index = min(index, self.last_index)
        run = bisect_right(self._run_firsts, index) - 1
        while run >= 0 and self._run_terms[run] > term:
            index = self._run_firsts[run] - 1
            run -= 1
        return max(index, self.base_index)

    def append(self, entries: Sequence[Entry], size: int, durable_index: Index) -> None:
        """Add entries of ``size`` bytes behind the last one; cached ones may go if they are durable."""
        last = entries[-1]
        assert entries[0].index == self.last_index + 1, "entries must follow the last one"
        assert last.index == self.last_index + len(entries), "entries must be consecutive"
        if last.term != self.last_term or not self._run_firsts:
            self._note_terms(entries)
        self._cached.extend(entries)
        self.last_index = last.index
        self._cached_bytes += size
        if self._cached_bytes > self._bytes_max:
            self._shrink(durable_index)

    def _note_terms(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.term != self.last_term or not self._run_firsts:
                assert entry.term >= self.last_term, "terms never fall along a log"
                self._run_firsts.append(entry.index)
                self._run_terms.append(entry.term)
                self.last_term = entry.term

    def _shrink(self, durable_index: Index) -> None:
        target = self._bytes_max * _KEEP_NUMERATOR // _KEEP_DENOMINATOR
        count = 0
        for entry in self._cached:
            if self._cached_bytes <= target or entry.index > durable_index:
                break
            self._cached_bytes -= len(entry.record)
            count += 1
        del self._cached[:count]
        self._cached_first += count

    def truncate_after(self, index: Index) -> None:
        """Forget every entry behind ``index``."""
        assert self.base_index <= index < self.last_index, "nothing to truncate there"
        keep = max(index + 1 - self._cached_first, 0)
        self._cached_bytes -= sum(len(entry.record) for entry in self._cached[keep:])
        del self._cached[keep:]
        self._cached_first = min(self._cached_first, index + 1)
        while self._run_firsts and self._run_firsts[-1] > index:
            self._run_firsts.pop()
            self._run_terms.pop()
        self.last_index = index
        self.last_term = self._run_terms[-1] if self._run_terms else self.base_term

    def cut(self, index: Index) -> None:
        """Forget every entry up to ``index``, which becomes the base; its term stays known."""
        if index <= self.base_index:
            return
        assert index <= self.last_index, "nothing to cut there"
        term = self.term_at(index)
        firsts, terms = self._run_firsts, self._run_terms
        gone = bisect_right(firsts, index + 1) - 1
        if index == self.last_index:
            gone = len(firsts)
        elif firsts[gone] <= index:
            firsts[gone] = index + 1
        del firsts[:gone]
        del terms[:gone]
        cached = min(max(index + 1 - self._cached_first, 0), len(self._cached))
        self._cached_bytes -= sum(len(entry.record) for entry in self._cached[:cached])
        del self._cached[:cached]
        self._cached_first = max(self._cached_first, index + 1)
        self.base_index, self.base_term = index, term

    def slice(self, first: Index, last: Index, entries_max: int, bytes_max: int) -> list[Entry]:
        """Entries from ``first`` to at most ``last``: at least one, within both bounds unless the first is larger."""
        assert self.base_index < first <= last <= self.last_index, "slice outside the log"
        stop = min(last, first + entries_max - 1)
        offset = first - self._cached_first
        if offset < 0:
            entries = self._reader.read(first, min(stop, self._cached_first - 1), bytes_max)
            assert entries, "the log must hold what it reported"
            assert entries[0].index == first, "misdirected read"
            assert entries[-1].index == first + len(entries) - 1, "entries must be consecutive"
            return entries
        taken = self._cached[offset : stop - self._cached_first + 1]
        assert taken[0].index == first, "the cache is out of step"
        if sum([len(entry.record) for entry in taken]) <= bytes_max:
            return taken
        size = 0
        for count, entry in enumerate(taken):
            size += len(entry.record)
            if size > bytes_max and count:
                return taken[:count]
        return taken

    def is_cached(self, index: Index) -> bool:
        """Whether `slice` from here costs no disk read."""
        return index >= self._cached_first

    @property
    def cached_bytes(self) -> int:
        """Bytes of the entries in memory."""
        return self._cached_bytes
