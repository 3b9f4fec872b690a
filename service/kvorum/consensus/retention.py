"""
Keeps history and sessions bounded: proposes what may be forgotten, and sweeps this node's store.

What is forgotten is decided by log entries alone (`core.maintenance`). The leader proposes a new watermark from its own
observations: the newest version of a moment that, by its own monotonic clock, lies the whole retention back. A new or
restarted leader counts from its start, and a jump of the wall clock moves nothing. The same holds for idle sessions.
A cluster in which nothing happens writes nothing: there is then nothing to forget.

The sweep is local: each node removes from disk what its watermark covers, slice by slice, when that is worth a pass.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from kvorum.core.maintenance import Maintenance

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvorum.core.ids import Index, Term

LOOK_S: Final = 1.0
"""How often this looks whether there is something to do."""

SAMPLES_PER_WINDOW: Final = 30
"""Moments remembered per window: how much longer than asked history and sessions may be kept."""

SWEEP_STEP_S: Final = 0.002
"""Time for sweeping per tick of the manager; one slice may go beyond it."""


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """What retention takes from the configuration."""

    retention_s: float = 300.0
    """How long a version stays readable after it stopped being the newest."""
    session_idle_s: float = 3600.0
    sessions_max: int = 100_000


class RetainedState(Protocol):
    """What retention needs of the state machine (`statemachine.executor.KvStoreExecutor`)."""

    @property
    def last_commit_version(self) -> Index:
        """Version of the last write that took effect."""
        ...

    @property
    def low_watermark(self) -> Index:
        """Oldest readable version."""
        ...

    @property
    def entry_time_ms(self) -> int:
        """Time of the newest entry applied by this process."""
        ...

    @property
    def sessions_max(self) -> int:
        """Most sessions, as the log has it."""
        ...

    @property
    def sessions_count(self) -> int:
        """Sessions that exist."""
        ...

    @property
    def oldest_session_ms(self) -> int | None:
        """Entry time of the last use of the least recently used session."""
        ...

    @property
    def sweeper(self) -> Sweeper:
        """Who removes what nobody can read any more."""
        ...


class Sweeper(Protocol):
    """Removes rows from the store of this node (`statemachine.sweep.Sweeper`)."""

    @property
    def active(self) -> bool:
        """Whether a pass is under way."""
        ...

    def due(self) -> bool:
        """Whether enough has become garbage for a pass."""
        ...

    def start(self) -> None:
        """Begin a pass."""
        ...

    def step(self) -> bool:
        """Sweep one slice; False when the pass is over."""
        ...


class Host(Protocol):
    """What retention needs of its ConsensusManager."""

    @property
    def term(self) -> Term:
        """Current term."""
        ...

    @property
    def may_serve(self) -> bool:
        """This node leads, and shows all that was committed before."""
        ...

    def clock(self) -> float:
        """Monotonic seconds."""
        ...

    def propose_maintenance(self, maintenance: Maintenance) -> None:
        """Append a maintenance entry as the leader."""
        ...


class _Sample(NamedTuple):
    at: float
    value: int


class _Window:
    """A value that only grows, as it was a while ago; of the leadership at hand only."""

    def __init__(self, length_s: float) -> None:
        self._length_s = length_s
        self._spacing_s = length_s / SAMPLES_PER_WINDOW
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES_PER_WINDOW + 3)

    def clear(self) -> None:
        """Forget everything: somebody else leads, or has led."""
        self._samples.clear()

    def note(self, now: float, value: int) -> None:
        """Remember the value of this moment, unless the last one is recent enough."""
        samples = self._samples
        if not samples or now - samples[-1].at >= self._spacing_s:
            samples.append(_Sample(now, value))

    def value_before(self, now: float) -> int:
        """The value that was reached the whole window ago, as far as it was seen; else 0."""
        samples = self._samples
        while len(samples) > 1 and now - samples[1].at >= self._length_s:
            samples.popleft()
        return samples[0].value if samples and now - samples[0].at >= self._length_s else 0


class Retention:
    """See the module text; `tick` is all there is to call."""

    def __init__(
        self, host: Host, settings: RetentionSettings, state: RetainedState, flush: Callable[[], bool]
    ) -> None:
        """
        Begin with nothing observed.

        Args:
            host: Whoever proposes.
            settings: The windows and bounds.
            state: The state machine of this node.
            flush: Asks for what was removed to reach the disk, so that its space can be given back; False if that
                must be asked for again.
        """
        self._host = host
        self._settings = settings
        self._state = state
        self._flush = flush
        self._versions = _Window(settings.retention_s)
        self._times = _Window(settings.session_idle_s)
        self._flush_due = False
        self._led_term: Term | None = None
        self._next_look = 0.0
        self._next_move = 0.0
        self.proposed_total = 0
        self.sweeps_total = 0

    def tick(self, now: float, *, busy: bool = False) -> None:
        """
        Do what is due; called often.

        Args:
            now: Monotonic seconds.
            busy: The storage engine is behind: sweeping would only add to it. Nothing else keeps maintenance from
                being proposed: under a load that always fills the log it must go on all the same.
        """
        if busy:
            return
        self._sweep()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        sweeper = self._state.sweeper
        if self._flush_due:
            # Before the next pass: its iterators would have to step over everything that this one deleted.
            self._flush_due = not self._flush()
        elif not sweeper.active and sweeper.due():
            sweeper.start()
            self.sweeps_total += 1
        self._look(now)

    def _sweep(self) -> None:
        sweeper = self._state.sweeper
        if not sweeper.active:
            return
        clock = self._host.clock
        end = clock() + SWEEP_STEP_S
        while sweeper.step():
            if clock() >= end:
                return
        self._flush_due = not self._flush()

    def _look(self, now: float) -> None:
        """Observe, and propose what has become due; only while leading."""
        host, state, settings = self._host, self._state, self._settings
        # Safety: what was observed in another term says nothing, for another leader may have led in between.
        if not host.may_serve:
            self._led_term = None
            return
        if host.term != self._led_term:
            self._led_term = host.term
            self._versions.clear()
            self._times.clear()
        # Not the applied index: it moves with maintenance entries too, and there would be no end to them.
        self._versions.note(now, state.last_commit_version)
        self._times.note(now, state.entry_time_ms)
        watermark = state.low_watermark
        if now >= self._next_move:
            watermark = max(watermark, self._versions.value_before(now))
        idle_before_ms = self._times.value_before(now)
        oldest_ms = state.oldest_session_ms
        moves = watermark > state.low_watermark
        idle = oldest_ms is not None and oldest_ms < idle_before_ms
        resized = state.sessions_count > 0 and (
            state.sessions_max != settings.sessions_max or state.sessions_count > settings.sessions_max
        )
        if not (moves or idle or resized):
            return
        if moves:
            self._next_move = now + max(LOOK_S, settings.retention_s / SAMPLES_PER_WINDOW)
        self.proposed_total += 1
        host.propose_maintenance(Maintenance(watermark, idle_before_ms, settings.sessions_max))
