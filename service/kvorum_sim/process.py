"""
One simulated process: the real rooms of a node, composed as `app.node` composes them, on memory and virtual time.

A crash ends it between two callbacks: nothing it had planned runs any more, its log keeps what was synced, its storage
engine what was flushed and some prefix of the rest. What survives is the `Disk`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVarTuple, cast

from kvorum.consensus.manager import ConsensusManager, ManagerSettings, Surroundings
from kvorum.routing.manager import RoutingManager, RoutingSettings
from kvorum.statemachine.executor import KvStoreExecutor
from kvorum_sim.loop import BareLoop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence
    from contextvars import Context

    import structlog

    from kvorum.core.cluster import Configuration
    from kvorum.core.entries import Entry
    from kvorum.core.errors import Refusal, StartupError
    from kvorum.core.ids import Incarnation, Index, NodeId
    from kvorum.core.operations import Applied
    from kvorum.storage.memory_engine import MemoryEngine
    from kvorum.storage.wal.memory_log import MemoryLog
    from kvorum_sim.loop import VirtualLoop
    from kvorum_sim.network import SimulatedNetwork

Ts = TypeVarTuple("Ts")

WALL_START_MS = 1_700_000_000_000
"""What the wall clock shows when a simulation begins."""


class ProcessLoop(BareLoop):
    """The loop as one process sees it: what it scheduled dies with it."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.alive = True

    def time(self) -> float:
        """Virtual seconds."""
        return self._loop.time()

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio's."""
        return self._loop.call_soon(self._run, callback, args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's."""
        return self._loop.call_later(delay, self._run, callback, args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's."""
        return self._loop.call_at(when, self._run, callback, args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        """As asyncio's."""
        return self._loop.create_future()

    def get_debug(self) -> bool:
        """Off."""
        return False

    def _run(self, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        if self.alive:
            callback(*args)


class Witness(Protocol):
    """Who watches the processes and judges them (`world.World`)."""

    def applying(self, process: Process, entries: Sequence[Entry]) -> None:
        """A group is about to be applied."""
        ...

    def said(self, process: Process, event: str, fields: dict[str, object]) -> None:
        """A process logged something."""
        ...


class _WatchedExecutor(KvStoreExecutor):
    """The real executor, with a witness who sees every entry before it is applied."""

    def __init__(self, engine: MemoryEngine, process: Process, witness: Witness) -> None:
        super().__init__(engine)
        self._process = process
        self._witness = witness

    def apply(self, entries: Sequence[Entry]) -> Iterator[list[Applied | Refusal | None] | None]:
        self._witness.applying(self._process, entries)
        return super().apply(entries)


class _Logger:
    """The few methods of a structlog logger that rooms use; what they say goes to the witness."""

    def __init__(self, process: Process, witness: Witness) -> None:
        self._process = process
        self._witness = witness

    def debug(self, event: str, **fields: object) -> None:
        self._witness.said(self._process, event, fields)

    info = warning = error = debug


@dataclass(slots=True)
class Disk:
    """What outlives a process."""

    log: MemoryLog
    engine: MemoryEngine
    incarnation: Incarnation
    cluster_id: bytes | None = None
    boots: int = 0


class Process:
    """One life of one node, from start to crash."""

    def __init__(
        self,
        node_id: NodeId,
        configuration: Configuration,
        disk: Disk,
        *,
        loop: VirtualLoop,
        network: SimulatedNetwork,
        witness: Witness,
        seed: str,
    ) -> None:
        """Compose the rooms on what the disk holds; `start` brings them to life."""
        disk.boots += 1
        chance = random.Random(f"{seed} node {node_id} boot {disk.boots}")
        self.node_id = node_id
        self.disk = disk
        self.loop = ProcessLoop(loop)
        self._network = network
        self._chance = chance
        # Each machine's clocks have their own zero; nothing may compare those of two nodes.
        self._clock_offset = chance.uniform(0, 1e6)
        wall_offset_ms = chance.randrange(-50, 50)
        self.executor = _WatchedExecutor(disk.engine, self, witness)
        self.links = network.links(node_id, [member.node_id for member in configuration.members])
        self.consensus = ConsensusManager(
            ManagerSettings(node_id=node_id, configuration=configuration),
            Surroundings(
                loop=self.loop,
                clock=self.clock,
                wall_ms=lambda: WALL_START_MS + int(loop.time() * 1000) + wall_offset_ms,
                randomness=chance,
                log=disk.log,
                links=self.links,
                state=self.executor,
                flush=self._flush,
                incarnation=disk.incarnation,
                cluster_id=disk.cluster_id,
                on_born=self._born,
                on_refused=self._refused,
                logger=cast("structlog.typing.FilteringBoundLogger", _Logger(self, witness)),
            ),
        )
        self.routing = RoutingManager(RoutingSettings(), self.consensus, self.executor, self.clock)

    def __repr__(self) -> str:
        return f"node {self.node_id} (boot {self.disk.boots})"

    @property
    def alive(self) -> bool:
        """Whether this process still runs."""
        return self.loop.alive

    def clock(self) -> float:
        """Monotonic seconds of this machine."""
        return self.loop.time() + self._clock_offset

    def start(self) -> None:
        """Take part in the cluster."""
        self.consensus.start()

    def crash(self) -> Disk:
        """End here and now; returns what the next process finds."""
        assert self.alive, f"{self!r} crashed already"
        self.loop.alive = False
        self._network.crash(self.node_id)
        chance, disk = self._chance, self.disk
        return Disk(
            disk.log.crash(syncing_survives=chance.random() < 0.5),
            disk.engine.crashed(chance.randrange(1000)),
            disk.incarnation,
            disk.cluster_id,
            disk.boots,
        )

    def state_hash(self) -> tuple[Index, str]:
        """Applied index and hash of the logical content."""
        return next(found for found in self.executor.state_hash() if found is not None)

    def _flush(self, done: Callable[[], None]) -> None:
        def finished() -> None:
            self.disk.engine.flush()
            done()

        self.loop.call_later(self._chance.uniform(0.001, 0.05), finished)

    def _born(self, cluster_id: bytes) -> None:
        assert self.disk.cluster_id in {None, cluster_id}, "a directory keeps its cluster id"
        self.disk.cluster_id = cluster_id

    def _refused(self, error: StartupError) -> None:
        raise error
