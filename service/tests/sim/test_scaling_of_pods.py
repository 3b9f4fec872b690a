"""`kubectl scale` in both directions, by any step, whatever else happens: real consensus and scalers, virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest

from kvorum.consensus.changes import Action, Change
from kvorum.discovery.scaling import ScaleState
from tests.sim.pods import StatefulSet
from tests.sim.test_member_changes import held, made, written

SEEDS = range(2)


async def grown(pods):
    """Start the pods and wait until all of them vote; some data, acknowledged."""
    pods.reconcile()
    await pods.settled(pods.wanted)
    await pods.world.until(lambda: pods.world.leader().consensus.complete, within_s=30, what="complete")
    return await written(pods.world, pods.first, 5, b"a")


async def lead(pods, ordinal):
    """Make a certain pod lead."""
    leader = pods.world.leader()
    if leader.node_id != ordinal:
        change = Change(Action.TRANSFER, ordinal)
        leader.consensus.membership.ask(change, 10.0, lambda _: None)
    await pods.world.until(
        lambda: (found := pods.world.leader()) is not None and found.node_id == ordinal, within_s=20, what="it leads"
    )


async def data_is_there(pods, wanted):
    for ordinal in sorted(pods.present & pods.wanted):
        await held(pods.world, ordinal, wanted)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
def test_pods_come_to_one_cluster(seed, replicas) -> None:
    """A fresh install of any size: the first pod forms the cluster, and takes in each one that comes."""
    pods = StatefulSet(seed, nodes=5, replicas=replicas)

    async def story():
        wanted = await grown(pods)
        assert len(wanted) == 5
        assert {process.consensus.cluster_id for process in pods.world.alive} == {pods.world.record}
        await data_is_there(pods, wanted)
        await pods.world.until(lambda: pods.leader_slice is not None, within_s=20, what="the leader's address")
        assert pods.leader_slice.pod == f"kv-{pods.world.leader().node_id}"

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("start", "end"), [(3, 5), (1, 3), (5, 3), (3, 1), (5, 1), (2, 1), (1, 5)])
def test_pods_are_scaled_by_one_command(seed, start, end) -> None:
    """Up and down by any step, the leader among those who go: the members become those who are wanted."""
    pods = StatefulSet(seed, nodes=5, replicas=start)

    async def story():
        wanted = await grown(pods)
        await lead(pods, start - 1)
        pods.scale(end)
        await pods.settled(range(end))
        await pods.world.until(lambda: pods.present == set(range(end)), within_s=60, what="the others are gone")
        assert all(pods.left.values()), pods.left
        wanted |= await written(pods.world, 0, 5, b"b")
        assert len(wanted) == 10
        await data_is_there(pods, wanted)

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_pods_that_restart_one_by_one_keep_their_seats(seed) -> None:
    """A rolling restart is no change of the membership, and nobody waits for anything."""
    pods = StatefulSet(seed, nodes=3, replicas=3)

    async def story():
        wanted = await grown(pods)
        before = pods.world.members()
        for ordinal in (2, 1, 0):
            asked = pods.world.now()
            await pods.stop(ordinal)
            assert pods.world.now() - asked < 4
            await pods.settled({0, 1, 2})
        assert pods.left == {0: False, 1: False, 2: False}
        assert pods.world.members() == before
        await data_is_there(pods, wanted)

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_leadership_moves_to_pods_that_have_restarted_already(seed) -> None:
    """In a rollout from the last ordinal down the leader hands over to a new process where there is one."""
    pods = StatefulSet(seed, nodes=3, replicas=3)

    async def story():
        await grown(pods)
        await lead(pods, 1)
        for ordinal in (2, 1, 0):
            await pods.stop(ordinal)
            await pods.settled({0, 1, 2})
            leader = pods.world.leader()
            assert leader.node_id == (1 if ordinal == 2 else 2)
            await asyncio.sleep(2)  # virtual; a rollout gives more (minReadySeconds), and every node tells its age

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_pod_that_died_while_it_was_scaled_away_is_removed_after_a_while(seed) -> None:
    """Nobody was there to leave: the leader waits out the time, and says what it did."""
    pods = StatefulSet(seed, nodes=3, replicas=3)

    async def story():
        await grown(pods)
        pods.kill(2)
        await pods.settled({0, 1, 2}, within_s=30)
        asked = pods.world.now()
        pods.scale(2)
        await asyncio.sleep(50)
        assert 2 in pods.members()
        await pods.settled({0, 1})
        assert pods.world.now() - asked < 80
        await pods.world.until(
            lambda: "MemberRemoved" in [notice.reason for notice in pods.notices], within_s=20, what="an Event"
        )

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_pod_that_is_only_dead_is_never_removed(seed) -> None:
    """A wanted pod may stay away for an hour; its seat waits."""
    pods = StatefulSet(seed, nodes=3, replicas=3)

    async def story():
        wanted = await grown(pods)
        pods.kill(2)
        await asyncio.sleep(3600)
        assert pods.members() == {0, 1, 2}
        pods.bring_back(2)
        await pods.settled({0, 1, 2})
        await data_is_there(pods, wanted)

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_pod_whose_object_is_still_there_is_not_removed(seed) -> None:
    """A machine that is lost leaves its pods Terminating: nobody knows whether it still writes."""
    pods = StatefulSet(seed, nodes=3, replicas=3)

    async def story():
        await grown(pods)
        pods.kill(2)
        pods.present.add(2)
        pods.replicas = 2
        await asyncio.sleep(300)
        assert 2 in pods.members()
        pods.present.discard(2)
        await pods.settled({0, 1})

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_scale_down_in_flight_is_undone_by_scaling_up(seed) -> None:
    """The removal cannot be made, the pod waits for it; wanted again, it restarts as what it was."""
    pods = StatefulSet(seed, nodes=3, replicas=3)

    async def story():
        wanted = await grown(pods)
        await lead(pods, 0)
        pods.kill(1)
        await asyncio.sleep(5)  # now the leader knows that without node 2 there would be no quorum
        pods.scale(2)
        await asyncio.sleep(20)
        assert pods.members() == {0, 1, 2}
        assert pods.state(2) == ScaleState.LEAVING
        pods.scale(3)
        await pods.world.until(lambda: pods.left.get(2) is False, within_s=5, what="it restarts")
        pods.bring_back(1)
        await pods.settled({0, 1, 2})
        await data_is_there(pods, wanted)

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_pod_scaled_away_and_back_joins_anew_on_its_kept_volume(seed) -> None:
    """What the cluster removed never votes under its old id: the directory is set aside and a learner comes."""
    pods = StatefulSet(seed, nodes=3, replicas=3)

    async def story():
        wanted = await grown(pods)
        before = pods.world.disk(2).incarnation
        pods.scale(2)
        await pods.settled({0, 1})
        await pods.world.until(lambda: 2 not in pods.present, within_s=20, what="it is gone")
        pods.scale(3)
        await pods.settled({0, 1, 2})
        assert pods.world.disk(2).incarnation != before
        await data_is_there(pods, wanted)

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_pod_removed_behind_its_back_and_wanted_again_learns_it_and_joins_anew(seed) -> None:
    """It was dead when it was removed; it comes back on its old directory, is turned away, ends, and starts empty."""
    pods = StatefulSet(seed, nodes=3, replicas=3)

    async def story():
        wanted = await grown(pods)
        pods.kill(2)
        pods.scale(2)
        await pods.settled({0, 1})
        pods.kept_down.clear()
        pods.scale(3)
        await pods.settled({0, 1, 2})
        assert len(pods.failed) == 1, pods.failed
        assert "wanted again" in pods.failed[0]
        await data_is_there(pods, wanted)

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_pod_removed_behind_its_back_learns_it_from_members_that_had_no_leader_when_it_came(seed) -> None:
    """All start at once: nobody can judge yet whether it has a seat, and later nobody dials it."""
    pods = StatefulSet(seed, nodes=3, replicas=3)

    async def story():
        wanted = await grown(pods)
        pods.kill(2)
        pods.scale(2)
        await pods.settled({0, 1})
        await asyncio.sleep(1)
        pods.kept_down.clear()
        for ordinal in (0, 1):
            pods._gone(ordinal)
        pods.scale(3)
        await pods.settled({0, 1, 2})
        assert len(pods.failed) == 1, pods.failed
        await data_is_there(pods, wanted)

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_cluster_scaled_to_zero_comes_back_as_it_was(seed) -> None:
    """Hibernation: nobody leaves, and all data is there when the same size is asked for again."""
    pods = StatefulSet(seed, nodes=3, replicas=3)

    async def story():
        wanted = await grown(pods)
        before = pods.world.members()
        pods.scale(0)
        await pods.world.until(lambda: not pods.present, within_s=30, what="all stopped")
        assert pods.left == {0: False, 1: False, 2: False}
        pods.scale(3)
        await pods.settled({0, 1, 2})
        assert pods.world.members() == before
        await data_is_there(pods, wanted)

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_cluster_that_comes_back_too_small_says_how_far_to_scale(seed) -> None:
    """3 to 0 to 1: one of three voters is no quorum; the state, an Event and the status say what to do."""
    pods = StatefulSet(seed, nodes=3, replicas=3)

    async def story():
        wanted = await grown(pods)
        pods.scale(0)
        await pods.world.until(lambda: not pods.present, within_s=30, what="all stopped")
        pods.scale(1)
        await pods.world.until(lambda: pods.state(0) == ScaleState.NO_QUORUM, within_s=30, what="it says so")
        assert "scale to at least 2" in pods.scalers[0].status()["reason"]
        told = "scale to at least 2: of 3 voters only 1 may run, 2 are needed"
        await pods.world.until(
            lambda: told in [notice.text for notice in pods.notices], within_s=60, what="an Event says so"
        )
        pods.scale(2)
        await pods.world.until(lambda: pods.world.leader() is not None, within_s=60, what="a leader")
        await data_is_there(pods, wanted)

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_statefulset_that_is_deleted_keeps_every_seat(seed) -> None:
    """Uninstalling is no scale-down: the volumes hold the same cluster."""
    pods = StatefulSet(seed, nodes=3, replicas=3)

    async def story():
        wanted = await grown(pods)
        pods.delete()
        await pods.world.until(lambda: not pods.present, within_s=30, what="all stopped")
        pods.deleting = False
        pods.world.record = None  # it went with the release
        pods.reconcile()
        await pods.settled({0, 1, 2})
        await data_is_there(pods, wanted)
        cluster_id = pods.world.leader().consensus.cluster_id
        await pods.world.until(lambda: pods.world.record == cluster_id, within_s=20, what="the record is there again")

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_without_the_api_server_nobody_leaves_and_nobody_is_removed(seed) -> None:
    """It is down while pods are scaled away: they stop in good time; when it is back the leader does the rest."""
    pods = StatefulSet(seed, nodes=3, replicas=3)

    async def story():
        await grown(pods)
        pods.api_down = True
        asked = pods.world.now()
        pods.scale(2)
        await pods.world.until(lambda: 2 not in pods.present, within_s=20, what="it stopped")
        assert pods.world.now() - asked < 12
        assert pods.left == {2: False}
        await asyncio.sleep(300)
        assert 2 in pods.members()
        pods.api_down = False
        await pods.settled({0, 1}, within_s=150)

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("first", [1, 2])
def test_pods_move_to_other_ordinals(seed, first) -> None:
    """`spec.ordinals.start` shifts the range: who is in both keeps the cluster, and tells the new ones of it."""
    pods = StatefulSet(seed, nodes=5, replicas=3)

    async def story():
        wanted = await grown(pods)
        pods.scale(3, first=first)
        await pods.settled(range(first, first + 3), within_s=120)
        await data_is_there(pods, wanted)

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_pods_moved_to_ordinals_of_which_none_is_a_member_lose_nothing(seed) -> None:
    """The new pods know nobody to join and the record keeps them from a cluster of their own; the way back is open."""
    pods = StatefulSet(seed, nodes=6, replicas=3)

    async def story():
        wanted = await grown(pods)
        record = pods.world.record
        pods.scale(3, first=3)
        await pods.world.until(lambda: pods.present == {3, 4, 5}, within_s=130, what="the old ones stopped")
        await asyncio.sleep(60)
        assert [process.consensus.machine for process in pods.world.alive] == [None, None, None]
        assert pods.world.record == record
        pods.scale(3)
        await pods.settled({0, 1, 2})
        await data_is_there(pods, wanted)

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_pods_that_may_not_ask_grow_by_a_mounted_file_and_never_leave(seed, tmp_path) -> None:
    """Without a Role: the file is enough to be born and to grow; who is surplus is reported with the command."""
    file = tmp_path / "replicas"
    file.write_text("3\n")
    pods = StatefulSet(seed, nodes=3, replicas=3, api=False, replicas_file=str(file))

    async def story():
        await grown(pods)
        file.write_text("2\n")
        pods.scale(2)
        await pods.world.until(lambda: 2 not in pods.present, within_s=20, what="it stopped")
        assert pods.left == {2: False}
        await asyncio.sleep(300)
        assert 2 in pods.members()
        scaler = pods.scalers[pods.world.leader().node_id]
        assert "kvorum member remove 2" in scaler.status()["reason"]
        assert [m.samples for m in scaler.metrics() if m.name == "kvorum_scale_surplus_members"] == [[({}, 1)]]

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_pods_that_may_not_ask_are_scaled_down_by_hand(seed, tmp_path) -> None:
    """Number, members, pods, in this order: a pod that knows it is surplus does not come back when it is removed."""
    file = tmp_path / "replicas"
    file.write_text("3\n")
    pods = StatefulSet(seed, nodes=3, replicas=3, api=False, replicas_file=str(file))

    async def story():
        wanted = await grown(pods)
        file.write_text("1\n")
        await pods.world.until(
            lambda: {scaler.status()["desired_replicas"] for scaler in pods.scalers.values()} == {1},
            within_s=20,
            what="all have read it",
        )
        for ordinal in (2, 1):
            assert (await made(pods.world, 0, Action.REMOVE, ordinal)).ok
        await asyncio.sleep(30)
        assert pods.members() == {0}
        assert pods.failed == []
        pods.scale(1)
        await pods.world.until(lambda: pods.present == {0}, within_s=20, what="the others are gone")
        await data_is_there(pods, wanted)

    pods.world.run(story())


@pytest.mark.parametrize("seed", range(4))
def test_pods_follow_whatever_is_asked_for_in_whatever_order(seed) -> None:
    """Sizes at random, crashes and a faltering API server in between: in the end who is wanted votes, with all data."""
    pods = StatefulSet(seed, nodes=5, replicas=3)
    chance = random.Random(seed)

    async def story():
        wanted = await grown(pods)
        for _ in range(8):
            pods.scale(chance.randint(1, 5))
            await asyncio.sleep(chance.uniform(0, 60))
            pods.api_down = chance.random() < 0.2
            if chance.random() < 0.3 and len(pods.present) > 2:
                pods.stop(chance.choice(sorted(pods.present)))
            await asyncio.sleep(chance.uniform(0, 20))
        pods.api_down = False
        pods.scale(3)
        await pods.settled({0, 1, 2}, within_s=400)
        await data_is_there(pods, wanted)

    pods.world.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_pod_removed_before_its_log_showed_its_seat_joins_anew(seed) -> None:
    """It was told of its seat, but got no entry; its volume comes back later and holds no seat, and it is taken in."""
    pods = StatefulSet(seed, nodes=4, replicas=3)
    world = pods.world

    async def story():
        wanted = await grown(pods)
        await lead(pods, 0)
        pods.scale(4)
        before = world.disk(3).incarnation
        seat = lambda: world.leader().consensus.members.member(3)  # noqa: E731
        await world.until(lambda: seat() is not None and seat().incarnation == before, within_s=20, what="a seat")
        world.cut(0, 3)  # the other members tell the pod of its seat, but the leader's entries do not arrive
        await world.until(lambda: world.process(3).consensus.cluster_id is not None, within_s=20, what="it joins")
        assert world.process(3).consensus.peering.joining
        pods.kill(3)
        pods.scale(3)
        await pods.settled({0, 1, 2})
        world.heal(0, 3)
        pods.kept_down.clear()
        pods.scale(4)
        await pods.settled({0, 1, 2, 3})
        assert world.disk(3).incarnation != before
        await data_is_there(pods, wanted)

    world.run(story())


class Mishaps:
    """What happens to pods beside being scaled; all of it passes, and no two disks are lost at once."""

    def __init__(self, pods, chance):
        self._pods = pods
        self._chance = chance
        self._cuts = []

    def all_restart(self):
        for ordinal in sorted(self._pods.present - self._pods._ending.keys()):
            self._pods._gone(ordinal)
        self._pods.reconcile()

    def machine_lost(self):
        if len(self._pods.present) > 2 and not self._pods.kept_down:
            self._pods.kill(self._chance.choice(sorted(self._pods.present)))

    def machine_back(self):
        self._pods.kept_down.clear()
        self._pods.reconcile()

    def disk_lost(self):
        pods = self._pods
        steady = pods.members() == pods.wanted == pods.present and not pods.kept_down and not pods._ending
        if steady and len(pods.wanted) >= 3 and not self._cuts:
            ordinal = self._chance.choice(sorted(pods.wanted))
            pods.kill(ordinal)
            pods.world.wipe(ordinal)
            pods.bring_back(ordinal)

    def cut(self):
        if len(self._pods.present) > 1:
            self._cuts.append(self._chance.sample(sorted(self._pods.present), 2))
            self._pods.world.cut(*self._cuts[-1])

    def heal(self):
        while self._cuts:
            self._pods.world.heal(*self._cuts.pop())

    def removed_by_hand(self):
        leader = self._pods.world.leader()
        if leader is not None and len(leader.consensus.members.voters) > 3:
            change = Change(Action.REMOVE, self._chance.choice(leader.consensus.members.voters))
            leader.consensus.membership.ask(change, 5.0, lambda _: None)


@pytest.mark.parametrize("seed", range(3))
def test_pods_come_together_again_after_whatever_happened(seed) -> None:
    """Sizes from none to five, lost machines and disks, cuts, removals by hand: in the end all vote, with all data."""
    pods = StatefulSet(seed, nodes=5, replicas=5)
    chance = random.Random(f"mishaps {seed}")
    mishaps = Mishaps(pods, chance)
    names = [name for name in vars(Mishaps) if not name.startswith("_")]

    async def story():
        wanted = await grown(pods)
        for step in range(20):
            if chance.random() < 0.25:
                pods.scale(chance.randint(0, 5))
            elif pods.present and chance.random() < 0.2:
                wanted |= await written(pods.world, chance.choice(sorted(pods.present)), 2, b"%d-" % step)
            else:
                name = chance.choice(names)
                getattr(mishaps, name)()
                await asyncio.sleep(30 if name == "disk_lost" else 0)
            await asyncio.sleep(chance.uniform(0, 30))
        mishaps.heal()
        pods.kept_down.clear()
        pods.scale(5)
        await pods.settled(range(5), within_s=600)
        pods.scale(3)
        await pods.settled(range(3), within_s=400)
        assert {process.consensus.cluster_id for process in pods.world.alive} == {pods.world.record}
        await data_is_there(pods, wanted)

    pods.world.run(story())
