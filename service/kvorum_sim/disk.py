"""
The real log on a simulated disk: `storage.wal.SegmentedLog` with virtual time in place of its thread.

One round of the thread runs when its moment comes, all at once; what it says to the loop waits until the sync would
have ended, and only then is the round's work safe from a crash. A `Shadow` keeps, apart from all files, what the log
was asked to keep: whatever a restart finds must be what had been durable, or that and some of what was under way.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvorum.core.entries import HardState
from kvorum.core.errors import StorageFailedError
from kvorum.storage.wal.layout import FILE_HEADER_BYTES, FRAME_BYTES, Group, decode_file_header, group_at
from kvorum.storage.wal.segmented_log import SPACE_RETRY_S, SegmentedLog
from kvorum_sim.filesystem import SimulatedFiles

if TYPE_CHECKING:
    import asyncio
    import random
    from collections.abc import Callable

    from kvorum.core.entries import Entry, EntryBatch
    from kvorum.core.ids import Index, Term, Ticket
    from kvorum.core.ports import Base, RecoveredLog
    from kvorum.core.snapshot import Manifest
    from kvorum.storage.wal.segmented_log import _Append

DIRECTORY: Final = Path("/simulated/log")
SEGMENT_BYTES: Final = (16 * 1024, 64 * 1024, 256 * 1024)
"""Small, so that every history begins new segments."""


class _Kept(NamedTuple):
    """One append, reduced to what it must leave behind; ``base`` only for a log that begins anew behind a snapshot."""

    ticket: Ticket
    hard_state: HardState | None
    first: Index
    terms: tuple[Term, ...]
    base: tuple[Index, Term] | None = None


class Shadow:
    """What a log must still know, told by those who ask it to keep something."""

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.base_index: Index = 0
        self.base_term: Term = 0
        self._terms: list[Term] = []
        self._under_way: deque[_Kept] = deque()

    untold = 0
    """Appends that a restart found durable although nobody had been told."""

    @property
    def last_index(self) -> Index:
        """Last durable entry."""
        return self.base_index + len(self._terms)

    def term_at(self, index: Index) -> Term:
        """Term of a durable entry, -1 if there is none."""
        if index == self.base_index:
            return self.base_term
        position = index - self.base_index - 1
        return self._terms[position] if 0 <= position < len(self._terms) else -1

    def append(self, ticket: Ticket, hard_state: HardState | None, batch: EntryBatch | None) -> None:
        """The log is asked to keep this."""
        entries = batch.entries if batch is not None else ()
        first = entries[0].index if entries else 0
        self._under_way.append(_Kept(ticket, hard_state, first, tuple([entry.term for entry in entries])))

    def reset(self, ticket: Ticket, hard_state: HardState, index: Index, term: Term) -> None:
        """The log is asked to begin anew behind a snapshot."""
        self._under_way.append(_Kept(ticket, hard_state, 0, (), (index, term)))

    def durable(self, ticket: Ticket) -> None:
        """Everything up to this ticket is on the platter."""
        while self._under_way and self._under_way[0].ticket <= ticket:
            self._take(self._under_way.popleft())

    def _take(self, kept: _Kept) -> None:
        if kept.hard_state is not None:
            self.hard_state = kept.hard_state
        if kept.base is not None:
            self.base_index, self.base_term = kept.base
            self._terms.clear()
        if kept.terms:
            position = kept.first - self.base_index - 1
            assert 0 <= position <= len(self._terms), "a gap in the log"
            self._terms[position:] = kept.terms

    def restarted(self, recovered: RecoveredLog, installed: Manifest | None = None) -> str | None:
        """
        Compare what a restart found; from then on, that counts as durable.

        Args:
            recovered: What the log says.
            installed: The snapshot that the store was installed from; the log goes on behind it at the least.

        Returns:
            What is missing or wrong, or None.
        """
        if installed is not None and recovered.base_index == installed.index == recovered.last_index:
            # The install may have been all that was left to do: only then may entries be gone.
            while self._under_way and self._under_way[0].base is None:
                self._take(self._under_way.popleft())
            if self.base_index < installed.index:
                self._take(_Kept(0, None, 0, (), (installed.index, installed.term)))
        while True:
            if self._equals(recovered):
                self._under_way.clear()
                return None
            if not self._under_way:
                return (
                    f"the log forgot or made up something: it says {recovered.hard_state}, entries "
                    f"{recovered.base_index + 1} to {recovered.last_index} with terms {recovered.terms[-3:]}; durable "
                    f"were {self.hard_state}, entries up to {self.last_index} of term {self.term_at(self.last_index)}"
                )
            self._take(self._under_way.popleft())
            self.untold += 1

    def _equals(self, recovered: RecoveredLog) -> bool:
        if recovered.hard_state != self.hard_state or recovered.last_index != self.last_index:
            return False
        if recovered.base_index < self.base_index:
            return False
        if self.term_at(recovered.base_index) != recovered.base_term:
            return False
        bounds = [first for first, _ in recovered.terms[1:]] + [recovered.last_index + 1]
        return all(
            self.term_at(index) == term
            for (first, term), following in zip(recovered.terms, bounds, strict=False)
            for index in range(first, following)
        )


@dataclass(slots=True)
class LogDisk:
    """The part of a node's disk that holds its log; outlives processes."""

    chance: random.Random
    files: SimulatedFiles
    sync_delay_s: float
    segment_bytes: int
    shadow: Shadow = field(default_factory=Shadow)
    lying: bool = False
    """Reports durable what it has not synced: a disk no log survives, to show that the judges notice."""

    @classmethod
    def drawn(cls, chance: random.Random) -> LogDisk:
        """A disk with a character of its own."""
        disk = cls(
            chance,
            SimulatedFiles(chance),
            chance.choice((0.0002, 0.001, 0.005, 0.02)),
            chance.choice(SEGMENT_BYTES),
        )
        disk.files.short_writes = chance.random() < 0.3
        return disk

    def wipe(self) -> None:
        """Everything is gone."""
        self.files.wipe()
        self.shadow = Shadow()

    def flip_synced_bit(self) -> tuple[Path, int, int] | None:
        """
        Damage a group that has good groups behind it: the log must then refuse to open.

        Returns:
            Which bit, for `SimulatedFiles.flip` to turn back; None if there is no such group.
        """
        system = self.files.system
        groups: list[tuple[int, Path, int, int]] = []
        for path in system.list_directory(DIRECTORY):
            data = system.read_file(path)
            header = decode_file_header(data[:FILE_HEADER_BYTES])
            if header is None:
                continue
            offset = FILE_HEADER_BYTES
            while isinstance(found := group_at(data, offset, header.salt), Group):
                groups.append((found.sequence, path, offset, found.end))
                offset = found.end
        # A later copy of a group makes an earlier one void; what is void may be damaged without anybody's loss.
        newest = {sequence: (path, start, end) for sequence, path, start, end in sorted(groups)}
        candidates = [sequence for sequence in newest if sequence + 1 in newest and sequence < max(newest) - 1]
        if not candidates:
            return None
        path, start, end = newest[self.chance.choice(candidates)]
        damage = (path, self.chance.randrange(start + FRAME_BYTES, end), self.chance.randrange(8))
        self.files.flip(*damage)
        return damage


class _NoSpaceYetError(Exception):
    """Where the real thread would wait for space."""


class _Patience:
    """Takes the place of the event on which the real thread waits."""

    def wait(self, _: float) -> bool:
        raise _NoSpaceYetError

    def set(self) -> None:
        """Nobody waits."""


class SimulatedLog(SegmentedLog):
    """See the module text; `boot` opens one."""

    _disk: LogDisk
    _time: asyncio.AbstractEventLoop
    _said: list[Callable[[], None]]

    @classmethod
    def boot(
        cls,
        disk: LogDisk,
        time: asyncio.AbstractEventLoop,
        fail: Callable[[StorageFailedError], None],
        installed: Manifest | None = None,
    ) -> SimulatedLog:
        """
        Open the log on a disk.

        Args:
            disk: Where it lies.
            time: Of the process that opens it.
            fail: As in `SegmentedLog.open`.
            installed: As in `SegmentedLog.open`.

        Raises:
            StorageFailedError: It is damaged, or the disk refuses.
            AssertionError: It is not what had been durable.
        """
        said: list[Callable[[], None]] = []
        log = cls.open(
            DIRECTORY,
            run_on_loop=said.append,
            fail=fail,
            segment_bytes=disk.segment_bytes,
            system=disk.files.system,
            installed=installed,
        )
        assert isinstance(log, SimulatedLog)
        disk.files.settle()
        wrong = disk.shadow.restarted(log.recovered, installed)
        assert wrong is None, wrong
        log.attach(disk, time, said)
        return log

    def attach(self, disk: LogDisk, time: asyncio.AbstractEventLoop, said: list[Callable[[], None]]) -> None:
        """Take virtual time in place of the thread; `boot` calls it."""
        self._disk = disk
        self._time = time
        self._said = said
        self._busy = self._started = self._was_full = False
        self._first = self._group = None
        self.durable_ticket = 0
        self._stopping = _Patience()  # type: ignore[assignment]

    def start(self, on_durable: Callable[[Ticket], None], on_space: Callable[[bool], None]) -> None:
        """Begin to write; see `core.ports.Log.start`."""
        self._on_durable = on_durable
        self._on_space = on_space
        self._started = True
        self._wake()

    def append(self, ticket: Ticket, hard_state: HardState | None, batch: EntryBatch | None) -> None:
        """Queue one `machine.Persist`."""
        self._disk.shadow.append(ticket, hard_state, batch)
        super().append(ticket, hard_state, batch)
        if self._disk.lying:
            on_durable = self._on_durable
            self._time.call_later(0.0, lambda: on_durable(ticket))
        self._wake()

    def reset(self, ticket: Ticket, hard_state: HardState, base: Base, configuration: Entry) -> None:
        """Queue the install of a snapshot."""
        self._disk.shadow.reset(ticket, hard_state, base.index, base.term)
        super().reset(ticket, hard_state, base, configuration)
        self._wake()

    def drop_before(self, index: Index) -> None:
        """Forget segments that hold only entries below ``index``."""
        super().drop_before(index)
        self._wake()

    async def stop(self) -> None:
        """Write and sync what is queued, unless the disk is full, then close."""
        self._busy = True
        while self._queue.qsize() or self._carried is not None or self._first is not None:
            try:
                self._round()
            except _NoSpaceYetError:
                break
        self._finish(closing=True)
        await super().stop()

    # --- in place of the thread ---

    _busy: bool
    _started: bool
    _was_full: bool
    _first: Any
    _group: list[_Append] | None
    durable_ticket: Ticket
    """Everything up to here is on the platter, as the simulation knows and the loop has been told."""

    def _wake(self) -> None:
        if self._started and not self._busy and (self._queue.qsize() or self._carried is not None):
            self._busy = True
            self._time.call_soon(self._turn)

    def _turn(self) -> None:
        """One round, whose end the loop hears of when its sync has taken its time."""
        try:
            self._round()
        except _NoSpaceYetError:
            self._was_full = True
            self._time.call_later(SPACE_RETRY_S, self._turn)
            self._tell()
            return
        except StorageFailedError as error:
            # At once: on the real loop, nothing could be appended any more either.
            self._end(error)
            self._tell()
            return
        delay = self._disk.sync_delay_s * self._disk.chance.uniform(0.7, 1.3)
        self._time.call_later(delay, self._finish)

    def _round(self) -> None:
        """One round of the thread; after `_NoSpaceYetError` the same one again."""
        if self._group is not None:
            self._commit(self._group)
        else:
            self._first = self._first or self._next()
            assert self._first is not None
            self._work(self._first)
        self._first = self._group = None

    def _collect(self, first: _Append) -> list[_Append]:
        self._group = super()._collect(first)
        return self._group

    def _finish(self, *, closing: bool = False) -> None:
        self._disk.files.settle()
        if self._error is None:
            self.durable_ticket = self._written_ticket
            self._disk.shadow.durable(self._written_ticket)
            if self._was_full:
                self._was_full = False
                self._space_changed(True)
        self._tell()
        self._busy = closing or self._error is not None
        self._wake()

    def _tell(self) -> None:
        said, self._said[:] = list(self._said), []
        for callback in said:
            callback()

    def _space_changed(self, available: bool) -> None:  # noqa: FBT001 - as the base class has it
        if available == self._full:
            super()._space_changed(available)

    def entry_at(self, index: Index) -> Entry:
        """A durable entry, read from the files."""
        return self.read(index, index, 1)[0]
