"""A history of real clients through real nodes, while leader after leader is killed, is linearizable."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from typing import TYPE_CHECKING

import pytest

from kvorum_sim.linearizability import Kind, Operation, Outcome, check
from tests.process.harness import CERTAINLY_NOT_APPLIED, Cluster, eventually
from tests.process.wire import ConnectionLost, delete_key, get, set_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.harness import Node
    from tests.process.wire import Connection, Reply

CLIENTS = 12
KEYS = 60
OPERATIONS = 20_000
LEADER_KILLS = 6
PAUSE_BETWEEN_KILLS_S = 1.0


class Recorder:
    """Clients that read, write and delete few keys through all nodes and note what they saw and when."""

    def __init__(self, nodes: list[Node]) -> None:
        self.history: list[Operation] = []
        self.stop = asyncio.Event()
        self._nodes = nodes
        self._values = itertools.count()

    async def run(self, client: int) -> None:
        """One client: one operation at a time, on one connection until it is lost, then through the next node."""
        chance = random.Random(client)
        for turn in itertools.count(client):
            if self.stop.is_set():
                return
            try:
                connection = await self._nodes[turn % len(self._nodes)].connect()
            except (OSError, TimeoutError):
                await asyncio.sleep(0.02)
                continue
            async with connection:
                while not connection.lost and not self.stop.is_set():
                    await self._operate(client, connection, chance)

    async def _operate(self, client: int, connection: Connection, chance: random.Random) -> None:
        key, kind, argument = b"key%d" % chance.randrange(KEYS), Kind.GET, None
        drawn = chance.random()
        if drawn < 0.45:
            kind, argument = Kind.SET, b"%d" % next(self._values)
            call = set_key(key, argument)
        elif drawn < 0.5:
            kind, call = Kind.DELETE, delete_key(key)
        else:
            call = get(key)
        invoked = time.monotonic()
        try:
            reply = await connection.call(call)
        except ConnectionLost:
            reply = None
        outcome = self._outcome(kind, reply)
        returned = time.monotonic() if outcome != Outcome.UNKNOWN else math.inf
        result = reply.value if kind == Kind.GET and outcome == Outcome.OK and reply is not None else None
        self.history.append(Operation(client, key, kind, argument, result, invoked, returned, outcome))

    @staticmethod
    def _outcome(kind: str, reply: Reply | None) -> str:
        if reply is None or reply.code == "TIMEOUT":
            return Outcome.UNKNOWN
        if reply.code in CERTAINLY_NOT_APPLIED:
            return Outcome.FAILED
        assert reply.code is None, f"unexpected reply: {reply}"
        assert reply.ok or kind == Kind.GET, f"unexpected reply: {reply}"
        return Outcome.OK


async def kill_leaders(cluster: Cluster) -> None:
    """Kill whoever leads, let the others elect, start it again, several times."""
    for _ in range(LEADER_KILLS):
        await asyncio.sleep(PAUSE_BETWEEN_KILLS_S)
        leader = await cluster.leader()
        leader.kill()
        await cluster.leader()
        leader.start()
        await cluster.leader()


@pytest.mark.timeout(600)
async def test_history_through_all_nodes_across_leader_kills_is_linearizable(
    make_cluster: Callable[..., Cluster],
) -> None:
    """20,000 operations of 12 clients and more, six leaders killed: the checker finds a legal order for each key."""
    cluster = make_cluster()
    cluster.start()
    await cluster.ready()
    recorder = Recorder(cluster.nodes)

    async def enough() -> bool:
        return len(recorder.history) >= OPERATIONS

    async with asyncio.TaskGroup() as group:
        for client in range(CLIENTS):
            group.create_task(recorder.run(client))
        await kill_leaders(cluster)
        await eventually(enough, f"{OPERATIONS} operations")
        recorder.stop.set()
    verdict = await asyncio.to_thread(check, recorder.history)

    certain = sum(operation.outcome == Outcome.OK for operation in recorder.history)
    assert verdict.linearizable, verdict.explanation
    assert len(recorder.history) >= OPERATIONS
    assert certain > 0.95 * len(recorder.history)
    await cluster.same_state()
