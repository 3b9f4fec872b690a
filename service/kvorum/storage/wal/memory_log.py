"""
A log in memory for the simulator and for tests: the same promises as the real one, on a virtual clock.

Single-threaded. A group becomes durable a given delay after it was begun, everything appended meanwhile forms the
next group, and a crash keeps only what was durable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from kvorum.core.cluster import Configuration
from kvorum.core.entries import EntryKind, HardState
from kvorum.core.ports import Base, RecoveredLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvorum.core.entries import Entry, EntryBatch
    from kvorum.core.ids import Index, Term, Ticket
    from kvorum.core.snapshot import Manifest

CallLater: TypeAlias = "Callable[[float, Callable[[], None]], object]"
_Append: TypeAlias = "tuple[Ticket, HardState | None, EntryBatch | None]"


class _Reset(NamedTuple):
    """A queued install of a snapshot."""

    ticket: Ticket
    hard_state: HardState
    base: Base
    configuration: Entry


class MemoryLog:
    """`core.ports.Log` without a disk. ``sync_delay_s`` may be changed at any time to make the disk slow."""

    def __init__(self, call_later: CallLater, sync_delay_s: float = 0.0005) -> None:
        self.sync_delay_s = sync_delay_s
        self.recovered = _recovered(HardState(), [], Base(0, 0), [])
        self._call_later = call_later
        self._hard_state = HardState()
        self._base_index: Index = 0
        self._base_term: Term = 0
        self._base_time_ms = 0
        self._entries: list[Entry] = []
        """Durable entries from ``base + 1`` on."""
        self._configured: list[Entry] = []
        """The newest configuration among the entries dropped."""
        self._queued: list[_Append | _Reset] = []
        self._syncing: list[_Append | _Reset] | None = None
        self._full = False
        self._dead = False
        self._groups = 0
        self._on_durable: Callable[[Ticket], None] | None = None
        self._on_space: Callable[[bool], None] | None = None

    def start(self, on_durable: Callable[[Ticket], None], on_space: Callable[[bool], None]) -> None:
        """Begin; see `core.ports.Log.start`."""
        self._on_durable, self._on_space = on_durable, on_space
        self._begin_group()

    def append(self, ticket: Ticket, hard_state: HardState | None, batch: EntryBatch | None) -> None:
        """Queue one `machine.Persist`."""
        self._queued.append((ticket, hard_state, batch))
        self._begin_group()

    def reset(self, ticket: Ticket, hard_state: HardState, base: Base, configuration: Entry) -> None:
        """Queue the install of a snapshot; see `core.ports.Log.reset`. Read nothing until it is reported durable."""
        assert configuration.kind == EntryKind.CONFIGURATION
        assert configuration.index <= base.index, "the configuration in force at the base"
        self._queued.append(_Reset(ticket, hard_state, base, configuration))
        self._begin_group()

    def _begin_group(self) -> None:
        if self._queued and self._syncing is None and self._on_durable and not self._full and not self._dead:
            self._syncing, self._queued = self._queued, []
            self._call_later(self.sync_delay_s, self._synced)

    def _synced(self) -> None:
        if self._dead or self._syncing is None:
            return
        group, self._syncing = self._syncing, None
        self._make_durable(group)
        # Before the report, as in the real log: the next group is already on its way when the loop hears of this one.
        self._begin_group()
        assert self._on_durable is not None
        self._on_durable(group[-1][0])

    def _make_durable(self, group: list[_Append | _Reset]) -> None:
        self._groups += 1
        for item in group:
            if isinstance(item, _Reset):
                self._restart(item.hard_state, item.base, item.configuration)
                continue
            _, hard_state, batch = item
            if hard_state is not None:
                self._hard_state = hard_state
            if batch is not None:
                kept = batch.entries[0].index - self._base_index - 1
                assert 0 <= kept <= len(self._entries), "a gap in the log"
                del self._entries[kept:]
                self._entries += batch.entries

    def _restart(self, hard_state: HardState, base: Base, configuration: Entry) -> None:
        self._hard_state = hard_state
        self._base_index, self._base_term, self._base_time_ms = base.index, base.term, base.time_ms
        self._entries.clear()
        self._configured = [configuration]

    def note_committed(self, index: Index) -> None:
        """Keep every configuration there is; memory has no heads to keep short."""

    def read(self, first: Index, last: Index, bytes_max: int) -> list[Entry]:
        """Durable entries from ``first`` to at most ``last``, at least one, then until ``bytes_max`` is passed."""
        assert self._base_index < first <= last <= self._base_index + len(self._entries), "only durable entries"
        wanted: list[Entry] = []
        size = 0
        for entry in self._entries[first - self._base_index - 1 : last - self._base_index]:
            wanted.append(entry)
            size += len(entry.record)
            if size >= bytes_max:
                break
        return wanted

    @property
    def first_index(self) -> Index:
        """Lowest index that `read` can return."""
        return self._base_index + 1

    def drop_before(self, index: Index) -> None:
        """Forget entries below ``index``, except the newest configuration, which a segment's head would keep."""
        count = max(0, min(index - self._base_index - 1, len(self._entries) - 1))
        if count:
            configured = [entry for entry in self._entries[:count] if entry.kind == EntryKind.CONFIGURATION]
            self._configured = configured[-1:] or self._configured
            self._base_term = self._entries[count - 1].term
            self._base_time_ms = self._entries[count - 1].time_ms
            self._base_index += count
            del self._entries[:count]

    def set_full(self, *, full: bool) -> None:
        """Fill the disk, or free it again."""
        if full == self._full:
            return
        self._full = full
        if self._on_space is not None:
            self._on_space(not full)
        self._begin_group()

    async def stop(self) -> None:
        """Make durable what is queued, unless the disk is full, then close."""
        group = [*(self._syncing or []), *([] if self._full else self._queued)]
        self._syncing, self._queued, self._dead = None, [], True
        if group and self._on_durable is not None:
            self._make_durable(group)
            self._on_durable(group[-1][0])

    def crash(
        self,
        call_later: CallLater | None = None,
        *,
        syncing_survives: bool = False,
        installed: Manifest | None = None,
    ) -> MemoryLog:
        """
        Kill this log without another callback; returns what the next process finds.

        Args:
            installed: The snapshot its store was installed from, if the log may not follow it yet; see
                `SegmentedLog.open`.
            call_later: The next process's timer; the same as before by default.
            syncing_survives: The group being synced reached the disk, though nobody was told.
        """
        self._dead = True
        if syncing_survives and self._syncing:
            self._make_durable(self._syncing)
        found = MemoryLog(call_later or self._call_later, self.sync_delay_s)
        found._hard_state = self._hard_state
        base = Base(self._base_index, self._base_term, self._base_time_ms)
        found._base_index, found._base_term, found._base_time_ms = base.index, base.term, base.time_ms
        found._entries = self._entries.copy()
        found._configured = self._configured.copy()
        if installed is not None and found._base_index < installed.index:
            behind = found._hard_state.term < installed.term
            hard_state = HardState(installed.term, None) if behind else found._hard_state
            base = installed.base
            found._restart(hard_state, base, installed.configuration)
        found.recovered = _recovered(found._hard_state, found._entries, base, found._configured)
        return found

    def statistics(self) -> dict[str, float]:
        """Figures for metrics."""
        return {
            "groups": self._groups,
            "queued_appends": len(self._queued),
            "disk_full": float(self._full),
            "first_index": self.first_index,
            "last_index": self._base_index + len(self._entries),
        }


def _recovered(hard_state: HardState, entries: list[Entry], base: Base, configured: list[Entry]) -> RecoveredLog:
    terms: list[tuple[Index, Term]] = []
    for entry in entries:
        if not terms or terms[-1][1] != entry.term:
            terms.append((entry.index, entry.term))
    return RecoveredLog(
        hard_state=hard_state,
        base_index=base.index,
        base_term=base.term,
        base_time_ms=base.time_ms,
        last_index=base.index + len(entries),
        terms=tuple(terms),
        configurations=tuple(
            (entry.index, Configuration.decode(entry.payload))
            for entry in (*configured, *entries)
            if entry.kind == EntryKind.CONFIGURATION
        ),
    )
