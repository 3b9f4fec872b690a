"""SIGKILL of the leader, of a follower, of all nodes: no acknowledged write is lost and the replicas stay equal."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.process.harness import PATIENT_CLUSTER, Cluster, Writers, eventually
from tests.process.wire import get, get_read_version, set_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.harness import Outcomes


async def check_outcomes(cluster: Cluster, outcomes: Outcomes) -> None:
    """Every acknowledged write is on every node, every refused one on none."""
    await cluster.holds(outcomes.acknowledged)
    async with await cluster.nodes[0].connect() as connection:
        for key in outcomes.refused:
            assert (await connection.call(get(key))).value is None, f"{key!r} was refused for certain, yet is there"


async def test_leader_killed_under_load_loses_no_acknowledged_write(make_cluster: Callable[..., Cluster]) -> None:
    """Writers go on after the failover, and the old leader comes back with the same state as the others."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()

    async with Writers(cluster.nodes) as writers:
        await writers.acknowledged(300)
        leader.kill()
        await writers.acknowledged(300)
        leader.start()
        await eventually(leader.accepts, "the old leader listens again")
        await writers.acknowledged(300)
        outcomes = await writers.finish()

    await check_outcomes(cluster, outcomes)


async def test_follower_killed_under_load_disturbs_nobody(make_cluster: Callable[..., Cluster]) -> None:
    """The leader and its term stay, every write goes on, and the follower catches up after its restart."""
    cluster = make_cluster(settings=PATIENT_CLUSTER)
    cluster.start()
    leader = await cluster.ready()
    follower, other = await cluster.followers()
    before = await leader.status()

    async with Writers([leader, other]) as writers:
        await writers.acknowledged(300)
        follower.kill()
        await writers.acknowledged(200)
        follower.start()
        await writers.acknowledged(300)
        outcomes = await writers.finish()

    after = await leader.status()
    assert not outcomes.refused
    assert not outcomes.unknown
    assert before is not None
    assert after is not None
    assert (after.text(5), after.number(6)) == ("leader", before.number(6))
    await check_outcomes(cluster, outcomes)


async def test_all_three_killed_at_once_lose_no_acknowledged_write(make_cluster: Callable[..., Cluster]) -> None:
    """Twice in a row all nodes die under load; each time everything acknowledged is there again on every node."""
    cluster = make_cluster()
    acknowledged: dict[bytes, bytes] = {}
    for round_number in range(2):
        cluster.start()
        await cluster.ready()
        async with Writers(cluster.nodes, prefix=b"round%d" % round_number) as writers:
            await writers.acknowledged(400)
            cluster.kill()
            acknowledged |= (await writers.finish()).acknowledged

    cluster.start()
    await cluster.ready()
    await cluster.holds(acknowledged)


async def test_restart_of_all_nodes_replays_the_log_exactly_once(make_cluster: Callable[..., Cluster]) -> None:
    """After a SIGKILL of all nodes the state hash at the old applied index is the old one, and versions go on."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()
    async with await leader.connect() as connection:
        await asyncio.gather(*(connection.submit(set_key(b"k%03d" % (i % 100), b"%d" % i)) for i in range(1000)))
    index, digest = await cluster.same_state()

    cluster.kill()
    cluster.start()
    leader = await cluster.leader()
    version = (await leader.call(get_read_version())).number(1)
    again_index, again_digest = await cluster.same_state()

    # Only the new leader's own entries came in between, and they hold no data.
    assert again_digest == digest
    assert index < again_index == version
    reply = await leader.call(get(b"k042"))
    assert reply.value == b"942"


@pytest.mark.timeout(600)
async def test_rolling_kills_under_load_keep_replicas_equal(make_cluster: Callable[..., Cluster]) -> None:
    """Each node in turn, leader or not, is killed and restarted while writers run through all of them."""
    cluster = make_cluster()
    cluster.start()
    await cluster.ready()

    async with Writers(cluster.nodes, clients=8) as writers:
        for node in (*cluster.nodes, await cluster.leader()):
            node.kill()
            await writers.acknowledged(100)
            node.start()
            await eventually(_caught_up(cluster, node), f"{node} follows again")
        outcomes = await writers.finish()

    await check_outcomes(cluster, outcomes)


def _caught_up(cluster: Cluster, node: object) -> Callable[[], asyncio.Future[bool]]:
    """Whether a node knows a leader and has applied nearly what the others have."""

    async def look() -> bool:
        replies = {each: await each.status() for each in cluster.nodes}
        if any(reply is None or not reply.ok for reply in replies.values()):
            return False
        applied = {each: reply.number(10) for each, reply in replies.items() if reply is not None}
        own = next(count for each, count in applied.items() if each is node)
        return own >= max(applied.values()) - 1000

    return lambda: asyncio.ensure_future(look())
