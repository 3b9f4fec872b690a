"""Nodes that are there but cannot be heard (SIGSTOP), and clusters that have lost their quorum."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from tests.process.harness import Cluster, Writers, eventually
from tests.process.wire import delete_key, get, get_cluster_health, get_read_version, get_status, ping, set_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.process.harness import Node
    from tests.process.wire import Call, Reply

LEADER_WAIT_S = 4.0
DEADLINE_S = 10.0
SLACK_S = 3.0
"""What a busy machine may add; with it each wait below still ends before the next longer one."""
PATIENT = "[reads]\nmax_staleness_ms = 60000\n"


async def timed(call: Awaitable[Reply]) -> tuple[Reply, float]:
    """A reply and the seconds it took."""
    began = time.monotonic()
    reply = await call
    return reply, time.monotonic() - began


async def test_paused_follower_catches_up_without_an_election(make_cluster: Callable[..., Cluster]) -> None:
    """A follower stopped for longer than the election timeout gets what it missed and does not depose the leader."""
    cluster = make_cluster(settings="[consensus]\nelection_timeout_ms = 2000\n")
    cluster.start()
    leader = await cluster.ready()
    follower, other = await cluster.followers()
    before = await leader.status()

    follower.pause()
    async with Writers([leader, other]) as writers:
        await writers.acknowledged(3000)
        await asyncio.sleep(4.5)
        outcomes = await writers.finish()
    follower.resume()
    await cluster.holds(outcomes.acknowledged)

    after = await leader.status()
    assert not outcomes.refused
    assert not outcomes.unknown
    assert before is not None
    assert after is not None
    assert (after.text(5), after.number(6)) == ("leader", before.number(6))


async def test_paused_leader_is_replaced_and_serves_nothing_stale_afterwards(
    make_cluster: Callable[..., Cluster],
) -> None:
    """A leader that slept through its own deposition answers a linearizable read with what was written meanwhile."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()
    others = await cluster.followers()
    await leader.call(set_key(b"k", b"old"))

    async with await leader.connect() as connection:
        leader.pause()
        sleeping_read = connection.submit(get(b"k"))
        sleeping_write = connection.submit(set_key(b"asleep", b"1"))
        await eventually(lambda: _acknowledges(others, set_key(b"k", b"new")), "a write through the others")
        leader.resume()
        read = await asyncio.wait_for(sleeping_read, DEADLINE_S + SLACK_S)
        write = await asyncio.wait_for(sleeping_write, DEADLINE_S + SLACK_S)

    # The read arrived at a socket before the write was acknowledged, but was received after it: only `new` is right
    # if it is answered at all, since the leader's round cannot be confirmed in its old term.
    assert read.code in {None, "UNAVAILABLE", "TIMEOUT"}
    if read.code is None:
        assert read.value == b"new"
    assert write.ok or write.code in {"UNAVAILABLE", "TIMEOUT"}
    await cluster.same_state()
    there = (await leader.call(get(b"asleep"))).value is not None
    if write.ok:
        assert there
    elif write.code == "UNAVAILABLE":
        assert not there


async def _acknowledges(nodes: list[Node], call: Call) -> bool:
    return any([(await node.call(call)).ok for node in nodes])  # each is asked, so that each forwards


@pytest.mark.parametrize("survivor", ["leader", "follower"])
async def test_two_nodes_down_refuse_writes_in_time_and_serve_local_reads(
    make_cluster: Callable[..., Cluster], survivor: str
) -> None:
    """
    The last node answers every write with UNAVAILABLE, or TIMEOUT if it was proposed, within the deadline.

    Local reads, diagnostics and pings go on at once; a linearizable read is refused in time; and once one more node is
    back everything works again, refused writes are absent and unknown ones were decided equally everywhere.
    """
    cluster = make_cluster(settings=PATIENT)
    cluster.start()
    leader = await cluster.ready()
    last = leader if survivor == "leader" else (await cluster.followers())[0]
    await last.call(set_key(b"k", b"v"))
    down = [node for node in cluster.nodes if node is not last]
    for node in down:
        node.kill()

    # Some while the leader still believes it leads, the others when it has noticed; each on a connection of its own.
    calls = [set_key(b"down%d" % i, b"x") for i in range(10)] + [delete_key(b"k-never")]
    first = asyncio.gather(*(timed(last.call(call)) for call in calls))
    local, local_s = await timed(last.call(get(b"k", "local")))
    await asyncio.sleep(3)
    await eventually(lambda: _does_not_lead(last), "it has noticed that it does not lead")
    late, late_s = await timed(last.call(set_key(b"late", b"x")))
    read, read_s = await timed(last.call(get(b"k")))
    local_late, local_late_s = await timed(last.call(get(b"k", "local")))
    echo, echo_s = await timed(last.call(ping(b"hello")))
    health = await last.call(get_cluster_health())
    status = await last.call(get_status())

    writes = await first
    for reply, seconds in writes:
        assert reply.code in {"UNAVAILABLE", "TIMEOUT"}, f"{reply}"
        assert seconds < DEADLINE_S + SLACK_S
    assert late.code == "UNAVAILABLE"
    assert late_s < LEADER_WAIT_S + SLACK_S
    assert read.code in {"UNAVAILABLE", "TIMEOUT"}
    assert read_s < LEADER_WAIT_S + SLACK_S
    assert (local.value, local_late.value) == (b"v", b"v")
    assert max(local_s, local_late_s, echo_s) < SLACK_S
    assert echo.fields[1] == b"hello"
    assert health.ok
    assert status.ok

    down[0].start()
    await eventually(lambda: _acknowledges([last, down[0]], set_key(b"again", b"1")), "writes with two of three")
    down[1].start()
    await cluster.same_state()
    for number, (reply, _) in enumerate(writes[:10]):
        there = (await last.call(get(b"down%d" % number))).value
        assert there is None or reply.code == "TIMEOUT", f"write {number} was {reply.code}, yet it took effect"
    assert (await last.call(get(b"late"))).value is None


async def test_local_read_without_contact_becomes_stale(make_cluster: Callable[..., Cluster]) -> None:
    """A follower that has heard of no leader for longer than max_staleness_ms refuses local reads with STALE."""
    cluster = make_cluster(settings="[reads]\nmax_staleness_ms = 3000\n")
    cluster.start()
    await cluster.ready()
    last, *_ = await cluster.followers()
    await last.call(set_key(b"k", b"v"))
    for node in cluster.nodes:
        if node is not last:
            node.kill()

    fresh = await last.call(get(b"k", "local"))
    assert fresh.value == b"v"

    async def stale() -> bool:
        reply = await last.call(get(b"k", "local"))
        if reply.code is None:
            assert reply.value == b"v"
            return False
        assert (reply.ok, reply.code) == (False, "STALE"), f"{reply}"
        return True

    await eventually(stale, "the read is refused")


async def test_short_deadline_is_kept_without_a_quorum(make_cluster: Callable[..., Cluster]) -> None:
    """A request's own deadline_ms shortens every wait."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()
    for node in cluster.nodes:
        if node is not leader:
            node.pause()

    reply, seconds = await timed(leader.call(set_key(b"k", b"v", deadline_ms=700)))

    assert reply.code in {"UNAVAILABLE", "TIMEOUT"}
    assert seconds < 0.7 + SLACK_S
    for node in cluster.nodes:
        node.resume()
    await eventually(lambda: _has_quorum(cluster), "a leader again")


async def _does_not_lead(node: Node) -> bool:
    return (await node.call(get_status())).text(5) != "leader"


async def _has_quorum(cluster: Cluster) -> bool:
    return (await cluster.nodes[0].call(get_read_version())).ok
