"""
The one door of the room: applies committed entries to the store and answers reads from it.

One engine batch per group holds data and applied index, so after any crash the store is a prefix of the log. The
executor never flushes: the runtime does, and the consensus log replays what was lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from kvorum.core.errors import ErrorCode, LocalError, Refusal, StartupError
from kvorum.statemachine.families import FamilyCatalogue
from kvorum.statemachine.group import SLICE_WORK, ApplyGroup
from kvorum.statemachine.hashing import hash_state
from kvorum.statemachine.layout import (
    CURRENT,
    CURRENT_DEFAULT,
    FLAG_TOMBSTONE,
    FORMAT_KEY,
    FORMAT_ROW,
    FORMAT_VERSION,
    FORMATS_READ,
    HISTORY,
    ROW_HEAD_BYTES,
    STATE_KEY,
    StateRow,
    pack_state,
    unpack_state,
)
from kvorum.statemachine.ranges import RangeQuery, RangeResult, bounds, scan_range, value_at, value_now
from kvorum.statemachine.sessions import JOURNAL_BOUNDS, Sessions
from kvorum.statemachine.sweep import Sweeper

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kvorum.core.entries import Entry
    from kvorum.core.ids import Index
    from kvorum.core.operations import Applied
    from kvorum.core.ports import StorageEngine, View
    from kvorum.statemachine.journal import JournalBounds

EVERYTHING: Final = (b"", b"\xff")
"""Bounds of all rows: every first byte is below ff."""

KEYS_COUNTED_MAX: Final = 512
"""Keys that are really counted for a statistic: a fraction of a millisecond."""


@dataclass(frozen=True, slots=True)
class ExecutorStatistics:
    """What the state machine did since this process started, and where it stands."""

    applied_index: Index
    last_commit_version: Index
    low_watermark: Index
    families: int
    groups: int
    entries: int
    mutations: int
    conflicts: int
    """Commits refused with CONFLICT."""
    refusals: int
    """Writes refused at apply, conflicts included."""
    sessions: int = 0
    """Clients whose requests are remembered."""
    retries: int = 0
    """Identified writes that had been decided before and changed nothing."""
    rows_swept: int = 0
    """Rows that the sweep removed."""


class KvStoreExecutor:
    """The replicated key-value store. Not thread-safe: it lives on the loop, like everything that applies."""

    def __init__(self, engine: StorageEngine, journal_bounds: JournalBounds | None = None) -> None:
        """
        Open the store in an engine, or begin one in an empty engine.

        Args:
            engine: Where the rows are.
            journal_bounds: Other bounds than the usual ones of how far the rows of sessions may be behind, for tests.

        Raises:
            StartupError: Another format version, or rows that are not a store.
        """
        self._journal_bounds = journal_bounds or JOURNAL_BOUNDS
        self._attach(engine)
        self._groups = 0
        self._entries = 0
        self._mutations = 0
        self._conflicts = 0
        self._refusals = 0
        self._retries = 0
        self.entry_time_ms = 0
        """Time of the newest entry applied by this process; 0 before the first."""

    def _attach(self, engine: StorageEngine) -> None:
        """Everything that is read from an engine once and then kept in memory."""
        self._state = _open(engine)
        self._engine = engine
        self._read_row = engine.get
        self._families = FamilyCatalogue.load(engine)
        self._sessions = Sessions(engine, self._journal_bounds)
        self.applied_index: Index = self._state.applied_index
        self.sweeper = Sweeper(engine, self._state)

    def replace(self, engine: StorageEngine) -> None:
        """
        Go on with the store in another engine, which an installed snapshot filled.

        Scans and hashes under way keep the view they have; an `apply` that is not finished must be dropped. Nobody but
        the executor may hold on to the engine it was given.
        """
        self._attach(engine)

    def view(self) -> View:
        """All rows as they are now, groups whole, until dropped: what a snapshot is made of (`transfer.Export`)."""
        return self._engine.snapshot()

    # --- apply --------------------------------------------------------------------------------------------------------

    def apply(self, entries: Sequence[Entry]) -> Iterator[list[Applied | Refusal | None] | None]:
        """
        Apply one group atomically, in slices: yields None where the caller may serve others, then the outcomes.

        Until the outcomes are yielded, reads show the state before the group. A generator that is dropped has changed
        nothing.

        Raises:
            WriteStalledError: Nothing has changed, in the store or here; apply the same group again later.
            LocalError: The entries do not follow the applied index, or an entry cannot be read: the node must stop.
        """
        self._check_sequence(entries)
        group = ApplyGroup(self._engine, self._families, self._sessions, self._state)
        position, count = 0, len(entries)
        pause_at = SLICE_WORK
        while position < count:
            position = group.stage_plain(entries, position, position + SLICE_WORK)
            if position < count:
                position = group.stage_identified(entries, position, position + SLICE_WORK // 2)
            if group.work >= pause_at:
                yield None
                pause_at = group.work + SLICE_WORK
            elif position < count:
                yield from group.stage_other(entries[position])
                position += 1
        self._finish(group, entries)
        yield group.outcomes

    def apply_group(self, entries: Sequence[Entry]) -> list[Applied | Refusal | None]:
        """
        Apply one group atomically and at once, for groups that are known to be small.

        Raises:
            WriteStalledError: As in `apply`.
            LocalError: As in `apply`.
        """
        self._check_sequence(entries)
        group = ApplyGroup(self._engine, self._families, self._sessions, self._state)
        position, count = 0, len(entries)
        while position < count:
            position = group.stage_plain(entries, position, count)
            if position < count:
                position = group.stage_identified(entries, position, count)
            if position < count:
                for _ in group.stage_other(entries[position]):
                    pass
                position += 1
        self._finish(group, entries)
        return group.outcomes

    def _check_sequence(self, entries: Sequence[Entry]) -> None:
        """A gap or a repetition in the log would be applied silently; it must stop the node instead."""
        if not entries:
            return
        first, last = entries[0].index, entries[-1].index
        if first != self.applied_index + 1 or last - first + 1 != len(entries):
            msg = f"entries {first} to {last} ({len(entries)}) do not follow applied index {self.applied_index}"
            raise LocalError(msg)

    def _finish(self, group: ApplyGroup, entries: Sequence[Entry]) -> None:
        """Write the group, then and only then take over what it changed in memory."""
        if not entries:
            return
        if entries[0].index != self.applied_index + 1:
            msg = f"another group was applied up to {self.applied_index} while {entries[0].index} was staged"
            raise LocalError(msg)
        self._state = group.finish(entries[-1].index)
        self.applied_index = self._state.applied_index
        if group.new_families:
            self._families.adopt(group.new_families)
        self.entry_time_ms = entries[-1].time_ms
        self.sweeper.note(self._state, len(entries), group.mutations, group.large_bytes)
        self._groups += 1
        self._entries += len(entries)
        self._mutations += group.mutations
        self._retries += group.retries
        if group.refusals:
            self._refusals += group.refusals
            self._conflicts += group.conflicts

    # --- retention ----------------------------------------------------------------------------------------------------

    @property
    def sessions_count(self) -> int:
        """Clients whose requests are remembered."""
        return len(self._sessions)

    @property
    def sessions_max(self) -> int:
        """Most sessions, as the log has it."""
        return self._sessions.maximum

    @property
    def oldest_session_ms(self) -> int | None:
        """Entry time of the last use of the least recently used session; None without sessions."""
        return self._sessions.oldest_time_ms()

    # --- reads --------------------------------------------------------------------------------------------------------

    @property
    def last_commit_version(self) -> Index:
        """Version of the last client write that took effect, an empty commit included; 0 if none."""
        return self._state.last_commit_version

    @property
    def low_watermark(self) -> Index:
        """Oldest readable version."""
        return self._state.low_watermark

    def get(self, family: bytes, key: bytes) -> bytes | None:
        """Newest value of a key; None if it is missing or the family is unknown."""
        if family:
            entry = self._families.by_name.get(family)
            if entry is None:
                return None
            current_key = entry.current + key
        else:
            current_key = CURRENT_DEFAULT + key
        row = self._read_row(current_key)
        if row is None:
            return None
        if not row[0]:
            return row[ROW_HEAD_BYTES:]
        return value_now(self._engine, current_key, row)

    def read_at(self, family: bytes, key: bytes, version: Index) -> bytes | None:
        """Newest value of a key at or below a readable version (`check_readable`); None if it is missing there."""
        entry = self._families.by_name.get(family)
        if entry is None:
            return None
        current_key = entry.current + key
        row = self._read_row(current_key)
        return None if row is None else value_at(self._engine, current_key, row, version)

    def family_exists_at(self, family: bytes, version: Index) -> bool:
        """Whether a family had been created at or before a version."""
        return self._families.existed_at(family, version)

    def check_readable(self, version: Index) -> Refusal | None:
        """
        Refuse a read version that is negative or below the watermark (contract section 5.2).

        A version above the applied index is not judged: routing knows how long to wait for it.
        """
        if version < 0:
            return Refusal(ErrorCode.INVALID_ARGUMENT, f"read version {version} is negative; take a new one")
        if version < self._state.low_watermark:
            text = (
                f"read version {version} is older than the history kept, which begins at {self._state.low_watermark}; "
                "take a new one"
            )
            return Refusal(ErrorCode.TRANSACTION_TOO_OLD, text)
        return None

    def scan(self, query: RangeQuery, version: Index | None = None) -> Iterator[RangeResult | None]:
        """
        Answer a range at a readable version, or at the newest (None): yields None between slices, then the result.

        The view is taken at the first step and kept to the end, whatever is applied in between. An unknown family is
        empty.
        """
        family = self._families.by_name.get(query.family)
        if family is None:
            yield RangeResult([])
            return
        begin, end = bounds(query, family)
        yield from scan_range(self._engine.snapshot(), query, begin, end, version)

    def state_hash(self) -> Iterator[tuple[Index, str] | None]:
        """
        Hash the logical content at the index applied now: None between slices, then the pair.

        Writes may go on meanwhile; the view is a snapshot.
        """
        return hash_state(self._engine.snapshot())

    def estimate_live_keys(self, engine_rows: int) -> int:
        """
        Number of keys that have a value, in all families: exact while few, else from the estimate of the engine.

        The engine counts rows and a key has at least two of them, one current and one per version; versions that the
        sweep has not removed yet make the estimate too high. Counting stops at a bound, so the cost does not grow.

        Args:
            engine_rows: The engine's estimate of the rows it holds.
        """
        rows = live = 0
        for _key, row in islice(self._engine.iterate(CURRENT, HISTORY), KEYS_COUNTED_MAX):
            rows += 1
            live += row[0] != FLAG_TOMBSTONE
        if rows < KEYS_COUNTED_MAX:
            return live
        return max(live, engine_rows // 2 * live // rows)

    def statistics(self) -> ExecutorStatistics:
        """Figures for status and metrics; never changes anything."""
        return ExecutorStatistics(
            applied_index=self.applied_index,
            last_commit_version=self._state.last_commit_version,
            low_watermark=self._state.low_watermark,
            families=len(self._families),
            groups=self._groups,
            entries=self._entries,
            mutations=self._mutations,
            conflicts=self._conflicts,
            refusals=self._refusals,
            sessions=len(self._sessions),
            retries=self._retries,
            rows_swept=self.sweeper.removed_total,
        )


def _open(engine: StorageEngine) -> StateRow:
    """Check the format of a store and read where it stands; an empty engine becomes a store."""
    row = engine.get(FORMAT_KEY)
    if row is None:
        if next(iter(engine.iterate(*EVERYTHING)), None) is not None:
            msg = (
                "the storage engine holds rows but no kvorum format row; "
                "point the node at its own data directory or at an empty one"
            )
            raise StartupError(msg)
        batch = engine.batch()
        batch.put(FORMAT_KEY, FORMAT_ROW)
        batch.put(STATE_KEY, pack_state(*StateRow()))
        engine.write(batch)
        return StateRow()
    if row not in FORMATS_READ:
        msg = (
            f"the store has format version {int.from_bytes(row, 'big')}, this release reads up to {FORMAT_VERSION}; "
            "start the release that wrote it, or move the state directory aside: the log builds it again"
        )
        raise StartupError(msg)
    state = engine.get(STATE_KEY)
    if state is None:
        msg = "the store has a format row but no state row; move the state directory aside: the log builds it again"
        raise StartupError(msg)
    return unpack_state(state)
