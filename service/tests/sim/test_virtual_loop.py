"""The virtual-time loop keeps asyncio's promises, jumps over waiting, and ends runs that cannot end."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from kvorum.core.errors import LocalError
from kvorum_sim import loop as loops
from kvorum_sim.loop import DeadlockError, RunawayError, VirtualLoop


def test_loop_sleeping_a_day_takes_no_time() -> None:
    """Time jumps to the next timer when nothing is ready."""
    loop = VirtualLoop()
    start, began = loop.time(), time.perf_counter()
    loop.run_until_complete(asyncio.sleep(86_400))
    assert 86_400 == loop.time() - start
    assert time.perf_counter() - began < 60


def test_loop_asyncio_primitives_work_as_usual() -> None:
    """Tasks, gather, timeout, events, queues and cancellation behave as on any loop."""
    loop = VirtualLoop(3)

    async def story() -> list[object]:
        queue: asyncio.Queue[int] = asyncio.Queue(1)
        event = asyncio.Event()

        async def produce() -> str:
            for i in range(5):
                await queue.put(i)
                await asyncio.sleep(1)
            event.set()
            return "done"

        async def consume() -> list[int]:
            return [await queue.get() for _ in range(5)]

        produced, consumed = await asyncio.gather(produce(), consume())
        await event.wait()
        sleeper = asyncio.ensure_future(asyncio.sleep(100))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await asyncio.shield(sleeper)
        sleeper.cancel()
        return [produced, consumed, sleeper.cancelled() or sleeper.cancelling()]

    start = loop.time()
    assert ["done", [0, 1, 2, 3, 4], 1] == loop.run_until_complete(story())
    assert 7.5 == loop.time() - start


def test_loop_callbacks_of_call_soon_keep_their_order() -> None:
    """Asyncio promises first in, first out; no seed changes that."""
    loop = VirtualLoop(9)
    ran: list[int] = []

    async def story() -> None:
        for i in range(50):
            loop.call_soon(ran.append, i)
        await asyncio.sleep(0)

    loop.run_until_complete(story())
    assert list(range(50)) == ran


def test_loop_timers_of_one_moment_fire_in_the_order_of_the_seed() -> None:
    """Different seeds try different orders, one seed always the same; without shuffling it is the order of setting."""

    def order(seed: int, *, shuffle: bool = True) -> tuple[list[int], str]:
        loop = VirtualLoop(seed, shuffle=shuffle)
        ran: list[int] = []

        async def story() -> None:
            when = loop.time() + 1
            for i in range(20):
                loop.call_at(when, ran.append, i)
            await asyncio.sleep(2)
            loop.trace(str(ran))

        loop.run_until_complete(story())
        return ran, loop.trace_hash()

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1)[1] != order(2)[1]
    assert list(range(20)) == order(1, shuffle=False)[0]


def test_loop_cancelled_timer_does_not_fire() -> None:
    """A cancelled timer neither runs nor keeps time from jumping past it."""
    loop = VirtualLoop()
    loop.call_later(1, pytest.fail, "cancelled").cancel()
    loop.run_until_complete(asyncio.sleep(2))


def test_loop_without_anything_to_wait_for_is_a_deadlock() -> None:
    """A story that waits for what nobody will do ends with an error and not for ever."""
    with pytest.raises(DeadlockError, match="no timer is set"):
        VirtualLoop().run_until_complete(asyncio.Event().wait())


def test_loop_that_never_lets_time_go_on_runs_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two callbacks that keep calling each other are stopped."""
    monkeypatch.setattr(loops, "STEPS_AT_ONE_TIME_MAX", 1000)

    async def story() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(RunawayError, match="runs away"):
        VirtualLoop().run_until_complete(story())


def test_loop_exception_in_a_callback_ends_the_run() -> None:
    """What asyncio would only log is a defect here, and says when it happened."""
    loop = VirtualLoop()
    loop.call_later(1, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError) as caught:
        loop.run_until_complete(asyncio.sleep(2))
    assert "at 1.000000 s of the simulation" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "attempt",
    [
        lambda loop: loop.create_connection(asyncio.Protocol, "localhost", 1),
        lambda loop: loop.create_server(asyncio.Protocol, "localhost", 1),
        lambda loop: loop.run_in_executor(None, print),
        lambda loop: loop.getaddrinfo("localhost", 1),
        lambda loop: loop.add_signal_handler(2, print),
        lambda loop: loop.run_forever(),
    ],
)
def test_loop_outside_world_is_refused(attempt: object) -> None:
    """Sockets, executors, names and signals are errors at once, not nondeterminism later."""
    assert callable(attempt)
    with pytest.raises(LocalError, match="the simulation has no"):
        attempt(VirtualLoop())


def test_loop_used_from_another_thread_is_refused() -> None:
    """A thread that calls back is caught in the act."""
    loop = VirtualLoop()
    caught: list[BaseException] = []

    def call() -> None:
        try:
            loop.call_soon_threadsafe(print)
        except LocalError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert 1 == len(caught)
