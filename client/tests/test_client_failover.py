"""The client against three scripted nodes on real sockets."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random

import pytest

import kvorum_idl
from kvorum_client import (
    ClientClosedError,
    InvalidRequestError,
    KvorumClient,
    KvorumError,
    NodeStatus,
    OutcomeUnknownError,
    QuotaExceededError,
    ReadTimeoutError,
    StaleReadError,
    TooLargeError,
    UnavailableError,
)

OK = {"success": True}
FOUND = {"value": b"v", "found": True}


def refused(code: str, **more: object) -> dict[str, object]:
    return {"success": False, "found": False, "value": b"", "error": "a reason", "error_code": code, **more}


def without(reply: dict[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in reply.items() if name not in names}


def write_refused(code: str, **more: object) -> dict[str, object]:
    return without(refused(code, **more), "found", "value")


def read_refused(code: str, **more: object) -> dict[str, object]:
    return without(refused(code, **more), "success")


@pytest.fixture
async def client(nodes):
    """A client that knows all three nodes; short waits, fixed chance."""
    async with KvorumClient([node.endpoint for node in nodes], timeout_s=30.0, random=Random(1)) as made:
        yield made


@pytest.fixture
async def unnamed(nodes):
    """A client whose writes carry no identity."""
    endpoints = [node.endpoint for node in nodes]
    async with KvorumClient(endpoints, timeout_s=30.0, exactly_once=False, random=Random(1)) as made:
        yield made


async def test_set_goes_to_the_leader(nodes, client):
    """The node that says it leads gets the writes, with the time left."""
    for _ in range(5):
        await client.set(b"k", b"v", family="f")

    assert [5, 0, 0] == [node.count("setKey") for node in nodes]
    request = nodes[0].calls[-1][1]
    assert (request.key, request.value, request.column_family) == (b"k", b"v", "f")
    assert 1000 < request.deadline_ms < 30_000


async def test_get_present_missing_and_empty_value(nodes, client):
    """A missing key is None and no error; an empty value is a value."""
    nodes[0].on("get", [{"value": b"", "found": True}, {"value": b"", "found": False}])

    assert await client.get(b"k") == b""
    assert await client.get(b"k") is None


async def test_set_not_leader_follows_the_hint_at_once(nodes, client):
    """NOT_LEADER leads to the node it names, and the client remembers it."""
    hint = {"leader_id": 2, "leader_endpoint": nodes[2].endpoint}
    nodes[0].on("setKey", write_refused("NOT_LEADER", **hint))

    await client.set(b"k", b"v")
    await client.set(b"k", b"v")

    assert [1, 0, 2] == [node.count("setKey") for node in nodes]


async def test_set_hint_outside_the_configured_endpoints_is_followed(nodes, status_of):
    """A leader that was not configured is found through the nodes that were."""
    for node in nodes[:2]:
        node.on("getStatus", status_of(0, nodes[2].endpoint, role="follower"))
    async with KvorumClient([node.endpoint for node in nodes[:2]]) as client:
        await client.set(b"k", b"v")

    assert [0, 0, 1] == [node.count("setKey") for node in nodes]


@pytest.mark.parametrize("gone", [True, False])
async def test_set_only_configured_node_lost_goes_to_the_members_it_had_named(nodes, status_of, gone):
    """A client that was given one endpoint leaves it when it is gone, or cut off: it has asked who else is there."""
    members = [
        kvorum_idl.MemberInfo(node_id=number, kv_endpoint=node.endpoint, voter=True)
        for number, node in enumerate(nodes)
    ]
    nodes[0].on("getStatus", status_of(0, nodes[0].endpoint) | {"members": members})
    async with KvorumClient([nodes[0].endpoint], timeout_s=30.0, random=Random(1)) as client:
        await client.set(b"k", b"v")
        async with asyncio.timeout(60):
            while client._caller.nodes._spares == ():
                await asyncio.sleep(0)
        assert [1, 0, 0] == [node.count("setKey") for node in nodes], "the others are asked only in need"
        if gone:
            await nodes[0].stop()
        else:
            nodes[0].on("setKey", write_refused("UNAVAILABLE"))

        await client.set(b"k", b"v")

    assert sum(node.count("setKey") for node in nodes[1:]) == 1


@pytest.mark.parametrize("code", ["UNAVAILABLE", "OVERLOADED", "NETWORK", "CORRUPTION"])
async def test_set_certainly_not_applied_is_tried_again(nodes, client, code):
    """A code that promises the write was not done is followed by another attempt."""
    for node in nodes:
        node.on("setKey", [write_refused(code), OK])

    await client.set(b"k", b"v")

    assert sum(node.count("setKey") for node in nodes) >= 2


@pytest.mark.parametrize("code", ["TIMEOUT", "INTERNAL", "CODE_OF_A_LATER_RELEASE"])
async def test_set_possibly_applied_is_not_tried_again_without_identity(nodes, unnamed, code):
    """A write that may have been done is reported, once, unless the caller allows the repetition."""
    nodes[0].on("setKey", [write_refused(code), OK])
    with pytest.raises(OutcomeUnknownError) as caught:
        await unnamed.set(b"k", b"v")
    assert caught.value.code == code
    assert not caught.value.outcome_known
    assert not caught.value.retryable
    assert sum(node.count("setKey") for node in nodes) == 1
    assert nodes[0].calls[-1][1].client_id is None

    nodes[0].on("setKey", [write_refused(code), OK])
    await unnamed.set(b"k", b"v", retry_unknown=True)


async def test_set_connection_lost_after_sending_is_unknown_without_identity(nodes, unnamed, drop):
    """A connection that breaks under a write leaves its outcome open."""
    nodes[0].on("setKey", drop())

    with pytest.raises(OutcomeUnknownError, match="lost"):
        await unnamed.set(b"k", b"v")
    assert [1, 0, 0] == [node.count("setKey") for node in nodes]


async def test_set_unknown_then_refused_stays_unknown(nodes, client, drop):
    """With repetition allowed, a later certain refusal says nothing about the first attempt."""
    for node in nodes:
        node.on("setKey", [drop(), write_refused("QUOTA_EXCEEDED")])

    with pytest.raises(OutcomeUnknownError):
        await client.set(b"k", b"v", retry_unknown=True, timeout_s=1.0)


async def test_get_connection_lost_is_asked_elsewhere(nodes, client, drop):
    """A read is simply repeated at another node."""
    nodes[0].on("get", drop())
    for node in nodes[1:]:
        node.on("get", FOUND)

    assert await client.get(b"k") == b"v"


async def test_set_leader_gone_before_sending_fails_over(nodes, client):
    """A node that cannot be reached certainly did nothing: the write goes to another one."""
    await client.set(b"k", b"v")
    await nodes[0].stop()

    await client.set(b"k", b"v")

    assert sum(node.count("setKey") for node in nodes[1:]) == 1


async def test_client_all_nodes_down_is_unavailable_within_the_budget(nodes):
    """With nobody there a call ends as unavailable, certainly not done, when its time is up."""
    for node in nodes:
        await node.stop()
    async with KvorumClient([node.endpoint for node in nodes], timeout_s=0.4) as client:
        started = asyncio.get_running_loop().time()
        with pytest.raises(UnavailableError) as caught:
            await client.set(b"k", b"v")
        elapsed = asyncio.get_running_loop().time() - started

    assert caught.value.retryable
    assert caught.value.outcome_known
    assert 0.3 < elapsed < 10


async def test_get_silent_node_is_left_after_the_attempt_time(nodes):
    """A node that hangs costs one attempt's time, not the whole budget."""

    async def hang(_: object) -> dict[str, object]:
        await asyncio.sleep(30)
        return FOUND

    nodes[0].on("get", hang)
    for node in nodes[1:]:
        node.on("get", FOUND)
    async with KvorumClient([node.endpoint for node in nodes], timeout_s=60, attempt_timeout_s=0.3) as client:
        assert await client.get(b"k") == b"v"


async def test_get_search_for_the_leader_does_not_outlast_the_budget(nodes):
    """Nodes that do not say who leads cost a call its own time, not that of their status call as well."""

    async def hang(_: object) -> dict[str, object]:
        await asyncio.sleep(30)
        return OK

    for node in nodes:
        node.on("getStatus", hang)
    endpoints = [node.endpoint for node in nodes]
    async with KvorumClient(endpoints, timeout_s=0.3, random=Random(1)) as client:
        client._caller.settings = replace(client._caller.settings, status_timeout_s=25.0)
        loop = asyncio.get_running_loop()
        begun = loop.time()

        with pytest.raises(UnavailableError):
            await client.get(b"k")

        assert loop.time() - begun < 20


async def test_set_silent_node_is_unknown_when_time_is_up(nodes):
    """A write nobody answers ends as unknown within its budget."""

    async def hang(_: object) -> dict[str, object]:
        await asyncio.sleep(30)
        return OK

    for node in nodes:
        node.on("setKey", hang)
    async with KvorumClient([node.endpoint for node in nodes], timeout_s=1.0) as client:
        with pytest.raises(OutcomeUnknownError, match="did not answer"):
            await client.set(b"k", b"v")
        assert client._caller.nodes.pools[nodes[0].endpoint].connections == 0


@pytest.mark.parametrize(
    ("code", "error"),
    [("INVALID_KEY", InvalidRequestError), ("TOO_LARGE", TooLargeError), ("QUOTA_EXCEEDED", QuotaExceededError)],
)
async def test_set_refused_for_good_is_not_repeated(nodes, client, code, error):
    """What cannot become better is told at once."""
    nodes[0].on("setKey", write_refused(code))

    with pytest.raises(error, match="a reason") as caught:
        await client.set(b"k", b"v")
    assert (caught.value.code, caught.value.endpoint) == (code, nodes[0].endpoint)
    assert sum(node.count("setKey") for node in nodes) == 1


async def test_get_local_uses_several_nodes_and_leaves_stale_ones(nodes, client):
    """Local reads spread over the nodes, and a node that refuses as stale is passed over."""
    for node in nodes:
        node.on("get", FOUND)
    for _ in range(30):
        await client.get(b"k", consistency="local")
    assert all(node.count("get") > 0 for node in nodes)

    for node in nodes[:2]:
        node.on("get", read_refused("STALE"))
    assert await client.get(b"k", consistency="local") == b"v"
    nodes[2].on("get", read_refused("STALE"))
    with pytest.raises(StaleReadError):
        await client.get(b"k", consistency="local", timeout_s=1.0)


async def test_get_reply_without_a_code_but_with_an_error_is_a_failure(nodes, client):
    """An error text alone is a failure too: the node is asked no further."""
    for node in nodes:
        node.on("get", {"value": b"", "found": False, "error": "old server trouble"})

    with pytest.raises(UnavailableError, match="old server trouble"):
        await client.get(b"k", timeout_s=1.0)


async def test_client_pipelines_many_calls_over_few_connections(nodes):
    """Many calls at once share a bounded number of connections, and every reply reaches its call."""
    nodes[0].on("get", lambda request: {"value": request.key * 2, "found": True})
    async with KvorumClient([nodes[0].endpoint], connections_max=2, in_flight_max=8) as client:
        keys = [b"%d" % number for number in range(500)]
        assert [key * 2 for key in keys] == await asyncio.gather(*map(client.get, keys))
        assert len(nodes[0].connections) == 2


async def test_client_cancelled_call_leaves_the_connection_in_order(nodes):
    """The reply to a call that was given up is dropped, and the next call gets its own."""
    gate = asyncio.Event()

    async def slow(request: object) -> dict[str, object]:
        if request.key == b"slow":
            await gate.wait()
        return {"value": request.key, "found": True}

    nodes[0].on("get", slow)
    async with KvorumClient([nodes[0].endpoint], connections_max=1) as client:
        waiting = asyncio.create_task(client.get(b"slow"))
        while not nodes[0].count("get"):
            await asyncio.sleep(0)
        waiting.cancel()
        following = asyncio.create_task(client.get(b"fast"))
        gate.set()
        assert await following == b"fast"
        assert len(nodes[0].connections) == 1


async def test_client_reply_in_single_bytes_is_read(nodes):
    """However the network cuts a reply, it is read whole."""
    nodes[0].segment_bytes = 1
    nodes[0].on("get", {"value": bytes(range(256)), "found": True})
    async with KvorumClient([nodes[0].endpoint]) as client:
        assert await client.get(b"k") == bytes(range(256))


async def test_client_peer_that_is_no_kvorum_node_is_named():
    """Whoever answers in another protocol is not asked again and again."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with KvorumClient([f"127.0.0.1:{port}"], timeout_s=30.0) as client:
        with pytest.raises(KvorumError, match="strict Thrift"):
            await client.get(b"k")
        with pytest.raises(KvorumError, match="strict Thrift"):
            await client.set(b"k", b"v")
    server.close()
    await server.wait_closed()


async def test_client_close_fails_what_is_in_flight_and_leaves_no_task(nodes):
    """Closing ends calls at once: reads as failed, writes as unknown; afterwards nothing of the client runs."""

    async def hang(_: object) -> dict[str, object]:
        await asyncio.sleep(30)
        return OK

    nodes[0].on("setKey", hang)
    nodes[0].on("get", hang)
    before = asyncio.all_tasks()
    client = KvorumClient([nodes[0].endpoint])
    write = asyncio.create_task(client.set(b"k", b"v"))
    read = asyncio.create_task(client.get(b"k"))
    while len(nodes[0].calls) < 2:
        await asyncio.sleep(0.001)
    await client.close()

    with pytest.raises(OutcomeUnknownError):
        await write
    with pytest.raises(ReadTimeoutError):
        await read
    with pytest.raises(ClientClosedError):
        await client.get(b"k")
    ours = {task for task in asyncio.all_tasks() - before if "kvorum" in task.get_name()}
    assert not ours


async def test_status_all_shows_who_is_missing(nodes, client):
    """Each endpoint gives its status or the error that kept it from answering."""
    await nodes[1].stop()

    answers = await client.status_all()

    assert [node.endpoint for node in nodes] == list(answers)
    assert isinstance(answers[nodes[0].endpoint], NodeStatus)
    assert answers[nodes[0].endpoint].role == "leader"
    assert isinstance(answers[nodes[1].endpoint], UnavailableError)


async def test_cluster_health_is_taken_from_the_first_node_that_answers(nodes, client):
    """A node that is down does not hide the cluster's health."""
    import kvorum_idl  # noqa: PLC0415 - structs of this test only

    await nodes[0].stop()
    entry = kvorum_idl.NodeStatus(
        node_id=1, endpoint="b:1", status="healthy", is_leader=True, last_seen_timestamp=5, term=3
    )
    health = kvorum_idl.ClusterHealth(
        nodes=[entry],
        healthy_nodes_count=1,
        total_nodes_count=1,
        leader=entry,
        cluster_status="healthy",
        current_term=3,
    )
    for node in nodes[1:]:
        node.on("getClusterHealth", {"success": True, "cluster_health": health})

    found = await client.cluster_health()

    assert (found.cluster_status, found.leader.node_id, found.nodes[0].uptime_seconds) == ("healthy", 1, None)


async def test_get_range_follows_next_key_both_ways(nodes, client):
    """Pages are joined by next_key, inclusive at the begin or, backwards, at the end."""
    import kvorum_idl  # noqa: PLC0415 - structs of this test only

    store = [b"a", b"b", b"c", b"d", b"e"]

    def page(request):
        keys = [key for key in store if key >= request.begin_key]
        if request.end_key is not None:
            keys = [key for key in keys if key < request.end_key or (request.end_or_equal and key == request.end_key)]
        if request.reverse:
            keys.reverse()
        shown = keys[: min(2, request.limit)]
        pairs = [kvorum_idl.KeyValue(key=key, value=key) for key in shown]
        more = len(keys) > len(shown)
        reply = {"key_values": pairs, "success": True, "has_more": more}
        return reply | {"next_key": keys[len(shown)]} if more else reply

    nodes[0].on("getRange", page)

    assert store == [pair.key for pair in await client.get_range()]
    assert store[::-1] == [pair.key for pair in await client.get_range(reverse=True)]
    assert store[1:4] == [pair.key for pair in await client.get_range(b"b", limit=3)]
    assert [] == await client.get_range(limit=0)
    assert store[:4] == [pair.key async for pair in client.scan(end=b"e")]


@pytest.mark.parametrize("endpoints", [[], "a:1", ["a"], ["a:0"], [":1"], ["a:99999"]])
def test_client_endpoints_that_cannot_be_are_refused(endpoints):
    """A wrong endpoint list is told when the client is made."""
    with pytest.raises(ValueError, match="endpoint"):
        KvorumClient(endpoints)


async def test_client_bad_field_is_the_callers_error(client):
    """A key that is no bytes is refused before anything is sent."""
    with pytest.raises(InvalidRequestError, match="cannot be written"):
        await client.set(5, b"v")


def test_client_on_another_event_loop_works_as_well(make_node):
    """Nothing in the client asks for asyncio's own loop or transports."""
    uvloop = pytest.importorskip("uvloop")

    async def work() -> bytes | None:
        node = make_node()
        await node.start()
        node.on("get", FOUND)
        async with KvorumClient([node.endpoint]) as client:
            value = await client.get(b"k")
        await node.stop()
        return value

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(work()) == b"v"
