"""An acknowledged write is on the disks of a quorum: SIGKILL right after the reply, and a look at the system calls."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.process.harness import PATIENT_CLUSTER, Cluster, Node, eventually
from tests.process.wire import get, set_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


async def test_write_survives_sigkill_of_all_nodes_right_after_its_acknowledgement(
    make_cluster: Callable[..., Cluster],
) -> None:
    """Five times: write through another node, kill all as soon as the reply is here, restart, read it on every node."""
    cluster = make_cluster()
    wanted: dict[bytes, bytes] = {}
    for number in range(5):
        cluster.start()
        await cluster.ready()
        key, value = b"round%d" % number, b"x" * (1 + 5000 * number)
        reply = await cluster.nodes[number % 3].call(set_key(key, value))
        cluster.kill()
        assert reply.ok
        wanted[key] = value
    cluster.start()
    await cluster.ready()
    await cluster.holds(wanted)


@dataclass(frozen=True, slots=True)
class Sync:
    """One fdatasync of a node that ended well, in seconds since the epoch."""

    began: float
    ended: float


class Tracer:
    """strace attached to a running node, noting its fdatasync calls."""

    def __init__(self, node: Node, output: Path) -> None:
        self._output = output
        self._process = subprocess.Popen(
            ["strace", "-f", "-ttt", "-T", "-e", "trace=fdatasync,fsync", "-o", str(output), "-p", str(node.pid)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def attached(self) -> bool:
        """Whether it watches; skips the test if it may not."""
        if self._process.poll() is not None:
            assert self._process.stderr is not None
            why = self._process.stderr.read().decode().strip()
            pytest.skip(f"strace cannot attach to a process here: {why}")
        return self._output.exists()

    def syncs(self) -> list[Sync]:
        """Let go of the node and read what was seen."""
        self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=60)
        found: list[Sync] = []
        open_calls: dict[str, float] = {}
        for line in self._output.read_text().splitlines():
            match = re.match(r"(\d+) +(\d+\.\d+) (.*?)(?: += (-?\d+))?(?: <(\d+\.\d+)>)?$", line)
            if match is None:
                continue
            thread, at, what, result, took = match[1], float(match[2]), match[3], match[4], match[5]
            if "<unfinished" in what:
                open_calls[thread] = at
            elif result == "0" and took is not None:
                # A call that another thread's interrupted has a line of its own for its end.
                began = open_calls.pop(thread, at) if "resumed>" in what else at
                found.append(Sync(began, began + float(took)))
        return found

    def end(self) -> None:
        """Gone, whatever happened."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (Debian: apt install strace)")
async def test_fdatasync_ends_on_a_quorum_before_every_acknowledgement(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """
    With one write under way at a time, at least two nodes finish an fdatasync between its sending and its reply.

    Both the calls and the client are timed by the same clock of this machine.
    """
    cluster = make_cluster(settings=PATIENT_CLUSTER)
    cluster.start()
    leader = await cluster.ready()
    follower, *_ = await cluster.followers()
    tracers = [Tracer(node, tmp_path / f"strace{number}") for number, node in enumerate(cluster.nodes)]
    try:
        for tracer in tracers:
            await eventually(lambda tracer=tracer: asyncio.sleep(0, tracer.attached()), "strace is attached")  # type: ignore[misc]
        await asyncio.sleep(0.5)
        spans: list[tuple[float, float]] = []
        for through in (leader, follower):
            async with await through.connect() as connection:
                for number in range(100):
                    sent = time.time()
                    reply = await connection.call(set_key(b"k%d" % number, b"v" * 256))
                    assert reply.ok
                    spans.append((sent, time.time()))
        syncs = [tracer.syncs() for tracer in tracers]
    finally:
        for tracer in tracers:
            tracer.end()

    for number, (sent, answered) in enumerate(spans):
        durable = sum(any(sent <= sync.began <= sync.ended <= answered for sync in each) for each in syncs)
        assert durable >= 2, f"write {number} was acknowledged with an fdatasync on {durable} node(s) only"
    assert (await leader.call(get(b"k99"))).value == b"v" * 256
