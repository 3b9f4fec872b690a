"""
A whole cluster in one thread: nodes that crash and return, clients on every node, and a witness who forgives nothing.

While the story runs, the witness checks what must hold at every moment (`inspector`), and keeps what clients saw as
histories for the judges (`linearizability`, `model`).
"""

from __future__ import annotations

import asyncio
import math
import random
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from kvorum.consensus.founding import PodBirth
from kvorum.core.cluster import Configuration, Member
from kvorum.core.codec import encode_delete, encode_set
from kvorum.core.errors import ErrorCode, StorageFailedError
from kvorum.core.machine import Role
from kvorum.core.operations import Consistency
from kvorum.storage.memory_engine import MemoryEngine
from kvorum_sim.calls import DEADLINE_SLACK_S, Call, Violation
from kvorum_sim.disk import LogDisk
from kvorum_sim.edge import Clients
from kvorum_sim.inspector import Inspector
from kvorum_sim.linearizability import Kind, Operation, Outcome
from kvorum_sim.loop import VirtualLoop
from kvorum_sim.network import SimulatedNetwork
from kvorum_sim.probes import Probe
from kvorum_sim.process import Bounds, Disk, Process

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from kvorum.consensus.founding import Birth
    from kvorum.core.entries import Entry
    from kvorum.core.ids import Index, NodeId
    from kvorum.core.machine import Effect, Event, Machine, Send
    from kvorum_sim.disk import Shadow

__all__ = ["REQUEST_TIMEOUT_S", "Violation", "World"]

T = TypeVar("T")

REQUEST_TIMEOUT_S: Final = 10.0
"""Deadline of a client's call, as by default."""


def seat(node_id: NodeId) -> Member:
    """A member as a configuration file lists it."""
    return Member(node_id, f"node-{node_id}:9090", f"node-{node_id}:7090")


class _Genesis:
    """The record of the pods' birth; it answers after a while, and a process that died meanwhile hears nothing."""

    def __init__(self, world: World) -> None:
        self._world = world

    def claim(self, cluster_id: bytes, decided: Callable[[bytes], None]) -> None:
        """See `consensus.founding.Genesis`."""
        world = self._world
        process = world.process(0)
        assert process is not None, "only node 0 claims"

        def write() -> None:
            world.record = world.record or cluster_id
            process.loop.call_later(world.chance.uniform(0, 0.1), decided, world.record)

        world.loop.call_later(world.chance.uniform(0, 0.1), write)


class World:
    """
    Nodes 0 to ``nodes - 1``, all started empty.

    Args:
        seed: Decides everything; equal seeds give equal worlds.
        nodes: Size of the cluster.
        bounds: Settings of all nodes.
        pods: The nodes are the pods of a StatefulSet: node 0 forms the cluster, the others have to be added.
        edge: Every node listens for clients on a simulated network.
    """

    def __init__(
        self, seed: int, *, nodes: int = 3, bounds: Bounds | None = None, pods: bool = False, edge: bool = False
    ) -> None:
        self.seed = seed
        self.pods = nodes if pods else 0
        self.record: bytes | None = None
        """Id of the cluster that the pods have formed, outside of all disks."""
        self.bounds = bounds or Bounds()
        self.loop = VirtualLoop(seed)
        self.network = SimulatedNetwork(self.loop, seed=seed)
        self.chance = random.Random(f"world {seed}")
        # Each world draws its own hardware: what shows on a slow network may never show on a fast one, and vice versa.
        self.network.delay_s_max = self.chance.choice((0.0005, 0.002, 0.01, 0.03))
        self.history: list[Operation] = []
        self.refusals: Counter[tuple[str, str]] = Counter()
        """Why calls were refused: code and text, as clients see them."""
        self.outcomes: Counter[str] = Counter()
        """Calls by outcome."""
        self.elections = 0
        self.crashes = 0
        self.faults: Counter[str] = Counter()
        """Faults that took effect, by kind."""
        self.probes: Counter[str] = Counter()
        self.clients = Clients(self.loop, self.network, seed, self.probes, self.violated) if edge else None
        """The way of clients through the Thrift edge, if there is one."""
        self.records: dict[Index, Entry] = {}
        """Every entry that was ever applied."""
        self.unknown: list[Index] = []
        self.inspector = Inspector(self, self.violated)
        self.loss = 0.0
        """Share of the machines' messages that are lost."""
        self.duplication = 0.0
        """Share of them that come twice."""
        self.lateness = 0.0
        """Share of them that are overtaken by others."""
        self.expected_failures: set[NodeId] = set()
        """Nodes whose disk was told to fail."""
        self.refused: set[NodeId] = set()
        """Nodes that do not start, because their log is damaged."""
        self._cuts: Counter[tuple[NodeId, NodeId]] = Counter()
        self.changing = False
        """Somebody changes the members; others wait."""
        self.leaving: set[NodeId] = set()
        """Nodes whose removal was asked for."""
        self.gone: set[NodeId] = set()
        """Nodes that were removed, and do not come back."""
        first = Configuration.of(seat(i) for i in range(nodes))
        self._files: dict[NodeId, Configuration] = dict.fromkeys(range(nodes), first)
        """The members as the configuration file of each node lists them."""
        self._processes: dict[NodeId, Process] = {}
        self._disks: dict[NodeId, Disk] = {}
        for node_id in range(nodes):
            log = LogDisk.drawn(random.Random(f"disk {seed} {node_id}"))
            self._disks[node_id] = Disk(log, MemoryEngine(), self.chance.getrandbits(64) | 1)
        self._lost: dict[NodeId, list[tuple[int, Shadow]]] = {}
        self._applied: dict[Index, int] = {}
        """CRC of the record every node must apply at an index."""
        self._call_count = 0
        self._calls: dict[NodeId, set[Call]] = {node_id: set() for node_id in range(nodes)}

    # --- the story ---

    def run(self, story: Coroutine[object, object, T]) -> T:
        """Tell a story to its end."""
        return self.loop.run_until_complete(story)

    def now(self) -> float:
        """Virtual seconds."""
        return self.loop.time()

    async def until(self, condition: Callable[[], bool], *, within_s: float, what: str) -> None:
        """
        Wait for a condition.

        Raises:
            Violation: It did not come about in time.
        """
        end = self.now() + within_s
        while not condition():
            if self.now() > end:
                msg = f"seed {self.seed}: not within {within_s} s: {what}"
                raise Violation(msg)
            await asyncio.sleep(0.005)

    # --- nodes ---

    @property
    def node_ids(self) -> tuple[NodeId, ...]:
        """All nodes that belong to the cluster or shall, alive or not."""
        return tuple(sorted(self._disks.keys() - self.gone))

    @property
    def alive(self) -> list[Process]:
        """Processes that run, by node id."""
        return [self._processes[node_id] for node_id in sorted(self._processes)]

    def process(self, node_id: NodeId) -> Process | None:
        """The running process of a node, or None."""
        return self._processes.get(node_id)

    def disk(self, node_id: NodeId) -> Disk:
        """What outlives the processes of a node."""
        process = self._processes.get(node_id)
        return self._disks[node_id] if process is None else process.disk

    def leader(self) -> Process | None:
        """The leader that serves; of several that think so, the one of the highest term."""
        leaders = [process for process in self.alive if process.consensus.may_serve]
        return max(leaders, key=lambda process: process.consensus.term, default=None)

    def start(self, node_id: NodeId) -> Process:
        """
        Start or restart a node on what its disk holds.

        Raises:
            StorageFailedError: Its log is damaged.
        """
        assert node_id not in self._processes, f"node {node_id} runs already"
        self.loop.trace(f"start {node_id}")
        process = Process(
            node_id,
            self._files[node_id],
            self._disks[node_id],
            loop=self.loop,
            network=self.network,
            witness=self,
            seed=f"world {self.seed}",
            bounds=self.bounds,
            birth=self._birth(node_id),
            clients=self.clients,
        )
        self._processes[node_id] = process
        shadow = process.disk.log.shadow
        self.probes[Probe.UNTOLD_GROUP] += shadow.untold
        shadow.untold = 0
        if process.log.recovered.torn_bytes:
            self.probes[Probe.TORN_TAIL] += 1
        if process.executor.applied_index < process.log.recovered.last_index:
            self.probes[Probe.REPLAY] += 1
        process.start()
        return process

    def _birth(self, node_id: NodeId) -> Birth | None:
        if not self.pods:
            return None
        birth = PodBirth(seat(node_id), self._disks[node_id].incarnation, b"simulated set...", _Genesis(self))
        birth.expect([seat(other) for other in range(self.pods)], 0, self.pods)
        return birth

    def add_node(self) -> NodeId:
        """Start a new node on an empty disk; it waits until the cluster takes it in."""
        node_id = max(self._disks) + 1
        log = LogDisk.drawn(random.Random(f"disk {self.seed} {node_id}"))
        self._disks[node_id] = Disk(log, MemoryEngine(), self.chance.getrandbits(64) | 1)
        self._calls[node_id] = set()
        self._files[node_id] = Configuration.of(seat(other) for other in self.node_ids)
        self.start(node_id)
        return node_id

    def retire(self, node_id: NodeId) -> None:
        """A removed node goes away for good."""
        if node_id in self._processes:
            self.crash(node_id)
        self.gone.add(node_id)

    def wipe(self, node_id: NodeId) -> int:
        """The disk of a node that is down is replaced by an empty one; returns its incarnation."""
        assert node_id not in self._processes, f"node {node_id} runs"
        disk = self._disks[node_id]
        self._lost.setdefault(node_id, []).append((disk.incarnation, disk.log.shadow))
        disk.log.wipe()
        incarnation = self.chance.getrandbits(64) | 1
        self._disks[node_id] = Disk(disk.log, MemoryEngine(), incarnation, boots=disk.boots)
        self.loop.trace(f"wipe {node_id}")
        return incarnation

    def members(self) -> Configuration:
        """The newest committed configuration that some node has applied."""
        return self.inspector.configurations[-1][1]

    def crash(self, node_id: NodeId, *, power: bool = False) -> None:
        """
        Kill a node.

        Args:
            node_id: Which one.
            power: The machine keeps its power, and with it what was written and not synced.
        """
        process = self._processes.pop(node_id)
        self.loop.trace(f"crash {node_id}")
        if process.log.statistics()["segments"] > process.disk.boots:
            self.probes[Probe.SEGMENT_BEGUN] += 1
        self.crashes += 1
        if self.clients is not None:
            self.clients.crash(process, power=power)
        self._disks[node_id] = process.crash(power=power)
        calls, self._calls[node_id] = self._calls[node_id], set()
        for call in sorted(calls, key=lambda call: call.number):
            call.lost()

    def pause(self, node_id: NodeId) -> None:
        """A node stands still, with all that is on its way to it."""
        process = self._processes[node_id]
        assert not process.paused, f"{process!r} is paused already"
        self.loop.trace(f"pause {node_id}")
        process.loop.paused = True
        for other in self.node_ids:
            if other != node_id:
                self.cut(node_id, other)
                self.cut(other, node_id)

    def resume(self, node_id: NodeId, boots: int) -> None:
        """It goes on, if it is still the same process."""
        for other in self.node_ids:
            if other != node_id:
                self.heal(node_id, other)
                self.heal(other, node_id)
        process = self._processes.get(node_id)
        if process is not None and process.disk.boots == boots and process.paused:
            self.loop.trace(f"resume {node_id}")
            process.loop.resume()

    def cut(self, sender: NodeId, receiver: NodeId) -> None:
        """From now on nothing passes in this one direction, until as many `heal` it as have cut it."""
        self._cuts[sender, receiver] += 1
        self.network.cut(sender, receiver)

    def heal(self, sender: NodeId, receiver: NodeId) -> None:
        """Take one cut back."""
        self._cuts[sender, receiver] -= 1
        if self._cuts[sender, receiver] <= 0:
            del self._cuts[sender, receiver]
            self.network.heal(sender, receiver)

    # --- clients ---

    async def get(self, client: int, node_id: NodeId, key: bytes, level: str = Consistency.READ_INDEX) -> Operation:
        """Read a key through a node and note what came of it."""
        invoked = self.now()
        outcome, call = await self.read(node_id, f"get {key!r}", lambda process: process.executor.get(b"", key), level)
        result = None if call is None else call.result
        return self.note(Operation(client, key, Kind.GET, None, result, invoked, self.now(), outcome))

    async def set(self, client: int, node_id: NodeId, key: bytes, value: bytes) -> Operation:
        """Write a key through a node and note what came of it."""
        return await self._write(client, node_id, Kind.SET, key, value, encode_set(b"", key, value))

    async def delete(self, client: int, node_id: NodeId, key: bytes) -> Operation:
        """Delete a key through a node and note what came of it."""
        return await self._write(client, node_id, Kind.DELETE, key, None, encode_delete(b"", key))

    async def _write(
        self, client: int, node_id: NodeId, kind: str, key: bytes, value: bytes | None, body: bytes
    ) -> Operation:
        invoked = self.now()
        outcome, _ = await self.write(node_id, f"{kind} {key!r}", body)
        returned = math.inf if outcome == Outcome.UNKNOWN else self.now()
        return self.note(Operation(client, key, kind, value, None, invoked, returned, outcome))

    async def read(
        self, node_id: NodeId, what: str, look: Callable[[Process], Any], level: str = Consistency.READ_INDEX
    ) -> tuple[str, Call | None]:
        """Look at the newest state through a node; the outcome, and the call unless nobody listened."""

        def begin(process: Process, call: Call) -> None:
            clock = process.clock()
            if process.routing.read(level, call, clock, clock + REQUEST_TIMEOUT_S):
                call.serve()

        return await self._ask(node_id, what, begin, look)

    async def read_at(
        self, node_id: NodeId, what: str, version: Index, look: Callable[[Process], Any]
    ) -> tuple[str, Call | None]:
        """Look at the state of a version through a node."""

        def begin(process: Process, call: Call) -> None:
            clock = process.clock()
            if process.routing.read_at(version, call, clock, clock + REQUEST_TIMEOUT_S):
                call.serve()

        return await self._ask(node_id, what, begin, look)

    async def write(self, node_id: NodeId, what: str, body: bytes) -> tuple[str, Call | None]:
        """Write through a node."""

        def begin(process: Process, call: Call) -> None:
            clock = process.clock()
            process.routing.write(body, call, clock, clock + REQUEST_TIMEOUT_S)

        return await self._ask(node_id, what, begin, None)

    async def _ask(
        self,
        node_id: NodeId,
        what: str,
        begin: Callable[[Process, Call], None],
        look: Callable[[Process], Any] | None,
    ) -> tuple[str, Call | None]:
        process = self._processes.get(node_id)
        if process is None:
            # Nobody listens there: certainly nothing happened.
            await asyncio.sleep(self.network.delay())
            self.outcomes["unreachable"] += 1
            return Outcome.FAILED, None
        self._call_count += 1
        bound = None if look is None else (lambda: look(process))
        call = Call(self._call_count, process, what, self.loop.create_future(), bound)
        self._calls[node_id].add(call)

        def take() -> None:
            call.taken = self.now()
            begin(process, call)

        process.loop.now_or_held(take)
        outcome = await self._decision(call)
        self.outcomes[outcome] += 1
        self.loop.trace(f"{call!r} {outcome} {call.index} {call.result!r}")
        return outcome, call

    async def _decision(self, call: Call) -> str:
        """
        Wait for the outcome of a call.

        Raises:
            Violation: It is not there in time.
        """
        end = self.now() + REQUEST_TIMEOUT_S + DEADLINE_SLACK_S
        while True:
            try:
                async with asyncio.timeout_at(end):
                    outcome = await asyncio.shield(call.decision)
                break
            except TimeoutError:
                # A process that stood still takes the call, and with it the deadline, when it goes on.
                due = max(call.taken + REQUEST_TIMEOUT_S, call.process.loop.resumed_at)
                if not call.process.paused and self.now() > due + DEADLINE_SLACK_S:
                    self.violated(f"{call!r} is undecided {DEADLINE_SLACK_S} s after its deadline")
                end = self.now() + DEADLINE_SLACK_S
        self._calls[call.process.node_id].discard(call)
        if call.refusal is not None:
            self.refusals[call.refusal.code, call.refusal.text] += 1
            self.loop.trace(f"{call!r} {call.refusal!r}")
            if call.refusal.code == ErrorCode.CONFLICT:
                self.probes[Probe.CONFLICT] += 1
            elif call.refusal.code == ErrorCode.UNAVAILABLE:
                self.probes[Probe.NO_LEADER] += 1
        if outcome == Outcome.UNKNOWN:
            self.probes[Probe.WRITE_UNKNOWN] += 1
        return outcome

    def note(self, operation: Operation) -> Operation:
        """Add to the history what a client saw."""
        self.loop.trace(str(operation))
        self.history.append(operation)
        return operation

    # --- process.Witness ---

    def shadows(self, member: Member) -> list[Shadow]:
        """What is, or was until it was lost, durable on the disk that holds a seat."""
        disk = self._disks.get(member.node_id)
        kept = [] if disk is None else [(disk.incarnation, disk.log.shadow)]
        kept += self._lost.get(member.node_id, [])
        return [shadow for incarnation, shadow in kept if member.incarnation in {0, incarnation}]

    def joined(self, process: Process, machine: Machine) -> None:
        """A machine begins to work."""
        self.inspector.joined(process, machine)

    def handled(self, process: Process, machine: Machine, event: Event, effects: list[Effect]) -> None:
        """Check everything that one event may have broken."""
        del effects
        self.inspector.handled(process, machine, event)

    def sending(self, process: Process, send: Send) -> None:
        """Nothing leaves before what it promises is durable."""
        self.inspector.sending(process, send)

    def hashed(self, process: Process, index: Index, digest: str) -> None:
        """Equal indexes, equal states."""
        self.inspector.hashed(process, index, digest)

    def fate(self, process: Process, peer: NodeId) -> tuple[float, ...]:
        """What becomes of one message of a machine."""
        del process, peer
        if not (self.loss or self.duplication or self.lateness):
            return (0.0,)
        draw = self.chance.random
        if draw() < self.loss:
            return ()
        first = self.chance.expovariate(20) if draw() < self.lateness else 0.0
        return (first, self.chance.expovariate(5)) if draw() < self.duplication else (first,)

    def failed(self, process: Process, error: StorageFailedError) -> None:
        """The disk failed: the process ends, as the real one would, and the fault must have been ours."""
        node_id = process.node_id
        if node_id not in self.expected_failures:
            self.violated(f"{process!r} ends although its disk is well: {error}")
        self.expected_failures.discard(node_id)
        self.probes[Probe.DISK_FAILED] += 1
        if self._processes.get(node_id) is process:
            self.crash(node_id, power=self.chance.random() < 0.5)

    def applying(self, process: Process, entries: Sequence[Entry]) -> None:
        """Every node applies the same record at an index, for ever, and only what its own disk holds."""
        if not process.alive:
            self.violated(f"{process!r} applies after its crash")
        expected = process.executor.applied_index + 1
        for entry in entries:
            if entry.index != expected:
                self.violated(f"{process!r} applies {entry!r} where index {expected} comes next")
            expected += 1
            digest = zlib.crc32(entry.record)
            if self._applied.setdefault(entry.index, digest) != digest:
                self.violated(f"{process!r} applies {entry!r}, but another node applied something else there")
            self.records.setdefault(entry.index, entry)
        last = entries[-1]
        if process.disk.log.shadow.term_at(last.index) != last.term and not process.disk.log.lying:
            self.violated(f"{process!r} applies {last!r}, which is not durable there")
        self.inspector.applied(process, list(entries))

    def said(self, process: Process, event: str, fields: dict[str, object]) -> None:
        """Trace the log lines of all nodes; from some of them, learn what happened."""
        self.loop.trace(f"{process!r} {event} {sorted(fields.items())!r}")
        if event == "leadership changed" and fields["role"] == Role.LEADER:
            self.elections += 1
        elif event.startswith("disk full"):
            self.probes[Probe.STORE_FULL if fields["met_by"] == "store" else Probe.DISK_FULL] += 1
        elif event.startswith("a sync of the log hangs"):
            self.probes[Probe.SYNC_HANGS] += 1

    def violated(self, what: str) -> NoReturn:
        """
        End the run.

        Raises:
            Violation: Always.
        """
        msg = f"seed {self.seed}, {self.now():.6f} s: {what}"
        raise Violation(msg)

    # --- at the end ---

    def converged(self) -> bool:
        """All nodes run, follow one leader, and show the same applied index with nothing left to apply."""
        leader = self.leader()
        if leader is None or len(self.alive) < len(self.node_ids):
            return False
        machine = leader.consensus.machine
        assert machine is not None
        if machine.configuration.voters != self.node_ids:
            return False
        return all(
            process.consensus.term == leader.consensus.term
            and process.executor.applied_index == machine.last_index == machine.commit_index
            and process.consensus.machine is not None
            and process.consensus.machine.commit_index == machine.commit_index
            for process in self.alive
        )

    def check_equal_states(self) -> None:
        """
        Compare the logical state of all nodes.

        Raises:
            Violation: They differ.
        """
        hashes = {process.node_id: process.state_hash() for process in self.alive}
        if len(set(hashes.values())) != 1:
            self.violated(f"the states of the nodes differ: {hashes}")
