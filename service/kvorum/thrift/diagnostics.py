"""Rows of the diagnostics from the node's own report (contract section 7): real values, no scans, never negative."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvorum.core.status import Health
from kvorum.thrift.protocol.codec import payload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kvorum.core.ports import EngineStatistics
    from kvorum.core.status import MemberStatus, NodeReport
    from kvorum.thrift.adapter.edge import Method

WRITE_METHODS: Final = ("setKey", "deleteKey", "setVersionstampedKey", "setVersionstampedValue", "atomicCommit")
READ_METHODS: Final = ("get", "getRange", "snapshotRead", "snapshotGet", "snapshotGetRange")
RECENT_S: Final = 60.0
"""How far back "recent" reaches for the average response time, at least."""


def node_status(report: NodeReport, member: MemberStatus, wall: float) -> dict[str, object]:
    """Make the fields of NodeStatus for one member; a peer never heard of was last seen when this process started."""
    age_s = report.uptime_s if member.last_contact_age_s is None else member.last_contact_age_s
    row: dict[str, object] = {
        "node_id": member.node_id,
        "endpoint": member.client_endpoint,
        "status": member.health,
        "is_leader": member.is_leader,
        "last_seen_timestamp": max(1, int(wall - age_s)),
        "term": max(0, member.term),
    }
    if member.uptime_s is not None:
        row["uptime_seconds"] = max(0, int(member.uptime_s))
    return row


def cluster_health(report: NodeReport, wall: float) -> dict[str, object]:
    """Make the fields of ClusterHealth."""
    rows = [node_status(report, member, wall) for member in report.members]
    healthy = sum(member.health == Health.HEALTHY for member in report.members)
    total = len(report.members)
    status = "healthy" if healthy == total else "degraded" if healthy > total // 2 else "unhealthy"
    fields: dict[str, object] = {
        "nodes": [payload("NodeStatus", row) for row in rows],
        "healthy_nodes_count": healthy,
        "total_nodes_count": total,
        "cluster_status": status,
        "current_term": max(0, report.term),
    }
    leader = next((row for row in rows if row["is_leader"]), None)
    if leader is not None:
        fields["leader"] = payload("NodeStatus", leader)
    return fields


def status(report: NodeReport) -> dict[str, object]:
    """Make the fields of GetStatusResponse but for the outcome and the release."""
    fields: dict[str, object] = {
        "node_id": report.node_id,
        "role": report.role,
        "term": report.term,
        "commit_index": report.commit_index,
        "applied_index": report.applied_index,
        "low_watermark": report.low_watermark,
        "members": [_member_info(member) for member in report.members],
        "uptime_seconds": max(0, int(report.uptime_s)),
    }
    if report.leader_id is not None:
        fields |= {"leader_id": report.leader_id, "leader_endpoint": report.leader_endpoint}
    return fields


def _member_info(member: MemberStatus) -> object:
    row: dict[str, object] = {
        "node_id": member.node_id,
        "kv_endpoint": member.client_endpoint,
        "voter": member.voter,
    }
    if member.peer_endpoint:
        row["peer_endpoint"] = member.peer_endpoint
    if member.last_contact_age_s is not None:
        row["last_contact_ms"] = max(0, int(member.last_contact_age_s * 1000))
    return payload("MemberInfo", row)


class RecentAverage:
    """
    Mean latency over the last one to two minutes, from the totals of the histograms.

    Two marks of the totals are kept and moved on when asked, so nothing is paid per call.
    """

    def __init__(self, clock: Callable[[], float], methods: Mapping[str, Method]) -> None:
        self._clock = clock
        self._methods = methods
        self._older = self._newer = (clock(), 0.0, 0)

    def milliseconds(self) -> float:
        """Give the mean; 0.0 if there was no call."""
        now = self._clock()
        sum_s = sum(method.latency.sum_s for method in self._methods.values())
        count = sum(method.latency.count for method in self._methods.values())
        if now - self._newer[0] >= RECENT_S:
            self._older, self._newer = self._newer, (now, sum_s, count)
        calls = count - self._older[2]
        return max(0.0, (sum_s - self._older[1]) / calls * 1000) if calls > 0 else 0.0


def database_stats(
    methods: Mapping[str, Method], engine: EngineStatistics, recent: RecentAverage, *, detailed: bool
) -> dict[str, object]:
    """Make the fields of DatabaseStats."""
    commits = methods["atomicCommit"]
    fields: dict[str, object] = {
        "total_keys": max(0, engine.keys),
        "total_size_bytes": max(0, engine.bytes_on_disk),
        "write_operations_count": sum(methods[name].ok for name in WRITE_METHODS),
        "read_operations_count": sum(methods[name].ok for name in READ_METHODS),
        "average_response_time_ms": recent.milliseconds(),
        "active_transactions": max(0, commits.in_flight),
        "committed_transactions": commits.ok,
        "aborted_transactions": commits.failures,
    }
    if detailed:
        fields["cache_hit_rate_percent"] = min(100, max(0, engine.cache_hit_rate_percent))
        fields["compaction_pending_bytes"] = max(0, engine.compaction_pending_bytes)
    return fields
