"""Bytes that are no request: they cost the connection they came on and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from typing import TYPE_CHECKING

from tests.process.harness import PATIENT_CLUSTER, Cluster, Node, Writers, eventually
from tests.process.wire import encode, get_status, ping, raw_connection, set_key

if TYPE_CHECKING:
    from collections.abc import Callable

RANDOM = random.Random(20261123)
CALL = struct.pack(">Ii", 0x80010001, 6) + b"setKey" + struct.pack(">i", 1)
BAD = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "non-strict binary": struct.pack(">i", 4) + b"ping" + b"\x01" + struct.pack(">i", 1) + b"\x00",
    "zeros": bytes(4096),
    "random": RANDOM.randbytes(4096),
    "reply instead of call": struct.pack(">Ii", 0x80010002, 4) + b"ping" + struct.pack(">i", 1) + b"\x00",
    "endless method name": struct.pack(">Ii", 0x80010001, 0x7FFFFFFF) + b"a" * 64,
    "negative method name": struct.pack(">Ii", 0x80010001, -1),
    "huge value": CALL + b"\x0c\x00\x01" + b"\x0b\x00\x01" + struct.pack(">i", 0x7FFFFFF0),
    "negative value": CALL + b"\x0c\x00\x01" + b"\x0b\x00\x01" + struct.pack(">i", -5),
    "huge list of a type that does not exist": CALL
    + b"\x0c\x00\x01"
    + b"\x0f\x00\x63\x07"
    + struct.pack(">i", 0x7FFFFFFF),
    "nested without end": CALL + b"\x0c\x00\x01" * 5000,
}


async def send_and_wait_for_the_end(port: int, data: bytes) -> bytes:
    """What the server answers before it hangs up; it must hang up."""
    async with raw_connection(port) as (reader, writer):
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(), 60)
        except ConnectionError:
            return b""


async def throw_everything_at(port: int) -> None:
    """All bad inputs, and 200 connections with random bytes."""
    for data in [*BAD.values(), *(RANDOM.randbytes(RANDOM.randrange(1, 300)) for _ in range(200))]:
        async with raw_connection(port) as (_, writer):
            writer.write(data)
            await asyncio.sleep(0)


async def test_bad_bytes_on_the_client_port_close_that_connection_only(make_cluster: Callable[..., Cluster]) -> None:
    """Every kind ends its own connection without a reply, while a good connection beside it is answered."""
    cluster = make_cluster(nodes=3)
    cluster.start()
    leader = await cluster.ready()
    before = leader.metrics()

    async with await leader.connect() as good:
        for name, data in BAD.items():
            answer = await send_and_wait_for_the_end(leader.port, data)
            assert answer == b"", f"{name}: {answer!r}"
            assert (await good.call(ping(name.encode()))).fields[1] == name.encode()
        assert (await good.call(set_key(b"k", b"v"))).ok

    after = leader.metrics()
    counted = sum(value - before.get(key, 0) for key, value in after.items() if key.startswith("kvorum_malformed"))
    assert counted == len(BAD)


async def test_good_requests_before_bad_bytes_are_answered(make_cluster: Callable[..., Cluster]) -> None:
    """Replies that are due leave before the connection is closed."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()

    answer = await send_and_wait_for_the_end(leader.port, encode(set_key(b"k", b"v"), 1) + b"rubbish, 16 bytes")

    assert answer.startswith(b"\x80\x01\x00\x02\x00\x00\x00\x06setKey\x00\x00\x00\x01")


async def test_half_a_request_then_silence_disturbs_nobody(make_cluster: Callable[..., Cluster]) -> None:
    """A hundred connections that stop inside a message stay open and cost others nothing."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()
    half = encode(set_key(b"k", b"v" * 1000), 1)[:500]
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(100):
            _, writer = await stack.enter_async_context(raw_connection(leader.port))
            writer.write(half)

        assert (await leader.call(set_key(b"k", b"v"))).ok


async def test_bad_bytes_on_peer_and_http_ports_do_not_disturb_the_cluster(
    make_cluster: Callable[..., Cluster],
) -> None:
    """No election, no lost write, while rubbish arrives where nodes talk to each other."""
    cluster = make_cluster(settings=PATIENT_CLUSTER)
    cluster.start()
    leader = await cluster.ready()
    before = await leader.call(get_status())

    async with Writers(cluster.nodes) as writers:
        for node in cluster.nodes:
            await throw_everything_at(node.port - 2000)
            await throw_everything_at(node.port - 1000)
            await throw_everything_at(node.port)
        await writers.acknowledged(200)
        outcomes = await writers.finish()

    after = await leader.call(get_status())
    assert (after.text(5), after.number(6)) == ("leader", before.number(6))
    assert not outcomes.refused
    assert not outcomes.unknown
    await cluster.holds(outcomes.acknowledged)


async def test_stranger_of_another_cluster_is_kept_out(make_cluster: Callable[..., Cluster]) -> None:
    """A node whose file lists other members is refused by name, and neither cluster is disturbed."""
    cluster, other = make_cluster(), make_cluster()
    cluster.start()
    await cluster.ready()
    # The other cluster's file, but its node 1 and 2 are the first cluster's.
    text = other.config.read_text()
    for number in (1, 2):
        text = text.replace(other.nodes[number].endpoint, cluster.nodes[number].endpoint)
    other.config.write_text(text)
    stranger: Node = other.nodes[0]
    stranger.start()

    async def named() -> bool:
        return "two nodes were started with the same id" in stranger.text

    await eventually(named, "the stranger is told why")
    reply = await stranger.call(set_key(b"k", b"stranger"))
    assert not reply.ok
    leader = await cluster.leader()
    assert (await leader.call(set_key(b"k", b"v"))).ok
