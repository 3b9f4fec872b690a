"""The kvorum command and the client against three real nodes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time

import pytest

from kvorum.cli.local_cluster import LocalCluster
from kvorum_client import ConflictError, KvorumClient

pytestmark = pytest.mark.process

START_S = 120.0


def kvorum(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvorum", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three nodes with a leader, for all tests of this file."""
    with LocalCluster(tmp_path_factory.mktemp("cluster")) as made:
        made.start()
        endpoints = ",".join(made.endpoints)
        deadline = time.monotonic() + START_S
        while kvorum("status", "-e", endpoints).returncode != 0:
            assert time.monotonic() < deadline, [node.tail() for node in made.nodes]
        yield made


@pytest.fixture
def endpoints(cluster):
    """All client endpoints, as the command wants them."""
    return ",".join(cluster.endpoints)


def test_keys_written_are_read_ranged_and_deleted(endpoints):
    """Set, get, range and delete do what they say, binary keys and families included, with exit codes."""
    assert kvorum("set", "-e", endpoints, r"cli/\x00\xff", "one").returncode == 0
    assert kvorum("set", "-e", endpoints, "cli/b", r"two\n").returncode == 0
    assert kvorum("set", "-e", endpoints, "cli/b", "three", "--family", "other").returncode == 0

    assert kvorum("get", "-e", endpoints, r"cli/\x00\xff").stdout == "one\n"
    found = kvorum("get", "-e", endpoints, "cli/b", "-f", "other", "-o", "json", "--consistency", "local")
    assert json.loads(found.stdout) == {"key": "cli/b", "found": True, "value": "three"}
    assert kvorum("range", "-e", endpoints, "cli/", "cli0").stdout == "cli/\\x00\\xff\tone\ncli/b\ttwo\\x0a\n"
    backwards = kvorum("range", "-e", endpoints, "636c692f", "636c6930", "--hex", "-r", "--limit", "1", "--keys-only")
    assert backwards.stdout == "636c692f62\n"

    assert kvorum("delete", "-e", endpoints, "cli/b").returncode == 0
    gone = kvorum("get", "-e", endpoints, "cli/b")
    assert (gone.returncode, gone.stdout, gone.stderr) == (1, "", "")


def test_status_one_leader_and_all_members(endpoints):
    """Exactly one node leads, and all agree on it."""
    document = json.loads(kvorum("status", "-e", endpoints, "-o", "json").stdout)

    assert [node["role"] for node in document["nodes"]].count("leader") == 1
    assert len({node["leader_endpoint"] for node in document["nodes"]}) == 1
    assert document["leader"] == document["nodes"][0]["leader_endpoint"]
    assert all(len(node["members"]) == 3 for node in document["nodes"])


def test_verify_while_nobody_writes_finds_equal_states(endpoints):
    """All nodes give the same hash at one index."""
    result = kvorum("verify", "-e", endpoints, "-o", "json")

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["equal"] is True


def test_wal_inspect_of_a_running_node_reads_its_log(cluster):
    """The log of a live node can be looked at without harm."""
    result = kvorum("wal", "inspect", str(cluster.nodes[0].data_directory / "log"), "-o", "json")

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["recovered"]["last_index"] > 0


def test_serve_port_taken_says_so(cluster, tmp_path):
    """A second node on the same port does not start and names the port."""
    port = str(cluster.nodes[0].port)
    result = kvorum("serve", "-p", port, "-d", str(tmp_path / "data"), "--log-dir", str(tmp_path / "logs"))

    assert result.returncode == 1
    assert port in result.stderr


async def test_client_transactions_on_real_nodes_conflict_and_retry(cluster):
    """Concurrent increments through all nodes lose nothing; a stale read is a conflict."""
    async with KvorumClient(cluster.endpoints) as client:

        async def increment(transaction):
            count = int(await transaction.get(b"txn/counter") or b"0")
            transaction.set(b"txn/counter", b"%d" % (count + 1))

        await asyncio.gather(*(client.run(increment, attempts=200) for _ in range(10)))
        assert await client.get(b"txn/counter") == b"10"

        transaction = client.transaction()
        await transaction.get_range(b"txn/", b"txn0")
        await client.set(b"txn/new", b"")
        transaction.set(b"out", b"")
        with pytest.raises(ConflictError):
            await transaction.commit()


async def test_client_transaction_features_on_real_nodes(cluster):
    """Own writes in ranges, unknown families, stamps and long scans work on the real thing."""
    async with KvorumClient(cluster.endpoints) as client:
        async with client.transaction() as fill:
            for number in range(2500):
                fill.set(b"scan/%05d" % number, b"x")
        async with client.transaction() as transaction:
            assert await transaction.get(b"k", family="never") is None
            assert await transaction.get_range(family="never") == []
            transaction.delete(b"scan/00000")
            transaction.set(b"scan/00000a", b"y")
            pairs = await transaction.get_range(b"scan/", b"scan0", limit=2)
            assert [(b"scan/00000a", b"y"), (b"scan/00001", b"x")] == pairs
            assert len(await transaction.snapshot.get_range(b"scan/", b"scan0")) == 2500
            transaction.set_versionstamped_key(b"stamp/" + bytes(10), b"v", family="f")
        stamp = transaction.committed_version.to_bytes(8, "big") + bytes(2)
        assert (b"stamp/" + stamp,) == transaction.generated_keys
        assert await client.get(b"stamp/" + stamp, family="f") == b"v"
        assert len([pair async for pair in client.scan(b"scan/", b"scan0")]) == 2500
        assert len(await client.get_range(b"scan/", b"scan0", limit=7, reverse=True)) == 7
        assert await client.get_read_version() >= transaction.committed_version
        assert (await client.cluster_health()).total_nodes_count == 3


async def test_client_every_single_node_takes_every_call(cluster):
    """A client that knows one follower only still reads and writes."""
    for number, endpoint in enumerate(cluster.endpoints):
        async with KvorumClient([endpoint]) as client:
            await client.set(b"single/%d" % number, b"v")
            assert await client.get(b"single/%d" % number, consistency="local") == b"v"
            assert await client.set_versionstamped_value(b"single/s", bytes(10)) != bytes(10)
            await client.delete(b"single/%d" % number)
            assert await client.get(b"single/%d" % number) is None
