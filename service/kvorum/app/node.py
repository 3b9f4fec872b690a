"""
One node, put together: every adapter is handed to its port here, and nowhere else.

Order of start: data directory, storage, log, then HTTP, then links and consensus, then the client port. A client that
is accepted is served: it waits for a leader inside its deadline. Order of stop: unready, hand
leadership over, client port, consensus, storage.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog

import kvorum
from kvorum.app.directory import open_directory
from kvorum.app.hashing import StateHasher
from kvorum.app.kubernetes import PodLife
from kvorum.app.metrics import node_metrics
from kvorum.consensus.manager import ConsensusManager, ManagerSettings, Surroundings
from kvorum.consensus.registry import AlgorithmSettings
from kvorum.consensus.retention import RetentionSettings
from kvorum.core.cluster import Configuration, Member
from kvorum.core.errors import OutOfSpaceError, StorageFailedError
from kvorum.observe.pauses import CollectorPauses
from kvorum.peers.tcp import TcpPeerLinks
from kvorum.routing.manager import RoutingManager, RoutingSettings
from kvorum.statemachine.executor import KvStoreExecutor
from kvorum.storage.free_space import FreeSpace
from kvorum.storage.rocksdict_engine import EngineTuning, RocksdictEngine
from kvorum.storage.staging import StagedStores
from kvorum.storage.wal.segmented_log import SegmentedLog
from kvorum.thrift.server import ThriftServer
from kvorum.thrift.settings import ThriftSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvorum.config.settings import Settings
    from kvorum.core.ids import NodeId
    from kvorum.core.ports import EngineStatistics, StorageEngine
    from kvorum.observe.http import ObserveServer

STOP_GRACE_S = 5.0
"""How long a stopping node answers what is under way: well inside Kubernetes' default grace of 30 s."""


ALONE_WAIT_S = 2.0
ALONE_POLL_S = 0.005
"""How long, and how often, a standalone node looks for its own election before it listens."""

SPACE_LOOK_S: Final = 0.25
"""How often the free space is looked at; a look costs a few microseconds."""

STORE_RESUME_S: Final = 60.0
"""With ample space the store goes on by itself within seconds; one that does not is opened again by a restart."""


def first_configuration(settings: Settings) -> Configuration:
    """The members as the file lists them, equal on every node that shares the file; a pod alone, if it is one."""
    if settings.pod is not None:
        return Configuration.of([settings.pod.member(settings.node_id)])
    peers = settings.peer_endpoints or ("",)
    endpoints = zip(settings.client_endpoints, peers, strict=True)
    return Configuration.of(Member(i, client, peer) for i, (client, peer) in enumerate(endpoints))


class Node:
    """Everything one process runs. `start` once, `stop` once."""

    def __init__(
        self, settings: Settings, loop: asyncio.AbstractEventLoop, fail: Callable[[BaseException], None]
    ) -> None:
        """
        Open the data directory, the storage and the log; nothing listens yet.

        Args:
            settings: What the node was told.
            loop: The loop everything runs on.
            fail: Ends the process; called with what cannot be survived, from any thread.

        Raises:
            StartupError: The data directory cannot be used.
            OutOfSpaceError: The disk is full. Nothing stays open; try again when there is space.
            StorageFailedError: What it holds is damaged; the text says where and what to do.
        """
        self.settings = settings
        self._loop = loop
        self._fail = fail
        self.space = FreeSpace(settings.data_directory, settings.database.reserve_bytes)
        with ExitStack() as undo:
            self._open_files(undo)
            undo.pop_all()
        self.links = (
            TcpPeerLinks(
                settings.node_id,
                settings.peer_port or 0,
                dict(enumerate(settings.peer_endpoints)),
                chance=random.Random(),
            )
            if len(settings.peer_endpoints) > 1 or settings.pod is not None
            else None
        )
        self.pod = PodLife(settings, settings.pod, self.directory, loop) if settings.pod is not None else None
        self.consensus = ConsensusManager(_manager_settings(settings), self._surroundings())
        if self.pod is not None:
            self.pod.attach(self.consensus, fail)
        self.routing = RoutingManager(_routing_settings(settings), self.consensus, self.executor, time.monotonic)
        self.server = ThriftServer(
            self.routing,
            self.executor,
            _thrift_settings(settings),
            engine_statistics=self._store_statistics,
            on_defect=self._defect,
        )
        self.pauses = CollectorPauses()
        self.started = False
        """Its data is open and its ports are; what of the log is not replayed yet shows in readiness."""
        self.http: ObserveServer | None = None
        self._flushing: asyncio.Future[None] | None = None
        self._space_timer: asyncio.TimerHandle | None = None
        self._store_stuck_since: float | None = None

    def _open_files(self, undo: ExitStack) -> None:
        """Data directory, store and log; ``undo`` closes what was opened if one of them cannot be."""
        settings = self.settings
        self.directory = open_directory(settings)
        undo.callback(self.directory.close)
        self.stores = StagedStores(self.directory, lambda path: RocksdictEngine.open(path, _tuning(settings)))
        undo.callback(self.stores.close)
        self.executor = KvStoreExecutor(self.stores.engine)
        self.log = SegmentedLog.open(
            self.directory.log_path,
            segment_bytes=settings.wal.segment_bytes,
            run_on_loop=self._loop.call_soon_threadsafe,
            fail=self._fail,
            installed=self.directory.installed,
        )
        undo.callback(self.log.close)
        if self.directory.installed is not None:
            self.directory.set_store(self.directory.state_path, None)

    @property
    def engine(self) -> StorageEngine:
        """The engine of the present store; another one once a snapshot was installed."""
        return self.stores.engine

    def _store_statistics(self) -> EngineStatistics:
        """What the engine says of itself, but with keys as clients understand them."""
        figures = self.engine.statistics()
        return replace(figures, keys=self.executor.estimate_live_keys(figures.keys))

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            loop=self._loop,
            clock=time.monotonic,
            wall_ms=lambda: time.time_ns() // 1_000_000,
            randomness=random.Random(),
            log=self.log,
            links=self.links,
            state=self.executor,
            flush=self._flush_engine,
            incarnation=self.directory.incarnation,
            cluster_id=self.directory.cluster_id,
            on_born=self.directory.set_cluster_id,
            on_refused=self._fail,
            joining=self.directory.joining,
            on_joining=self.directory.set_joining,
            on_removed=self.directory.set_removed,
            logger=structlog.get_logger("kvorum.consensus"),
            birth=self.pod.birth if self.pod is not None else None,
            staging=self.stores,
        )

    async def start(self) -> None:
        """
        Take part in the cluster and listen.

        Raises:
            StartupError: A port is taken, or the directory does not fit the cluster.
        """
        if self.settings.http_port is not None:
            self.pauses.watch()
            # Imported late: a standalone node without HTTP must not pay for it.
            from kvorum.app.admin import Administration  # noqa: PLC0415
            from kvorum.observe.http import ObserveServer  # noqa: PLC0415

            self.http = ObserveServer(
                "",
                self.settings.http_port,
                metrics=lambda: node_metrics(self),
                live=lambda: True,  # answered by the loop itself: that is the proof
                ready=self.consensus.readiness,
                started=lambda: self.started,
                status=self.status,
                state_hash=StateHasher(self.executor, self.consensus.applier).at,
                admin=Administration(self.consensus, self._wanted) if self.settings.http.admin else None,
            )
            await self.http.start()
        self._watch_space()
        self.consensus.start()
        if self.links is None:
            # A cluster of one elects itself in a moment; whoever is accepted is served at once (contract section 11).
            end = self._loop.time() + ALONE_WAIT_S
            while not self.consensus.may_serve and self._loop.time() < end:  # noqa: ASYNC110
                await asyncio.sleep(ALONE_POLL_S)
        await self.server.start()
        if self.pod is not None:
            self.pod.start()
        self.started = True

    async def stop(self) -> None:
        """Finish what is under way within the grace, then close everything; durable state needs no flush."""
        self.consensus.unready()
        await self.consensus.hand_over(self.pod.scaler.heir() if self.pod is not None else None)
        if self.pod is not None:
            await self.pod.drain()
        await self.server.stop(STOP_GRACE_S)
        if self.pod is not None:
            # Behind the last answer to a client: what this node still had to say is said before it may be removed.
            await self.pod.part()
            await self.pod.stop()
        await self.consensus.stop(STOP_GRACE_S)
        if self._space_timer is not None:
            self._space_timer.cancel()
        if self.http is not None:
            await self.http.stop()
        self.pauses.leave()
        if self._flushing is not None:
            await asyncio.wait([self._flushing])
        self.stores.close()
        self.directory.close()

    def status(self) -> dict[str, object]:
        """The status page: what `kvorum status` shows, for this node alone."""
        report = self.consensus.report()
        return {
            "node_id": report.node_id,
            "version": kvorum.__version__,
            "cluster_id": (self.consensus.cluster_id or b"").hex(),
            "incarnation": f"{self.directory.incarnation:016x}",
            "role": report.role,
            "membership": self.consensus.standing,
            "term": report.term,
            "leader_id": report.leader_id,
            "leader_endpoint": report.leader_endpoint,
            "commit_index": report.commit_index,
            "applied_index": report.applied_index,
            "uptime_seconds": int(report.uptime_s),
            "members": [
                {
                    "node_id": member.node_id,
                    "client_endpoint": member.client_endpoint,
                    "voter": member.voter,
                    "health": member.health,
                    "is_leader": member.is_leader,
                    "last_contact_s": member.last_contact_age_s,
                }
                for member in report.members
            ],
            "checks": dict(self.consensus.readiness()),
            **({"kubernetes": self.pod.status()} if self.pod is not None else {}),
        }

    def _wanted(self, node_id: NodeId) -> bool:
        """Whether a member that is removed would be taken in again at once."""
        return self.pod is not None and self.pod.scaler.wants(node_id)

    def _flush_engine(self, done: Callable[[], None]) -> None:
        """Flush in a thread (rocksdict's flush releases the interpreter lock), then tell the applier on the loop."""

        def finished(flushed: asyncio.Future[None]) -> None:
            error = flushed.exception()
            if error is None:
                done()
            elif isinstance(error, OutOfSpaceError):
                self.consensus.applier.flush_refused()
            else:
                self._fail(error)

        self._flushing = self._loop.run_in_executor(None, self.engine.flush)
        self._flushing.add_done_callback(finished)

    def _watch_space(self) -> None:
        """Step aside while the reserve is used up, and see that the store goes on when there is space."""
        enough = self.space.look()
        self.consensus.space_changed("reserve", enough)
        now = self._loop.time()
        if self.consensus.applier.has_space or not self.space.ample:
            self._store_stuck_since = None
        elif self._store_stuck_since is None:
            self._store_stuck_since = now
        elif now - self._store_stuck_since > STORE_RESUME_S:
            msg = (
                f"the store in {self.directory.state_path} met a full disk and does not go on although there is "
                "space again; start the node again: nothing is lost, the log holds what the store does not. "
                "Look for a disk quota"
            )
            self._fail(StorageFailedError(msg))
        self._space_timer = self._loop.call_later(SPACE_LOOK_S, self._watch_space)

    def _defect(self, error: BaseException) -> None:
        """A failed disk or a broken invariant ends the node; any other defect cost one request and was answered."""
        if isinstance(error, (StorageFailedError, AssertionError)):
            self._fail(error)


def _tuning(settings: Settings) -> EngineTuning:
    rocksdb = settings.rocksdb
    return EngineTuning(
        write_buffer_size_mb=rocksdb.write_buffer_size_mb,
        max_write_buffer_number=rocksdb.max_write_buffer_number,
        block_cache_size_mb=rocksdb.block_cache_size_mb,
    )


def _manager_settings(settings: Settings) -> ManagerSettings:
    consensus, cluster = settings.consensus, settings.cluster
    return ManagerSettings(
        node_id=settings.node_id,
        configuration=first_configuration(settings),
        algorithm="raft" if consensus.algorithm == "mock" else consensus.algorithm,
        timings=AlgorithmSettings(
            election_timeout_s=consensus.election_timeout_ms / 1000,
            heartbeat_s=settings.heartbeat_interval_ms / 1000,
            max_batch_entries=consensus.max_batch_size,
        ),
        leader_wait_s=settings.leader_wait_s,
        outstanding_max=consensus.max_outstanding_proposals,
        node_timeout_s=cluster.node_timeout_ms / 1000,
        health_check_interval_s=cluster.health_check_interval_ms / 1000,
        retention=RetentionSettings(
            retention_s=settings.mvcc.retention_seconds,
            session_idle_s=settings.sessions.idle_timeout_seconds,
            sessions_max=settings.sessions.max_sessions,
        ),
        retain_entries=settings.wal.retain_entries,
        retain_bytes=settings.wal.retain_bytes,
        version=kvorum.__version__,
    )


def _routing_settings(settings: Settings) -> RoutingSettings:
    return RoutingSettings(
        consistency_level=settings.reads.consistency_level,
        allow_stale_reads=settings.reads.allow_stale_reads,
        max_staleness_s=settings.reads.max_staleness_ms / 1000,
        follower_writes=settings.routing.follower_writes,
        leader_wait_s=settings.leader_wait_s,
        future_version_wait_s=settings.future_version_wait_s,
    )


def _thrift_settings(settings: Settings) -> ThriftSettings:
    limits = settings.limits
    return ThriftSettings(
        port=settings.client_port,
        request_timeout_s=settings.request_timeout_s,
        key_bytes_max=limits.max_key_bytes,
        value_bytes_max=limits.max_value_bytes,
        transaction_bytes_max=limits.max_transaction_bytes,
        transaction_operations_max=limits.max_transaction_operations,
        conflict_items_max=limits.max_conflict_items,
        message_bytes_max=limits.max_message_bytes,
        response_bytes_max=limits.max_response_bytes,
        connections_max=limits.max_connections,
        faults_enabled=settings.faults.enabled,
    )
