"""A follower that is far behind catches up by a snapshot, while clients go on writing; the log stays short."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

from tests.process.harness import Cluster, Writers, eventually
from tests.process.wire import get, set_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.harness import Node

ENTRIES = int(os.environ.get("KVORUM_TEST_BEHIND_ENTRIES", "200000"))
"""How far behind the follower falls."""
CLIENTS = 6
WINDOW = 48
"""Writes that one connection has under way while the log is filled."""
SHORT_LOG = "[wal]\nsegment_bytes = 1048576\nretain_entries = 1000\n"


async def fill(node: Node, entries: int) -> None:
    """Write so many entries through a node, with many calls under way."""

    async def write(client: int) -> None:
        async with await node.connect() as connection:
            for start in range(0, entries // CLIENTS, WINDOW):
                calls = [
                    connection.submit(set_key(b"fill/%d/%06d" % (client, start + at), b"%d" % at))
                    for at in range(WINDOW)
                ]
                replies = await asyncio.gather(*calls)
                assert all(reply.ok for reply in replies), next(reply for reply in replies if not reply.ok)

    await asyncio.gather(*(write(client) for client in range(CLIENTS)))


class Stopwatch:
    """Clients that write one call at a time and note how long each took."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._stop = asyncio.Event()
        self.took: list[float] = []

    async def run(self, clients: int = 4) -> None:
        await asyncio.gather(*(self._write(client) for client in range(clients)))

    async def _write(self, client: int) -> None:
        async with await self._node.connect() as connection:
            count = 0
            while not self._stop.is_set():
                count += 1
                began = time.perf_counter()
                reply = await connection.call(set_key(b"timed/%d/%06d" % (client, count), b"x" * 100))
                self.took.append(time.perf_counter() - began)
                assert reply.ok, reply

    def stop(self) -> None:
        self._stop.set()

    def p99_ms(self) -> float:
        ordered = sorted(self.took)
        return ordered[len(ordered) * 99 // 100] * 1000


async def test_follower_far_behind_catches_up_by_snapshot_while_writes_go_on(
    make_cluster: Callable[..., Cluster],
) -> None:
    """The leader's log no longer reaches back to it; its state becomes equal, and no write fails meanwhile."""
    cluster = make_cluster(settings=SHORT_LOG)
    cluster.start()
    leader = await cluster.ready()
    follower = (await cluster.followers())[0]
    last_before = (await asyncio.to_thread(follower.metrics))["kvorum_raft_last_index"]
    follower.kill()

    began = time.monotonic()
    await fill(leader, ENTRIES)
    filled_s = time.monotonic() - began
    quiet = Stopwatch(leader)
    timing = asyncio.create_task(quiet.run())
    await asyncio.sleep(3)
    quiet.stop()
    await timing
    figures = await asyncio.to_thread(leader.metrics)
    assert figures["kvorum_wal_first_index"] > last_before, "the log was not cut"

    busy = Stopwatch(leader)
    timing = asyncio.create_task(busy.run())
    follower.start()

    async def caught_up() -> bool:
        if timing.done():
            timing.result()
        figures = await asyncio.to_thread(follower.metrics)
        behind = await asyncio.to_thread(leader.metrics)
        applied = figures["kvorum_raft_applied_index"]
        return applied > last_before + ENTRIES and behind["kvorum_raft_applied_index"] - applied < 1000

    took = await eventually(caught_up, "the follower is level with the leader")
    busy.stop()
    await timing
    figures = await asyncio.to_thread(follower.metrics)
    received = figures['kvorum_snapshot_bytes_total{direction="received"}']
    print(  # noqa: T201 - the figures are what this test is run for
        f"\n{ENTRIES} entries behind (filled in {filled_s:.1f} s): level again after {took:.1f} s; "
        f"p99 of a write {quiet.p99_ms():.2f} ms without, {busy.p99_ms():.2f} ms with the snapshot; "
        f"{received / 1e6:.1f} MB received"
    )
    assert figures['kvorum_snapshots_total{action="installed"}'] >= 1
    for step in ("receive", "install"):
        assert figures[f'kvorum_snapshot_duration_seconds_count{{op="{step}"}}'] >= 1, step
    await cluster.same_state()
    assert (await follower.call(get(b"fill/0/000007", "local"))).value is not None

    # What was installed is what the next process finds, and it takes part from there.
    follower.kill()
    follower.start()
    async with Writers(cluster.nodes) as writers:
        await writers.acknowledged(200)
        outcomes = await writers.finish()
    await cluster.holds(outcomes.acknowledged)
    assert not list(cluster.data_directory(cluster.nodes.index(follower)).glob("state"))


async def test_wiped_logs_are_not_needed_to_restart_the_whole_cluster(make_cluster: Callable[..., Cluster]) -> None:
    """All nodes killed after their logs were cut: they come back with everything that was acknowledged."""
    cluster = make_cluster(settings=SHORT_LOG)
    cluster.start()
    leader = await cluster.ready()
    await fill(leader, 30_000)

    async def cut() -> bool:
        figures = [await asyncio.to_thread(node.metrics) for node in cluster.nodes]
        return all(one["kvorum_wal_first_index"] > 1 for one in figures)

    await eventually(cut, "every node has cut its log")
    async with Writers(cluster.nodes) as writers:
        await writers.acknowledged(200)
        cluster.kill()
        outcomes = await writers.finish()
    cluster.start()
    await cluster.ready()
    await cluster.holds(outcomes.acknowledged)
