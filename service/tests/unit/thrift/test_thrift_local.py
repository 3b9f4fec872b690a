"""Methods a node answers alone: ping, diagnostics with real values, status, fault injection."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvorum import __version__
from kvorum.core.errors import ErrorCode
from kvorum.core.status import Health, MemberStatus

WALL = 1_700_000_000


async def test_ping_echoes_and_tells_microseconds(line, wire) -> None:
    """Absent becomes pong, empty stays empty, bytes stay bytes; an absent request is an empty one."""
    assert b"pong" == (await line.call("ping")).message
    assert b"" == (await line.call("ping", message=b"")).message
    full = await line.call("ping", message=b"\xff\0", timestamp=123)
    assert (b"\xff\0", 123, WALL * 1_000_000 + 250_000, None) == (
        full.message,
        full.timestamp,
        full.server_timestamp,
        full.error_code,
    )
    line.send(wire.raw("ping", b"\0"))
    assert b"pong" == (await line.replies(1))[0].response.message


def three_nodes(report):
    """A cluster as a follower sees it: a leader, itself, and a peer never heard of."""
    members = (
        MemberStatus(0, "kv-0:9090", "kv-0:7090", True, Health.HEALTHY, True, 4, 0.5, 300.0),
        MemberStatus(1, "kv-1:9090", "kv-1:7090", True, Health.HEALTHY, False, 4, 0.0, 60.0),
        MemberStatus(2, "kv-2:9090", "", False, Health.UNKNOWN, False, 0, None, None),
    )
    return replace(
        report, node_id=1, role="follower", term=4, leader_endpoint="kv-0:9090", uptime_s=60.9, members=members
    )


async def test_cluster_health_of_three(edge, line) -> None:
    """One row per member, the leader among them; a majority is degraded, not unhealthy."""
    edge.routing.nodes = three_nodes(edge.routing.nodes)
    response = await line.call("getClusterHealth", auth_token="anything")
    health = response.cluster_health

    assert (True, None, None) == (response.success, response.error, response.error_code)
    assert (2, 3, "degraded", 4) == (
        health.healthy_nodes_count,
        health.total_nodes_count,
        health.cluster_status,
        health.current_term,
    )
    assert health.nodes[0] == health.leader
    assert [0, 1, 2] == [node.node_id for node in health.nodes]
    assert [WALL - 1, WALL, WALL - 61] == [node.last_seen_timestamp for node in health.nodes]
    assert [300, 60, None] == [node.uptime_seconds for node in health.nodes]
    assert [Health.HEALTHY, Health.HEALTHY, Health.UNKNOWN] == [node.status for node in health.nodes]


async def test_cluster_health_of_one(line) -> None:
    """A standalone node is its own healthy leader."""
    health = (await line.call("getClusterHealth")).cluster_health

    assert (1, 1, "healthy") == (health.healthy_nodes_count, health.total_nodes_count, health.cluster_status)
    assert (0, "10.0.0.1:9090", True) == (health.leader.node_id, health.leader.endpoint, health.leader.is_leader)


async def test_cluster_health_without_majority_and_leader(edge, line) -> None:
    """No majority is unhealthy; an unknown leader is absent."""
    nodes = three_nodes(edge.routing.nodes)
    edge.routing.nodes = replace(
        nodes,
        members=tuple(
            replace(m, health=Health.DEGRADED if m.node_id else m.health, is_leader=False) for m in nodes.members
        ),
    )
    health = (await line.call("getClusterHealth")).cluster_health

    assert ("unhealthy", None) == (health.cluster_status, health.leader)


async def test_node_info_is_the_row_of_cluster_health(edge, line) -> None:
    """Absent id: the node asked; any member by its id, with the same values."""
    edge.routing.nodes = three_nodes(edge.routing.nodes)
    rows = (await line.call("getClusterHealth")).cluster_health.nodes

    assert rows[1] == (await line.call("getNodeInfo")).node_info
    for row in rows:
        assert row == (await line.call("getNodeInfo", node_id=row.node_id)).node_info


async def test_status_of_the_answering_node(edge, line) -> None:
    """Role, indexes, members and release; the leader is absent if unknown."""
    edge.routing.nodes = three_nodes(edge.routing.nodes)
    status = await line.call("getStatus")

    assert (True, 1, "follower", 4, 0, "kv-0:9090") == (
        status.success,
        status.node_id,
        status.role,
        status.term,
        status.leader_id,
        status.leader_endpoint,
    )
    assert (9, 9, 0, 60, __version__) == (
        status.commit_index,
        status.applied_index,
        status.low_watermark,
        status.uptime_seconds,
        status.server_version,
    )
    assert [(True, 500, "kv-0:7090"), (True, 0, "kv-1:7090"), (False, None, None)] == [
        (member.voter, member.last_contact_ms, member.peer_endpoint) for member in status.members
    ]
    edge.routing.nodes = replace(edge.routing.nodes, leader_id=None, leader_endpoint=None)
    status = await line.call("getStatus")
    assert (None, None) == (status.leader_id, status.leader_endpoint)


async def test_database_stats_count_what_happened(edge, line, wire) -> None:
    """Successful reads and writes, commits by outcome, each once; details only when asked for."""
    empty = (await line.call("getDatabaseStats")).database_stats
    assert (0, 0, 0, 0, 0) == (
        empty.write_operations_count,
        empty.read_operations_count,
        empty.active_transactions,
        empty.committed_transactions,
        empty.aborted_transactions,
    )
    await line.call("setKey", key=b"k", value=b"v")
    await line.call("setKey", key=b"", value=b"v")
    await line.call("get", key=b"none")
    await line.call("getRange")
    await line.call("getReadVersion")
    await line.call("atomicCommit", read_version=0, operations=[], read_conflict_keys=[])
    await line.call("atomicCommit", read_version=0, operations=[], read_conflict_keys=[b"k"])
    await line.call("atomicCommit", read_version=0, operations=[], read_conflict_keys=[b""])
    edge.routing.hold_writes = True
    other = edge.line()
    other.send(wire.message("atomicCommit", read_version=0, operations=[], read_conflict_keys=[]))
    stats = (await line.call("getDatabaseStats", include_detailed_stats=True)).database_stats

    assert (2, 2, 1, 1, 2) == (
        stats.write_operations_count,
        stats.read_operations_count,
        stats.active_transactions,
        stats.committed_transactions,
        stats.aborted_transactions,
    )
    assert (3, 4096, 97, 12) == (
        stats.total_keys,
        stats.total_size_bytes,
        stats.cache_hit_rate_percent,
        stats.compaction_pending_bytes,
    )
    assert (None, None) == (empty.cache_hit_rate_percent, empty.compaction_pending_bytes)
    edge.routing.release_writes()
    await other.replies(1)
    assert 0 == (await line.call("getDatabaseStats")).database_stats.active_transactions


async def test_database_stats_average_is_of_recent_calls(edge, line, wire) -> None:
    """The mean latency of the last minutes; 0.0 when there were no calls."""
    assert 0.0 == (await line.call("getDatabaseStats")).database_stats.average_response_time_ms
    edge.routing.hold_reads = True
    line.send(wire.message("get", key=b"k"))
    edge.now += 0.5
    edge.routing.release_reads()
    await line.replies(1)
    assert 250.0 == pytest.approx((await line.call("getDatabaseStats")).database_stats.average_response_time_ms)

    for _ in range(2):
        edge.now += 61.0
        last = (await line.call("getDatabaseStats")).database_stats.average_response_time_ms
    assert 0.0 == last


async def test_connection_that_died_is_no_aborted_transaction(edge, line, wire) -> None:
    """Only answered calls count as committed or aborted."""
    edge.routing.hold_writes = True
    other = edge.line()
    other.send(wire.message("setKey", key=b"k", value=b"v"))
    other.send(wire.message("get", key=b"k"))
    other.send(wire.message("atomicCommit", read_version=0, operations=[], read_conflict_keys=[]))
    other.connection.connection_lost(None)
    stats = (await line.call("getDatabaseStats")).database_stats

    assert (0, 0) == (stats.active_transactions, stats.aborted_transactions)


# --- fault injection ------------------------------------------------------------------------------------------------

TARGETS = {
    "get": [
        ("get", {"key": b"k"}),
        ("snapshotGet", {"key": b"k", "read_version": 0}),
        ("snapshotRead", {"key": b"k", "read_version": 0}),
    ],
    "set": [
        ("setKey", {"key": b"k", "value": b"v"}),
        ("setVersionstampedKey", {"key_prefix": bytes(10), "value": b""}),
        ("setVersionstampedValue", {"key": b"k", "value_prefix": bytes(10)}),
    ],
    "delete": [("deleteKey", {"key": b"k"})],
    "range": [("getRange", {}), ("snapshotGetRange", {"read_version": 0})],
    "commit": [("atomicCommit", {"read_version": 0, "operations": [], "read_conflict_keys": []})],
}


@pytest.mark.parametrize("target", ["", *TARGETS])
@pytest.mark.parametrize("kind", ["timeout", "CONFLICT", "Corruption", "network"])
async def test_fault_hits_its_target_and_nothing_else(edge, line, target: str, kind: str) -> None:
    """An armed fault answers exactly the methods of its target, reads and proposes nothing, and can be cleared."""
    fields = {"target_operation": target} if target else {}
    assert (await line.call("setFaultInjection", fault_type=kind, probability=1.0, **fields)).success
    for name, calls in TARGETS.items():
        for method, arguments in calls:
            code = (await line.call(method, **arguments)).error_code
            assert (kind.upper() if target in ("", name) else None) == code, method
    assert (await line.call("getReadVersion")).success
    assert (await line.call("setFaultInjection", fault_type="NONE")).success
    assert (await line.call("deleteKey", key=b"k")).success


async def test_fault_proposes_nothing(edge, line) -> None:
    """A struck write never enters the log."""
    await line.call("setFaultInjection", fault_type="conflict", probability=5.0, target_operation="commit")
    await line.call("atomicCommit", read_version=0, operations=[], read_conflict_keys=[])

    assert [] == edge.routing.proposed


async def test_fault_probability_is_a_probability(edge, line) -> None:
    """The draw decides."""
    await line.call("setFaultInjection", fault_type="timeout", probability=0.25)
    edge.drawn = 0.25
    assert (await line.call("get", key=b"k")).error_code is None
    edge.drawn = 0.2499
    assert ErrorCode.TIMEOUT == (await line.call("get", key=b"k")).error_code


async def test_fault_waits_its_duration_but_not_beyond_the_deadline(edge, line, wire) -> None:
    """The reply comes after the duration, at most the rest of the deadline; negative is zero."""
    for duration_ms, expected_s in ((200, 0.2), (3_600_000, 10.0)):
        await line.call("setFaultInjection", fault_type="network", probability=1.0, duration_ms=duration_ms)
        line.send(wire.message("get", key=b"k"))
        ((delay_s, fire),) = edge.later
        edge.later.clear()
        assert expected_s == pytest.approx(delay_s)
        assert [] == await line.replies()
        fire()
        assert ErrorCode.NETWORK == (await line.replies(1))[0].response.error_code
    await line.call("setFaultInjection", fault_type="network", probability=1.0, duration_ms=-1)
    assert ErrorCode.NETWORK == (await line.call("get", key=b"k")).error_code


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("get", {"key": b"k"}),
        ("snapshotGet", {"key": b"k", "read_version": 0}),
        ("setKey", {"key": b"k", "value": b"v"}),
        ("deleteKey", {"key": b"k"}),
        ("setVersionstampedKey", {"key_prefix": bytes(10), "value": b"v"}),
        ("getRange", {}),
        ("snapshotGetRange", {"read_version": 0}),
        ("atomicCommit", {"read_version": 0, "operations": [], "read_conflict_keys": [], "timeout_seconds": 1}),
    ],
)
async def test_fault_waits_no_longer_than_the_deadline_of_the_call(edge, line, wire, method: str, fields) -> None:
    """The deadline a request brings along shortens the sleep of an injected fault too."""
    await line.call("setFaultInjection", fault_type="network", probability=1.0, duration_ms=60_000)
    line.send(wire.message(method, deadline_ms=300, **fields))
    ((delay_s, fire),) = edge.later
    fire()

    assert 0.3 == pytest.approx(delay_s)
    assert ErrorCode.NETWORK == (await line.replies(1))[0].response.error_code


async def test_fault_comes_after_required_fields_and_before_arguments(line) -> None:
    """Step 3 of the order of checks."""
    await line.call("setFaultInjection", fault_type="network", probability=1.0)

    assert ErrorCode.BAD_REQUEST == (await line.call("setKey", key=b"k")).error_code
    assert ErrorCode.NETWORK == (await line.call("setKey", key=b"", value=b"", deadline_ms=-1)).error_code


@pytest.mark.parametrize(
    "fields",
    [
        {"fault_type": "lightning", "probability": 0.5},
        {"fault_type": "timeout", "probability": float("nan")},
        {"fault_type": "timeout", "probability": 0.5, "target_operation": "ping"},
    ],
)
async def test_fault_parameters_out_of_shape_are_refused(edge, line, fields) -> None:
    """Unknown types, targets and probabilities change nothing."""
    assert ErrorCode.INVALID_ARGUMENT == (await line.call("setFaultInjection", **fields)).error_code
    assert not edge.server.edge.faults.armed


@pytest.mark.parametrize("probability", [0.0, 1.0])
async def test_fault_injection_is_off_by_default(make_edge, probability: float) -> None:
    """Without the configuration's word nobody sets or clears a fault."""
    line = make_edge().line()
    response = await line.call("setFaultInjection", fault_type="timeout", probability=probability)

    assert (False, ErrorCode.PERMISSION_DENIED) == (response.success, response.error_code)
