"""
Stories: what clients do, what goes wrong meanwhile, and the judgement at the end.

`tell` runs one seed of a plan and returns its world, or raises `world.Violation` or an assertion whose note says how to
replay it.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Final

from kvorum.core.operations import Consistency
from kvorum_sim.calls import Violation
from kvorum_sim.linearizability import Kind, Outcome, check
from kvorum_sim.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

CLIENTS: Final = 6
OPERATIONS: Final = 60
"""Operations of each client."""
SHARED_KEYS: Final = 5
PAUSE_S: Final = 0.03
"""Mean pause of a client between two operations."""
FINAL_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """How many of each kind of trouble a story brings."""

    leader_crashes: int = 1
    disturbances: int = 0
    """Links broken, or cut and healed."""
    blackouts: int = 0
    """Times at which all nodes are killed at once."""
    level: str = Consistency.READ_INDEX
    """Consistency level of the clients' reads."""


def tell(seed: int, plan: Plan, make_world: Callable[[int], World] = World) -> World:
    """Run one story and judge it."""
    world = make_world(seed)
    try:
        world.run(_story(world, plan))
        judge(world, plan)
    except Exception as error:
        figures = " ".join(map(str, astuple(plan)))
        replay = f"PYTHONPATH=service .venv/bin/python -m kvorum_sim {seed} {figures}"
        error.add_note(f"at {world.now():.6f} s; replay with: {replay}")
        raise
    return world


async def _story(world: World, plan: Plan) -> None:
    for node_id in world.node_ids:
        world.start(node_id)
    born = world.now()
    await world.until(lambda: world.leader() is not None, within_s=2, what="the first leader")
    first = await world.set(99, world.chance.choice(world.node_ids), b"first", b"write")
    if first.outcome != Outcome.OK or world.now() - born > 2:
        msg = f"a fresh cluster does not take a write within 2 s: {first}"
        raise Violation(msg)
    troubles = [
        _crash_leaders(world, plan.leader_crashes),
        _disturb_links(world, plan.disturbances),
        _black_out(world, plan.blackouts),
    ]
    clients = [_client(world, number, plan.level) for number in range(CLIENTS)]
    await asyncio.gather(*clients, *troubles)
    world.network.heal_all()
    for node_id in world.node_ids:
        if world.process(node_id) is None:
            world.start(node_id)
    await world.until(world.converged, within_s=20, what="all nodes to agree")
    for node_id in world.node_ids:
        for i in range(SHARED_KEYS):
            await _final_read(world, node_id, b"shared-%d" % i, plan.level)


async def _final_read(world: World, node_id: int, key: bytes, level: str) -> None:
    for _ in range(FINAL_TRIES):
        if (await world.get(100 + node_id, node_id, key, level)).outcome == Outcome.OK:
            return
    msg = f"node {node_id} does not serve reads in a healthy cluster: {dict(world.refusals)}"
    raise Violation(msg)


async def _client(world: World, number: int, level: str) -> None:
    """Operations on keys shared with others, and writes of keys of its own, through one node while it lives."""
    chance = random.Random(f"{world.seed} client {number}")
    node_id = number % len(world.node_ids)
    for i in range(OPERATIONS):
        await asyncio.sleep(chance.expovariate(1 / PAUSE_S))
        if world.process(node_id) is None:
            node_id = chance.choice(world.node_ids)
        shared = b"shared-%d" % chance.randrange(SHARED_KEYS)
        value = b"%d.%d" % (number, i)
        match chance.choices(("get", "set", "own", "delete"), (5, 4, 2, 1))[0]:
            case "get":
                await world.get(number, node_id, shared, level)
            case "set":
                await world.set(number, node_id, shared, value)
            case "own":
                await world.set(number, node_id, b"own-" + value, value)
            case _:
                await world.delete(number, node_id, shared)


async def _crash_leaders(world: World, times: int) -> None:
    """Kill the leader in the middle of the work and start it again."""
    for _ in range(times):
        await asyncio.sleep(world.chance.uniform(0.2, 1.0))
        await world.until(lambda: world.leader() is not None, within_s=20, what="a leader to crash")
        leader = world.leader()
        assert leader is not None
        world.crash(leader.node_id)
        await asyncio.sleep(world.chance.uniform(0.01, 3.0))
        if world.process(leader.node_id) is None:
            world.start(leader.node_id)


async def _disturb_links(world: World, times: int) -> None:
    """Break links, or cut one direction for a while."""
    for _ in range(times):
        await asyncio.sleep(world.chance.uniform(0.1, 1.0))
        one, other = world.chance.sample(world.node_ids, 2)
        if world.chance.random() < 0.5:
            world.network.break_link(one, other)
        else:
            world.network.cut(one, other)
            await asyncio.sleep(world.chance.uniform(0.1, 2.0))
            world.network.heal(one, other)


async def _black_out(world: World, times: int) -> None:
    """Kill every node at one moment, as a power cut does, and start them one after the other."""
    for _ in range(times):
        await asyncio.sleep(world.chance.uniform(0.3, 1.5))
        for process in world.alive:
            world.crash(process.node_id)
        for node_id in world.chance.sample(world.node_ids, len(world.node_ids)):
            await asyncio.sleep(world.chance.uniform(0, 0.5))
            if world.process(node_id) is None:
                world.start(node_id)


def judge(world: World, plan: Plan) -> None:
    """
    Everything that must hold at the end of any story.

    Raises:
        Violation: A promise was broken, or too little happened to prove anything.
    """
    world.check_equal_states()
    acknowledged = [o for o in world.history if o.kind == Kind.SET and o.outcome == Outcome.OK]
    for operation in acknowledged:
        if isinstance(operation.key, bytes) and operation.key.startswith(b"own-"):
            for process in world.alive:
                if process.executor.get(b"", operation.key) != operation.argument:
                    msg = f"{process!r} lost an acknowledged write: {operation}"
                    raise Violation(msg)
    verdict = check(world.history)
    if not verdict:
        raise Violation(verdict.explanation)
    if len(acknowledged) < CLIENTS * OPERATIONS // 6 or world.crashes < plan.leader_crashes + plan.blackouts:
        msg = f"inconclusive: {len(acknowledged)} acknowledged writes, {world.crashes} crashes"
        raise Violation(msg)
