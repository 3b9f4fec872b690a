"""The pods of a StatefulSet come to one cluster, whatever crashes on the way, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from kvorum_sim.world import World
from tests.sim.test_member_changes import Action, held, made, serving, votes, written


async def grown(world: World) -> None:
    """Take every other pod in, as the leader's reconciler does; wait until all vote."""
    for node_id in world.node_ids[1:]:
        outcome = await made(world, 0, Action.ADD, node_id)
        assert outcome.ok, outcome
    for node_id in world.node_ids:
        await votes(world, node_id)


@pytest.mark.parametrize("seed", range(4))
def test_first_pod_forms_the_cluster_and_serves_once_a_majority_votes(seed: int) -> None:
    """Nobody is ready and no write is taken while one disk would hold all of it."""
    world = World(seed, pods=True)

    async def story() -> None:
        for node_id in world.node_ids:
            world.start(node_id)
        await serving(world)
        founder = world.leader()
        assert founder is not None
        assert (founder.node_id, founder.consensus.cluster_id) == (0, world.record)
        assert not founder.consensus.complete
        assert not await written(world, 0, 1, b"early")
        await grown(world)
        assert founder.consensus.complete
        wanted = await written(world, 1, 10, b"a")
        assert len(wanted) == 10
        for node_id in world.node_ids:
            await held(world, node_id, wanted)
            process = world.process(node_id)
            assert process is not None
            assert process.consensus.cluster_id == world.record

    world.run(story())


@pytest.mark.parametrize("seed", range(8))
def test_first_pod_crashes_at_any_moment_of_the_birth_and_still_one_cluster_is_formed(seed: int) -> None:
    """The record holds the id that the directory will always have: it goes on where it was."""
    world = World(seed, pods=True)

    async def story() -> None:
        for node_id in world.node_ids:
            world.start(node_id)
        for _ in range(5):
            await asyncio.sleep(world.chance.uniform(0, 0.4))
            world.crash(0)
            world.start(0)
        await serving(world)
        assert world.record is not None
        await grown(world)
        assert {process.consensus.cluster_id for process in world.alive} == {world.record}

    world.run(story())


@pytest.mark.parametrize("seed", range(4))
def test_first_pod_that_lost_its_disk_joins_and_forms_no_second_cluster(seed: int) -> None:
    """Its peers, or the record where no peer can be reached, say that there is a cluster."""
    world = World(seed, pods=True)

    async def story() -> None:
        for node_id in world.node_ids:
            world.start(node_id)
        await serving(world)
        await grown(world)
        wanted = await written(world, 1, 10, b"a")
        record = world.record
        world.crash(0)
        world.wipe(0)
        for node_id in (1, 2):
            world.crash(node_id)
        world.start(0)
        await asyncio.sleep(20)
        lonely = world.process(0)
        assert lonely is not None
        assert lonely.consensus.machine is None
        for node_id in (1, 2):
            world.start(node_id)
        await votes(world, 0)
        assert (lonely.consensus.cluster_id, world.record) == (record, record)
        await held(world, 0, wanted)

    world.run(story())


def test_first_pod_does_not_form_a_second_cluster_beside_an_empty_majority() -> None:
    """Two of three disks are lost, the third pod is down: the record says that there was a cluster."""
    world = World(3, pods=True)

    async def story() -> None:
        for node_id in world.node_ids:
            world.start(node_id)
        await serving(world)
        await grown(world)
        for node_id in world.node_ids:
            world.crash(node_id)
        for node_id in (0, 1):
            world.wipe(node_id)
            world.start(node_id)
        await asyncio.sleep(30)
        assert all(process.consensus.machine is None for process in world.alive)

    world.run(story())


def test_member_removed_while_it_was_down_learns_it_when_it_comes_back() -> None:
    """Nobody dials it any more, but whoever turns it away says by which configuration it lost its seat."""
    world = World(5)

    async def story() -> None:
        for node_id in world.node_ids:
            world.start(node_id)
        await serving(world)
        for node_id in world.node_ids:
            await votes(world, node_id)
        leader = world.leader()
        assert leader is not None
        down, up = (node_id for node_id in world.node_ids if node_id != leader.node_id)
        world.crash(down)
        await asyncio.sleep(1)
        assert (await made(world, up, Action.REMOVE, down, force=True)).ok
        world.start(down)
        await world.until(lambda: world.disk(down).removed, within_s=20, what="it knows that it is removed")

    world.run(story())
