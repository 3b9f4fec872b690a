"""Writes carry an identity, so that they are repeated after a lost reply and take effect once."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from kvorum_client import ConflictError, InvalidRequestError, KvorumClient, OutcomeUnknownError, UnavailableError
from kvorum_client.retry import Deadline
from kvorum_client.sessions import LANES_MAX, OPEN_MAX, SPREAD_MAX, Sessions

OK = {"success": True}


def refused(code):
    return {"success": False, "error": "a reason", "error_code": code}


def identities(nodes, method):
    """(client id, request id) of every call, in no order."""
    return [(request.client_id, request.request_id) for node in nodes for name, request in node.calls if name == method]


@pytest.fixture
async def client(nodes):
    """A client that knows all three nodes; short waits."""
    endpoints = [node.endpoint for node in nodes]
    async with KvorumClient(endpoints, timeout_s=30.0, random=Random(1)) as made:
        yield made


async def test_every_kind_of_write_has_its_own_number_under_one_client_id(nodes, client):
    """Numbers grow from write to write; reads carry none."""
    nodes[0].on("setVersionstampedKey", {**OK, "generated_key": b"k"})
    nodes[0].on("setVersionstampedValue", {**OK, "generated_value": b"v"})
    nodes[0].on("atomicCommit", {**OK, "committed_version": 7})
    nodes[0].on("get", {"found": False, "value": b""})
    await client.set(b"k", b"v")
    await client.delete(b"k")
    await client.set_versionstamped_key(b"." * 10, b"v")
    await client.set_versionstamped_value(b"k", b"." * 10)
    await client.get(b"k")
    async with client.transaction() as transaction:
        transaction.set(b"a", b"1")

    writes = [request for name, request in nodes[0].calls if name not in ("getStatus", "get")]
    assert [0, 1, 2, 3, 4] == [request.request_id for request in writes]
    (client_id,) = {request.client_id for request in writes}
    assert 16 == len(client_id)


@pytest.mark.parametrize("code", ["TIMEOUT", "INTERNAL", "CODE_OF_A_LATER_RELEASE"])
async def test_write_with_unknown_outcome_is_sent_again_as_it_was(nodes, client, code):
    """Same pair, same body; only the time left differs."""
    nodes[0].on("setKey", [refused(code), OK])

    await client.set(b"k", b"v")

    assert 2 == len(identities(nodes, "setKey"))
    assert 1 == len(set(identities(nodes, "setKey")))


async def test_write_under_a_lost_connection_is_sent_again(nodes, client, drop):
    """Also a commit."""
    nodes[0].on("setKey", drop())
    nodes[0].on("atomicCommit", drop())
    for node in nodes[1:]:
        node.on("atomicCommit", {**OK, "committed_version": 9})

    await client.set(b"k", b"v")
    transaction = client.transaction()
    transaction.set(b"k", b"v")

    assert 9 == await transaction.commit()
    assert 1 == len(set(identities(nodes, "atomicCommit")))


async def test_write_nobody_answers_is_asked_elsewhere(nodes):
    """A node that stays silent costs one attempt."""

    async def hang(_):
        await asyncio.sleep(30)

    nodes[0].on("setKey", hang)
    endpoints = [node.endpoint for node in nodes]

    async with KvorumClient(endpoints, timeout_s=60.0, attempt_timeout_s=0.5, random=Random(1)) as client:
        await client.set(b"k", b"v")

    assert 1 == len(set(identities(nodes, "setKey")))


@pytest.mark.parametrize("code", ["UNAVAILABLE", "QUOTA_EXCEEDED", "INVALID_ARGUMENT"])
async def test_refusal_of_a_later_attempt_leaves_the_outcome_unknown(nodes, client, drop, code):
    """It speaks of that attempt alone; INVALID_ARGUMENT may mean that the first outcome is forgotten."""
    for node in nodes:
        node.on("setKey", [drop(), refused(code)])

    with pytest.raises(OutcomeUnknownError):
        await client.set(b"k", b"v", timeout_s=1.0)


async def test_refusal_of_the_only_attempt_is_what_it_says(nodes, client):
    """Nothing was sent before."""
    nodes[0].on("setKey", refused("INVALID_ARGUMENT"))

    with pytest.raises(InvalidRequestError):
        await client.set(b"k", b"v")


async def test_conflict_after_a_lost_reply_is_the_outcome(nodes, client, drop):
    """Only the log can say CONFLICT, and it says it of the request, not of the attempt."""
    nodes[0].on("atomicCommit", drop())
    for node in nodes[1:]:
        node.on("atomicCommit", refused("CONFLICT"))
    transaction = client.transaction()
    transaction.set(b"k", b"v")

    with pytest.raises(ConflictError):
        await transaction.commit()


def counting():
    """Client ids 0, 1, 2 and so on."""
    made = []

    def new_id():
        made.append(len(made).to_bytes(16, "big"))
        return made[-1]

    return made, new_id


async def test_lane_is_left_while_it_has_too_many_open_writes():
    """The first lane is used again as soon as it has room."""
    made, new_id = counting()
    sessions, deadline = Sessions(new_id), Deadline(1)
    pairs = [await sessions.acquire(deadline) for _ in range(OPEN_MAX + 1)]

    assert 2 == len(made)
    assert [0] * OPEN_MAX == [int.from_bytes(lane.client_id, "big") for lane, _ in pairs[:-1]]
    sessions.release(*pairs[5])
    lane, request_id = await sessions.acquire(deadline)
    assert (made[0], OPEN_MAX) == (lane.client_id, request_id)


async def test_lane_is_left_while_its_oldest_open_write_is_far_back():
    """So that the outcome of the oldest is still kept when its retry comes."""
    made, new_id = counting()
    sessions, deadline = Sessions(new_id), Deadline(1)
    oldest = await sessions.acquire(deadline)
    for _ in range(3 * SPREAD_MAX):
        lane, request_id = await sessions.acquire(deadline)
        assert lane is not oldest[0] or request_id < SPREAD_MAX
        sessions.release(lane, request_id)
    sessions.release(*oldest)

    assert 2 == len(made)
    assert made[0] == (await sessions.acquire(deadline))[0].client_id


async def test_writes_beyond_all_lanes_wait_their_turn_or_run_out_of_time():
    """A write that is cancelled while it waits hands its turn on."""
    _, new_id = counting()
    sessions = Sessions(new_id)
    pairs = [await sessions.acquire(Deadline(1)) for _ in range(LANES_MAX * OPEN_MAX)]
    with pytest.raises(UnavailableError):
        await sessions.acquire(Deadline(0.01))
    cancelled, waiting = (asyncio.create_task(sessions.acquire(Deadline(5))) for _ in range(2))
    await asyncio.sleep(0)
    sessions.release(*pairs[0])
    cancelled.cancel()

    assert OPEN_MAX == (await waiting)[1]
    assert cancelled.cancelled() or (await asyncio.gather(cancelled, return_exceptions=True))
