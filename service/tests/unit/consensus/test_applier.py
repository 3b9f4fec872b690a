"""The applier: groups in order, slices that let others run, stops at an exact index, stalls that lose nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvorum.consensus.applier import FLUSH_ENTRIES, FLUSH_S, SPACE_RETRY_S, STALL_RETRY_S, Applier
from kvorum.core.entries import Entry, EntryBatch, EntryKind
from kvorum.core.errors import OutOfSpaceError, WriteStalledError
from kvorum.core.operations import APPLIED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class HandLoop:
    """A loop that runs what is booked only when told to."""

    def __init__(self) -> None:
        self.booked: list[tuple[float, Callable[[], None]]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.booked.append((0.0, callback))

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.booked.append((delay_s, callback))

    def turn(self) -> None:
        """Run everything that is booked now."""
        booked, self.booked = self.booked, []
        for _, callback in booked:
            callback()


class CountingState:
    """Applies by counting; may be told to take slices, to stall or to be out of space."""

    def __init__(self) -> None:
        self.applied_index = 0
        self.groups: list[tuple[int, int]] = []
        self.slices = 0
        self.stalls = 0
        self.refusals = 0

    def apply(self, entries: Sequence[Entry]) -> Iterator[list[object] | None]:
        for _ in range(self.slices):
            yield None
        if self.stalls:
            self.stalls -= 1
            raise WriteStalledError
        if self.refusals:
            self.refusals -= 1
            raise OutOfSpaceError
        assert entries[0].index == self.applied_index + 1
        self.applied_index = entries[-1].index
        self.groups.append((entries[0].index, entries[-1].index))
        yield [APPLIED] * len(entries)


def batch(first: int, last: int) -> EntryBatch:
    return EntryBatch([Entry.create(i, 1, EntryKind.COMMAND, 0, b"") for i in range(first, last + 1)])


def build() -> tuple[HandLoop, CountingState, Applier, list[Callable[[], None]]]:
    loop, state, flushes = HandLoop(), CountingState(), []
    applier = Applier(state, loop, lambda: 0.0, on_applied=lambda *_: None, flush=flushes.append)
    return loop, state, applier, flushes


def test_pump_applies_one_group_and_books_the_rest():
    """Every group has a turn of the loop of its own, in order."""
    loop, state, applier, _ = build()
    applier.add(batch(1, 3))
    applier.add(batch(4, 5))
    applier.pump()
    assert [(1, 3)] == state.groups
    loop.turn()

    assert [(1, 3), (4, 5)] == state.groups
    assert applier.idle


def test_pump_from_inside_an_outcome_does_not_apply_the_next_group():
    """Callbacks that come back to the applier must not turn slices into one long stop of the loop."""
    loop, state, _, _ = build()
    depth: list[int] = []
    applier = Applier(state, loop, lambda: 0.0, on_applied=lambda *_: again(), flush=lambda _: None)

    def again() -> None:
        depth.append(len(state.groups))
        applier.pump()

    for i in range(1, 5):
        applier.add(batch(i, i))
    applier.pump()
    assert [1] == depth
    for _ in range(3):
        loop.turn()

    assert [1, 2, 3, 4] == depth


def test_slices_yield_to_the_loop():
    """A large group is applied over several turns and shows only whole."""
    loop, state, applier, _ = build()
    state.slices = 2
    applier.add(batch(1, 1))
    applier.pump()
    applier.pump()
    assert 0 == state.applied_index
    loop.turn()
    assert 0 == state.applied_index
    loop.turn()

    assert 1 == state.applied_index


def test_stall_applies_the_same_group_again_later():
    """A stalled engine delays a group, never loses it, and says so meanwhile."""
    loop, state, applier, _ = build()
    state.stalls = 2
    applier.add(batch(1, 2))
    applier.pump()
    assert applier.stalled
    assert [STALL_RETRY_S] == [delay for delay, _ in loop.booked]
    loop.turn()
    loop.turn()

    assert not applier.stalled
    assert [(1, 2)] == state.groups


def test_stop_at_cuts_the_group_at_exactly_that_index():
    """A state hash sees exactly the index it was asked for, while later entries are already waiting."""
    loop, state, applier, _ = build()
    seen: list[int] = []
    applier.stop_at(3, lambda: seen.append(state.applied_index))
    applier.add(batch(1, 5))
    applier.pump()
    assert [3] == seen
    loop.turn()

    assert [(1, 3), (4, 5)] == state.groups


def test_durable_index_moves_to_what_was_applied_when_the_flush_began():
    """What is applied while the flush runs is not yet durable."""
    loop, state, applier, flushes = build()
    applier.add(batch(1, FLUSH_ENTRIES))
    applier.pump()
    applier.add(batch(FLUSH_ENTRIES + 1, FLUSH_ENTRIES + 10))
    applier.pump()
    loop.turn()
    assert 0 == applier.durable_index
    (flushed,) = flushes
    flushed()

    assert FLUSH_ENTRIES + 10 == state.applied_index
    assert FLUSH_ENTRIES == applier.durable_index


def test_halt_leaves_the_rest_of_a_replay_alone():
    """Storage closes under a replay that is under way: what was booked must not touch it any more."""
    loop, state, applier, _ = build()
    applier.add(batch(1, 3))
    applier.add(batch(4, 5))
    applier.pump()
    applier.halt()
    loop.turn()
    applier.add(batch(6, 6))
    applier.pump()

    assert [(1, 3)] == state.groups
    assert [] == loop.booked


def test_pause_holds_groups_and_go_on_applies_them():
    """While a snapshot is being switched to, nothing is applied and nothing is flushed; if it fails, all goes on."""
    loop, state, applier, flushes = build()
    applier.add(batch(1, 3))
    applier.pause()
    applier.pump()
    loop.turn()
    applier.flush_now()
    assert state.groups == []
    assert flushes == []

    applier.go_on()
    loop.turn()
    assert [(1, 3)] == state.groups


def test_restart_forgets_what_a_snapshot_holds():
    """Queued groups lie below the installed index; the next group behind it is applied as usual."""
    loop, state, applier, _ = build()
    reached: list[int] = []
    applier.stop_at(50, lambda: reached.append(50))
    state.slices = 1
    applier.add(batch(1, 3))
    applier.pump()
    applier.add(batch(4, 9))
    applier.pause()
    state.applied_index = 100
    applier.restart(100)
    loop.turn()

    assert (applier.durable_index, applier.idle, state.groups, reached) == (100, True, [], [50])
    applier.add(batch(101, 102))
    applier.pump()
    loop.turn()
    assert [(101, 102)] == state.groups


def test_nodes_flush_at_different_entries_and_stay_apart():
    """The same entries on two nodes: each flushes once in ten and apart, also after a flush by the clock."""
    for head_start, begun_at in ((0.0, [4, 10, 20, 30]), (0.6, [4, 14, 24, 34])):
        loop, state, begun = HandLoop(), CountingState(), []

        def flush(done: Callable[[], None], state: CountingState = state, begun: list[int] = begun) -> None:
            begun.append(state.applied_index)
            done()

        applier = Applier(
            state, loop, lambda: 0.0, on_applied=lambda *_: None, flush=flush, flush_entries=10, head_start=head_start
        )
        for first in range(1, 36, 2):
            applier.add(batch(first, first + 1))
            applier.pump()
            if first == 3 and not head_start:
                applier.tick(FLUSH_S)
            loop.turn()
        assert begun == begun_at


def test_little_is_flushed_after_a_while_and_the_flush_is_told():
    """A quiet node does not keep its last writes unflushed for ever."""
    loop, state, flushes, told = HandLoop(), CountingState(), [], []
    applier = Applier(
        state,
        loop,
        lambda: 0.0,
        on_applied=lambda *_: None,
        flush=flushes.append,
        on_flushed=lambda: told.append(applier.durable_index),
    )
    applier.tick(1000.0)
    assert flushes == []
    applier.add(batch(1, 3))
    applier.pump()
    applier.tick(FLUSH_S - 1)
    assert flushes == []
    applier.tick(FLUSH_S)
    applier.tick(FLUSH_S)
    [done] = flushes
    done()
    assert told == [3]


def with_space_told() -> tuple[HandLoop, CountingState, Applier, list[Callable[[], None]], list[bool]]:
    loop, state, flushes, told = HandLoop(), CountingState(), [], []
    applier = Applier(
        state,
        loop,
        lambda: 0.0,
        on_applied=lambda *_: None,
        flush=flushes.append,
        on_space=told.append,
        flush_entries=3,
    )
    return loop, state, applier, flushes, told


def test_full_disk_in_a_write_is_tried_again_until_there_is_space():
    """The group is applied once, in order, and who must know is told once that space ended and once that it is back."""
    loop, state, applier, _, told = with_space_told()
    state.refusals = 3
    applier.add(batch(1, 2))
    applier.add(batch(3, 4))
    applier.pump()
    assert (state.groups, applier.has_space, applier.stalled, told) == ([], False, True, [False])
    assert [delay for delay, _ in loop.booked] == [SPACE_RETRY_S]
    for _ in range(4):
        loop.turn()

    assert [(1, 2), (3, 4)] == state.groups
    assert (applier.has_space, applier.stalled, told) == (True, False, [False, True])


def test_full_disk_in_a_flush_is_tried_again_and_nothing_counts_as_durable():
    """The durable index stays where it is until a flush succeeds; a write that fits meanwhile ends no alarm."""
    _, _, applier, flushes, told = with_space_told()
    applier.add(batch(1, 3))
    applier.pump()
    flushes.pop()
    applier.flush_refused()
    assert (applier.durable_index, applier.flushing, told) == (0, False, [False])
    applier.add(batch(4, 4))
    applier.pump()
    assert told == [False]
    applier.tick(SPACE_RETRY_S / 2)
    assert flushes == []
    applier.tick(SPACE_RETRY_S)
    flushes.pop()()

    assert (applier.durable_index, applier.has_space, told) == (4, True, [False, True])


def test_installed_snapshot_ends_what_the_full_store_of_before_said():
    """The new store has its own view of the disk."""
    _, state, applier, _, told = with_space_told()
    state.refusals = 1
    applier.add(batch(1, 2))
    applier.pump()
    applier.flush_refused()
    applier.pause()
    state.applied_index = 100
    applier.restart(100)

    assert (applier.has_space, told) == (True, [False, True])
