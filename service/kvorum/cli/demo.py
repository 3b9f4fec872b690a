"""``kvorum demo``: three real nodes, a leader killed in the middle of real writes, and proof that nothing was lost."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from kvorum.cli.local_cluster import LocalCluster
from kvorum.cli.output import console, fail
from kvorum.cli.status import leader_of
from kvorum.cli.verify import Verdict, compare
from kvorum_client import KvorumClient, KvorumError, NodeStatus, OutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from kvorum.cli.local_cluster import LocalNode

PREFIX: Final = b"demo/"
AFTER_PREFIX: Final = b"demo0"
"""The byte after ``/``: the end of the range of all keys that begin with the prefix."""

KILL_AT: Final = 0.35
RESTART_AT: Final = 0.70
START_S: Final = 20.0
CATCH_UP_S: Final = 30.0
POLL_S: Final = 0.02


class DemoFailedError(Exception):
    """The demo did not show what it must."""


@dataclass(slots=True)
class Findings:
    """What the demo measured and proved."""

    leader_after_s: float = 0.0
    acknowledged: dict[bytes, bytes] = field(default_factory=dict)
    writes_s: float = 0.0
    failover_s: float | None = None
    killed: str = ""
    unknown: int = 0
    catch_up_s: float = 0.0
    lost: dict[str, int] = field(default_factory=dict)
    verdict: Verdict | None = None

    @property
    def sound(self) -> bool:
        """Nothing is lost and all nodes hold the same."""
        return not self.lost and self.verdict is not None and self.verdict.equal


def value_of(number: int) -> bytes:
    """A value that can be checked again and differs for every key."""
    return b"%d " % number + hashlib.sha256(b"%d" % number).hexdigest().encode()


def key_of(number: int) -> bytes:
    """Key number so-and-so."""
    return PREFIX + b"%08d" % number


def run_demo(*, writes: int, writers: int, keep: bool) -> NoReturn:
    """Run the demo; exit code 1 if anything acknowledged is missing."""
    directory = Path(tempfile.mkdtemp(prefix="kvorum-demo-"))
    terminal = console()
    cluster = LocalCluster(directory)
    left_running = False
    try:
        findings = asyncio.run(_interruptible(Demo(cluster, terminal, writes=writes, writers=writers)))
        _print_summary(terminal, findings, cluster)
        left_running = keep
        _print_way_round(terminal, cluster, running=left_running)
        code = 0 if findings.sound else 1
    except DemoFailedError as problem:
        _print_tails(terminal, cluster)
        fail(str(problem))
    except (KeyboardInterrupt, asyncio.CancelledError):
        fail("interrupted; the nodes are stopped and their files removed", 130)
    finally:
        if not left_running:
            cluster.stop()
            shutil.rmtree(directory, ignore_errors=True)
    raise SystemExit(code)


async def _interruptible(demo: Demo) -> Findings:
    """Let SIGTERM end the demo like Ctrl-C, so that it never leaves nodes behind."""
    task = asyncio.create_task(demo.run(), name="demo")
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


class Demo:
    """One run over one cluster."""

    def __init__(self, cluster: LocalCluster, terminal: Console, *, writes: int, writers: int) -> None:
        self._cluster = cluster
        self._terminal = terminal
        self._writes = writes
        self._writers = writers
        self._findings = Findings()
        self._killed_at: float | None = None

    async def run(self) -> Findings:
        """All steps, in order."""
        started = time.monotonic()
        self._say(f"starting three nodes on {', '.join(self._cluster.endpoints)}")
        self._cluster.start()
        async with KvorumClient(self._cluster.endpoints) as client:
            leader = await self._wait_for_leader(client)
            self._findings.leader_after_s = time.monotonic() - started
            self._say(f"node {leader.node_id} leads after {self._findings.leader_after_s:.1f} s")
            await self._write_through_a_crash(client)
            await self._wait_until_level(client)
            await self._read_everything_back()
            self._say("comparing the state hashes")
            try:
                self._findings.verdict = await compare(client, [node.http_endpoint for node in self._cluster.nodes])
            except KvorumError as problem:
                raise DemoFailedError(str(problem)) from problem
        return self._findings

    def _say(self, text: str) -> None:
        self._terminal.print(f"[dim]·[/dim] {text}")

    async def _wait_for_leader(self, client: KvorumClient) -> NodeStatus:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            for node in self._cluster.nodes:
                if not node.running:
                    message = f"node {node.node_id} ended at once"
                    raise DemoFailedError(message)
            leader = leader_of(await client.status_all())
            if leader is not None:
                return leader
            await asyncio.sleep(POLL_S)
        message = f"no leader within {START_S:.0f} s"
        raise DemoFailedError(message)

    # --- writing --------------------------------------------------------------------------------------------------

    async def _write_through_a_crash(self, client: KvorumClient) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        started = time.monotonic()
        numbers = iter(range(self._writes))
        with Progress(*columns, console=self._terminal, transient=True) as progress:
            bar = progress.add_task("writing", total=self._writes)
            async with asyncio.TaskGroup() as group:
                for _ in range(self._writers):
                    group.create_task(self._writer(client, numbers))
                group.create_task(self._crash(client))
                while len(self._findings.acknowledged) < self._writes:
                    progress.update(bar, completed=len(self._findings.acknowledged))
                    await asyncio.sleep(POLL_S)
                progress.update(bar, completed=self._writes)
        self._findings.writes_s = time.monotonic() - started
        self._say(f"{self._writes:,} writes acknowledged in {self._findings.writes_s:.1f} s")

    async def _writer(self, client: KvorumClient, numbers: Iterator[int]) -> None:
        acknowledged = self._findings.acknowledged
        for number in numbers:
            key, value = key_of(number), value_of(number)
            started = time.monotonic()
            while True:
                try:
                    await client.set(key, value)
                    break
                except OutcomeUnknownError:
                    # Nobody else writes this key, so writing it again is harmless.
                    self._findings.unknown += 1
                except KvorumError as problem:
                    message = f"a write failed: {problem}"
                    raise DemoFailedError(message) from problem
            acknowledged[key] = value
            if self._killed_at is not None and self._findings.failover_s is None and started > self._killed_at:
                self._findings.failover_s = time.monotonic() - self._killed_at

    async def _crash(self, client: KvorumClient) -> None:
        await self._until_acknowledged(KILL_AT)
        node = self._node_of(await self._wait_for_leader(client))
        node.kill()
        self._killed_at = time.monotonic()
        self._findings.killed = f"node {node.node_id}"
        self._say(f"SIGKILL to the leader, node {node.node_id}, after {len(self._findings.acknowledged):,} writes")
        await self._until_acknowledged(RESTART_AT)
        self._say(f"restarting node {node.node_id}")
        node.start()

    async def _until_acknowledged(self, share: float) -> None:
        while len(self._findings.acknowledged) < self._writes * share:  # noqa: ASYNC110 - writers must not pay for it
            await asyncio.sleep(0.001)

    def _node_of(self, status: NodeStatus) -> LocalNode:
        return next(node for node in self._cluster.nodes if node.endpoint == status.endpoint)

    # --- checking -------------------------------------------------------------------------------------------------

    async def _wait_until_level(self, client: KvorumClient) -> None:
        """Wait until each node has applied everything that was committed when the writes ended."""
        started = time.monotonic()
        target = await client.get_read_version()
        while True:
            answers = (await client.status_all()).values()
            if all(isinstance(answer, NodeStatus) and answer.applied_index >= target for answer in answers):
                self._findings.catch_up_s = time.monotonic() - started
                return
            if time.monotonic() - started > CATCH_UP_S:
                states = "; ".join(
                    f"{answer.endpoint} at {answer.applied_index}" if isinstance(answer, NodeStatus) else str(answer)
                    for answer in answers
                )
                message = f"not all nodes reached index {target} within {CATCH_UP_S:.0f} s: {states}"
                raise DemoFailedError(message)
            await asyncio.sleep(POLL_S)

    async def _read_everything_back(self) -> None:
        """Read every key from every node's own state, without asking any other node."""
        for node in self._cluster.nodes:
            try:
                async with KvorumClient([node.endpoint], consistency="local") as client:
                    there = {key: value async for key, value in client.scan(PREFIX, AFTER_PREFIX)}
            except KvorumError as problem:
                message = f"node {node.node_id} cannot be read: {problem}"
                raise DemoFailedError(message) from problem
            lost = sum(there.get(key) != value for key, value in self._findings.acknowledged.items())
            self._say(f"node {node.node_id}: {len(self._findings.acknowledged) - lost:,} of {self._writes:,} read back")
            if lost:
                self._findings.lost[f"node {node.node_id}"] = lost


def _print_summary(terminal: Console, findings: Findings, cluster: LocalCluster) -> None:
    from rich.table import Table

    table = Table(title="kvorum demo", show_header=False)
    table.add_column()
    table.add_column()
    rate = len(findings.acknowledged) / max(findings.writes_s, 0.001)
    table.add_row("first leader after start", f"{findings.leader_after_s:.2f} s")
    table.add_row("acknowledged writes", f"{len(findings.acknowledged):,} ({rate:,.0f}/s, the crash included)")
    failover = "no write after it" if findings.failover_s is None else f"{findings.failover_s * 1000:,.0f} ms"
    table.add_row("failover: kill to first new write", f"[bold]{failover}[/bold] ({findings.killed} killed)")
    table.add_row("outcome unknown, written again", f"{findings.unknown:,}")
    table.add_row("restarted node level again after", f"{findings.catch_up_s:.2f} s beyond the last write")
    for node in cluster.nodes:
        lost = findings.lost.get(f"node {node.node_id}", 0)
        table.add_row(f"lost on node {node.node_id}", f"[red]{lost:,}[/red]" if lost else "[green]0[/green]")
    if findings.verdict is not None:
        equal = "[green]equal[/green]" if findings.verdict.equal else "[red]DIFFERENT[/red]"
        table.add_row("state hashes", f"{equal} at index {findings.verdict.applied_index}")
    terminal.print(table)


def _print_way_round(terminal: Console, cluster: LocalCluster, *, running: bool) -> None:
    endpoints = ",".join(cluster.endpoints)
    if not running:
        terminal.print("Nodes stopped, files removed. To look around: [bold]kvorum demo --keep[/bold]")
        return
    pids = " ".join(str(node.pid) for node in cluster.nodes)
    first = cluster.nodes[0]
    lines = [
        "The nodes keep running. Look around:",
        f"  kvorum status --endpoints {endpoints}",
        f"  kvorum range --endpoints {endpoints} demo/ demo0 --limit 5",
        f"  kvorum set --endpoints {endpoints} hello world",
        f"  kvorum verify --endpoints {endpoints}",
        f"  curl http://{first.http_endpoint}/metrics",
        f"  kvorum wal inspect {first.data_directory}/log",
        f"Logs: {cluster.directory}/logs",
        f"Stop: kill {pids}; rm -r {cluster.directory}",
    ]
    for line in lines:
        terminal.print(line, markup=False, soft_wrap=True)


def _print_tails(terminal: Console, cluster: LocalCluster) -> None:
    for node in cluster.nodes:
        with contextlib.suppress(OSError):
            if text := node.tail():
                terminal.print(f"--- node {node.node_id} said last:\n{text}", markup=False)
