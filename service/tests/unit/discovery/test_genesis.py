"""The record of the birth: one id, written once, whoever tries and however often."""

from __future__ import annotations

import asyncio
import random

import pytest
import structlog

from kvorum.discovery import genesis
from kvorum.discovery.genesis import GenesisRecord
from kvorum.discovery.kubernetes_api import Failure, Reason
from tests.unit.discovery.fake_api import GENESIS, GENESIS_PATH

OWN, OTHER = bytes(range(16)), bytes(16 * [7])


@pytest.fixture
async def make_record(api, monkeypatch):
    monkeypatch.setattr(genesis, "RETRY_S_MIN", 0.01)
    monkeypatch.setattr(genesis, "RETRY_S_MAX", 0.02)
    records = []

    def make(recorder="kv-0"):
        loop = asyncio.get_running_loop()
        records.append(GenesisRecord(api, GENESIS, recorder, loop, random.Random(1), structlog.get_logger()))
        return records[-1]

    yield make
    for record in records:
        record.close()


async def claimed(record, cluster_id):
    answer = asyncio.get_running_loop().create_future()
    record.claim(cluster_id, answer.set_result)
    async with asyncio.timeout(120):
        return await answer


async def test_genesis_claim_of_an_empty_record_holds(make_record, server) -> None:
    """Who comes first stands there; the object says in words who that was."""
    assert await claimed(make_record(), OWN) == OWN
    assert server.objects[GENESIS_PATH]["data"] == {"cluster_id": OWN.hex(), "recorded_by": "kv-0"}


async def test_genesis_claim_of_a_record_with_another_id_learns_it(make_record, server) -> None:
    """Nobody writes over a record; the one who comes late is told what stands there."""
    await claimed(make_record(), OTHER)

    assert await claimed(make_record("kv-1"), OWN) == OTHER
    assert server.objects[GENESIS_PATH]["data"]["recorded_by"] == "kv-0"


async def test_genesis_claim_again_with_the_same_id_says_form_now(make_record) -> None:
    """After a crash between record and log the same directory finds its own id and goes on."""
    await claimed(make_record(), OWN)

    assert await claimed(make_record(), OWN) == OWN


async def test_genesis_claim_that_crosses_another_one_learns_the_winner(make_record, server) -> None:
    """A conflict is read again, and then the other id stands there."""
    server.before_put = lambda: server.put(GENESIS_PATH, {"data": {"cluster_id": OTHER.hex()}})

    assert await claimed(make_record(), OWN) == OTHER


async def test_genesis_claims_at_once_agree(make_record) -> None:
    """Two pods that both believe to be the first get the same answer."""
    first, second = await asyncio.gather(claimed(make_record(), OWN), claimed(make_record("kv-1"), OTHER))

    assert first == second


@pytest.mark.parametrize("trouble", [403, 404, 503, b'{"metadata": {}, "data": {"cluster_id": "x"}}'])
async def test_genesis_claim_tries_again_until_the_record_can_be_had(make_record, api, server, trouble) -> None:
    """No cluster is formed on a guess: whatever is wrong, it waits, and goes on when that is mended."""
    server.trouble[GENESIS_PATH] = trouble
    answer = asyncio.ensure_future(claimed(make_record(), OWN))
    async with asyncio.timeout(120):
        while sum(api.errors.values()) < 3:
            await asyncio.sleep(0.01)
    assert not answer.done()
    server.trouble.clear()

    assert await answer == OWN


async def test_genesis_claim_that_is_closed_never_answers(make_record, api, server) -> None:
    """A node that goes away is not told to form a cluster after that."""
    server.trouble[GENESIS_PATH] = 503
    answers = []
    record = make_record()
    record.claim(OWN, answers.append)
    async with asyncio.timeout(120):
        while not api.errors:
            await asyncio.sleep(0.01)
    record.close()
    server.trouble.clear()
    await api.read_record(GENESIS)  # the thread has done what was asked of it before

    assert answers == []
    assert "data" not in server.objects[GENESIS_PATH]


async def test_genesis_settles_a_record_that_went_with_the_release(make_record, server) -> None:
    """Volumes kept, release installed anew: the leader writes the id that its cluster has; a refusal is a value."""
    record = make_record()

    assert await record.settle(OWN) == OWN
    assert await record.settle(OTHER) == OWN
    server.trouble[GENESIS_PATH] = 403
    failure = await record.settle(OWN)
    assert isinstance(failure, Failure)
    assert failure.reason == Reason.FORBIDDEN
