"""A data directory without space: the node steps aside, the cluster goes on, and with space it comes back."""

from __future__ import annotations

import asyncio
import functools
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.process.harness import Cluster, eventually
from tests.process.wire import set_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.process.harness import Node

VALUE = b"v" * 200_000


@pytest.fixture
def small_disks(make_cluster: Callable[..., Cluster]) -> Iterator[Cluster]:
    """A cluster whose nodes have 64 MiB each; log segments of 1 MiB, so that a full disk is noticed soon."""
    cluster = make_cluster(settings="[wal]\nsegment_bytes = 1048576\n")
    mounted: list[Path] = []
    try:
        for number in range(len(cluster.nodes)):
            folder = cluster.data_directory(number)
            folder.mkdir(parents=True)
            command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"cannot mount a small tmpfs here: {done.stderr.strip()}")
            mounted.append(folder)
        yield cluster
    finally:
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


async def test_full_disk_of_one_node_costs_that_node_only(small_disks: Cluster) -> None:
    """First a follower's disk, then the leader's: writes go on, the full node says it is not ready, then catches up."""
    small_disks.start()
    await small_disks.ready()
    wanted: dict[bytes, bytes] = {}
    for role in ("follower", "leader"):
        full = await small_disks.leader() if role == "leader" else (await small_disks.followers())[0]
        wanted |= await fill_and_free(small_disks, full, role.encode())
        await small_disks.holds(wanted)


async def fill_and_free(cluster: Cluster, full: Node, prefix: bytes) -> dict[bytes, bytes]:
    """Let one node's disk be full while the others take writes, then free it; what was acknowledged."""
    others = [node for node in cluster.nodes if node is not full]
    filler = fill(cluster.data_directory(cluster.nodes.index(full)))
    wanted = {b"%s%02d" % (prefix, count): VALUE for count in range(20)}
    for key in wanted:
        await eventually(functools.partial(_acknowledged, others, key), "a write while one disk is full", 12)
    await eventually(lambda: _unready(full), "the full node says so", 5)
    assert full.running, full.last_words

    filler.unlink()
    await eventually(lambda: _ready(full), "the node is ready again", 10)
    await cluster.leader()
    return wanted


async def _acknowledged(nodes: list[Node], key: bytes) -> bool:
    for node in nodes:
        reply = await node.call(set_key(key, VALUE), 15)
        if reply.ok:
            return True
        assert reply.code in {"UNAVAILABLE", "TIMEOUT"}, f"{reply}"
    return False


async def _ready(node: Node) -> bool:
    return (await asyncio.to_thread(node.http, "/readyz"))[0] == 200


async def _unready(node: Node) -> bool:
    return not await _ready(node)
