"""Snapshots on virtual time: a follower behind the cut log catches up, whatever moment it or its leader dies at."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from kvorum_sim.process import Bounds
from kvorum_sim.world import World

if TYPE_CHECKING:
    from kvorum_sim.process import Process

SHORT = Bounds(retain_entries=20, flush_entries=50)


def settled(world: World, node_id: int) -> bool:
    """The node shows what the leader has applied."""
    process, leader = world.process(node_id), world.leader()
    if process is None or leader is None or process is leader:
        return False
    return process.executor.applied_index >= leader.executor.applied_index - 5


async def fill(world: World, writes: int, clients: int = 8, padding: bytes = b"") -> None:
    """Write through the leader, several calls at a time."""

    async def write(client: int) -> None:
        for number in range(writes // clients):
            leader = world.leader()
            if leader is None:
                await asyncio.sleep(0.05)
                continue
            await world.set(client, leader.node_id, b"%d/%d" % (client, number % 50), b"%d" % number + padding)

    await asyncio.gather(*(write(client) for client in range(clients)))


async def a_follower_behind(world: World) -> int:
    """Start everything, take one follower down, and write until the log no longer reaches back to it."""
    for node_id in world.node_ids:
        world.start(node_id)
    await world.until(lambda: world.leader() is not None, within_s=20, what="a leader")
    await fill(world, 40)
    leader = world.leader()
    assert leader is not None
    follower = next(node_id for node_id in world.node_ids if node_id != leader.node_id)
    behind = world.process(follower)
    assert behind is not None
    applied = behind.executor.applied_index
    world.crash(follower)

    def cut() -> bool:
        now = world.leader()
        return now is not None and now.consensus.machine is not None and now.consensus.machine.base_index > applied

    await fill(world, 400)
    for _ in range(20):
        if cut():
            break
        await fill(world, 100)
    await world.until(cut, within_s=60, what="the leader's log is cut")
    return follower


def installed(process: Process | None) -> int:
    """Snapshots that this life of a node has installed."""
    return process.consensus.snapshots.installed_total if process and process.consensus.snapshots else 0


@pytest.mark.parametrize("seed", range(700, 708))
def test_follower_behind_the_log_installs_a_snapshot_and_goes_on(seed: int) -> None:
    """It ends with the state of the others, while writes go on."""
    world = World(seed, bounds=SHORT)

    async def story() -> None:
        follower = await a_follower_behind(world)
        process = world.start(follower)
        await fill(world, 100)
        await world.until(lambda: installed(process) > 0, within_s=60, what="the snapshot is installed")
        await fill(world, 60)
        await world.until(world.converged, within_s=60, what="all nodes are level")
        world.check_equal_states()

    world.run(story())


@pytest.mark.parametrize("seed", range(800, 816))
def test_follower_dying_at_any_moment_of_an_install_finds_the_old_state_or_the_new(seed: int) -> None:
    """Killed again and again, sometimes with its power, it never starts with half a state and catches up in the end."""
    world = World(seed, bounds=SHORT)
    chance = random.Random(f"snapshots {seed}")

    async def story() -> None:
        follower = await a_follower_behind(world)
        for _ in range(6):
            process = world.start(follower)
            moment = chance.choice(("fetch", "install", "any"))
            for _ in range(4000):
                if moment == "fetch" and process.consensus.snapshots.received_bytes_total:  # type: ignore[union-attr]
                    break
                if moment == "install" and process.consensus.installing:
                    break
                if moment == "any" and chance.random() < 0.002:
                    break
                await asyncio.sleep(0.0005)
            await asyncio.sleep(chance.random() * 0.01)
            world.crash(follower, power=chance.random() < 0.5)
            await fill(world, 80)
        world.start(follower)
        await fill(world, 60)
        await world.until(lambda: settled(world, follower), within_s=60, what="the follower is level")
        await world.until(world.converged, within_s=60, what="all nodes are level")
        world.check_equal_states()

    world.run(story())


@pytest.mark.parametrize("seed", range(900, 908))
def test_leader_dying_while_it_sends_a_snapshot_leaves_the_others_to_go_on(seed: int) -> None:
    """The next leader makes a snapshot of its own; nobody waits for the dead one."""
    world = World(seed, bounds=SHORT)

    async def story() -> None:
        follower = await a_follower_behind(world)
        process = world.start(follower)
        leader = world.leader()
        assert leader is not None
        snapshots = process.consensus.snapshots
        assert snapshots is not None
        await world.until(lambda: snapshots.received_bytes_total > 0, within_s=60, what="the stream begins")
        if not leader.alive:
            return
        world.crash(leader.node_id)
        await world.until(lambda: world.leader() is not None, within_s=60, what="another leader")
        await fill(world, 60)
        world.start(leader.node_id)
        await world.until(world.converged, within_s=120, what="all nodes are level")
        world.check_equal_states()

    world.run(story())


@pytest.mark.parametrize("seed", range(1000, 1004))
def test_stream_that_breaks_is_gone_on_with_where_it_broke(seed: int) -> None:
    """What has arrived is not sent again: the second connection carries the rest of the same snapshot."""
    world = World(seed, bounds=SHORT)

    async def story() -> None:
        follower = await a_follower_behind(world)
        await fill(world, 320, padding=bytes(6000))
        process = world.start(follower)
        snapshots = process.consensus.snapshots
        assert snapshots is not None
        await world.until(lambda: snapshots.received_bytes_total > 600_000, within_s=60, what="part of the stream")
        leader = world.leader()
        assert leader is not None
        world.network.break_link(leader.node_id, follower)
        world.network.break_link(follower, leader.node_id)
        await world.until(lambda: installed(process) > 0, within_s=60, what="the snapshot is installed")
        assert leader.consensus.snapshots is not None
        assert leader.consensus.snapshots.resumed_total == 1
        assert snapshots.received_bytes_total < 1.1 * leader.consensus.snapshots.sent_bytes_total
        await world.until(world.converged, within_s=60, what="all nodes are level")
        world.check_equal_states()

    world.run(story())


@pytest.mark.parametrize("seed", range(1100, 1103))
def test_log_is_not_cut_beyond_what_a_power_cut_leaves(seed: int) -> None:
    """Stores that lose what was not flushed get it back from the log, however little of the log is kept."""
    world = World(seed, bounds=Bounds(retain_entries=5, flush_entries=60))

    async def story() -> None:
        for node_id in world.node_ids:
            world.start(node_id)
        for _ in range(3):
            await world.until(lambda: world.leader() is not None, within_s=20, what="a leader")
            # No multiple of what is flushed at once, or the crash would find everything durable.
            await fill(world, 100, padding=bytes(3000))
            for node_id in world.node_ids:
                world.crash(node_id)
            for node_id in world.node_ids:
                world.start(node_id)
        await world.until(world.converged, within_s=60, what="all nodes are level")
        world.check_equal_states()

    world.run(story())
