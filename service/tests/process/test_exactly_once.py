"""
kvorum_client repeats a write whose reply it lost, and the write takes effect once.

Read-modify-write commits and blind appends go on while leaders are killed under them. A commit that were applied again
would find its own write, conflict, and be started anew: the counter would end too high. An append applied again would
leave a second key.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kvorum_client import KvorumClient
from tests.process.harness import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.harness import Cluster

COUNTER = b"counter"
WORKERS = 4
STAMP = b"." * 10


async def test_counter_and_appends_end_exact_under_leader_kills(make_cluster: Callable[..., Cluster]) -> None:
    """Three leaders are killed in turn; every increment and every append is there once, and none failed."""
    cluster = make_cluster()
    cluster.start()
    await cluster.ready()
    increments = appends = 0
    stopping = asyncio.Event()

    async def increment(client: KvorumClient) -> None:
        nonlocal increments

        async def body(transaction) -> None:  # type: ignore[no-untyped-def]
            present = int(await transaction.get(COUNTER) or b"0")
            transaction.set(COUNTER, b"%d" % (present + 1))

        while not stopping.is_set():
            await client.run(body, attempts=1000)
            increments += 1

    async def append(client: KvorumClient) -> None:
        nonlocal appends
        while not stopping.is_set():
            await client.set_versionstamped_key(b"append/" + STAMP, b"x")
            appends += 1

    async with KvorumClient([node.endpoint for node in cluster.nodes], timeout_s=30.0) as client:
        workers = [asyncio.create_task(work(client)) for work in [increment, append] * WORKERS]
        for _ in range(3):
            done = increments + appends
            await eventually(_true_after(lambda done=done: increments + appends > done + 400), "progress")
            leader = await cluster.leader()
            leader.kill()
            done = increments + appends
            await eventually(_true_after(lambda done=done: increments + appends > done + 100), "failover")
            leader.start()
            await eventually(leader.accepts, "the killed node listens again")
        stopping.set()
        await asyncio.gather(*workers)

        assert increments == int(await client.get(COUNTER) or b"0")
        assert appends == len(await client.get_range(b"append/", b"append0"))
    await cluster.same_state()


def _true_after(condition):  # type: ignore[no-untyped-def]
    async def check() -> bool:
        return bool(condition())

    return check
