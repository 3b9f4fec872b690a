"""
Leadership is moved under the Python client, again and again, and the leader is stopped as planned once.

Nobody who uses the client notices: no call fails, every counter ends exact, and each hand-over costs one term.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kvorum_client import KvorumClient
from tests.process.harness import Cluster, Node, eventually
from tests.process.test_grow_and_shrink import ask, page

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvorum_client import Transaction

COUNTERS = (b"counter/0", b"counter/1")
WRITERS = 10
MOVES = 6
SETTINGS = "[consensus]\nelection_timeout_ms = 4000\n"
"""A machine that is busy with other tests must not look like a leader that is gone: every term here has a reason."""


class Writer:
    """One client of its own; it increments a counter that others increment too, then sets a key of its own, in turn."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        endpoints = [node.endpoint for node in cluster.nodes]
        turned = number % len(endpoints)
        self.client = KvorumClient([*endpoints[turned:], *endpoints[:turned]], timeout_s=30.0)
        self.counter = COUNTERS[number % len(COUNTERS)]
        self.key = b"writer/%d" % number
        self.done = 0

    async def work(self, stopping: asyncio.Event) -> None:
        """Until told to stop; whatever a call raises ends the test."""
        async with self.client as client:
            while not stopping.is_set():
                await client.run(self._increment, attempts=1000)
                await client.set(self.key, b"%d" % (self.done + 1))
                self.done += 1

    async def _increment(self, transaction: Transaction) -> None:
        present = int(await transaction.get(self.counter) or b"0")
        transaction.set(self.counter, b"%d" % (present + 1))


class Writers:
    """All of them, and how far they are."""

    def __init__(self, cluster: Cluster) -> None:
        self.all = [Writer(cluster, number) for number in range(WRITERS)]
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(writer.work(self._stopping)) for writer in self.all]

    async def progress(self) -> None:
        """Wait until each of them has gone on; a call that failed fails the test here."""
        before = [writer.done for writer in self.all]

        async def further() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return all(writer.done > done + 3 for writer, done in zip(self.all, before, strict=True))

        await eventually(further, "progress of every writer")

    async def finish(self) -> None:
        self._stopping.set()
        await asyncio.gather(*self._tasks)


async def test_no_client_notices_that_leadership_moves(make_cluster: Callable[..., Cluster]) -> None:
    """Six moves and one planned stop of the leader under ten clients: no failed call, exact counters, seven terms."""
    cluster = make_cluster(settings=SETTINGS)
    cluster.start()
    leader = await cluster.ready()
    first_term = page(leader)["term"]
    writers = Writers(cluster)
    writers.start()
    await writers.progress()
    for move in range(MOVES):
        leader = await move_away(cluster, leader)
        await writers.progress()
        if move == MOVES // 2:
            assert await asyncio.to_thread(leader.stop) == 0
            assert "leadership handed over" in leader.last_words
            await writers.progress()
            leader.start()
            await eventually(leader.accepts, "the stopped node listens again")
            leader = await cluster.leader()
            await writers.progress()
    await writers.finish()

    assert page(leader)["term"] <= first_term + MOVES + 1, "a term for each move and for the planned stop"
    async with KvorumClient([node.endpoint for node in cluster.nodes]) as client:
        for counter in COUNTERS:
            mine = [writer.done for writer in writers.all if writer.counter == counter]
            assert int(await client.get(counter) or b"0") == sum(mine)
        for writer in writers.all:
            assert await client.get(writer.key) == b"%d" % writer.done
    await cluster.same_state()


async def move_away(cluster: Cluster, leader: Node) -> Node:
    """Ask a node that does not lead to make the node behind the leader the leader; the new one."""
    number = cluster.nodes.index(leader)
    target = (number + 1) % len(cluster.nodes)
    asked = cluster.nodes[(number + 2) % len(cluster.nodes)]
    await ask(asked, "leader/move", node_id=target)
    found = await cluster.leader()
    assert found is cluster.nodes[target], f"{found} leads and not {cluster.nodes[target]}"
    return found
