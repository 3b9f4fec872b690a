"""``kvorum check`` against three real nodes, all up and one down."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from kvorum.cli.local_cluster import LocalCluster
from kvorum_client import KvorumClient

pytestmark = pytest.mark.process

START_S = 120.0


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvorum", "check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture
def cluster(tmp_path):
    """Three nodes of which one knows a leader."""
    with LocalCluster(tmp_path) as made:
        made.start()
        deadline = time.monotonic() + START_S
        while check("-e", made.endpoints[0], "--timeout", "2").returncode != 0:
            assert time.monotonic() < deadline, [node.tail() for node in made.nodes]
        yield made


async def test_check_finds_every_voter_through_one_endpoint_and_leaves_nothing(cluster):
    """Each voter gets a line that names who read its write, and no key stays behind."""
    shown = check("-e", cluster.endpoints[1])
    document = json.loads(check("-e", cluster.endpoints[1], "-o", "json").stdout)

    assert shown.returncode == 0
    assert "node 0 at " in shown.stdout
    assert "read back by itself and through 1, 2" in shown.stdout
    assert shown.stdout.endswith("good: 3 voters of 3 members checked\n")
    assert document["ok"] is True
    assert [[1, 2], [0, 2], [0, 1]] == [node["read_through"] for node in document["nodes"]]
    async with KvorumClient(cluster.endpoints) as client:
        assert await client.get_range(b"kvorum-check/", b"kvorum-check0") == []


def test_status_of_a_follower_names_the_leader_that_was_not_asked(cluster):
    """Inside a pod only the own node is asked; that it does not lead is no sign that nobody does."""
    shown = []
    for endpoint in cluster.endpoints:
        command = [sys.executable, "-m", "kvorum", "status", "-e", endpoint]
        shown.append(subprocess.run(command, capture_output=True, text=True, timeout=240, check=False).stdout)

    assert ["none of these leads; node" in text for text in shown].count(True) == 2
    assert not any("no leader" in text for text in shown)


def test_check_with_a_node_down_fails_and_names_it(cluster):
    """Though a majority serves, a voter that does not answer is a failure, seen from itself and from the others."""
    cluster.nodes[2].kill()

    result = check("-e", ",".join(cluster.endpoints[:2]), "-o", "json", "--timeout", "5")

    assert result.returncode == 1
    document = json.loads(result.stdout)
    assert document["ok"] is False
    for node in document["nodes"]:
        assert node["problems"], node
        assert any(cluster.endpoints[2] in problem for problem in node["problems"])


def test_check_of_a_cluster_without_a_majority_fails_in_time(cluster):
    """Without a quorum nothing can be proved; the command says so instead of waiting for ever."""
    cluster.nodes[1].kill()
    cluster.nodes[2].kill()

    result = check("-e", cluster.endpoints[0], "--timeout", "3")

    assert result.returncode == 1
    assert "good:" not in result.stdout
