"""The edge in Prometheus' words (docs/operations/metrics.md); runs when somebody scrapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvorum.core.errors import ErrorCode
from kvorum.observe.metrics import Metric, counter, gauge

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvorum.thrift.server import ThriftServer

_TRANSACTION_RESULTS = {
    ErrorCode.CONFLICT: "conflict",
    ErrorCode.TRANSACTION_TOO_OLD: "too_old",
    ErrorCode.TIMEOUT: "unknown",
    ErrorCode.INTERNAL: "unknown",
}

_REJECTIONS = {
    ErrorCode.UNAVAILABLE: "no_leader",
    ErrorCode.NOT_LEADER: "not_leader",
    ErrorCode.OVERLOADED: "overload",
    ErrorCode.TIMEOUT: "deadline",
    ErrorCode.STALE: "stale",
}


def edge_metrics(server: ThriftServer) -> Iterable[Metric]:
    """Requests by method and code, latency, transactions, connections, malformed input."""
    methods = [*server.edge.methods.values(), server.edge.unknown_method]
    codes = [({"method": m.name, "code": "OK"}, m.ok) for m in methods]
    codes += [({"method": m.name, "code": code}, count) for m in methods for code, count in m.failed.items()]
    yield Metric("kvorum_rpc_requests_total", "counter", "Answered calls, by method and code.", list(codes))
    latency = [({"method": m.name}, m.latency) for m in methods if m.started]
    yield Metric("kvorum_rpc_duration_seconds", "histogram", "From last byte in to reply.", list(latency))
    waiting = [({"method": m.name}, m.in_flight) for m in methods]
    yield Metric("kvorum_rpc_in_flight", "gauge", "Calls received and not decided.", list(waiting))
    rejected = dict.fromkeys(_REJECTIONS.values(), 0)
    for method in methods:
        for code, reason in _REJECTIONS.items():
            rejected[reason] += method.failed.get(code, 0)
    reasons = [({"reason": reason}, count) for reason, count in rejected.items()]
    yield Metric("kvorum_rpc_rejected_total", "counter", "Calls that this node could not serve.", list(reasons))
    commit = server.edge.methods["atomicCommit"]
    results = dict.fromkeys(("committed", "conflict", "too_old", "unknown", "aborted"), 0)
    results["committed"] = commit.ok
    for code, count in commit.failed.items():
        results[_TRANSACTION_RESULTS.get(code, "aborted")] += count
    transactions = [({"result": result}, count) for result, count in results.items()]
    yield Metric("kvorum_txn_total", "counter", "atomicCommit calls, by result.", list(transactions))
    yield gauge("kvorum_client_connections", "Open client connections.", server.connection_count)
    malformed = [({"reason": reason}, count) for reason, count in server.malformed_counts.items()]
    yield Metric("kvorum_malformed_requests_total", "counter", "Connections closed for bad bytes.", list(malformed))
    yield counter(
        "kvorum_client_connections_refused_total",
        "New connections closed because the table was full of busy ones.",
        server.connections_refused,
    )
    yield counter(
        "kvorum_client_connections_displaced_total",
        "Idle connections closed to make room.",
        server.connections_displaced,
    )
