"""
What a log promised, apart from all files: every state it was asked to take, and which of them must, or may, come back.

Whoever drives a log tells it here, with the number of system calls made so far. For a crash behind any such call the
history says the oldest state that had been reported durable and the newest that had been asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kvorum.core.entries import EntryKind, HardState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvorum.core.entries import Entry
    from kvorum.core.ids import Index, Term, Ticket
    from kvorum.core.ports import RecoveredLog
    from kvorum.core.snapshot import Manifest


@dataclass(frozen=True, slots=True)
class State:
    """Everything a log knows at one moment."""

    hard_state: HardState = field(default_factory=HardState)
    base_index: Index = 0
    base_term: Term = 0
    entries: tuple[Entry, ...] = ()
    """Behind the base, without a gap."""
    configurations: tuple[tuple[Index, bytes], ...] = ()
    """Index and record of each that was ever in force and not replaced."""

    @property
    def last_index(self) -> Index:
        """Index of the last entry, or of the base."""
        return self.base_index + len(self.entries)

    def term_at(self, index: Index) -> Term:
        """Term of an entry or of the base, -1 if there is none."""
        if index == self.base_index:
            return self.base_term
        position = index - self.base_index - 1
        return self.entries[position].term if 0 <= position < len(self.entries) else -1

    def appended(self, hard_state: HardState | None, entries: Sequence[Entry]) -> State:
        """The state behind one append."""
        state = self if hard_state is None else replace(self, hard_state=hard_state)
        if not entries:
            return state
        first = entries[0].index
        kept = first - self.base_index - 1
        assert 0 <= kept <= len(self.entries), "a gap in the log"
        configurations = [known for known in self.configurations if known[0] < first]
        configurations += [(entry.index, entry.record) for entry in entries if entry.kind == EntryKind.CONFIGURATION]
        return replace(state, entries=(*self.entries[:kept], *entries), configurations=tuple(configurations))

    def following(self, installed: Manifest | None) -> State:
        """The state that a start makes of it beside a store that was installed from a snapshot."""
        if installed is None or self.base_index >= installed.index:
            return self
        behind = self.hard_state.term < installed.term
        hard_state = HardState(installed.term, None) if behind else self.hard_state
        entry = installed.configuration
        return State(hard_state, installed.index, installed.term, (), ((entry.index, entry.record),))


@dataclass(frozen=True, slots=True)
class Mark:
    """What holds from one number of system calls on, until the next mark."""

    calls: int
    floor: int
    """Number of the newest state that was reported durable."""
    ceiling: int
    """Number of the newest state that was asked for."""
    committed: Index
    dropped: Index
    """Entries below this index may be gone."""
    installed: Manifest | None


@dataclass(slots=True)
class Expectation:
    """What a log may say after one crash."""

    states: list[State]
    """The oldest must have survived; each later one was under way, and nobody had been told of it."""
    committed: Index
    dropped: Index
    installed: Manifest | None

    @property
    def key(self) -> tuple[object, ...]:
        """Equal only for equal expectations of one history."""
        return (*map(id, self.states), self.committed, self.dropped, id(self.installed))

    def match(self, found: RecoveredLog) -> tuple[State | None, str]:
        """The state that a recovered log equals, or None and what is wrong."""
        reasons = []
        for state in self.states:
            expected = state.following(self.installed)
            reason = self._difference(expected, found)
            if not reason:
                return expected, ""
            reasons.append(reason)
        return None, f"it is none of the {len(reasons)} states that may follow; the oldest: {reasons[0]}"

    def _difference(self, state: State, found: RecoveredLog) -> str:
        if found.hard_state != state.hard_state:
            return f"hard state {found.hard_state}, not {state.hard_state}"
        if found.last_index != state.last_index:
            return f"last entry {found.last_index}, not {state.last_index}"
        if not state.base_index <= found.base_index <= max(state.base_index, self.dropped - 1):
            return f"base {found.base_index}, not {state.base_index}, and dropped was what is below {self.dropped}"
        if state.term_at(found.base_index) != found.base_term:
            return f"term {found.base_term} at the base, not {state.term_at(found.base_index)}"
        runs: list[tuple[Index, Term]] = []
        for entry in state.entries[found.base_index - state.base_index :]:
            if not runs or runs[-1][1] != entry.term:
                runs.append((entry.index, entry.term))
        if list(found.terms) != runs:
            return f"terms {found.terms[-3:]}, not {runs[-3:]}"
        return self._configurations_differ(state, found)

    def _configurations_differ(self, state: State, found: RecoveredLog) -> str:
        """The newest settled configuration and each later one must be known; older ones may be."""
        settled = max(self.committed, state.base_index)
        needed = [index for index, _ in state.configurations]
        while len(needed) > 1 and needed[1] <= settled:
            del needed[0]
        known = [index for index, _ in found.configurations]
        if known[len(known) - len(needed) :] != needed:
            return f"configurations {known}, not {needed}"
        return ""


class History:
    """The promises of all lives of one log, on a line of system calls."""

    def __init__(self) -> None:
        self.states: list[State] = [State()]
        self.marks: list[Mark] = [Mark(0, 0, 0, 0, 0, None)]
        self._boundaries = {0}
        """Numbers of states with which a group ends; a group counts whole or not at all."""
        self._numbers: dict[Ticket, int] = {}

    @property
    def now(self) -> Mark:
        """What holds behind the last call told."""
        return self.marks[-1]

    @property
    def newest(self) -> State:
        """The state last asked for."""
        return self.states[-1]

    @property
    def durable(self) -> State:
        """The state last reported durable."""
        return self.states[self.now.floor]

    def _mark(self, calls: int, **changes: object) -> None:
        self.marks.append(replace(self.now, calls=calls, **changes))  # type: ignore[arg-type]

    def asked(self, calls: int, ticket: Ticket, state: State) -> None:
        """The log was asked to take this state."""
        self.states.append(state)
        self._numbers[ticket] = len(self.states) - 1
        self._mark(calls, ceiling=len(self.states) - 1)

    def grouped(self, ticket: Ticket) -> None:
        """A group ends with this ticket."""
        self._boundaries.add(self._numbers[ticket])

    def reported(self, calls: int, ticket: Ticket) -> None:
        """The log said that this ticket is durable, and with it all before it."""
        self._mark(calls, floor=self._numbers[ticket])

    def committed(self, calls: int, index: Index) -> None:
        """Everything up to an index is committed, so never replaced."""
        self._mark(calls, committed=index)

    def dropped(self, calls: int, index: Index) -> None:
        """Entries below an index are not needed any more."""
        self._mark(calls, dropped=max(index, self.now.dropped))

    def installed(self, calls: int, manifest: Manifest) -> None:
        """The store beside the log is the one of this snapshot."""
        self._mark(calls, installed=manifest)

    def reopened(self, calls: int, found: RecoveredLog) -> str:
        """A new life said what it found, which is durable from now on; returns what is wrong with it, if anything."""
        state, wrong = self.expected(calls).match(found)
        if state is None:
            return wrong
        self.states.append(state)
        number = len(self.states) - 1
        self._boundaries.add(number)
        self._numbers.clear()
        self._mark(calls, floor=number, ceiling=number)
        return ""

    def expected(self, calls: int) -> Expectation:
        """What a log may say that crashed behind so many calls."""
        mark = self.marks[bisect_right(self.marks, calls, key=lambda found: found.calls) - 1]
        numbers = [number for number in range(mark.floor, mark.ceiling + 1) if number in self._boundaries]
        return Expectation([self.states[number] for number in numbers], mark.committed, mark.dropped, mark.installed)
