"""A StatefulSet on virtual time: its controller, its API server, and a `Scaler` in each pod's process."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import structlog

from kvorum.app.scaling import Scaler
from kvorum.config.pod import Pod
from kvorum.config.settings import Discovery, Settings
from kvorum.consensus.founding import PodBirth
from kvorum.core.cluster import Configuration
from kvorum.discovery.kubernetes_api import Failure, Reason, Record, SliceOutcome
from kvorum.discovery.scaling import Gone, Intent
from kvorum_sim.world import World, seat

GRACE_S = 120.0
"""As in the chart: then a pod is killed."""


class SimulatedGenesis:
    """The record of the birth, as one pod reaches it."""

    def __init__(self, world, node_id):
        self._world = world
        self._node_id = node_id

    def claim(self, cluster_id, decided):
        world, process = self._world, self._world.process(self._node_id)

        def write():
            world.record = world.record or cluster_id
            process.loop.call_later(world.chance.uniform(0, 0.1), decided, world.record)

        world.loop.call_later(world.chance.uniform(0, 0.1), write)


class PodWorld(World):
    """Nodes that know nobody but themselves until their scaler has read who is wanted."""

    def __init__(self, seed, *, nodes):
        super().__init__(seed, nodes=nodes, pods=True)
        self._files = {node_id: Configuration.of([seat(node_id)]) for node_id in range(nodes)}

    def _birth(self, node_id):
        return PodBirth(
            seat(node_id), self.disk(node_id).incarnation, b"simulated set...", SimulatedGenesis(self, node_id)
        )


class SimulatedPod(Pod):
    """A pod whose peers have the simulation's names."""

    def member(self, ordinal):
        return seat(ordinal)


class SimulatedApi:
    """What `KubernetesApi` offers, answered from a `StatefulSet`, after a while."""

    def __init__(self, pods):
        self._pods = pods
        self.errors = Counter()

    async def _answer(self, answer):
        await asyncio.sleep(self._pods.world.chance.uniform(0.001, 0.05))
        if self._pods.api_down:
            self.errors[Reason.UNREACHABLE] += 1
            return Failure(Reason.UNREACHABLE, "simulated")
        return answer()

    async def read_statefulset(self):
        return await self._answer(self._pods.intent)

    async def read_pod_absent(self, name):
        return await self._answer(lambda: int(name.rpartition("-")[2]) not in self._pods.present)

    async def read_record(self, _name):
        return await self._answer(lambda: Record(self._pods.world.record, "1"))

    async def claim_record(self, _name, cluster_id, _version, _recorder):
        def claim():
            assert self._pods.world.record is None
            self._pods.world.record = cluster_id

        return await self._answer(claim)

    async def write_leader_slice(self, _name, address):
        def write():
            known = self._pods.leader_slice
            if known is not None and known.term > address.term:
                return SliceOutcome.FENCED
            self._pods.leader_slice = address
            return SliceOutcome.UNCHANGED if known == address else SliceOutcome.WRITTEN

        return await self._answer(write)

    async def emit_event(self, notice):
        return await self._answer(lambda: self._pods.notices.append(notice))


class StatefulSet:
    """Starts pods that are wanted and stops those that are not, all at once; a pod's volume outlives it."""

    def __init__(self, seed, *, nodes, replicas, **discovery):
        self.world = PodWorld(seed, nodes=nodes)
        self.discovery = Discovery(
            method="kubernetes", genesis_config_map="record", leader_endpoint_slice="leader", **discovery
        )
        self.replicas = replicas
        self.first = 0
        self.generation = 1
        self.deleting = False
        self.gone = False
        self.api_down = False
        self.present: set[int] = set()
        """Pods that are there, running or ending."""
        self.scalers: dict[int, Scaler] = {}
        self.left: dict[int, bool] = {}
        """What each pod that was stopped last said."""
        self.failed: list[str] = []
        self.notices = []
        self.leader_slice = None
        self._ending: dict[int, asyncio.Task] = {}
        self.kept_down: set[int] = set()
        """Pods that nothing starts: their machine is lost."""

    def intent(self):
        if self.gone:
            return Gone()
        return Intent(self.replicas, self.first, self.deleting, self.generation, self.generation, uid="uid-1")

    @property
    def wanted(self):
        return set(self.intent().ordinals()) if not self.deleting and not self.gone else set()

    # --- the controller ---

    def scale(self, replicas, *, first=0):
        """What `kubectl scale` does, and what follows from it."""
        self.replicas, self.first = replicas, first
        self.generation += 1
        self.reconcile()

    def delete(self):
        self.deleting = True
        self.reconcile()

    def reconcile(self):
        for ordinal in sorted(self.present - self.wanted, reverse=True):
            self.stop(ordinal)
        for ordinal in sorted(self.wanted - self.present - self.kept_down):
            self._run(ordinal)

    def stop(self, ordinal):
        """Tell a pod to stop; when it has ended it comes back if it is wanted."""
        if ordinal not in self._ending:
            self._ending[ordinal] = self.world.loop.create_task(self._end(ordinal))
        return self._ending[ordinal]

    def kill(self, ordinal):
        """A pod dies with its machine, and its object is deleted."""
        self.kept_down.add(ordinal)
        self._gone(ordinal)

    def bring_back(self, ordinal):
        self.kept_down.discard(ordinal)
        self.reconcile()

    def _run(self, ordinal):
        if self.world.disk(ordinal).removed:
            self.world.wipe(ordinal)  # set aside by `app.directory`
        process = self.world.start(ordinal)
        self.present.add(ordinal)
        pod = SimulatedPod("kv", ordinal, "kv", "data", "local", 9090, 7090, f"10.0.0.{ordinal}")
        api = SimulatedApi(self) if self.discovery.api else None
        scaler = Scaler(
            Settings(discovery=self.discovery),
            pod,
            process.consensus,
            api,
            structlog.get_logger("scaler").bind(pod=ordinal),
            process.loop,
            process.clock,
            random.Random(f"scaler {self.world.seed} {ordinal}"),
            lambda error: self._fail(ordinal, process, error),
        )
        self.scalers[ordinal] = scaler
        scaler.start()

    async def _end(self, ordinal):
        process = self.world.process(ordinal)
        try:
            async with asyncio.timeout(GRACE_S):
                self.left[ordinal] = await self.scalers[ordinal].stopping()
                if self.world.process(ordinal) is process:
                    process.consensus.unready()
                    await process.consensus.hand_over(self.scalers[ordinal].heir())
        finally:
            self._ending.pop(ordinal, None)
            if self.world.process(ordinal) is process and ordinal in self.present:
                self._gone(ordinal)
                self.reconcile()

    def _gone(self, ordinal):
        self.present.discard(ordinal)
        self.scalers.pop(ordinal, None)
        self.world.crash(ordinal)

    def _fail(self, ordinal, process, error):
        """The container ends and starts again."""

        def again():
            if self.world.process(ordinal) is process:
                self._gone(ordinal)
                self.reconcile()

        self.failed.append(str(error))
        self.world.loop.call_later(1.0, again)

    # --- watching ---

    def members(self):
        """Voters of the leader's configuration; learners are negative, to show in a failure."""
        leader = self.world.leader()
        if leader is None:
            return set()
        return {m.node_id if m.voter else -m.node_id - 100 for m in leader.consensus.members.members}

    async def settled(self, wanted, *, within_s=90.0):
        """Wait until exactly these vote."""
        await self.world.until(
            lambda: self.members() == set(wanted),
            within_s=within_s,
            what=f"{sorted(wanted)} vote",
        )

    def state(self, ordinal):
        return self.scalers[ordinal].status()["state"]
