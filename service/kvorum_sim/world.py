"""
A whole cluster in one thread: nodes that crash and return, clients on every node, and a witness who forgives nothing.

While the story runs, the witness checks after the fact what must hold at every moment: one leader per term, one entry
per index for ever, nothing applied that is not durable on the node that applies it, every call decided once and in
time. What clients saw is kept as a history for `linearizability`.
"""

from __future__ import annotations

import asyncio
import math
import random
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from kvorum.core.cluster import Configuration, Member
from kvorum.core.codec import encode_delete, encode_set
from kvorum.core.errors import ErrorCode, Refusal
from kvorum.core.machine import Role
from kvorum.core.operations import Applied, Consistency
from kvorum.storage.memory_engine import MemoryEngine
from kvorum.storage.wal.memory_log import MemoryLog
from kvorum_sim.linearizability import Kind, Operation, Outcome
from kvorum_sim.loop import VirtualLoop
from kvorum_sim.network import SimulatedNetwork
from kvorum_sim.process import Disk, Process

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from kvorum.core.entries import Entry
    from kvorum.core.ids import Index, NodeId, Term

T = TypeVar("T")

REQUEST_TIMEOUT_S: Final = 10.0
"""Deadline of a client's call, as by default."""

DEADLINE_SLACK_S: Final = 0.5
"""A call may end this much after its deadline (contract section 1.3)."""

UNKNOWN_CODES: Final = frozenset({ErrorCode.TIMEOUT, ErrorCode.INTERNAL})
"""Refusals of a write that may still have taken effect."""


class Violation(AssertionError):  # noqa: N818 - not an error of the program that runs but of the one that is judged
    """Something that must never happen did."""


class World:
    """
    Nodes 0 to ``nodes - 1``, all started empty.

    Args:
        seed: Decides everything; equal seeds give equal worlds.
        nodes: Size of the cluster.
    """

    def __init__(self, seed: int, *, nodes: int = 3) -> None:
        self.seed = seed
        self.loop = VirtualLoop(seed)
        self.network = SimulatedNetwork(self.loop, seed=seed)
        self.chance = random.Random(f"world {seed}")
        # Each world draws its own hardware: what shows on a slow network may never show on a fast one, and vice versa.
        self.network.delay_s_max = self.chance.choice((0.0005, 0.002, 0.01, 0.03))
        self.history: list[Operation] = []
        self.refusals: Counter[tuple[str, str]] = Counter()
        """Why calls were refused: code and text, as clients see them."""
        self.elections = 0
        self.crashes = 0
        self._configuration = Configuration.of(Member(i, f"node-{i}:9090", f"node-{i}:7090") for i in range(nodes))
        self._processes: dict[NodeId, Process] = {}
        self._disks: dict[NodeId, Disk] = {}
        for node_id in range(nodes):
            log = MemoryLog(self._timer_of(node_id), sync_delay_s=self.chance.choice((0.0002, 0.001, 0.005, 0.02)))
            self._disks[node_id] = Disk(log, MemoryEngine(), self.chance.getrandbits(64) | 1)
        self._leaders: dict[Term, NodeId] = {}
        self._applied: dict[Index, int] = {}
        """CRC of the record every node must apply at an index."""
        self._call_count = 0
        self._calls: dict[NodeId, set[_Call]] = {node_id: set() for node_id in range(nodes)}

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
    def node_ids(self) -> range:
        """All nodes, alive or not."""
        return range(len(self._disks))

    @property
    def alive(self) -> list[Process]:
        """Processes that run, by node id."""
        return [self._processes[node_id] for node_id in sorted(self._processes)]

    def process(self, node_id: NodeId) -> Process | None:
        """The running process of a node, or None."""
        return self._processes.get(node_id)

    def leader(self) -> Process | None:
        """The leader that serves; of several that think so, the one of the highest term."""
        leaders = [process for process in self.alive if process.consensus.may_serve]
        return max(leaders, key=lambda process: process.consensus.term, default=None)

    def start(self, node_id: NodeId) -> Process:
        """Start or restart a node on what its disk holds."""
        assert node_id not in self._processes, f"node {node_id} runs already"
        process = Process(
            node_id,
            self._configuration,
            self._disks[node_id],
            loop=self.loop,
            network=self.network,
            witness=self,
            seed=f"world {self.seed}",
        )
        self._processes[node_id] = process
        self.loop.trace(f"start {node_id}")
        process.start()
        return process

    def crash(self, node_id: NodeId) -> None:
        """Kill a node as SIGKILL and a power cut would together: what was not synced is gone."""
        process = self._processes.pop(node_id)
        self.loop.trace(f"crash {node_id}")
        self.crashes += 1
        self._disks[node_id] = process.crash()
        calls, self._calls[node_id] = self._calls[node_id], set()
        for call in sorted(calls, key=lambda call: call.number):
            call.lost()

    def _timer_of(self, node_id: NodeId) -> Callable[[float, Callable[[], None]], object]:
        """Timers of whichever process runs on this disk at the time."""

        def call_later(delay: float, callback: Callable[[], None]) -> object:
            return self._processes[node_id].loop.call_later(delay, callback)

        return call_later

    # --- clients ---

    async def get(self, client: int, node_id: NodeId, key: bytes, level: str = Consistency.READ_INDEX) -> Operation:
        """Read a key through a node and note what came of it."""
        process = self._processes.get(node_id)
        if process is None:
            return await self._unreachable(client, Kind.GET, key, None)
        call = self._call(process, client, Kind.GET, key, None)
        clock = process.clock()
        if process.routing.read(level, call, clock, clock + REQUEST_TIMEOUT_S):
            call.serve()
        return await self._decision(call)

    async def set(self, client: int, node_id: NodeId, key: bytes, value: bytes) -> Operation:
        """Write a key through a node and note what came of it."""
        return await self._write(client, node_id, Kind.SET, key, value, encode_set(b"", key, value))

    async def delete(self, client: int, node_id: NodeId, key: bytes) -> Operation:
        """Delete a key through a node and note what came of it."""
        return await self._write(client, node_id, Kind.DELETE, key, None, encode_delete(b"", key))

    async def _write(
        self, client: int, node_id: NodeId, kind: str, key: bytes, value: bytes | None, body: bytes
    ) -> Operation:
        process = self._processes.get(node_id)
        if process is None:
            return await self._unreachable(client, kind, key, value)
        call = self._call(process, client, kind, key, value)
        clock = process.clock()
        process.routing.write(body, call, clock, clock + REQUEST_TIMEOUT_S)
        return await self._decision(call)

    async def _unreachable(self, client: int, kind: str, key: bytes, value: bytes | None) -> Operation:
        """Nobody listens there: certainly nothing happened."""
        invoked = self.now()
        await asyncio.sleep(self.network.delay())
        return self._note(Operation(client, key, kind, value, None, invoked, self.now(), Outcome.FAILED))

    def _call(self, process: Process, client: int, kind: str, key: bytes, value: bytes | None) -> _Call:
        self._call_count += 1
        call = _Call(self._call_count, process, client, kind, key, value, self.now(), self.loop.create_future())
        self._calls[process.node_id].add(call)
        return call

    async def _decision(self, call: _Call) -> Operation:
        """
        Wait for the outcome of a call.

        Raises:
            Violation: It is not there in time.
        """
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S + DEADLINE_SLACK_S):
                outcome, result = await call.decision
        except TimeoutError:
            self._violated(f"{call!r} is undecided {DEADLINE_SLACK_S} s after its deadline")
        self._calls[call.process.node_id].discard(call)
        if call.refusal is not None:
            self.refusals[call.refusal.code, call.refusal.text] += 1
            self.loop.trace(f"{call!r} {call.refusal!r}")
        returned = math.inf if outcome == Outcome.UNKNOWN else self.now()
        return self._note(
            Operation(call.client, call.key, call.kind, call.value, result, call.invoked, returned, outcome)
        )

    def _note(self, operation: Operation) -> Operation:
        self.loop.trace(str(operation))
        self.history.append(operation)
        return operation

    # --- process.Witness ---

    def applying(self, process: Process, entries: Sequence[Entry]) -> None:
        """Every node applies the same record at an index, for ever, and only what its own disk holds."""
        if not process.alive:
            self._violated(f"{process!r} applies after its crash")
        expected = process.executor.applied_index + 1
        for entry in entries:
            if entry.index != expected:
                self._violated(f"{process!r} applies {entry!r} where index {expected} comes next")
            expected += 1
            digest = zlib.crc32(entry.record)
            if self._applied.setdefault(entry.index, digest) != digest:
                self._violated(f"{process!r} applies {entry!r}, but another node applied something else there")
        last = entries[-1]
        if process.disk.log.statistics()["last_index"] < last.index:
            self._violated(f"{process!r} applies {last!r}, which is not durable there")
        if process.disk.log.read(last.index, last.index, 1) != [last]:
            self._violated(f"{process!r} applies {last!r}, but its log holds another entry there")

    def said(self, process: Process, event: str, fields: dict[str, object]) -> None:
        """Trace the log lines of all nodes; from one of them, learn who leads."""
        self.loop.trace(f"{process!r} {event} {sorted(fields.items())!r}")
        if event == "leadership changed" and fields["role"] == Role.LEADER:
            self.elections += 1
            term = fields["term"]
            assert isinstance(term, int)
            if self._leaders.setdefault(term, process.node_id) != process.node_id:
                self._violated(f"{process!r} leads term {term}, but so does node {self._leaders[term]}")

    def _violated(self, what: str) -> NoReturn:
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
        return all(
            process.consensus.term == leader.consensus.term
            and process.executor.applied_index == machine.last_index == machine.commit_index
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
            self._violated(f"the states of the nodes differ: {hashes}")


class _Call:
    """One request of a client, as the port's `PendingWrite` and `PendingRead`; it must be answered exactly once."""

    def __init__(
        self,
        number: int,
        process: Process,
        client: int,
        kind: str,
        key: bytes,
        value: bytes | None,
        invoked: float,
        decision: asyncio.Future[tuple[str, bytes | None]],
    ) -> None:
        self.number = number
        self.process = process
        self.client = client
        self.kind = kind
        self.key = key
        self.value = value
        self.invoked = invoked
        self.decision = decision
        self.refusal: Refusal | None = None

    def __repr__(self) -> str:
        return f"call {self.number}: {self.kind} {self.key!r} through {self.process!r}"

    def decided(self, index: Index, outcome: Applied | Refusal) -> None:
        """A write was applied or refused."""
        if isinstance(outcome, Applied):
            assert index > 0
            self._answer(Outcome.OK)
        else:
            self.refusal = outcome
            unknown = index == 0 and outcome.code in UNKNOWN_CODES
            self._answer(Outcome.UNKNOWN if unknown else Outcome.FAILED)

    def serve(self) -> None:
        """A read may be served now."""
        self._answer(Outcome.OK, self.process.executor.get(b"", self.key))

    def refused(self, refusal: Refusal) -> None:
        """A read will not be served."""
        self.refusal = refusal
        self._answer(Outcome.FAILED)

    def lost(self) -> None:
        """The node died under the call: its client sees a broken connection."""
        if not self.decision.done():
            self.decision.set_result((Outcome.FAILED if self.kind == Kind.GET else Outcome.UNKNOWN, None))

    def _answer(self, outcome: str, result: bytes | None = None) -> None:
        assert self.process.alive, f"{self!r} is answered by a dead process"
        if self.decision.done():
            msg = f"{self!r} is answered twice"
            raise Violation(msg)
        self.decision.set_result((outcome, result))
