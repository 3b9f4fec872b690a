"""What operators type, against real nodes: members come and go, the lead moves, a snapshot becomes a new cluster."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from kvorum.cli.local_cluster import LocalCluster, LocalNode, find_free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.process

WAIT_S = 120.0


def kvorum(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvorum", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def done(*arguments: str) -> Any:
    """The JSON a command prints; it must succeed."""
    found = kvorum(*arguments, "-o", "json")
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def counted(cluster: LocalCluster, sample: str) -> float:
    """Sum of one sample of /metrics over all nodes."""
    total = 0.0
    for node in cluster.nodes:
        with urllib.request.urlopen(f"http://{node.http_endpoint}/metrics", timeout=60) as page:
            lines = page.read().decode().splitlines()
        total += sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample + " "))
    return total


def voters(endpoints: str) -> set[int]:
    """Node ids that vote, as the first node that answers sees it; empty while none does."""
    found = kvorum("member", "list", "-e", endpoints, "-o", "json")
    if found.returncode != 0:
        return set()
    return {member["node_id"] for member in json.loads(found.stdout)["members"] if member["voter"]}


def rows(endpoints: str) -> str:
    """All of a prefix, linearizably."""
    found = kvorum("range", "-e", endpoints, "kept/", "kept0")
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """Three nodes with a leader and some rows."""
    with LocalCluster(tmp_path / "cluster") as made:
        made.start()
        endpoints = ",".join(made.endpoints)
        until(lambda: kvorum("leader", "show", "-e", endpoints).returncode == 0, "no leader")
        for number in range(10):
            assert kvorum("set", "-e", endpoints, f"kept/{number}", f"value {number}").returncode == 0
        yield made


def test_operator_moves_the_leader_and_learns_why_not(cluster: LocalCluster) -> None:
    """The lead goes where it is told; to nobody's surprise it stays there; a node that is no member is refused."""
    endpoints = ",".join(cluster.endpoints)
    before = done("leader", "show", "-e", endpoints)["leader_id"]
    target = (before + 1) % 3

    moved = done("leader", "move", str(target), "-e", endpoints)
    assert moved["text"] == f"node {target} leads"
    until(lambda: done("leader", "show", "-e", endpoints)["leader_id"] == target, "the lead did not move")

    refused = kvorum("leader", "move", "7", "-e", endpoints)
    assert refused.returncode == 1
    assert "node 7 is no member of this cluster" in refused.stderr
    transfers = 'kvorum_raft_leader_transfers_total{reason="manual",result="%s"}'
    assert counted(cluster, transfers % "done") == 1
    assert counted(cluster, transfers % "failed") == 1
    nowhere = kvorum("member", "list", "-e", "127.0.0.1:1999")
    assert nowhere.returncode == 1
    assert "no node answers over HTTP" in nowhere.stderr


def test_operator_adds_removes_and_replaces_members(cluster: LocalCluster) -> None:
    """A fourth node joins and votes, leaves for good, and an empty disk takes the seat of a lost one."""
    endpoints = ",".join(cluster.endpoints)
    (port,) = find_free_ports(1)
    listed = ", ".join(f'"{endpoint}"' for endpoint in [*cluster.endpoints, f"127.0.0.1:{port}"])
    config = cluster.directory / "four.toml"
    config.write_text(f'[deployment]\nreplica_endpoints = [{listed}]\n[database]\nbase_path = "{cluster.directory}"\n')

    added = done("member", "add", f"127.0.0.1:{port}", "-e", endpoints)
    assert added["node_id"] == 3
    assert [member["voter"] for member in added["members"]] == [True, True, True, False]
    fourth = LocalNode(3, port, cluster.directory, config)
    fourth.start()
    cluster.nodes.append(fourth)
    until(lambda: voters(endpoints) == {0, 1, 2, 3}, "the new node does not vote")
    assert rows(fourth.endpoint) == rows(endpoints)

    assert "is removed" in done("member", "remove", "3", "-e", endpoints)["text"]
    assert voters(endpoints) == {0, 1, 2}
    cluster.nodes.pop().stop()
    for operation in ("add", "promote", "remove"):
        sample = f'kvorum_raft_membership_changes_total{{op="{operation}",result="done"}}'
        assert counted(cluster, sample) >= 1, operation

    leader = done("leader", "show", "-e", endpoints)["leader_id"]
    lost = cluster.nodes[(leader + 1) % 3]
    up = kvorum("member", "replace", str(lost.node_id), "-e", endpoints)
    assert up.returncode == 1
    assert "is up; stop it" in up.stderr
    lost.kill()
    shutil.rmtree(lost.data_directory)
    others = ",".join(node.endpoint for node in cluster.nodes if node is not lost)

    def replaced() -> bool:
        return kvorum("member", "replace", str(lost.node_id), "-e", others).returncode == 0

    until(replaced, "the seat cannot be given away")
    assert voters(others) == {0, 1, 2} - {lost.node_id}
    lost.start()
    until(lambda: voters(others) == {0, 1, 2}, "the replaced node does not vote")
    until(lambda: kvorum("verify", "-e", endpoints).returncode == 0, "the nodes differ")


def test_operator_saves_a_snapshot_and_restores_it_into_a_new_cluster(cluster: LocalCluster, tmp_path: Path) -> None:
    """A saved file says what it holds, notices damage, and becomes a cluster of its own that others join."""
    endpoints = ",".join(cluster.endpoints)
    expected = rows(endpoints)
    file = tmp_path / "backup.snapshot"

    saved = done("snapshot", "save", str(file), "-e", endpoints)
    assert done("snapshot", "status", str(file)) == saved
    assert not file.with_name(file.name + ".part").exists()
    again = kvorum("snapshot", "save", str(file), "-e", endpoints)
    assert again.returncode == 2
    assert "--force" in again.stderr
    for http in done("wal", "compact", "-e", endpoints).values():
        assert isinstance(http, int)
    damaged = tmp_path / "damaged.snapshot"
    damaged.write_bytes(file.read_bytes()[:-40])
    assert "cut short" in kvorum("snapshot", "status", str(damaged)).stderr
    cluster.stop()

    with LocalCluster(tmp_path / "restored") as restored:
        first, second, _ = restored.nodes
        flags = ["-c", str(restored.config), "-n", "0", "-d", str(first.data_directory)]
        assert "not a whole snapshot" in kvorum("snapshot", "restore", str(damaged), *flags).stderr
        assert not first.data_directory.exists()
        made = done("snapshot", "restore", str(file), *flags)
        assert made["index"] > saved["index"]
        assert made["cluster_id"] != saved["cluster_id"]
        occupied = kvorum("snapshot", "restore", str(file), *flags)
        assert occupied.returncode == 2
        assert "not an empty directory" in occupied.stderr

        first.start()
        until(lambda: voters(first.endpoint) == {0}, "the restored node does not lead")
        assert rows(first.endpoint) == expected
        done("member", "add", second.endpoint, "-e", first.endpoint)
        second.start()
        until(lambda: voters(first.endpoint) == {0, 1}, "the second node does not join")
        assert rows(second.endpoint) == expected
        both = f"{first.endpoint},{second.endpoint}"
        until(lambda: kvorum("verify", "-e", both).returncode == 0, "the nodes differ")
