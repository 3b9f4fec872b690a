"""Many requests on one connection while a leader dies: order and outcomes hold."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.process.harness import Cluster, eventually
from tests.process.wire import (
    ConnectionLost,
    delete_key,
    encode,
    get,
    get_read_version,
    raw_connection,
    set_key,
    snapshot_get,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.harness import Node
    from tests.process.wire import Reply

WRITES = 1000
PATIENT_CALLS = "[cluster]\nleader_discovery_timeout_ms = 60000\n\n[limits]\nrequest_timeout_ms = 60000\n"
"""No write runs out of time because a busy machine elects slowly."""


async def history(node: Node, key: bytes, first: int, last: int) -> list[tuple[int, bytes]]:
    """Every value a key has had from version `first` to `last`, as (version, value), by reading each version."""
    seen: list[tuple[int, bytes]] = []
    async with await node.connect() as connection:
        for begin in range(first, last + 1, 1000):
            versions = range(begin, min(begin + 1000, last + 1))
            replies = await asyncio.gather(*(connection.submit(snapshot_get(key, version)) for version in versions))
            for version, reply in zip(versions, replies, strict=True):
                value = reply.value
                if value is not None and (not seen or seen[-1][1] != value):
                    seen.append((version, value))
    return seen


async def pipeline_across_a_kill(cluster: Cluster, through: Node, leader: Node) -> list[Reply | None]:
    """1,000 writes of growing numbers to one key, the leader killed after some replies; None: connection lost."""
    async with await through.connect() as connection:
        futures = [connection.submit(set_key(b"sequence", b"%d" % number)) for number in range(WRITES // 2)]
        await asyncio.wait_for(asyncio.shield(futures[50]), 60)
        leader.kill()
        futures += [connection.submit(set_key(b"sequence", b"%d" % number)) for number in range(WRITES // 2, WRITES)]
        outcomes = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 120)
    replies: list[Reply | None] = []
    for outcome in outcomes:
        if isinstance(outcome, ConnectionLost):
            replies.append(None)
        else:
            assert not isinstance(outcome, BaseException), repr(outcome)
            replies.append(outcome)
    cluster.start()
    await cluster.leader()
    await cluster.same_state()
    return replies


def check(replies: list[Reply | None], effects: list[int]) -> None:
    """Effects are in request order, once each, and each outcome tells the truth about its write."""
    assert effects == sorted(set(effects)), "the effects are not in request order"
    happened = set(effects)
    for number, reply in enumerate(replies):
        if reply is not None and reply.ok:
            assert number in happened, f"write {number} was acknowledged and is not in the log"
        elif reply is not None and reply.code != "TIMEOUT":
            assert reply.code == "UNAVAILABLE", f"write {number}: {reply}"
            assert number not in happened, f"write {number} was refused for certain and is in the log"


@pytest.mark.parametrize("through_leader", [False, True], ids=["through-a-follower", "through-the-leader"])
async def test_thousand_pipelined_writes_across_a_leader_kill_keep_order_and_truth(
    make_cluster: Callable[..., Cluster], *, through_leader: bool
) -> None:
    """The history of the one key they all write shows each effect at its version: none out of order, none untrue."""
    cluster = make_cluster(settings=PATIENT_CALLS)
    cluster.start()
    leader = await cluster.ready()
    follower, *_ = await cluster.followers()
    first = (await leader.call(get_read_version())).number(1)

    replies = await pipeline_across_a_kill(cluster, leader if through_leader else follower, leader)

    last = (await follower.call(get_read_version())).number(1)
    for node in cluster.nodes:
        effects = [int(value) for _, value in await history(node, b"sequence", first, last)]
        check(replies, effects)
    if not through_leader:
        acknowledged = sum(reply is not None and reply.ok for reply in replies)
        assert None not in replies, "the follower ended a connection because its leader died"
        assert acknowledged == WRITES, f"only {acknowledged} of {WRITES} were decided within their deadline"


async def test_each_request_sees_the_effects_of_those_before_it(make_cluster: Callable[..., Cluster]) -> None:
    """Write, read, delete, read, pipelined on one connection to a follower, at every level of consistency."""
    cluster = make_cluster()
    cluster.start()
    await cluster.ready()
    follower, *_ = await cluster.followers()

    async with await follower.connect() as connection:
        for level in ("local", "leader", "read_index"):
            for number in range(20):
                key = b"%s/%d" % (level.encode(), number)
                futures = [
                    connection.submit(call)
                    for call in (
                        set_key(key, b"1"), get(key, level), set_key(key, b"2"), get(key, level),
                        delete_key(key), get(key, level),
                    )
                ]  # fmt: skip
                replies = await asyncio.wait_for(asyncio.gather(*futures), 60)
                assert [reply.value for reply in replies[1::2]] == [b"1", b"2", None]


async def test_thousands_of_pipelined_deletes_are_answered_in_order(make_cluster: Callable[..., Cluster]) -> None:
    """5,000 deletes sent before the first reply is read: no OVERLOADED because of the connection's own queue."""
    cluster = make_cluster()
    cluster.start()
    await cluster.ready()
    follower, *_ = await cluster.followers()

    async with await follower.connect() as connection:
        futures = [connection.submit(delete_key(b"gone%d" % number)) for number in range(5000)]
        replies = await asyncio.wait_for(asyncio.gather(*futures), 120)

    assert all(reply.ok for reply in replies)


async def test_every_byte_in_a_segment_of_its_own_is_understood(make_cluster: Callable[..., Cluster]) -> None:
    """Some clients send each primitive by itself; requests cut anywhere are put together again."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()

    async with raw_connection(leader.port) as (reader, writer):
        for byte in encode(set_key(b"slow", b"bytes"), 7):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert await asyncio.wait_for(reader.readexactly(4), 60) == b"\x80\x01\x00\x02"

    async def there() -> bool:
        return (await leader.call(get(b"slow"))).value == b"bytes"

    await eventually(there, "the write took effect")
