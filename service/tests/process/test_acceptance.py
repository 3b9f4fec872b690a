"""What existing clients and dashboards demand of real nodes, as far as no other file shows it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.process.harness import PATIENT_CLUSTER, Cluster, Node, Writers, eventually
from tests.process.wire import (
    atomic_set,
    encode,
    get,
    get_cluster_health,
    get_range,
    get_read_version,
    get_status,
    ping,
    raw_connection,
    set_key,
    snapshot_get,
)

if TYPE_CHECKING:
    from collections.abc import Callable


async def test_parallel_writers_through_all_nodes_are_read_back_everywhere(
    make_cluster: Callable[..., Cluster],
) -> None:
    """Nothing fails in a healthy cluster, and each node shows every acknowledged value."""
    cluster = make_cluster()
    cluster.start()
    await cluster.ready()

    async with Writers(cluster.nodes, clients=12) as writers:
        await writers.acknowledged(2000)
        outcomes = await writers.finish()

    assert not outcomes.refused
    assert not outcomes.unknown
    await cluster.holds(outcomes.acknowledged)


async def test_writer_reads_its_write_through_the_same_follower_at_once(make_cluster: Callable[..., Cluster]) -> None:
    """On the same and on another connection to that node, by get, range and snapshot, without asking the leader."""
    cluster = make_cluster()
    cluster.start()
    await cluster.ready()
    follower, *_ = await cluster.followers()

    async with await follower.connect() as writer, await follower.connect() as reader:
        for number in range(100):
            key, value = b"own%03d" % number, b"%d" % number
            assert (await writer.call(set_key(key, value))).ok
            for connection in (writer, reader):
                assert (await connection.call(get(key, "local"))).value == value
            pairs = (await reader.call(get_range(key, key + b"\xff", consistency="local"))).pairs
            version = (await reader.call(get_read_version("local"))).number(1)
            assert pairs == [(key, value)]
            assert (await reader.call(snapshot_get(key, version))).value == value


async def test_read_version_of_any_node_covers_every_acknowledged_commit(make_cluster: Callable[..., Cluster]) -> None:
    """A read version taken after an acknowledgement is not below that commit, whichever node is asked."""
    cluster = make_cluster()
    cluster.start()
    await cluster.ready()
    connections = [await node.connect() for node in cluster.nodes]
    versions = []
    for number in range(150):
        commit = await connections[number % 3].call(atomic_set([(b"k", b"%d" % number)]))
        asked = connections[(number + 1) % 3]
        read, value = await asyncio.gather(asked.submit(get_read_version()), asked.submit(get(b"k")))
        versions.append(commit.number(4))
        assert read.number(1) >= versions[-1]
        assert value.value == b"%d" % number
    for connection in connections:
        await connection.close()

    assert versions == sorted(set(versions))


async def test_stale_conflict_key_is_refused_through_any_node(make_cluster: Callable[..., Cluster]) -> None:
    """A commit that read a key before another one wrote it fails with CONFLICT and changes nothing."""
    cluster = make_cluster()
    cluster.start()
    await cluster.ready()
    for node in cluster.nodes:
        version = (await node.call(get_read_version())).number(1)
        assert (await node.call(set_key(b"read", b"changed"))).ok
        reply = await node.call(atomic_set([(b"never", b"1")], read_version=version, read=[b"read"]))
        assert (reply.ok, reply.code) == (False, "CONFLICT")
        assert (await node.call(get(b"never"))).value is None


async def test_counter_incremented_by_transactions_on_all_nodes_loses_none(
    make_cluster: Callable[..., Cluster],
) -> None:
    """Six clients read, add one and commit with the key as conflict: the sum is the number of successes."""
    cluster = make_cluster()
    cluster.start()
    await cluster.ready()

    async def increment(node: Node, times: int) -> None:
        async with await node.connect() as connection:
            while times:
                version = (await connection.call(get_read_version())).number(1)
                old = (await connection.call(snapshot_get(b"counter", version))).value or b"0"
                call = atomic_set([(b"counter", b"%d" % (int(old) + 1))], read_version=version, read=[b"counter"])
                reply = await connection.call(call)
                assert reply.ok or reply.code == "CONFLICT", f"{reply}"
                times -= reply.ok

    await asyncio.gather(*(increment(node, 25) for node in cluster.nodes for _ in range(2)))

    assert (await cluster.nodes[0].call(get(b"counter"))).value == b"150"


async def test_idle_connection_continues_where_it_was(make_cluster: Callable[..., Cluster]) -> None:
    """After 8 s of silence, longer than thriftpy2's defaults, the next call is answered as if nothing had been."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()
    async with await leader.connect() as connection:
        assert (await connection.call(set_key(b"k", b"before"))).ok
        await asyncio.sleep(8)
        assert (await connection.call(get(b"k"))).value == b"before"


async def test_slow_reader_delays_no_other_connection(make_cluster: Callable[..., Cluster]) -> None:
    """A client that asks for 200 MB and reads nothing does not keep another one waiting."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()
    assert (await leader.call(set_key(b"big", b"x" * 1_000_000))).ok

    async with raw_connection(leader.port) as (_, writer), await leader.connect() as other:
        writer.write(b"".join(encode(get(b"big", "local"), number) for number in range(200)))
        await asyncio.sleep(1)
        for _ in range(20):
            assert (await other.call(set_key(b"k", b"v"))).ok


async def test_replies_that_nobody_reads_take_bounded_memory(make_cluster: Callable[..., Cluster]) -> None:
    """12 KB of requests for 200 MB of replies, none of them read, cost the node less than 64 MB."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()
    assert (await leader.call(set_key(b"big", b"x" * 1_000_000))).ok
    before = leader.resident_mib()

    async with raw_connection(leader.port) as (_, writer):
        writer.write(b"".join(encode(get(b"big", "local"), number) for number in range(200)))
        await asyncio.sleep(1)
        after = leader.resident_mib()

    assert after - before < 64


async def test_health_reports_members_as_they_are(make_cluster: Callable[..., Cluster]) -> None:
    """Followers, too, know who is healthy and who cannot be reached; the answers hold no negative number."""
    health = "[cluster]\nnode_timeout_ms = 1500\nhealth_check_interval_ms = 200\n"
    cluster = make_cluster(settings=PATIENT_CLUSTER + health)
    cluster.start()
    leader = await cluster.ready()
    follower, dead = await cluster.followers()

    async def shows(wanted: list[bytes]) -> bool:
        reply = await follower.call(get_cluster_health())
        health = reply.fields[2]
        assert isinstance(health, dict)
        nodes = health[1]
        assert isinstance(nodes, list)
        return [node[3] for node in nodes if isinstance(node, dict)] == wanted

    await eventually(lambda: shows([b"healthy"] * 3), "all healthy")
    dead.kill()
    wanted = [b"unreachable" if node is dead else b"healthy" for node in cluster.nodes]
    await eventually(lambda: shows(wanted), "one unreachable, seen from a follower")
    status = await follower.call(get_status())
    assert status.text(5) == "follower"
    assert status.number(7) == cluster.nodes.index(leader)
    assert status.text(8) == leader.endpoint


async def test_seen_from_outside_a_node_is_live_ready_and_measured(make_cluster: Callable[..., Cluster]) -> None:
    """/livez, /readyz and /metrics of each node; without a quorum a node is live but not ready."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()
    for node in cluster.nodes:
        await node.call(ping(b"x"))
        assert node.http("/livez")[0] == 200
        assert node.http("/readyz")[0] == 200, node.http("/readyz")
        metrics = node.metrics()
        assert metrics["kvorum_raft_is_leader"] == (node is leader)
        assert metrics["kvorum_raft_has_leader"] == 1
        assert metrics["kvorum_raft_commit_index"] >= metrics["kvorum_raft_applied_index"] > 0
        assert any(name.startswith("kvorum_wal_fsync_duration_seconds_count") for name in metrics)
        assert any(name.startswith("kvorum_rpc_requests_total") and 'method="ping"' in name for name in metrics)

    for node in cluster.nodes:
        if node is not leader:
            node.kill()

    async def unready() -> bool:
        return (await asyncio.to_thread(leader.http, "/readyz"))[0] == 503

    await eventually(unready, "not ready without a quorum")
    assert leader.http("/livez")[0] == 200
