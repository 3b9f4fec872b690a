"""
An asyncio event loop on virtual time.

One thread; when nothing is ready, time jumps to the next timer. Timers of one and the same moment fire in an order a
seed decides, so that many seeds try many orders and one seed always gives the same; `call_soon` keeps its order,
because asyncio promises it. The loop refuses what would bring the outside world in: sockets, threads, executors,
signals.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import random
import struct
import threading
from asyncio import events
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, TypeVarTuple

from kvorum.core.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextvars import Context

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

STEPS_MAX: Final = 50_000_000
"""Callbacks of one run; a story that needs more runs away."""

STEPS_AT_ONE_TIME_MAX: Final = 1_000_000
"""Callbacks without time going on; more means two of them keep calling each other."""

ABANDON_TURNS_MAX: Final = 50
"""How often the tasks of a failed run are cancelled; each may have something to do at its end."""

START_S: Final = 1_000.0
"""Where time begins: not at zero, so that a forgotten start value shows."""

_TURN: Final = struct.Struct(">dI")


class SimulationError(Exception):
    """A run that cannot go on; the text says why."""


class DeadlockError(SimulationError):
    """Nothing is ready, no timer is set, and the story has not ended."""


class RunawayError(SimulationError):
    """Too many steps."""


if TYPE_CHECKING:
    # Complete in the eyes of a type checker, which cannot see the refusals at the end of this module.
    BareLoop = asyncio.BaseEventLoop
else:
    BareLoop = asyncio.AbstractEventLoop


class VirtualLoop(BareLoop):
    """
    See the module text.

    Args:
        seed: Decides the order of simultaneous timers.
        shuffle: False keeps the order in which they were set.
    """

    def __init__(self, seed: int = 0, *, shuffle: bool = True) -> None:
        self._now = START_S
        self._ready: list[asyncio.Handle] = []
        self._timers: list[tuple[float, float, int, asyncio.TimerHandle]] = []
        self._chance = random.Random(f"loop {seed}")
        self._shuffle = shuffle
        self._numbers = 0
        self._steps = 0
        self._steps_at_time = 0
        self._trace = hashlib.blake2b(digest_size=16)
        self._failure: BaseException | None = None
        self._thread = threading.get_ident()
        self._running = False
        self._closed = False
        self._handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = None

    # --- what a simulated world adds ---

    @property
    def steps(self) -> int:
        """Callbacks that have run."""
        return self._steps

    def trace(self, label: str) -> None:
        """Make an event part of the trace hash."""
        self._trace.update(_TURN.pack(self._now, len(label)) + label.encode())

    def trace_hash(self) -> str:
        """Digest of the time and size of every turn and of all that was traced: equal for equal runs."""
        return self._trace.copy().hexdigest()

    def fail(self, error: BaseException) -> None:
        """End the run with this error after the current callback."""
        if self._failure is None:
            self._failure = error

    # --- running ---

    def run_until_complete(self, future: Awaitable[T]) -> T:  # type: ignore[override]
        """
        Run until the future is done.

        Raises:
            SimulationError: It never will be, or not within bounds.
        """
        self._check_open()
        story = asyncio.ensure_future(future, loop=self)
        assert not self._running, "the loop is running already"
        self._running = True
        events._set_running_loop(self)  # noqa: SLF001 - documented for loops
        try:
            while not story.done():
                self._turn(story)
                if self._failure is not None:
                    raise self._failure
        finally:
            events._set_running_loop(None)  # noqa: SLF001
            self._running = False
            if not story.done():
                story.cancel()
        return story.result()

    def _turn(self, story: asyncio.Future[Any]) -> None:
        """Run everything that is ready now; if nothing is, let time jump to the next timer first."""
        if not self._ready:
            self._jump(story)
        ready, self._ready = self._ready, []
        self._trace.update(_TURN.pack(self._now, len(ready)))
        for position, handle in enumerate(ready):
            if handle.cancelled():
                continue
            self._steps += 1
            self._steps_at_time += 1
            handle._run()  # noqa: SLF001 - what a loop is for
            if self._failure is not None or story.done():
                # What was ready but did not run stays ready, for a later run on the same loop.
                self._ready = ready[position + 1 :] + self._ready
                break
        if self._steps > STEPS_MAX or self._steps_at_time > STEPS_AT_ONE_TIME_MAX:
            msg = (
                f"{self._steps} steps, {self._steps_at_time} of them at {self._now - START_S:.6f} s: the run runs away"
            )
            raise RunawayError(msg)

    def _jump(self, story: asyncio.Future[Any]) -> None:
        timers = self._timers
        while timers and timers[0][3].cancelled():
            heapq.heappop(timers)
        if not timers:
            msg = f"nothing is ready and no timer is set at {self._now - START_S:.6f} s, but {story!r} is not done"
            raise DeadlockError(msg)
        when = timers[0][0]
        if when > self._now:
            self._now = when
            self._steps_at_time = 0
        while timers and timers[0][0] <= self._now:
            handle = heapq.heappop(timers)[3]
            if not handle.cancelled():
                self._ready.append(handle)

    def abandon(self) -> None:
        """After a run that failed: cancel every task and let it end, so that none is found half done later."""
        assert not self._running
        self._handler = lambda _loop, _context: None
        events._set_running_loop(self)  # noqa: SLF001
        try:
            for _ in range(ABANDON_TURNS_MAX):
                tasks = asyncio.all_tasks(self)
                for task in tasks:
                    task.cancel()
                ready, self._ready = self._ready, []
                for handle in ready:
                    if not handle.cancelled():
                        handle._run()  # noqa: SLF001
                if not tasks:
                    break
        finally:
            events._set_running_loop(None)  # noqa: SLF001

    def is_running(self) -> bool:
        """Whether a story is being told."""
        return self._running

    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Forget everything that is scheduled."""
        assert not self._running
        self._closed = True
        self._ready.clear()
        self._timers.clear()

    async def shutdown_asyncgens(self) -> None:
        """Nothing to do: asynchronous generators are not tracked."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Nothing to do: there is no executor."""

    def _check_open(self) -> None:
        if self._closed:
            msg = "the loop is closed"
            raise RuntimeError(msg)
        if threading.get_ident() != self._thread:
            self._refuse("a second thread")

    # --- scheduling ---

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Run a callback at the present moment, after those that are running."""
        self._check_open()
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Like `call_soon`; from another thread it is refused."""
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run a callback when time has gone on by ``delay``."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run a callback at a moment; a moment in the past is now."""
        self._check_open()
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._numbers += 1
        order = self._chance.random() if self._shuffle else 0.0
        heapq.heappush(self._timers, (max(when, self._now), order, self._numbers, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Called by asyncio; cancelled timers are skipped when their time comes."""

    # --- futures and tasks ---

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """A task of this loop."""
        self._check_open()
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def get_task_factory(self) -> None:
        """None: there is one kind of task."""

    def get_debug(self) -> bool:
        """Off: asyncio's debug mode looks at the real clock."""
        return False

    # --- errors ---

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """End the run: an exception nobody caught is a defect."""
        error = context.get("exception")
        if error is None:
            error = SimulationError(context.get("message", "unknown failure"))
        error.add_note(f"at {self._now - START_S:.6f} s of the simulation: {context.get('message')}")
        self.fail(error)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """See `default_exception_handler`, unless another one was set."""
        if self._handler is None:
            self.default_exception_handler(context)
        else:
            self._handler(self, context)

    def set_exception_handler(
        self, handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None
    ) -> None:
        """Let somebody else judge uncaught exceptions."""
        self._handler = handler

    def get_exception_handler(self) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None:
        """The handler set, or None."""
        return self._handler

    # --- the outside world: refused ---

    def _refuse(self, what: str) -> NoReturn:
        msg = f"the simulation has no {what}; hand the code a simulated one through its port"
        raise LocalError(msg)


def _refusal(what: str) -> Callable[..., NoReturn]:
    def refuse(self: VirtualLoop, *_: object, **__: object) -> NoReturn:
        self._refuse(what)

    return refuse


for _name, _what in {
    "run_in_executor": "executor",
    "set_default_executor": "executor",
    "create_connection": "sockets",
    "create_server": "sockets",
    "create_unix_connection": "sockets",
    "create_unix_server": "sockets",
    "create_datagram_endpoint": "sockets",
    "getaddrinfo": "name resolution",
    "add_reader": "file descriptors",
    "add_writer": "file descriptors",
    "subprocess_exec": "processes",
    "subprocess_shell": "processes",
    "add_signal_handler": "signals",
    "run_forever": "end of time: give run_until_complete a story",
    "stop": "end but that of its story",
}.items():
    setattr(VirtualLoop, _name, _refusal(_what))
