"""With a short retention, overwriting the same keys for ever needs bounded space, and old versions are refused."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from tests.process.harness import eventually
from tests.process.wire import get_read_version, get_status, set_key, snapshot_get

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.harness import Cluster, Node

RETENTION_S = 2
KEYS = 500
VALUE_BYTES = 800
WRITES = 30_000
"""So many that what a pass removes fills a memtable and gets its file compacted: with half of it that was chance."""
SETTINGS = f"[mvcc]\nretention_seconds = {RETENTION_S}\n\n[rocksdb]\nwrite_buffer_size_mb = 1\n"


async def _overwrite(node: Node, writes: int) -> None:
    async with await node.connect() as connection:
        for first in range(0, writes, 500):
            values = [os.urandom(VALUE_BYTES) for _ in range(500)]
            calls = [set_key(b"key-%d" % ((first + n) % KEYS), value) for n, value in enumerate(values)]
            replies = await asyncio.gather(*(connection.submit(call) for call in calls))
            assert all(reply.ok for reply in replies)


def _store_mib(cluster: Cluster, number: int) -> float:
    return sum(file.stat().st_size for file in cluster.data_directory(number).rglob("*.sst")) / 2**20


async def test_overwritten_versions_leave_the_disk_of_every_node(make_cluster: Callable[..., Cluster]) -> None:
    """Thirty versions of each key were written; little more than the newest is left, on leader and followers alike."""
    cluster = make_cluster(settings=SETTINGS)
    cluster.start()
    leader = await cluster.ready()
    early = (await leader.call(get_read_version())).number(1)
    await _overwrite(leader, WRITES)
    # Both the newest-value space and the history hold a value of this size.
    written_mib = 2 * WRITES * VALUE_BYTES / 2**20

    async def swept() -> bool:
        # A few writes now and then, because a cluster in which nothing happens does not go on either.
        await _overwrite(leader, 500)
        return all(node.metrics()["kvorum_backend_swept_rows_total"] > WRITES / 2 for node in cluster.nodes)

    await eventually(swept, "a sweep on every node", pause=0.5)

    async def small() -> bool:
        return all(_store_mib(cluster, number) < written_mib / 4 for number in range(3))

    await eventually(small, "the space is given back")
    for node in cluster.nodes:
        assert (await node.call(snapshot_get(b"key-0", early))).fields[20] == b"TRANSACTION_TOO_OLD"
        assert (await node.call(get_status())).ok
    await cluster.same_state()
