"""
Feeds committed groups to the state machine in slices, and keeps the durable index behind it.

The state machine runs on the loop: RocksDB's write holds the interpreter lock anyway, and a group is bounded to a few
milliseconds. Between slices and between groups the loop serves others, so a long replay never freezes heartbeats.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from kvorum.core.entries import EntryBatch, entry_bytes
from kvorum.core.errors import OutOfSpaceError, WriteStalledError
from kvorum.observe.histogram import LatencyHistogram

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence

    from kvorum.core.entries import Entry
    from kvorum.core.errors import Refusal
    from kvorum.core.ids import Index, NodeId
    from kvorum.core.operations import Applied
    from kvorum.core.ports import StateMachine

FLUSH_ENTRIES: Final = 50_000
FLUSH_BYTES: Final = 64 * 1024 * 1024
"""How much may be applied beyond the durable index: bounds the replay after a crash (architecture section 4)."""

FLUSH_S: Final = 30.0
"""What is applied becomes durable within this time however little it is: bounds the replay by time as well."""

_GOLDEN_RATIO: Final = (5**0.5 - 1) / 2
"""The fractional parts of its multiples lie far apart from each other, however many there are."""

STALL_RETRY_S: Final = 0.005
"""How long a stalled engine is left alone before the same group is tried again."""

SPACE_RETRY_S: Final = 0.5
"""Pause between two attempts of a write or flush while the disk is full; the log keeps the same one."""


def head_start(node_id: NodeId) -> float:
    """
    Share of the entries between two flushes by which a node is ahead of node 0.

    All nodes apply the same entries: without it they would all flush and compact in the same moment (decision 0022).
    """
    return node_id * _GOLDEN_RATIO % 1


class Applier:
    """One queue of committed groups in front of one state machine."""

    def __init__(
        self,
        machine: StateMachine,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        *,
        on_applied: Callable[[Sequence[Entry], Sequence[Applied | Refusal | None]], None],
        flush: Callable[[Callable[[], None]], None],
        on_flushed: Callable[[], None] = lambda: None,
        on_space: Callable[[bool], None] = lambda _: None,
        flush_entries: int = FLUSH_ENTRIES,
        head_start: float = 0.0,
    ) -> None:
        """
        Wire it up.

        Args:
            machine: The state machine.
            loop: Where to continue between slices.
            clock: Monotonic seconds.
            on_applied: Called with each applied group and its outcomes, the state showing all of it.
            flush: Makes everything applied so far durable in the background, then calls back on the loop; or calls
                `flush_refused` if the disk is full.
            on_flushed: Called when the durable index has moved.
            on_space: Called with False when the store meets a full disk, with True when it goes on.
            flush_entries: Entries applied beyond the durable index after which a flush begins.
            head_start: By which share of that the first flush comes earlier (`head_start`).
        """
        self._machine = machine
        self._loop = loop
        self._clock = clock
        self._on_applied = on_applied
        self._flush = flush
        self._on_flushed = on_flushed
        self._on_space = on_space
        self._flush_entries = flush_entries
        self._queue: deque[EntryBatch] = deque()
        self._steps: Iterator[list[Applied | Refusal | None] | None] | None = None
        self._scheduled = False
        self._slicing = False
        self._halted = False
        self._paused = False
        self._stops: list[tuple[Index, Callable[[], None]]] = []
        self._flushing = False
        self._filled = head_start
        self._last_flush = clock()
        self._write_refused = False
        self._flush_refused = False
        self.has_space = True
        """False from a write or a flush that met a full disk until one succeeds."""
        self.stalled = False
        self.stalls_total = 0
        self.flushes_total = 0
        self.durable_index: Index = machine.applied_index
        self.histogram = LatencyHistogram(0.0001, 18)
        self.flush_histogram = LatencyHistogram(0.001, 16)

    @property
    def idle(self) -> bool:
        """Nothing is waiting to be applied."""
        return not self._queue

    def add(self, batch: EntryBatch) -> None:
        """Queue one group; `pump` applies it."""
        self._queue.append(batch)

    def pump(self) -> None:
        """Apply one slice now, unless a later turn of the loop is already booked; book one for what remains."""
        if self._queue and not self._scheduled and not self._slicing:
            self._slice()

    def halt(self) -> None:
        """Apply nothing more: the storage is about to close. What is left is replayed by the next process."""
        self._halted = True

    def pause(self) -> None:
        """Apply nothing until `go_on` or `restart`; what comes meanwhile is queued."""
        self._paused = True

    def go_on(self) -> None:
        """Go on where `pause` stopped."""
        if self._paused:
            self._paused = False
            if not self._scheduled:
                self._scheduled = True
                self._loop.call_soon(self._resume)

    def restart(self, index: Index) -> None:
        """
        Go on behind ``index``, which an installed snapshot made the applied and the durable one.

        What is queued lies below it, or was never committed.
        """
        assert not self.flushing, "a flush reports on the store it was begun with"
        self._queue.clear()
        self._steps = None
        self.stalled = False
        self.durable_index = index
        self._write_refused = self._flush_refused = False
        self._look_at_space()
        self._paused = False
        while self._stops and self._stops[0][0] <= index:
            self._stops.pop(0)[1]()

    def stop_at(self, index: Index, reached: Callable[[], None]) -> None:
        """
        Call back when exactly ``index`` is applied: a group that reaches beyond it is applied in two.

        An index that is already behind is called back for at the next group, with whatever is applied then.
        """
        self._stops.append((index, reached))
        self._stops.sort(key=lambda stop: stop[0])

    def _split_at_stop(self) -> None:
        if not self._stops:
            return
        batch, index = self._queue[0], self._stops[0][0]
        first, last = batch.entries[0].index, batch.entries[-1].index
        if first <= index < last:
            self._queue.popleft()
            cut = index - first + 1
            self._queue.appendleft(EntryBatch(batch.entries[cut:]))
            self._queue.appendleft(EntryBatch(batch.entries[:cut]))

    def _resume(self) -> None:
        self._scheduled = False
        self._slice()

    def _slice(self) -> None:
        """One slice of the group at the head."""
        if not self._queue or self._halted or self._paused:
            return
        started = self._clock()
        if self._steps is None:
            self._split_at_stop()
            self._steps = self._machine.apply(self._queue[0].entries)
        entries = self._queue[0].entries
        try:
            outcomes = next(self._steps)
        except WriteStalledError:
            self._try_later(STALL_RETRY_S)
            return
        except OutOfSpaceError:
            # Nothing is lost: what the store could not flush it keeps, and the log holds this group and all before it.
            self._write_refused = True
            self._look_at_space()
            self._try_later(SPACE_RETRY_S)
            return
        if outcomes is not None:
            self._steps = None
            self.stalled = self._write_refused = False
            self._look_at_space()
            self._queue.popleft()
            self.histogram.observe(self._clock() - started)
            self._note_unflushed(entries)
            while self._stops and self._stops[0][0] <= self._machine.applied_index:
                self._stops.pop(0)[1]()
            # What the outcomes set off comes back here through `pump`; the next group waits for its own turn.
            self._slicing = True
            try:
                self._on_applied(entries, outcomes)
            finally:
                self._slicing = False
        if self._queue and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._resume)

    def _try_later(self, pause_s: float) -> None:
        """The store took nothing of the group at the head."""
        self._steps = None
        self.stalled = True
        self.stalls_total += 1
        self._scheduled = True
        self._loop.call_later(pause_s, self._resume)

    def _look_at_space(self) -> None:
        has_space = not (self._write_refused or self._flush_refused)
        if has_space is not self.has_space:
            self.has_space = has_space
            self._on_space(has_space)

    # --- durable index ---

    def _note_unflushed(self, entries: Sequence[Entry]) -> None:
        # Flushes for other reasons leave this as it is, so that nodes stay as far apart as they began.
        self._filled += max(len(entries) / self._flush_entries, entry_bytes(entries) / FLUSH_BYTES)
        if self._filled >= 1 and self.flush_now():
            self._filled %= 1

    def flush_now(self) -> bool:
        """Begin to make everything applied so far durable; False if that cannot be now, or is under way already."""
        if self._flushing or self._paused or self._halted:
            return False
        self._flushing = True
        self._last_flush = self._clock()
        reached = self._machine.applied_index
        self._flush(lambda: self._flushed(reached))
        return True

    def tick(self, now: float) -> None:
        """A few times a second: flush what little there is once in a while, so that a restart replays little."""
        pause_s = SPACE_RETRY_S if self._flush_refused else FLUSH_S
        unflushed = self._machine.applied_index > self.durable_index
        if (unflushed or self._flush_refused) and now - self._last_flush >= pause_s:
            self.flush_now()

    @property
    def flushing(self) -> bool:
        """Whether a flush is under way."""
        return self._flushing

    def flush_refused(self) -> None:
        """The flush under way met a full disk: `tick` begins another one, until one succeeds."""
        self._flushing = False
        self._flush_refused = True
        self._look_at_space()

    def _flushed(self, reached: Index) -> None:
        self._flushing = self._flush_refused = False
        self._look_at_space()
        self.flushes_total += 1
        self.flush_histogram.observe(self._clock() - self._last_flush)
        self.durable_index = reached
        self._on_flushed()
