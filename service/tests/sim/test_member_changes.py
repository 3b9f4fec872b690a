"""Clusters whose members change while nodes crash, lag and lose their disks, in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kvorum.consensus.changes import Action, Change, Outcome
from kvorum_sim.process import Bounds
from kvorum_sim.world import World, seat

if TYPE_CHECKING:
    from kvorum.core.ids import NodeId

LONG_S = 40.0


async def serving(world: World) -> None:
    """Wait for a leader that serves."""
    await world.until(lambda: world.leader() is not None, within_s=LONG_S, what="a leader")


async def made(world: World, asked: NodeId, action: str, node_id: NodeId, *, force: bool = False) -> Outcome:
    """Ask one node for a change and wait for its answer."""
    outcomes: list[Outcome] = []
    member = seat(node_id)
    change = Change(action, node_id, member.client_endpoint, member.peer_endpoint, force)
    process = world.process(asked)
    assert process is not None
    process.consensus.membership.ask(change, 10.0, outcomes.append)
    await world.until(lambda: bool(outcomes), within_s=LONG_S, what=f"an answer to {action} {node_id}")
    return outcomes[0]


async def votes(world: World, node_id: NodeId) -> None:
    """Wait until a node is a voter in force at the leader, by its present data directory."""

    def so() -> bool:
        leader = world.leader()
        member = None if leader is None else leader.consensus.members.member(node_id)
        return member is not None and member.voter and member.incarnation == world.disk(node_id).incarnation

    await world.until(so, within_s=LONG_S, what=f"node {node_id} votes")


async def written(world: World, node_id: NodeId, count: int, name: bytes) -> dict[bytes, bytes]:
    """Write through one node; what was acknowledged."""
    found = {}
    for number in range(count):
        key = b"%s%d" % (name, number)
        if (await world.set(0, node_id, key, b"v" + key)).outcome == "ok":
            found[key] = b"v" + key
    return found


async def held(world: World, node_id: NodeId, wanted: dict[bytes, bytes]) -> None:
    """Every acknowledged write is read back through a node."""
    for key, value in wanted.items():
        operation = await world.get(1, node_id, key)
        assert operation.outcome == "ok", operation
        assert operation.result == value, operation


@pytest.mark.parametrize("seed", range(5))
def test_member_that_missed_all_changes_follows_nodes_it_never_heard_of(seed: int) -> None:
    """A node was cut off while all others were exchanged: it takes entries from a leader unknown to it."""
    world = World(seed)

    async def story() -> None:
        for node_id in world.node_ids:
            world.start(node_id)
        await serving(world)
        wanted = await written(world, 0, 5, b"a")
        for node_id in world.node_ids:
            await votes(world, node_id)
        for other in (0, 1):
            world.cut(2, other)
            world.cut(other, 2)
        await serving(world)
        for _ in range(2):
            node_id = world.add_node()
            world.cut(2, node_id)
            world.cut(node_id, 2)
            assert (await made(world, 0, Action.ADD, node_id)).ok
            await votes(world, node_id)
        for node_id, asked in ((0, 1), (1, 3)):
            outcome = await made(world, asked, Action.REMOVE, node_id)
            assert outcome.ok, outcome
            world.retire(node_id)
        wanted |= await written(world, 3, 5, b"b")
        for other in (0, 1, 3, 4):
            world.heal(2, other)
            world.heal(other, 2)
        await held(world, 2, wanted)

    world.run(story())


@pytest.mark.parametrize("seed", range(3))
def test_member_behind_the_log_takes_the_snapshot_of_a_leader_it_never_heard_of(seed: int) -> None:
    """All others were exchanged and the log no longer reaches back: only the unknown leader's snapshot can help."""
    world = World(seed, bounds=Bounds(retain_entries=5, flush_entries=10))

    async def story() -> None:
        for node_id in world.node_ids:
            world.start(node_id)
        await serving(world)
        for node_id in world.node_ids:
            await votes(world, node_id)
        world.crash(2)
        for _ in range(2):
            node_id = world.add_node()
            assert (await made(world, 0, Action.ADD, node_id)).ok
            await votes(world, node_id)
        for node_id, asked in ((0, 1), (1, 3)):
            outcome = await made(world, asked, Action.REMOVE, node_id)
            assert outcome.ok, outcome
            world.retire(node_id)
        wanted = await written(world, 3, 60, b"b")
        await serving(world)
        behind = world.start(2)
        await held(world, 2, wanted)
        assert behind.consensus.snapshots is not None
        assert behind.consensus.snapshots.installed_total

    world.run(story())


@pytest.mark.parametrize("seed", range(3))
def test_two_wiped_disks_found_no_cluster_beside_the_node_that_remembers(seed: int) -> None:
    """Two nodes start on empty disks, and a moment later the third one, which holds everything."""
    world = World(seed)

    async def story() -> None:
        for node_id in world.node_ids:
            world.start(node_id)
        await serving(world)
        for node_id in world.node_ids:
            await votes(world, node_id)
        await written(world, 0, 5, b"a")
        for node_id in world.node_ids:
            world.crash(node_id)
        for node_id in (1, 2):
            world.wipe(node_id)
            world.start(node_id)
        await asyncio.sleep(0.2)
        world.start(0)
        end = world.loop.time() + 15
        while world.loop.time() < end:
            await asyncio.sleep(0.1)
            assert world.leader() is None

    world.run(story())


@pytest.mark.parametrize("seed", range(5))
def test_newcomer_crashes_while_it_joins_and_the_leader_too(seed: int) -> None:
    """A learner that loses power in the middle of joining goes on where it was, under another leader."""
    world = World(seed)

    async def story() -> None:
        for node_id in world.node_ids:
            world.start(node_id)
        await serving(world)
        wanted = await written(world, 0, 20, b"a")
        newcomer = world.add_node()
        outcome = await made(world, 1, Action.ADD, newcomer)
        assert outcome.ok, outcome
        for _ in range(3):
            await asyncio.sleep(world.chance.uniform(0, 0.2))
            world.crash(newcomer)
            world.start(newcomer)
        leader = world.leader()
        if leader is not None:
            world.crash(leader.node_id)
            await serving(world)
            world.start(leader.node_id)
        await votes(world, newcomer)
        await held(world, newcomer, wanted)

    world.run(story())


def test_changes_that_would_stop_the_cluster_are_refused_unless_forced() -> None:
    """Of three voters one is down: the second must not be removed, the one that is down may."""
    world = World(1)

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
        await asyncio.sleep(3)
        outcome = await made(world, up, Action.REMOVE, up)
        assert not outcome.ok
        assert "the cluster would stop" in outcome.text
        outcome = await made(world, up, Action.TRANSFER, up)
        assert outcome.ok, outcome
        assert (await made(world, leader.node_id, Action.REMOVE, down)).ok
        outcome = await made(world, leader.node_id, Action.REMOVE, down)
        assert not outcome.ok
        assert "no member" in outcome.text
        process = world.process(up)
        assert process is not None
        assert process.consensus.is_leader
        world.start(down)
        await asyncio.sleep(5)
        assert world.leader() is process
        assert process.consensus.members.voters == tuple(sorted((leader.node_id, up)))

    world.run(story())


async def three_voters(world: World) -> tuple[NodeId, NodeId, NodeId]:
    """Start three nodes; the leader first, then the other two."""
    for node_id in world.node_ids:
        world.start(node_id)
    await serving(world)
    for node_id in world.node_ids:
        await votes(world, node_id)
    leader = world.leader()
    assert leader is not None
    one, other = (node_id for node_id in world.node_ids if node_id != leader.node_id)
    return leader.node_id, one, other


@pytest.mark.parametrize("seed", range(3))
def test_removal_that_was_never_committed_takes_no_seat(seed: int) -> None:
    """A node returns while its removal stands in one log only: it is refused there, but it is no removed one."""
    world = World(seed)

    async def story() -> None:
        leader, back, away = await three_voters(world)
        wanted = await written(world, leader, 5, b"a")
        world.crash(back)
        assert (await made(world, leader, Action.ADD, 3)).ok  # a configuration that the node has not seen
        world.crash(away)
        process = world.process(leader)
        assert process is not None
        process.consensus.membership.ask(Change(Action.REMOVE, back, force=True), 10.0, lambda _: None)
        await world.until(lambda: process.consensus.members.member(back) is None, within_s=0.2, what="it is in force")
        world.start(back)
        await asyncio.sleep(1.0)
        world.crash(leader)
        world.start(away)
        await serving(world)
        await held(world, back, wanted)
        await votes(world, back)

    world.run(story())


@pytest.mark.parametrize("seed", range(3))
def test_voter_that_died_a_moment_ago_does_not_count_for_a_removal(seed: int) -> None:
    """Of three one has just died and another is to be removed: the two that would be left could commit nothing."""
    world = World(seed)

    async def story() -> None:
        leader, dead, leaving = await three_voters(world)
        world.crash(dead)
        outcome = await made(world, leaving, Action.REMOVE, leaving)
        assert not outcome.ok
        assert "the cluster would stop" in outcome.text
        assert len(await written(world, leader, 5, b"a")) == 5

    world.run(story())


@pytest.mark.parametrize("seed", range(5))
def test_empty_directory_that_was_short_of_space_when_it_got_its_seat_joins_later(seed: int) -> None:
    """Who the members are is told once; a node that heard nothing at that moment asks by its reports, and hears."""
    world = World(seed)

    async def story() -> None:
        for node_id in world.node_ids:
            world.start(node_id)
        await serving(world)
        wanted = await written(world, 0, 5, b"a")
        await world.until(world.converged, within_s=LONG_S, what="all nodes to agree")
        world.crash(2)
        incarnation = world.wipe(2)
        returned = world.start(2)

        def seated() -> bool:
            leader = world.leader()
            machine = None if leader is None else leader.consensus.machine
            member = None if machine is None else machine.configuration.member(2)
            return member is not None and member.incarnation == incarnation

        while not seated():
            await asyncio.sleep(0.0001)
        returned.consensus.space_changed("store", has_space=False)
        await asyncio.sleep(2)
        assert returned.consensus.machine is None
        returned.consensus.space_changed("store", has_space=True)
        await votes(world, 2)
        await held(world, 2, wanted)

    world.run(story())
