"""Real nodes as processes: start, kill, pause, restart them, and look at them from outside."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kvorum.cli.local_cluster import find_free_ports
from tests.process.wire import Connection, ConnectionLost, get, get_status, set_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tests.process.wire import Call, Reply

PATIENCE_S = 120.0
"""
How long anything that must happen is waited for.

It only ends what hangs: on a busy machine, or one whose disk answers late, everything may take many times as long.
"""

SERVE = [sys.executable, "-m", "kvorum", "serve"]


class Node:
    """One `kvorum serve` process, its files and its ports; it may be started any number of times."""

    def __init__(
        self, folder: Path, port: int, arguments: Sequence[str], environment: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.port = port
        self.endpoint = f"127.0.0.1:{port}"
        self.arguments = [*arguments]
        self.environment = environment or {}
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.output = folder / f"out-{port}.log"

    # --- life ---

    def start(self) -> None:
        """Start the process; it will be ready later."""
        assert not self.running, f"{self} runs already"
        inherited = {name: v for name, v in os.environ.items() if not name.startswith(("KVORUM_", "THRIFT_", "COV_"))}
        self.started_at = time.monotonic()
        with self.output.open("ab") as output:
            output.write(f"--- start at {time.time():.3f}\n".encode())
            output.flush()
            self.process = subprocess.Popen(
                [*SERVE, *self.arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                cwd=self.folder, env={**inherited, **self.environment},
            )  # fmt: skip

    @property
    def running(self) -> bool:
        """Whether the process exists."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """Process id."""
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL and wait for the end."""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(PATIENCE_S)

    def stop(self, seconds: float = PATIENCE_S) -> int:
        """SIGTERM and wait for the end; the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """Wait for the end; the exit status."""
        assert self.process is not None
        return self.process.wait(seconds)

    def pause(self) -> None:
        """SIGSTOP: the node is isolated without knowing it."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def end(self) -> None:
        """Whatever state it is in, the process is gone afterwards."""
        if self.running:
            self.resume()
            self.kill()

    # --- sight ---

    @property
    def text(self) -> str:
        """Everything the process has printed since its first start."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    @property
    def last_words(self) -> str:
        """What it has printed since its latest start."""
        return self.text.rpartition("--- start at")[2]

    def http(self, path: str, seconds: float = 30.0) -> tuple[int, str]:
        """Status and body of one page of the node's HTTP port."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port - 1000, timeout=seconds)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Samples of /metrics by name and labels as they are printed."""
        status, body = self.http("/metrics")
        assert status == 200, body
        lines = (line for line in body.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def state_hash(self) -> tuple[int, str]:
        """Applied index and hash of the logical state there."""
        status, body = self.http("/state-hash", 60)
        assert status == 200, body
        found = json.loads(body)
        return found["applied_index"], found["hash"]

    def resident_mib(self) -> float:
        """Resident memory now."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024

    async def connect(self) -> Connection:
        """A new client connection."""
        return await Connection.open(self.endpoint)

    async def call(self, call: Call, seconds: float = 30.0) -> Reply:
        """One call on a connection of its own."""
        async with await self.connect() as connection:
            return await connection.call(call, seconds)

    async def accepts(self) -> bool:
        """Whether something listens on the client port."""
        try:
            async with await self.connect():
                return True
        except OSError:
            return False

    async def status(self) -> Reply | None:
        """Its getStatus, or None if it cannot be asked."""
        try:
            return await self.call(get_status(), 10)
        except (OSError, ConnectionLost, TimeoutError):
            return None

    def __repr__(self) -> str:
        return f"node {self.endpoint}"


class Cluster:
    """Nodes that share one configuration file."""

    def __init__(self, folder: Path, nodes: int = 3, settings: str = "") -> None:
        self.folder = folder
        ports = find_free_ports(nodes)
        endpoints = json.dumps([f"127.0.0.1:{port}" for port in ports])
        self.config = folder / "kvorum.toml"
        self.config.write_text(
            f"[deployment]\nreplica_endpoints = {endpoints}\n\n"
            f"[database]\nbase_path = {json.dumps(str(folder / 'data'))}\n\n{settings}\n"
        )
        self.nodes = [self.make_node(number, port) for number, port in enumerate(ports)]

    def make_node(self, number: int, port: int) -> Node:
        """A node of this cluster, not started."""
        arguments = ["--config", str(self.config), "--node-id", str(number)]
        return Node(self.folder, port, [*arguments, "--log-dir", str(self.folder / f"logs{number}")])

    def data_directory(self, number: int) -> Path:
        """Where a node keeps its data."""
        return self.folder / "data" / f"node_{number}"

    def start(self) -> None:
        """Start every node that does not run."""
        for node in self.nodes:
            if not node.running:
                node.start()

    def kill(self) -> None:
        """SIGKILL all of them at one moment."""
        for node in self.running:
            node.signal(signal.SIGKILL)
        for node in self.nodes:
            node.wait(PATIENCE_S)

    def end(self) -> None:
        """Nothing of this cluster runs afterwards."""
        for node in self.nodes:
            node.end()

    @property
    def running(self) -> list[Node]:
        """Nodes whose process exists."""
        return [node for node in self.nodes if node.running]

    async def ready(self) -> Node:
        """Wait until each running node serves a write; the leader."""
        for node in self.running:
            await eventually(lambda node=node: _writes(node), f"{node} takes a write")  # type: ignore[misc]
        return await self.leader()

    async def leader(self) -> Node:
        """Wait until exactly one running node leads and every other one follows it."""
        found: list[Node] = []

        async def agreed() -> bool:
            replies = [(node, await node.status()) for node in self.running]
            leaders = [node for node, reply in replies if reply is not None and reply.ok and reply.text(5) == "leader"]
            known = {reply.fields.get(7) for _, reply in replies if reply is not None and reply.ok}
            found[:] = leaders
            return len(leaders) == 1 and known == {self.nodes.index(leaders[0])}

        await eventually(agreed, "one leader that all nodes know")
        return found[0]

    async def followers(self) -> list[Node]:
        """Running nodes that do not lead."""
        leader = await self.leader()
        return [node for node in self.running if node is not leader]

    async def same_state(self) -> tuple[int, str]:
        """Wait until all nodes show one state hash at one applied index."""
        hashes: list[tuple[int, str]] = []

        async def equal() -> bool:
            hashes[:] = [await asyncio.to_thread(node.state_hash) for node in self.nodes]
            by_index: dict[int, set[str]] = {}
            for index, digest in hashes:
                by_index.setdefault(index, set()).add(digest)
            assert all(len(digests) == 1 for digests in by_index.values()), f"replicas differ at one index: {hashes}"
            return len(by_index) == 1

        await eventually(equal, "the same applied index and state hash on all nodes")
        return hashes[0]

    async def holds(self, wanted: dict[bytes, bytes]) -> None:
        """Check that each node shows every pair by a local read, once all have applied the same entries."""
        await self.same_state()
        for node in self.nodes:
            await _holds(node, wanted)

    def describe(self, lines: int = 60) -> str:
        """Ends of all nodes' outputs, for a test that failed."""
        parts = []
        for node in self.nodes:
            status = None if node.process is None else node.process.poll()
            parts += [f"=== {node}, exit status {status}", *node.text.splitlines()[-lines:]]
        return "\n".join(parts)


async def _writes(node: Node) -> bool:
    try:
        return (await node.call(set_key(b"ready", b"1"))).ok
    except (OSError, ConnectionLost, TimeoutError):
        assert node.running, f"{node} ended:\n{node.last_words}"
        return False


async def _holds(node: Node, wanted: dict[bytes, bytes]) -> None:
    items = list(wanted.items())
    async with await node.connect() as connection:
        for at in range(0, len(items), 500):
            part = items[at : at + 500]
            replies = await asyncio.gather(*(connection.submit(get(key, "local")) for key, _ in part))
            for (key, value), reply in zip(part, replies, strict=True):
                assert reply.value == value, f"{node} shows {reply.value!r} for {key!r}, not {value!r}"


async def eventually(
    condition: Callable[[], Awaitable[bool]], what: str, seconds: float = PATIENCE_S, pause: float = 0.05
) -> float:
    """Wait until a condition holds; the seconds it took."""
    began = time.monotonic()
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if await condition():
                return time.monotonic() - began
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        await asyncio.sleep(pause)


PATIENT_CLUSTER = "[consensus]\nelection_timeout_ms = 4000\n"
"""For tests that allow no election: a machine that stalls for a second must not look like a leader that is gone."""


# --- load ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What writers were told about their writes, each to a key of its own."""

    acknowledged: dict[bytes, bytes]
    refused: set[bytes]
    """Certainly not applied: the code promises it."""
    unknown: set[bytes]


CERTAINLY_NOT_APPLIED = {"UNAVAILABLE", "OVERLOADED", "NOT_LEADER"}


class Writers:
    """Clients that write one key after the other through given nodes until told to stop; each key once."""

    def __init__(self, nodes: Sequence[Node], clients: int = 6, prefix: bytes = b"w") -> None:
        self._nodes = nodes
        self._clients = clients
        self._prefix = prefix
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.outcomes = Outcomes({}, set(), set())

    def __len__(self) -> int:
        return len(self.outcomes.acknowledged)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.finish()

    async def finish(self) -> Outcomes:
        """Stop, wait for replies that are due, tell what happened."""
        self._stop.set()
        await asyncio.gather(*self._tasks)
        return self.outcomes

    async def acknowledged(self, more: int) -> float:
        """Wait for so many further acknowledgements; the seconds it took."""
        wanted = len(self) + more

        async def enough() -> bool:
            return len(self) >= wanted

        return await eventually(enough, f"{more} more acknowledged writes", pause=0.005)

    async def _write(self, client: int) -> None:
        connection: Connection | None = None
        count = 0
        try:
            while not self._stop.is_set():
                node = self._nodes[(client + count) % len(self._nodes)] if connection is None else None
                try:
                    if node is not None:
                        connection = await node.connect()
                except (OSError, TimeoutError):
                    count += 1
                    await asyncio.sleep(0.02)
                    continue
                assert connection is not None
                count += 1
                key = b"%s/%d/%06d" % (self._prefix, client, count)
                if not await self._one(connection, key, b"value of " + key):
                    await connection.close()
                    connection = None
        finally:
            if connection is not None:
                await connection.close()

    async def _one(self, connection: Connection, key: bytes, value: bytes) -> bool:
        """Write once and book the outcome; False if another connection is needed."""
        try:
            reply = await connection.call(set_key(key, value), 60)
        except (ConnectionLost, TimeoutError):
            self.outcomes.unknown.add(key)
            return False
        if reply.ok:
            self.outcomes.acknowledged[key] = value
        elif reply.code in CERTAINLY_NOT_APPLIED:
            self.outcomes.refused.add(key)
        else:
            assert reply.code == "TIMEOUT", f"unexpected outcome of {key!r}: {reply}"
            self.outcomes.unknown.add(key)
        return True
