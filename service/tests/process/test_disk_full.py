"""A data directory without space: the node steps aside, the cluster goes on, and with space it comes back."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.process.harness import Cluster, Writers, eventually
from tests.process.wire import get, set_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.process.harness import Node

VALUE = b"v" * 200_000

LOG_MEETS_IT = "[wal]\nsegment_bytes = 1048576\n"
"""Small segments: without a reserve the next segment of the log is what meets the end of the disk."""

STORE_MEETS_IT = "[wal]\nsegment_bytes = 16777216\n[rocksdb]\nwrite_buffer_size_mb = 1\n"
"""Room in the present segment and small memtables: without a reserve a flush of RocksDB meets the end of the disk."""


@pytest.fixture
def small_disks(make_cluster: Callable[..., Cluster]) -> Iterator[Callable[..., Cluster]]:
    """Makes a cluster whose nodes have 64 MiB each; none of it is a reserve unless that is asked for."""
    mounted: list[Path] = []
    made: list[Cluster] = []

    def make(settings: str, *, reserve: bool = False) -> Cluster:
        cluster = make_cluster(settings=settings)
        made.append(cluster)
        if not reserve:
            for node in cluster.nodes:
                node.environment["KVORUM_DATABASE__RESERVE_BYTES"] = "0"
        for number in range(len(cluster.nodes)):
            folder = cluster.data_directory(number)
            folder.mkdir(parents=True)
            command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"cannot mount a small tmpfs here: {done.stderr.strip()}")
            mounted.append(folder)
        return cluster

    try:
        yield make
    finally:
        for cluster in made:
            cluster.end()
        for folder in mounted:
            subprocess.run(["umount", str(folder)], check=False)


def fill(folder: Path) -> Path:
    """Take all the space; the file that holds it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
    return filler


async def test_full_disk_of_one_node_costs_that_node_only(small_disks: Callable[..., Cluster]) -> None:
    """First a follower's disk, then the leader's: writes go on, the full node says it is not ready, then catches up."""
    cluster = small_disks(LOG_MEETS_IT)
    cluster.start()
    await cluster.ready()
    wanted: dict[bytes, bytes] = {}
    for role in ("follower", "leader"):
        full = await in_role(cluster, role)
        wanted |= await fill_and_free(cluster, full, role.encode())
        await cluster.holds(wanted)


async def fill_and_free(cluster: Cluster, full: Node, prefix: bytes) -> dict[bytes, bytes]:
    """Let one node's disk be full while the others take writes, then free it; what was acknowledged."""
    filler = fill(cluster.data_directory(cluster.nodes.index(full)))
    wanted = await write(cluster, full, prefix, 20)
    await eventually(lambda: _unready(full), "the full node says so")
    assert full.running, full.last_words

    filler.unlink()
    await eventually(lambda: _ready(full), "the node is ready again")
    await cluster.leader()
    return wanted


@pytest.mark.parametrize("killed", [False, True], ids=["it goes on", "it is killed and started while full"])
@pytest.mark.parametrize("role", ["follower", "leader"])
async def test_full_disk_met_by_the_store_is_survived(
    small_disks: Callable[..., Cluster], role: str, *, killed: bool
) -> None:
    """RocksDB cannot flush: the node steps aside, still reads, can even be killed, and has everything in the end."""
    cluster = small_disks(STORE_MEETS_IT)
    cluster.start()
    await cluster.ready()
    full = await in_role(cluster, role)
    wanted = await write(cluster, full, b"before", 1)
    filler = fill(cluster.data_directory(cluster.nodes.index(full)))
    wanted |= await write(cluster, full, b"meanwhile", 20)
    await eventually(lambda: _unready(full), "the full node says so")
    await still_looks(full)
    if killed:
        full.kill()
        full.start()
        await eventually(lambda: _waits(full), "it says that it waits for space")
        assert not await full.accepts()
        assert full.http("/livez")[0] == 200
    wanted |= await write(cluster, full, b"later", 10)
    assert full.running, full.last_words

    filler.unlink()
    await eventually(lambda: _ready(full), "the node is ready again")
    assert killed == ("starting" in full.last_words.partition("disk has space again")[2])
    await cluster.leader()
    await cluster.holds(wanted)


async def still_looks(full: Node) -> None:
    """What a full node shows: which part met the end, an alarm, a failed check, and local reads."""

    async def told() -> bool:
        # A node may be unready for a moment for another reason, such as an election.
        return '"met_by":"store"' in full.last_words.replace(" ", "") or "met_by=store" in full.last_words

    await eventually(told, "the full node says which part met the end")
    assert full.metrics()['kvorum_alarm_active{type="nospace"}'] == 1
    assert "[-]disk_space failed" in full.http("/readyz?verbose")[1]
    assert full.http("/livez")[0] == 200
    reply = await full.call(get(b"before00", "local"))
    assert reply.value == VALUE or reply.code == "STALE", f"{reply}"
    reply = await full.call(get(b"before00", "read_index"))
    assert (reply.code, "disk of this node is full" in str(reply)) == ("UNAVAILABLE", True), f"{reply}"


async def test_full_node_stops_when_it_is_told_to(small_disks: Callable[..., Cluster]) -> None:
    """SIGTERM ends a node whose store cannot flush, and one that waits at its start, both cleanly; nothing is lost."""
    cluster = small_disks(STORE_MEETS_IT)
    cluster.start()
    await cluster.ready()
    full = await in_role(cluster, "follower")
    filler = fill(cluster.data_directory(cluster.nodes.index(full)))
    wanted = await write(cluster, full, b"meanwhile", 20)
    await eventually(lambda: _unready(full), "the full node says so")
    assert await asyncio.to_thread(full.stop) == 0, full.last_words
    full.start()
    await eventually(lambda: _waits(full), "it says that it waits for space")
    assert await asyncio.to_thread(full.stop) == 0, full.last_words

    filler.unlink()
    full.start()
    await eventually(lambda: _ready(full), "the node is ready again")
    await cluster.holds(wanted)


async def test_all_disks_full_stop_the_cluster_and_space_brings_it_back(small_disks: Callable[..., Cluster]) -> None:
    """Writes are refused or of unknown outcome, no node ends, and with space the cluster serves as if nothing were."""
    cluster = small_disks(STORE_MEETS_IT)
    cluster.start()
    await cluster.ready()
    async with Writers(cluster.nodes, 3, b"before") as writers:
        await writers.acknowledged(50)
    wanted = writers.outcomes.acknowledged
    fillers = [fill(cluster.data_directory(number)) for number in range(len(cluster.nodes))]
    for count in range(60):
        key = b"last%02d" % count
        reply = await cluster.nodes[count % 3].call(set_key(key, VALUE))
        if not reply.ok:
            assert reply.code in {"UNAVAILABLE", "TIMEOUT", "OVERLOADED"}, f"{reply}"
            break
        wanted[key] = VALUE
    else:
        pytest.fail("twelve megabytes fitted on full disks")
    for node in cluster.nodes:
        assert node.running, node.last_words

    for filler in fillers:
        filler.unlink()
    await cluster.ready()
    wanted |= await write(cluster, cluster.nodes[0], b"after", 3)
    await cluster.holds(wanted)


async def test_node_steps_aside_before_the_end_of_the_disk(small_disks: Callable[..., Cluster]) -> None:
    """The reserve is used up: not ready although a write would fit, and again ready only with twice the reserve."""
    cluster = small_disks(LOG_MEETS_IT, reserve=True)
    cluster.start()
    await cluster.ready()
    full = await in_role(cluster, "leader")
    filler = fill(cluster.data_directory(cluster.nodes.index(full)))
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - (1 << 20))
    await eventually(lambda: _unready(full), "the node with too little space says so")
    wanted = await write(cluster, full, b"meanwhile", 10)
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - (3 << 20))
    assert full.metrics()["kvorum_volume_free_bytes"] < 6 << 20
    assert await _unready(full)

    filler.unlink()
    await eventually(lambda: _ready(full), "the node is ready again")
    await cluster.leader()
    await cluster.holds(wanted)


async def in_role(cluster: Cluster, role: str) -> Node:
    """A node that leads, or one that follows."""
    return await cluster.leader() if role == "leader" else (await cluster.followers())[0]


async def write(cluster: Cluster, full: Node, prefix: bytes, count: int) -> dict[bytes, bytes]:
    """Write so many keys through the other nodes, each until it is acknowledged."""
    others = [node for node in cluster.nodes if node is not full]
    wanted = {b"%s%02d" % (prefix, number): VALUE for number in range(count)}
    for key in wanted:
        await eventually(functools.partial(_acknowledged, others, key), "a write while one disk is full")
    return wanted


async def _acknowledged(nodes: list[Node], key: bytes) -> bool:
    for node in nodes:
        reply = await node.call(set_key(key, VALUE))
        if reply.ok:
            return True
        assert reply.code in {"UNAVAILABLE", "TIMEOUT"}, f"{reply}"
    return False


async def _ready(node: Node) -> bool:
    return (await asyncio.to_thread(node.http, "/readyz"))[0] == 200


async def _unready(node: Node) -> bool:
    return not await _ready(node)


async def _waits(node: Node) -> bool:
    status, body = await asyncio.to_thread(node.http, "/status")
    return status == 200 and json.loads(body).get("state") == "waiting for disk space"
