"""
Every section and key a node understands, with its default and its bounds, as frozen values.

`Settings` is what the rest of kvorum sees: the sections as configured, and what follows from them - who this node is,
which ports it opens, where its data lies. It is built by `load.load_settings` and never changes afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from kvorum.config.pod import Pod
from kvorum.core import limits
from kvorum.core.operations import CONSISTENCY_ALIASES, Consistency

_MIB = 1024 * 1024
_DAY_MS = 86_400_000


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _level(value: object) -> object:
    return CONSISTENCY_ALIASES.get(value.lower(), value) if isinstance(value, str) else value


_LOG_LEVELS = {"trace": "debug", "warn": "warning", "fatal": "error", "critical": "error"}


def _log_level(value: object) -> object:
    return _LOG_LEVELS.get(value.lower(), value.lower()) if isinstance(value, str) else value


Milliseconds = Annotated[int, Field(ge=1, le=_DAY_MS)]
Seconds = Annotated[int, Field(ge=1, le=366 * 86_400)]
Port = Annotated[int, Field(ge=1, le=65_535)]


class Section(BaseModel):
    """One table of the file. Values are strict: a number in quotes is a mistake, not a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    tuning: ClassVar[bool] = False
    """True where a bad or unknown value is ignored with one line instead of ending the start (contract section 12)."""


class Deployment(Section):
    """Who this node is. `replica_endpoints` alone decides whether there are peers; `mode` must only not contradict."""

    mode: Annotated[Literal["standalone", "replicated"], BeforeValidator(_lower)] | None = None
    instance_id: Annotated[int, Field(ge=0)] | None = None
    replica_endpoints: tuple[str, ...] | None = None
    advertise_endpoint: str | None = None


class Database(Section):
    """Where data lies."""

    base_path: Annotated[str, Field(min_length=1)] = "./data/kvorum"
    reserve_bytes: Annotated[int, Field(ge=0, le=1024 * 1024 * _MIB)] = 64 * _MIB
    """Below this much free space, or a twentieth of a small volume, the node steps aside: log and store need it to end
    in good order."""


class Consensus(Section):
    """The replicated log. The timeout is the upper end of the random interval."""

    algorithm: Annotated[Literal["raft", "mock"], BeforeValidator(_lower)] = "raft"
    endpoints: tuple[str, ...] | None = None
    election_timeout_ms: Annotated[int, Field(ge=50, le=600_000)] = 1000
    heartbeat_interval_ms: Annotated[int, Field(ge=5, le=60_000)] = 100
    max_batch_size: Annotated[int, Field(ge=1, le=65_536)] = 1024
    max_outstanding_proposals: Annotated[int, Field(ge=1, le=1_000_000)] = 1000


class Reads(Section):
    """What a read without its own level may show."""

    consistency_level: Annotated[Literal["local", "leader", "read_index"], BeforeValidator(_level)] = (
        Consistency.READ_INDEX
    )
    allow_stale_reads: bool = True
    max_staleness_ms: Milliseconds = 5000


class RocksDb(Section):
    """Knobs of the storage engine."""

    tuning: ClassVar[bool] = True

    write_buffer_size_mb: Annotated[int, Field(ge=1, le=4096)] = 64
    max_write_buffer_number: Annotated[int, Field(ge=2, le=64)] = 4
    block_cache_size_mb: Annotated[int, Field(ge=1, le=1_048_576)] = 256


class Cluster(Section):
    """How long peers may be silent and requests may wait for a leader."""

    node_timeout_ms: Milliseconds = 10_000
    health_check_interval_ms: Milliseconds = 1000
    leader_discovery_timeout_ms: Milliseconds = 4000


class Logging(Section):
    """kvorum's own log level; the two sizes are for the storage engine's log files."""

    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_log_level)] = "info"
    max_log_file_size_mb: Annotated[int, Field(ge=0)] | None = None
    keep_log_file_num: Annotated[int, Field(ge=0)] | None = None


class Routing(Section):
    """What a follower does with a write."""

    follower_writes: Annotated[Literal["forward", "redirect"], BeforeValidator(_lower)] = "forward"


class Faults(Section):
    """Whether `setFaultInjection` does anything."""

    enabled: bool = False


class Http(Section):
    """Metrics, health, status page and administration. `enabled` unset: on with peers, off standalone."""

    enabled: bool | None = None
    port: Port | None = None
    admin: bool = True
    """False: the port shows, but changes no member, moves no leader, cuts no log and gives no snapshot."""


Name = Annotated[str, Field(min_length=1, max_length=253)]


class Discovery(Section):
    """How peers are found: from the list of endpoints, or as the pods of a StatefulSet."""

    method: Annotated[Literal["static", "kubernetes"], BeforeValidator(_lower)] = "static"
    statefulset: Name | None = None
    """Unset: the pod's name without its ordinal."""
    service: Name | None = None
    """The headless Service; unset: the StatefulSet's name with ``-headless``."""
    namespace: Name | None = None
    """Unset: the environment's POD_NAMESPACE."""
    cluster_domain: Name = "cluster.local"
    api: bool = True
    """False: the Kubernetes API is not asked; no pod leaves by itself, and `replicas_file` says how many are wanted."""
    replicas_file: Name | None = None
    genesis_config_map: Name | None = None
    """Where the birth of the cluster is recorded; unset: a majority of empty pods is proof enough."""
    leader_endpoint_slice: Name | None = None
    """Kept by the leader, if set: the address behind a Service that leads to it alone."""
    auto_join: bool = True
    auto_leave: bool = True
    remove_after_seconds: Annotated[int, Field(ge=10, le=86_400)] = 60
    """How long a surplus member must be silent, and its pod absent, before the leader removes it."""
    drain_seconds: Annotated[int, Field(ge=0, le=300)] = 3
    """How long a stopping pod serves on after it has become unready: its Service needs a moment to notice."""


class Wal(Section):
    """Files of the consensus log."""

    segment_bytes: Annotated[int, Field(ge=_MIB, le=1024 * _MIB)] = 64 * _MIB
    retain_entries: Annotated[int, Field(ge=0, le=100_000_000)] = 10_000
    """Entries kept behind the durable index for slow followers."""
    retain_bytes: Annotated[int, Field(ge=_MIB, le=1024 * 1024 * _MIB)] = 256 * _MIB
    """A longer log is cut up to the durable index, whoever lags; they catch up by snapshot."""


class Limits(Section):
    """What one request may ask for (contract sections 1.3 and 9)."""

    max_key_bytes: Annotated[int, Field(ge=16, le=_MIB)] = limits.KEY_BYTES_MAX
    max_value_bytes: Annotated[int, Field(ge=16, le=limits.ENTRY_BYTES_MAX)] = limits.VALUE_BYTES_MAX
    max_transaction_bytes: Annotated[int, Field(ge=1024, le=limits.ENTRY_BYTES_MAX)] = limits.TRANSACTION_BYTES_MAX
    max_transaction_operations: Annotated[int, Field(ge=1, le=limits.TRANSACTION_OPERATIONS_CEILING)] = (
        limits.TRANSACTION_OPERATIONS_MAX
    )
    max_conflict_items: Annotated[int, Field(ge=1, le=10_000_000)] = limits.CONFLICT_ITEMS_MAX
    # A message becomes one log entry at most, and the entry's own header must still fit.
    max_message_bytes: Annotated[int, Field(ge=2048, le=limits.ENTRY_BYTES_MAX - _MIB)] = limits.MESSAGE_BYTES_MAX
    max_response_bytes: Annotated[int, Field(ge=1024, le=1024 * _MIB)] = limits.RESPONSE_BYTES_MAX
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = limits.CONNECTIONS_MAX
    request_timeout_ms: Milliseconds = 10_000


class Mvcc(Section):
    """History of old versions."""

    retention_seconds: Seconds = 300
    future_version_wait_ms: Annotated[int, Field(ge=0, le=_DAY_MS)] = 2000


class Sessions(Section):
    """What is remembered of clients that send `client_id`."""

    idle_timeout_seconds: Seconds = 3600
    max_sessions: Annotated[int, Field(ge=1, le=100_000_000)] = 100_000


class Flags(BaseModel):
    """What the command line said; None where it was silent. Flags win over environment and file."""

    model_config = ConfigDict(frozen=True)

    port: int | None = None
    node_id: int | None = None
    db_path: Path | None = None
    log_dir: Path | None = None
    """``-``: no files."""
    http_port: int | None = None
    verbose: bool = False


class Settings(BaseModel):
    """Everything a node is started with. Sections as configured, then what follows from them."""

    model_config = ConfigDict(frozen=True)

    deployment: Deployment = Deployment()
    database: Database = Database()
    consensus: Consensus = Consensus()
    reads: Reads = Reads()
    rocksdb: RocksDb = RocksDb()
    cluster: Cluster = Cluster()
    logging: Logging = Logging()
    routing: Routing = Routing()
    faults: Faults = Faults()
    http: Http = Http()
    discovery: Discovery = Discovery()
    wal: Wal = Wal()
    limits: Limits = Limits()
    mvcc: Mvcc = Mvcc()
    sessions: Sessions = Sessions()

    node_id: int = 0
    multi_node: bool = False
    """True iff `replica_endpoints` is present; a standalone node opens no peer port."""
    client_port: int = 9090
    """Port to listen on, on all interfaces of both address families."""
    advertise_endpoint: str = "localhost:9090"
    """What clients and peers are told about this node."""
    client_endpoints: tuple[str, ...] = ("localhost:9090",)
    """``host:port`` of every member in node-id order; equal on all nodes that share a file."""
    peer_endpoints: tuple[str, ...] = ()
    """Peer ``host:port`` of every member in node-id order; empty standalone."""
    pod: Pod | None = None
    """Who this node is under Kubernetes; its peers are then the other pods, and no endpoint is listed."""
    http_port: int | None = None
    """Port of metrics, health and status page; None when off."""
    data_directory: Path = Path("data/kvorum/node_0")
    log_directory: Path | None = Path("logs")
    """None: log lines go to standard error alone."""

    @property
    def peer_port(self) -> int | None:
        """Port to listen on for peers; None standalone."""
        if self.pod is not None:
            return self.pod.peer_port
        return int(self.peer_endpoints[self.node_id].rpartition(":")[2]) if self.peer_endpoints else None

    @property
    def heartbeat_interval_ms(self) -> int:
        """
        Effective interval; the configured one is an upper bound.

        At most a third of the staleness bound, or `local` reads on followers would flap. At most a fifth of the
        election timeout, for a follower stands after as little as half of it and one late heartbeat must not be enough.
        """
        staleness, timeout = self.reads.max_staleness_ms, self.consensus.election_timeout_ms
        return max(1, min(self.consensus.heartbeat_interval_ms, staleness // 3, timeout // 5))

    @property
    def request_timeout_s(self) -> float:
        """The request deadline D."""
        return self.limits.request_timeout_ms / 1000

    @property
    def leader_wait_s(self) -> float:
        """How long a request waits for a leader or a quorum; at most D."""
        return min(self.cluster.leader_discovery_timeout_ms / 1000, self.request_timeout_s)

    @property
    def future_version_wait_s(self) -> float:
        """How long a read waits for a version not applied here yet; at most D."""
        return min(self.mvcc.future_version_wait_ms / 1000, self.request_timeout_s)
