"""
What a log says so far: the state that the writer puts at the head of a new segment and that recovery builds again.

Pure bookkeeping over record headers; both sides use it, so they cannot disagree on what a head means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvorum.core.cluster import Configuration
from kvorum.core.entries import HEADER_BYTES, EntryKind, HardState
from kvorum.core.ports import RecoveredLog
from kvorum.storage.wal.layout import base_record, decode_hard_state, hard_state_record

if TYPE_CHECKING:
    from kvorum.core.entries import Entry
    from kvorum.core.ids import Index, Term
    from kvorum.storage.wal.layout import RecordAt


class StreamState:
    """Base, end, hard state and configurations of a log, as of some point of its stream."""

    __slots__ = (
        "base_index",
        "base_term",
        "base_time_ms",
        "configurations",
        "hard_state",
        "last_index",
        "last_term",
        "last_time_ms",
        "terms",
    )

    def __init__(self) -> None:
        self.base_index: Index = 0
        self.base_term: Term = 0
        self.base_time_ms = 0
        """0 also where an older release wrote the head: it did not note times."""
        self.last_index: Index = 0
        self.last_term: Term = 0
        self.last_time_ms = 0
        self.hard_state = HardState()
        self.configurations: list[tuple[Index, bytes]] = []
        """(index, record) ascending: the newest committed one, or one before it, and each later one."""
        self.terms: list[tuple[Index, Term]] = []
        """(first index, term) of each run of entries; only kept up to date by `replay`."""

    def extend(self, first: Index, last: Entry, configurations: list[tuple[Index, bytes]]) -> None:
        """Append a batch; what was there from its first index on is gone."""
        if first <= self.last_index:
            self._forget_from(first)
        self.last_index = last.index
        self.last_term = last.term
        self.last_time_ms = last.time_ms
        self.configurations += configurations

    def _forget_from(self, index: Index) -> None:
        while self.configurations and self.configurations[-1][0] >= index:
            self.configurations.pop()
        while self.terms and self.terms[-1][0] >= index:
            self.terms.pop()

    def restart(self, index: Index, term: Term, time_ms: int) -> None:
        """Forget every entry; the log goes on behind this base."""
        self.base_index = self.last_index = index
        self.base_term = self.last_term = term
        self.base_time_ms = self.last_time_ms = time_ms
        self.terms.clear()

    def describe(self, head: StreamState) -> None:
        """Take over what a head says; every entry before it is gone."""
        self.restart(head.last_index, head.last_term, head.last_time_ms)
        self.hard_state = head.hard_state
        self.configurations = head.configurations.copy()

    def replay(self, data: bytes, record: RecordAt) -> None:
        """
        Take one record of the stream.

        Raises:
            ValueError: It does not fit behind what was read before.
        """
        kind, term, index, offset, end, time_ms = record
        if kind == EntryKind.HARD_STATE:
            self.hard_state = decode_hard_state(data, record)
            return
        if kind > EntryKind.HARD_STATE or index > self.last_index + 1 or index < 1:
            msg = f"record of kind {kind} and index {index} follows entry {self.last_index}"
            raise ValueError(msg)
        if index <= self.last_index:
            self._forget_from(index)
        if index <= self.base_index:
            # Older segments are gone, and with them the term before this entry. They were dropped because everything
            # in them, an older entry at this very index included, is in the state machine: so this is the base now.
            self.restart(index, term, time_ms)
        elif not self.terms or self.terms[-1][1] != term:
            self.terms.append((index, term))
        if kind == EntryKind.CONFIGURATION:
            self.configurations.append((index, data[offset:end]))
        self.last_index = index
        self.last_term = term
        self.last_time_ms = time_ms

    def prune(self, committed: Index) -> None:
        """Keep the newest configuration at or below a committed index and each later one."""
        settled = [position for position, (index, _) in enumerate(self.configurations) if index <= committed]
        if settled:
            del self.configurations[: settled[-1]]

    def head(self) -> list[bytes]:
        """Records at the head of a segment that begins here; BASE ends the head."""
        return [
            hard_state_record(self.hard_state),
            *(record for _, record in self.configurations),
            base_record(self.last_index, self.last_term, self.last_time_ms),
        ]

    def recovered(self, torn_bytes: int, notes: tuple[str, ...]) -> RecoveredLog:
        """The same as a value for the consensus core."""
        return RecoveredLog(
            hard_state=self.hard_state,
            base_index=self.base_index,
            base_term=self.base_term,
            base_time_ms=self.base_time_ms,
            last_index=self.last_index,
            terms=tuple(self.terms),
            configurations=tuple(
                (index, Configuration.decode(record, HEADER_BYTES)) for index, record in self.configurations
            ),
            torn_bytes=torn_bytes,
            notes=notes,
        )


def read_head(data: bytes, records: list[RecordAt]) -> tuple[StreamState, int]:
    """
    State that the head of a segment describes, and how many of its first group's records belong to the head.

    Raises:
        ValueError: There is no BASE record, so this is no head.
    """
    state = StreamState()
    for position, record in enumerate(records):
        if record.kind == EntryKind.HARD_STATE:
            state.hard_state = decode_hard_state(data, record)
        elif record.kind == EntryKind.CONFIGURATION:
            state.configurations.append((record.entry_index, data[record.offset : record.end]))
        elif record.kind == EntryKind.BASE:
            state.restart(record.entry_index, record.term, record.time_ms)
            return state, position + 1
        else:
            break
    msg = "the first group of the segment is no head"
    raise ValueError(msg)
