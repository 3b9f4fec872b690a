"""What every call on this node can reach: the ports it works on, the limits, the faults, and the table of methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from kvorum.core.operations import REQUEST_CLASS, RequestClass
from kvorum.observe.histogram import LatencyHistogram
from kvorum.thrift.diagnostics import RecentAverage
from kvorum.thrift.faults import FaultInjector
from kvorum.thrift.protocol import codec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvorum.core.errors import Refusal
    from kvorum.core.ids import Index
    from kvorum.core.ports import EngineStatistics, PendingRead, PendingWrite
    from kvorum.core.status import NodeReport
    from kvorum.statemachine.ranges import RangeQuery, RangeResult
    from kvorum.thrift.settings import ThriftSettings

SMALLEST_LATENCY_S: Final = 0.0001
LATENCY_BUCKETS: Final = 18
"""From 0.1 ms, doubling, to beyond the longest deadline."""


class Routing(Protocol):
    """What the edge needs of `routing.manager.RoutingManager`."""

    default_level: str

    def write(self, body: bytes, pending: PendingWrite, received: float, deadline: float) -> None:
        """Take one write; tells ``pending`` exactly once, perhaps before it returns."""
        ...

    def read(self, level: str, pending: PendingRead, received: float, deadline: float) -> bool:
        """True: legal right now. False: ``pending`` is or was told."""
        ...

    def read_at(self, version: int, pending: PendingRead, received: float, deadline: float) -> bool:
        """As `read`, at a version."""
        ...

    def report(self) -> NodeReport:
        """What this node knows of itself and its peers."""
        ...


class AppliedState(Protocol):
    """What the edge needs of `statemachine.executor.KvStoreExecutor`."""

    @property
    def applied_index(self) -> Index:
        """Highest index whose effects reads show."""
        ...

    @property
    def last_commit_version(self) -> Index:
        """Index of the last client write that took effect."""
        ...

    def get(self, family: bytes, key: bytes) -> bytes | None:
        """Newest value."""
        ...

    def read_at(self, family: bytes, key: bytes, version: Index) -> bytes | None:
        """Value at a readable version."""
        ...

    def family_exists_at(self, family: bytes, version: Index) -> bool:
        """Whether the family was created at or before a version."""
        ...

    def scan(self, query: RangeQuery, version: Index | None = None) -> Iterator[RangeResult | None]:
        """Read a range in slices: None where others may be served, then the result."""
        ...


class Order:
    """Which requests of one connection may be under way together; equal orders may."""

    READ: Final = 0
    WRITE: Final = 1
    ALONE: Final = 2
    """Runs when everything before it is done; nothing behind it starts earlier."""


_ORDER: Final = {
    RequestClass.READ: Order.READ,
    RequestClass.SNAPSHOT: Order.READ,
    RequestClass.WRITE: Order.WRITE,
    RequestClass.LOCAL: Order.ALONE,
}

_FAILURES: Final[dict[str, dict[str, object]]] = {
    "getReadVersion": {"read_version": 0, "success": False},
    "get": {"value": b"", "found": False},
    "snapshotRead": {"value": b"", "found": False},
    "snapshotGet": {"value": b"", "found": False},
    "getRange": {"key_values": [], "success": False, "has_more": False},
    "snapshotGetRange": {"key_values": [], "success": False, "has_more": False},
    "getCommittedVersion": {"version": 0, "success": False},
    "setVersionstampedKey": {"generated_key": b"", "success": False},
    "setVersionstampedValue": {"generated_value": b"", "success": False},
    "ping": {"message": b"", "timestamp": 0, "server_timestamp": 0},
}
"""Required fields of failed replies (contract section 2.4); every other method has ``success`` alone."""


class Method:
    """One method of the service on this node: its rules, and its counters as plain integers."""

    __slots__ = ("_failure", "_has_leader", "failed", "field_names", "latency", "name", "ok", "order", "started")

    def __init__(self, name: str) -> None:
        known = name in REQUEST_CLASS
        self.name = name
        self.order = _ORDER[REQUEST_CLASS[name]] if known else Order.ALONE
        self.field_names = codec.field_names(name) if known else {}
        self.started = 0
        self.ok = 0
        self.failed: dict[str, int] = {}
        self.latency = LatencyHistogram(SMALLEST_LATENCY_S, LATENCY_BUCKETS)
        self._failure = _FAILURES.get(name, {"success": False})
        self._has_leader = known and name != "getStatus" and "leader_id" in codec.response_fields(name)

    @property
    def failures(self) -> int:
        """Calls that were decided with an error."""
        return sum(self.failed.values()) - self.failed.get(CLIENT_GONE, 0)

    @property
    def in_flight(self) -> int:
        """Calls received and not yet decided."""
        return self.started - self.ok - sum(self.failed.values())

    def failure_reply(self, seqid: bytes, refusal: Refusal) -> bytes:
        """Encode a failed reply; the leader hint goes where the method has fields for it."""
        fields = {**self._failure, "error": refusal.text or refusal.code, "error_code": refusal.code}
        if self._has_leader and refusal.leader_id is not None:
            fields |= {"leader_id": refusal.leader_id, "leader_endpoint": refusal.leader_endpoint}
        return codec.encode_reply(self.name, seqid, fields)


UNKNOWN_METHOD: Final = "unknown"
"""Name under which calls of methods that do not exist are counted; a name from the wire is never a label."""

CLIENT_GONE: Final = "CLIENT_GONE"
"""Counted as the code of calls that were not carried out because their connection broke; never on the wire."""


class Edge:
    """The surroundings of all calls of one node; built once by the server."""

    def __init__(
        self,
        routing: Routing,
        state: AppliedState,
        settings: ThriftSettings,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        draw: Callable[[], float],
        engine_statistics: Callable[[], EngineStatistics],
        on_defect: Callable[[str, BaseException], None],
    ) -> None:
        self.routing = routing
        self.state = state
        self.settings = settings
        self.clock = clock
        self.wall = wall
        self.engine_statistics = engine_statistics
        self.on_defect = on_defect
        self.faults = FaultInjector(draw, enabled=settings.faults_enabled)
        self.later: Callable[[float, Callable[[], None]], object] = _no_loop
        """``loop.call_later``, set when the server starts."""
        self.timeout_s = settings.request_timeout_s
        self.key_bytes_max = settings.key_bytes_max
        self.value_bytes_max = settings.value_bytes_max
        self.methods = {name: Method(name) for name in codec.METHODS}
        self.unknown_method = Method(UNKNOWN_METHOD)
        self.recent = RecentAverage(clock, self.methods)


def _no_loop(delay_s: float, callback: Callable[[], None]) -> object:
    msg = f"the server is not started: nobody can call {callback} in {delay_s} s"
    raise AssertionError(msg)
