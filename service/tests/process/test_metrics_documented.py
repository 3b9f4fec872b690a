"""What nodes export and what the page on metrics says are the same."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.process.harness import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.harness import Cluster

FAILURES = ("kvorum_raft_heartbeat_send_failures_total", "kvorum_peer_dial_failures_total")
PAGE = Path(__file__).resolve().parents[3] / "docs/operations/metrics.md"


def documented(page: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Type and labels of every row of the tables."""
    rows = re.findall(r"^\| `(kvorum_\w+)` \| (\w+) \| (.*?) \|", page, re.MULTILINE)
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def exported(pages: list[str]) -> dict[str, tuple[str, frozenset[str]]]:
    """Type and labels of every family of kvorum's own on any of these scrapes."""
    text = "\n".join(pages)
    kinds = dict(re.findall(r"^# TYPE (kvorum_\w+) (\w+)$", text, re.MULTILINE))
    labels: dict[str, set[str]] = {name: set() for name in kinds}
    for name, found in re.findall(r"^(kvorum_\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        family = name if name in kinds else name.rpartition("_")[0]
        labels[family] |= set(re.findall(r'(\w+)="', found)) - {"le"}
    return {name: (kind, frozenset(labels[name])) for name, kind in kinds.items()}


async def test_metrics_page_and_running_nodes_agree(make_cluster: Callable[..., Cluster]) -> None:
    """Every metric of a cluster stands on the page with its type and labels, and nothing else does."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()
    status, scrape = await asyncio.to_thread(leader.http, "/metrics")
    assert status == 200, scrape
    scrapes = [scrape, *[(await asyncio.to_thread(node.http, "/metrics"))[1] for node in await cluster.followers()]]
    static, _, kubernetes = PAGE.read_text(encoding="utf-8").partition("## On Kubernetes")

    assert documented(static) == exported(scrapes)
    assert documented(kubernetes), "the part on Kubernetes has a table"


async def test_metrics_of_a_cluster_tell_what_happened(make_cluster: Callable[..., Cluster]) -> None:
    """After a leader was killed: voters out of reach, an election won, failed heartbeats, commits timed."""
    cluster = make_cluster(settings="[cluster]\nnode_timeout_ms = 1000\nhealth_check_interval_ms = 200\n")
    cluster.start()
    killed = await cluster.ready()
    victim = cluster.nodes.index(killed)
    killed.kill()
    leader = await cluster.ready()
    figures: dict[str, float] = {}

    async def noticed() -> bool:
        figures.update(await asyncio.to_thread(leader.metrics))
        failures = [figures[f'{name}{{peer="{victim}"}}'] for name in FAILURES]
        return figures["kvorum_raft_voters_reachable"] == 2 and all(failures)

    await eventually(noticed, "the leader misses one voter")

    assert figures['kvorum_raft_elections_total{result="won"}'] >= 1
    assert figures["kvorum_raft_quorum_size"] == 2
    assert figures[f'kvorum_peer_link_up{{peer="{victim}"}}'] == 0
    assert figures["kvorum_raft_commit_duration_seconds_count"] > 0
    assert figures['kvorum_health_check{name="leader",type="readyz"}'] == 1
    assert figures["kvorum_startup_replay_progress_ratio"] == 1
    assert 0 < figures["kvorum_volume_free_bytes"] < figures["kvorum_volume_size_bytes"]
