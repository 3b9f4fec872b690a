"""Seeded runs of a whole cluster on virtual time: real rooms, simulated links, disks that lose what was not synced."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvorum.core.operations import Consistency
from kvorum_sim.disk import LogDisk
from kvorum_sim.linearizability import Outcome
from kvorum_sim.story import CLIENTS, OPERATIONS, Plan, tell
from kvorum_sim.world import REQUEST_TIMEOUT_S, World

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

ROUGH = Plan(leader_crashes=2, disturbances=4)


def test_story_leader_crashes_and_returns_nothing_is_lost() -> None:
    """Every call is decided in time, acknowledged writes are on all nodes, the history is linearizable."""
    world = tell(1, Plan(leader_crashes=1))
    assert 1 == world.crashes
    assert world.elections >= 2
    assert CLIENTS * OPERATIONS < len(world.history)
    assert {Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN} >= {operation.outcome for operation in world.history}


def test_story_same_seed_twice_gives_the_identical_run() -> None:
    """Equal seeds give equal traces to the last step; another seed gives another."""
    first, again, other = (tell(seed, ROUGH) for seed in (5, 5, 6))
    assert first.loop.trace_hash() == again.loop.trace_hash()
    assert first.history == again.history
    assert first.loop.trace_hash() != other.loop.trace_hash()


def test_story_same_seed_in_another_process_gives_the_identical_run() -> None:
    """Neither hash seeds nor memory addresses leak into a run: another interpreter sees the same trace."""
    code = "from kvorum_sim.story import Plan, tell; print(tell(7, Plan(2, 4)).loop.trace_hash())"
    service = str(Path(__file__).parents[2])
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": service},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    assert {tell(7, ROUGH).loop.trace_hash()} == hashes


@pytest.mark.parametrize("seed", range(100, 116))
def test_story_leader_crashes_and_broken_links_nothing_is_lost(seed: int) -> None:
    """Crashes of leaders together with broken and cut links cost no acknowledged write and no linearizable read."""
    tell(seed, ROUGH)


@pytest.mark.parametrize("seed", range(200, 208))
def test_story_all_nodes_killed_at_once_nothing_is_lost(seed: int) -> None:
    """After power cuts of the whole cluster every acknowledged write is there, on every node."""
    tell(seed, Plan(leader_crashes=1, disturbances=2, blackouts=2))


def tell_all(seeds: Iterable[int], plan: Plan) -> list[str]:
    """The verdict of each seed: empty if it is clean."""
    verdicts = []
    for seed in seeds:
        try:
            tell(seed, plan)
            verdicts.append("")
        except AssertionError as violation:
            verdicts.append(str(violation))
    return verdicts


# --- the simulator has teeth ---------------------------------------------------------------------------------------


def test_story_with_local_reads_is_convicted() -> None:
    """Local reads are not linearizable, and the judgement of a few seeds says so: it would see a stale read."""
    convictions = [said for said in tell_all(range(10), Plan(level=Consistency.LOCAL)) if "no order" in said]
    assert convictions


def test_story_with_a_disk_that_lies_is_convicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a log reports durable what it has not synced, the first message that relies on it is noticed."""
    drawn = LogDisk.drawn

    def lying(chance: random.Random) -> LogDisk:
        disk = drawn(chance)
        disk.lying = True
        return disk

    monkeypatch.setattr(LogDisk, "drawn", lying)
    assert all(tell_all(range(5), Plan(blackouts=2)))


def test_call_to_a_paused_process_has_its_time_from_when_it_is_taken() -> None:
    """A write that came during a pause and is never decided ends ten seconds after the pause, and nobody complains."""
    world = World(1)

    async def story() -> float:
        for node_id in world.node_ids:
            world.start(node_id)
        await world.until(lambda: world.leader() is not None, within_s=3, what="a leader")
        leader = world.leader()
        assert leader is not None
        others = [node_id for node_id in world.node_ids if node_id != leader.node_id]
        world.pause(leader.node_id)
        begun = world.now()
        writing = asyncio.ensure_future(world.set(0, leader.node_id, b"key", b"value"))
        await asyncio.sleep(0.7)
        world.network.partition([leader.node_id], others)
        world.resume(leader.node_id, leader.disk.boots)
        for other in others:
            world.cut(leader.node_id, other)
            world.cut(other, leader.node_id)
        operation = await writing
        assert Outcome.UNKNOWN == operation.outcome
        return world.now() - begun

    assert REQUEST_TIMEOUT_S + 0.5 < world.run(story()) < REQUEST_TIMEOUT_S + 1.3
