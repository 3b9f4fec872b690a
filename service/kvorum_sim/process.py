"""
One simulated process: the real rooms of a node, composed as `app.node` composes them, on memory and virtual time.

A crash ends it between two callbacks: nothing it had planned runs any more, its log keeps what was synced, its storage
engine what was flushed and some prefix of the rest. What survives is the `Disk`. A pause holds everything it had
planned, and lets it go at once when it ends.
"""

from __future__ import annotations

import asyncio
import random
import types
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, TypeVarTuple, cast

from kvorum.consensus import frames
from kvorum.consensus.manager import ConsensusManager, ManagerSettings, Surroundings
from kvorum.core.errors import OutOfSpaceError
from kvorum.routing.manager import RoutingManager, RoutingSettings
from kvorum.statemachine.executor import KvStoreExecutor
from kvorum.statemachine.journal import JournalBounds
from kvorum.storage.memory_staging import MemoryStaging
from kvorum_sim.disk import SimulatedLog
from kvorum_sim.edge import serve_clients
from kvorum_sim.loop import BareLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Sequence
    from contextvars import Context

    import structlog

    from kvorum.consensus.founding import Birth
    from kvorum.core.cluster import Configuration
    from kvorum.core.entries import Entry
    from kvorum.core.errors import Refusal, StartupError, StorageFailedError
    from kvorum.core.ids import Incarnation, Index, NodeId
    from kvorum.core.machine import Effect, Event, Machine, Send
    from kvorum.core.operations import Applied
    from kvorum.core.ports import Greeting, PeerHandler, RecoveredLog
    from kvorum.core.snapshot import Manifest
    from kvorum.storage.memory_engine import MemoryEngine
    from kvorum.thrift.server import ThriftServer
    from kvorum_sim.disk import LogDisk
    from kvorum_sim.edge import Clients
    from kvorum_sim.loop import VirtualLoop
    from kvorum_sim.network import SimulatedNetwork

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

WALL_START_MS = 1_700_000_000_000
"""What the wall clock shows when a simulation begins."""

STOP_GRACE_S: Final = 5.0
"""As `app.node`'s."""

HASH_SPACING: Final = 64
"""The state is hashed at every multiple of this index, on every node, and compared."""


class ProcessLoop(BareLoop):
    """The loop as one process sees it: what it scheduled dies with it, and stands still while it is paused."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.alive = True
        self.paused = False
        self.resumed_at = 0.0
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._held: list[tuple[Callable[..., object], tuple[object, ...]]] = []

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

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]:
        """A task that stops between two steps when the process dies, and waits while it is paused."""
        task = self._loop.create_task(self._steps(coro), name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    def bury(self) -> None:
        """The process is dead: end what it was waiting for; callbacks of its own never run any more."""
        for task in list(self._tasks):
            task.cancel()

    @types.coroutine
    def _steps(self, coro: Coroutine[Any, Any, T]) -> Generator[Any, None, T]:
        error: BaseException | None = None
        while True:
            try:
                while self.paused and self.alive:
                    waiting = self._loop.create_future()
                    self._held.append((waiting.set_result, (None,)))
                    yield from waiting
                if not self.alive:
                    error = error or asyncio.CancelledError()
            except asyncio.CancelledError as cancelled:
                error = cancelled
            try:
                waited = coro.send(None) if error is None else coro.throw(error)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            error = None
            try:
                yield waited
            except GeneratorExit:
                raise
            except BaseException as thrown:  # noqa: BLE001 - handed on to the coroutine
                error = thrown

    def get_debug(self) -> bool:
        """Off."""
        return False

    def resume(self) -> None:
        """Let everything go that a pause held."""
        self.paused = False
        self.resumed_at = self._loop.time()
        held, self._held = self._held, []
        for callback, args in held:
            self._loop.call_soon(self._run, callback, args)

    def now_or_held(self, callback: Callable[..., object], *args: object) -> None:
        """Run it at once, or when a pause is over."""
        self._run(callback, args)

    def _run(self, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        if self.paused:
            self._held.append((callback, args))
        elif self.alive:
            callback(*args)


class Witness(Protocol):
    """Who watches the processes and judges them (`world.World`)."""

    def applying(self, process: Process, entries: Sequence[Entry]) -> None:
        """A group is about to be applied."""
        ...

    def said(self, process: Process, event: str, fields: dict[str, object]) -> None:
        """A process logged something."""
        ...

    def joined(self, process: Process, machine: Machine) -> None:
        """The machine of a process begins to work."""
        ...

    def handled(self, process: Process, machine: Machine, event: Event, effects: list[Effect]) -> None:
        """A machine took one event."""
        ...

    def sending(self, process: Process, send: Send) -> None:
        """A message is about to leave."""
        ...

    def hashed(self, process: Process, index: Index, digest: str) -> None:
        """The state at an index has this hash."""
        ...

    def fate(self, process: Process, peer: NodeId) -> tuple[float, ...]:
        """After how many seconds each copy of a machine's message arrives; none means that it is lost."""
        ...

    def failed(self, process: Process, error: StorageFailedError) -> None:
        """A process ends because its disk failed."""
        ...


_JOURNAL_BOUNDS: Final = (JournalBounds(2, 12, 4), JournalBounds(), JournalBounds(1, 40, 16))
"""Nodes write the rows of sessions at different times, or, as in short stories, never; that must not show."""


class _WatchedExecutor(KvStoreExecutor):
    """The real executor, with a witness who sees every entry before it is applied."""

    def __init__(self, engine: MemoryEngine, process: Process, witness: Witness) -> None:
        super().__init__(engine, _JOURNAL_BOUNDS[process.node_id % len(_JOURNAL_BOUNDS)])
        self._process = process
        self._witness = witness

    def apply(self, entries: Sequence[Entry]) -> Iterator[list[Applied | Refusal | None] | None]:
        self._witness.applying(self._process, entries)
        return super().apply(entries)


class _WatchedConsensus(ConsensusManager):
    """The real manager, with a witness who sees every event and every message."""

    witness: Witness
    process: Process

    def become_member(self, recovered: RecoveredLog) -> None:
        super().become_member(recovered)
        machine, process, witness = self.machine, self.process, self.witness
        assert machine is not None
        witness.joined(process, machine)
        handle = machine.handle

        def watched(event: Event) -> list[Effect]:
            effects = handle(event)
            witness.handled(process, machine, event, effects)
            return effects

        machine.handle = watched  # type: ignore[method-assign]

    def _transmit(self, send: Send) -> None:
        if self.speaks:
            self.witness.sending(self.process, send)
        super()._transmit(send)

    @property
    def ticket_base(self) -> int:
        """What to add to a machine's ticket to have the log's."""
        return self._ticket_base


class _WatchedHandler:
    """The peering of a process as the network sees it: messages of the machine may be lost, late, or come twice."""

    def __init__(self, handler: PeerHandler, process: Process, witness: Witness) -> None:
        self._handler = handler
        self._process = process
        self._witness = witness

    def greet(self) -> Greeting:
        return self._handler.greet()

    def admit(self, greeting: Greeting) -> str | None:
        return self._handler.admit(greeting)

    def turned_away(self, peer: NodeId, reason: str) -> None:
        self._process.loop.now_or_held(self._handler.turned_away, peer, reason)

    def link_up(self, peer: NodeId, greeting: Greeting) -> None:
        self._process.loop.now_or_held(self._handler.link_up, peer, greeting)

    def link_down(self, peer: NodeId, reason: str) -> None:
        self._process.loop.now_or_held(self._handler.link_down, peer, reason)

    def frame_received(self, peer: NodeId, incarnation: Incarnation, kind: int, payload: bytes) -> None:
        loop, handler = self._process.loop, self._handler.frame_received
        if kind != frames.MACHINE:
            loop.now_or_held(handler, peer, incarnation, kind, payload)
            return
        for delay in self._witness.fate(self._process, peer):
            if delay:
                loop.call_later(delay, handler, peer, incarnation, kind, payload)
            else:
                loop.now_or_held(handler, peer, incarnation, kind, payload)

    def serve_stream(self, peer: NodeId, incarnation: Incarnation, request: bytes) -> AsyncIterator[bytes]:
        return self._handler.serve_stream(peer, incarnation, request)


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

    log: LogDisk
    engine: MemoryEngine
    incarnation: Incarnation
    cluster_id: bytes | None = None
    boots: int = 0
    joining: bool = False
    removed: bool = False
    installed: Manifest | None = None
    """The snapshot its store was installed from, while the log may not follow it yet."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Settings that make rare things frequent."""

    retain_entries: int = 10_000
    flush_entries: int = 50_000


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
        bounds: Bounds,
        birth: Birth | None = None,
        clients: Clients | None = None,
    ) -> None:
        """
        Compose the rooms on what the disk holds; `start` brings them to life.

        Raises:
            StorageFailedError: The log is damaged.
        """
        disk.boots += 1
        chance = random.Random(f"{seed} node {node_id} boot {disk.boots}")
        self.node_id = node_id
        self.disk = disk
        self.loop = ProcessLoop(loop)
        self.wall_jump_ms = 0
        self._network = network
        self._chance = chance
        self._witness = witness
        # Each machine's clocks have their own zero; nothing may compare those of two nodes.
        self._clock_offset = chance.uniform(0, 1e6)
        self.logger = cast("structlog.typing.FilteringBoundLogger", _Logger(self, witness))
        self.executor = _WatchedExecutor(disk.engine, self, witness)
        self.log = SimulatedLog.boot(disk.log, self.loop, lambda error: witness.failed(self, error), disk.installed)
        disk.installed = None
        self.staging = MemoryStaging(disk.engine)
        self.links = network.links(node_id, [member.node_id for member in configuration.members])
        start_links = self.links.start
        self.links.start = lambda handler: start_links(  # type: ignore[method-assign]
            cast("PeerHandler", _WatchedHandler(handler, self, witness))
        )
        self.consensus = _WatchedConsensus(
            ManagerSettings(
                node_id=node_id,
                configuration=configuration,
                retain_entries=bounds.retain_entries,
                flush_entries=bounds.flush_entries,
            ),
            self._surroundings(chance, birth),
        )
        self.consensus.process = self
        self.consensus.witness = witness
        self.routing = RoutingManager(RoutingSettings(), self.consensus, self.executor, self.clock)
        self._clients = clients
        self.server: ThriftServer | None = None
        """Its Thrift edge, once it listens; None where stories call its routing themselves."""

    def _surroundings(self, chance: random.Random, birth: Birth | None) -> Surroundings:
        disk = self.disk
        self._wall_offset_ms = chance.randrange(-50, 50)
        return Surroundings(
            loop=self.loop,
            clock=self.clock,
            wall_ms=self.wall_ms,
            randomness=chance,
            log=self.log,
            links=self.links,
            state=self.executor,
            flush=self._flush,
            incarnation=disk.incarnation,
            cluster_id=disk.cluster_id,
            on_born=self._born,
            on_refused=self._refused,
            joining=disk.joining,
            on_joining=self._joining,
            on_removed=self._removed,
            logger=self.logger,
            birth=birth,
            staging=self.staging,
        )

    def __repr__(self) -> str:
        return f"node {self.node_id} (boot {self.disk.boots})"

    @property
    def alive(self) -> bool:
        """Whether this process still runs."""
        return self.loop.alive

    @property
    def paused(self) -> bool:
        """Whether it stands still."""
        return self.loop.paused

    def clock(self) -> float:
        """Monotonic seconds of this machine."""
        return self.loop.time() + self._clock_offset

    def wall_ms(self) -> int:
        """What the wall clock of this machine shows."""
        return WALL_START_MS + int(self.loop.time() * 1000) + self._wall_offset_ms + self.wall_jump_ms

    def start(self) -> None:
        """Take part in the cluster, and listen."""
        self.consensus.start()
        if self._clients is not None:
            self.server = serve_clients(self, self._clients)
        self._hash_later()

    def stop(self) -> asyncio.Task[None]:
        """Begin a planned stop; once it is done, what is left of the process is for `crash`."""
        return self.loop.create_task(self._stop())

    async def _stop(self) -> None:
        """In the order of `app.node`."""
        self.consensus.unready()
        await self.consensus.hand_over()
        if self.server is not None and self._clients is not None:
            self._clients.sockets.close(self.node_id)
            await self.server.stop(STOP_GRACE_S)
        await self.consensus.stop(STOP_GRACE_S)

    def crash(self, *, power: bool) -> Disk:
        """End here and now; returns what the next process finds. With ``power`` the page cache stays."""
        assert self.alive, f"{self!r} crashed already"
        self.loop.alive = False
        self._network.crash(self.node_id)
        self.loop.bury()
        chance, disk = self._chance, self.disk
        if power:
            disk.log.files.kill()
        else:
            disk.log.files.cut_power()
        # Some of what was written and not flushed survives: nothing, a little, or nearly all of it.
        engine = self.staging.engine.crashed(chance.choice((0, chance.randrange(10), chance.randrange(1000))))
        return replace(disk, engine=engine, installed=self.staging.installed)

    def state_hash(self) -> tuple[Index, str]:
        """Applied index and hash of the logical content."""
        return next(found for found in self.executor.state_hash() if found is not None)

    def _hash_later(self) -> None:
        target = (self.executor.applied_index // HASH_SPACING + 1) * HASH_SPACING

        def reached() -> None:
            self._witness.hashed(self, *self.state_hash())
            self._hash_later()

        self.consensus.applier.stop_at(target, reached)

    def _flush(self, done: Callable[[], None]) -> None:
        # What is written while a flush is under way may be lost with power all the same.
        engine, begun = self.staging.engine, self.staging.engine.written_batches

        def finished() -> None:
            try:
                engine.flush(begun)
            except OutOfSpaceError:
                self.consensus.applier.flush_refused()
            else:
                done()

        self.loop.call_later(self._chance.uniform(0.001, 0.05), finished)

    def _born(self, cluster_id: bytes) -> None:
        assert self.disk.cluster_id in {None, cluster_id}, "a directory keeps its cluster id"
        self.disk.cluster_id = cluster_id

    def _joining(self, joining: bool) -> None:  # noqa: FBT001 - a callback of one argument
        self.disk.joining = joining

    def _removed(self) -> None:
        self.disk.removed = True

    def _refused(self, error: StartupError) -> None:
        raise error
