"""The ConsensusManager in Prometheus' words (docs/operations/metrics.md); runs when somebody scrapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvorum.core.machine import Role
from kvorum.observe.metrics import Metric, counter, gauge, histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvorum.consensus.manager import ConsensusManager
    from kvorum.core.ids import NodeId
    from kvorum.core.status import NodeReport

PRECANDIDATE = "precandidate"
ROLES = (Role.LEADER, Role.FOLLOWER, Role.CANDIDATE, PRECANDIDATE, Role.LEARNER)
ELECTIONS = {
    "won": "elections_won_total",
    "lost": "elections_lost_total",
    "timeout": "elections_timed_out_total",
    "prevote_failed": "prevotes_lost_total",
}
"""Result of a candidacy, and what `Machine.statistics` calls its counter."""


def consensus_metrics(manager: ConsensusManager) -> Iterable[Metric]:
    """Role, term, indexes, elections, members, proposals, reads, apply, snapshots and peers of one node."""
    report = manager.report()
    figures = manager.machine.statistics() if manager.machine is not None else {}
    yield from _leadership(manager, report, figures)
    yield from _indexes(manager, report)
    yield from _members(manager, report)
    yield from _peers(manager, report)
    yield from _proposals(manager)
    yield from _applying(manager)
    yield from _snapshots(manager)


def _leadership(manager: ConsensusManager, report: NodeReport, figures: Mapping[str, object]) -> Iterable[Metric]:
    yield gauge("kvorum_raft_has_leader", "1 if this node knows a leader.", report.leader_id is not None)
    yield gauge("kvorum_raft_is_leader", "1 if this node leads, as far as it knows.", manager.is_leader)
    present = PRECANDIDATE if figures.get("is_asking") else report.role
    roles = [({"role": role}, float(role == present)) for role in ROLES]
    yield Metric("kvorum_raft_role", "gauge", "1 for the role of this node.", list(roles))
    yield gauge("kvorum_raft_term", "Current term.", report.term)
    yield counter("kvorum_raft_leader_changes_total", "Leaders this node has seen come.", manager.leader_changes_total)
    yield gauge(
        "kvorum_raft_leader_contact_seconds",
        "Age of this node's last contact with a leader; of a leader, with a quorum.",
        manager.contact_age_s(),
    )
    elections = [({"result": result}, _whole(figures.get(key))) for result, key in ELECTIONS.items()]
    yield Metric("kvorum_raft_elections_total", "counter", "Candidacies of this node, by result.", list(elections))
    transfers = [({"reason": why, "result": result}, n) for (why, result), n in manager.membership.transfers.items()]
    text = "Hand-overs of leadership from this node, by reason and result."
    yield Metric("kvorum_raft_leader_transfers_total", "counter", text, list(transfers))


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _indexes(manager: ConsensusManager, report: NodeReport) -> Iterable[Metric]:
    machine = manager.machine
    yield gauge("kvorum_raft_commit_index", "Highest log index known to be committed.", report.commit_index)
    yield gauge("kvorum_raft_applied_index", "Highest log index this node shows.", report.applied_index)
    yield gauge("kvorum_raft_last_index", "Last entry of the log.", machine.last_index if machine else 0)
    yield gauge(
        "kvorum_raft_snapshot_index",
        "Last entry the log has dropped: a follower that lacks it needs a snapshot.",
        machine.base_index if machine else 0,
    )
    yield gauge(
        "kvorum_raft_apply_lag_entries",
        "What the leader last said to be committed, less what this node shows.",
        manager.apply_lag(),
    )
    entries, progress = manager.replay()
    yield gauge("kvorum_wal_replay_entries", "Entries the log held beyond the store at the start.", entries)
    yield gauge("kvorum_startup_replay_progress_ratio", "Part of them that is applied by now.", progress)


def _members(manager: ConsensusManager, report: NodeReport) -> Iterable[Metric]:
    voters = sum(member.voter for member in report.members)
    members = [({"type": "voter"}, voters), ({"type": "learner"}, len(report.members) - voters)]
    yield Metric("kvorum_raft_members", "gauge", "Members of the configuration in force.", list(members))
    yield gauge("kvorum_raft_quorum_size", "Voters that make a majority.", manager.members.quorum)
    reachable = manager.voters_reachable()
    yield gauge("kvorum_raft_voters_reachable", "Voters this node has heard lately, itself included.", reachable)
    changes = [({"op": op, "result": result}, n) for (op, result), n in manager.membership.changes.items()]
    text = "Changes of the membership this leader was asked for or made by itself, by operation and result."
    yield Metric("kvorum_raft_membership_changes_total", "counter", text, list(changes))
    yield counter(
        "kvorum_raft_configuration_changes_total",
        "Configurations this process has seen become committed.",
        manager.peering.changes_total,
    )
    checks = [({"type": "readyz", "name": name}, float(ok)) for name, ok in manager.readiness()]
    yield Metric("kvorum_health_check", "gauge", "1 if a named check of /readyz holds.", list(checks))


def _peers(manager: ConsensusManager, report: NodeReport) -> Iterable[Metric]:
    others = [member for member in report.members if member.node_id != report.node_id]
    ages: list[tuple[NodeId, float]] = [
        (member.node_id, member.last_contact_age_s) for member in others if member.last_contact_age_s is not None
    ]
    yield Metric(
        "kvorum_peer_last_contact_seconds",
        "gauge",
        "Age of the last frame from a peer.",
        [({"peer": str(peer)}, age) for peer, age in ages],
    )
    machine = manager.machine
    matches = machine.matches() if machine is not None and manager.is_leader else {}
    yield Metric(
        "kvorum_raft_peer_match_lag_entries",
        "gauge",
        "On the leader: entries of its log that a peer is not known to hold.",
        [({"peer": str(peer)}, machine.last_index - match) for peer, match in matches.items() if machine is not None],
    )
    yield Metric(
        "kvorum_raft_heartbeat_send_failures_total",
        "counter",
        "Heartbeats and votes that the link to a peer could not take.",
        [({"peer": str(member.node_id)}, manager.heartbeat_failures.get(member.node_id, 0)) for member in others],
    )


def _proposals(manager: ConsensusManager) -> Iterable[Metric]:
    proposals = manager.proposals
    yield gauge("kvorum_raft_proposals_pending", "Writes not answered yet.", proposals.pending_count)
    yield Metric(
        "kvorum_raft_proposals_total",
        "counter",
        "Writes of this node's clients, by outcome.",
        [
            ({"result": "committed"}, proposals.committed_total),
            ({"result": "refused"}, proposals.refused_total),
            ({"result": "timeout"}, proposals.timeouts_total),
        ],
    )
    yield counter(
        "kvorum_raft_proposals_revived_total",
        "Writes proposed again because a later term showed them dead.",
        proposals.revived_total,
    )
    yield counter("kvorum_rpc_forwarded_total", "Writes forwarded to the leader.", proposals.forwarded_total)
    yield gauge(
        "kvorum_raft_reads_pending", "Reads waiting for an index or for the own apply.", manager.reads.pending_count
    )
    yield histogram(
        "kvorum_raft_read_index_duration_seconds",
        "From a question for a confirmed index until it is known; all reads of a turn of the loop share one.",
        manager.reads.index_times,
    )
    yield histogram(
        "kvorum_raft_commit_duration_seconds",
        "On the leader: from the append of a batch until it is committed and durable here.",
        manager.commit_times.histogram,
    )


def _applying(manager: ConsensusManager) -> Iterable[Metric]:
    applier = manager.applier
    yield histogram("kvorum_raft_apply_duration_seconds", "Time to apply one group of entries.", applier.histogram)
    yield counter("kvorum_backend_write_stalls_total", "Groups the storage engine asked to wait.", applier.stalls_total)
    yield counter("kvorum_backend_flushes_total", "Flushes that moved the durable index.", applier.flushes_total)
    yield histogram("kvorum_backend_flush_duration_seconds", "Time of one flush.", applier.flush_histogram)
    yield gauge("kvorum_backend_durable_index", "Applied index that survives without the log.", applier.durable_index)
    yield counter("kvorum_wal_cut_entries_total", "Entries dropped from the log.", manager.cutter.cut_total)
    alarms = [({"type": "nospace"}, float(not manager.has_space)), ({"type": "log_hangs"}, float(manager.log_hangs))]
    yield Metric("kvorum_alarm_active", "gauge", "1 while this node takes no part for this reason.", list(alarms))
    yield histogram("kvorum_event_loop_lag_seconds", "How late the loop ran its tick.", manager.loop_lag)


def _snapshots(manager: ConsensusManager) -> Iterable[Metric]:
    snapshots = manager.snapshots
    if snapshots is None:
        return
    yield Metric(
        "kvorum_snapshots_total",
        "counter",
        "Snapshots, by what this node did with them.",
        [
            ({"action": "sent"}, snapshots.sent_total),
            ({"action": "installed"}, snapshots.installed_total),
            ({"action": "failed"}, snapshots.failed_total),
            ({"action": "resumed"}, snapshots.resumed_total),
        ],
    )
    yield Metric(
        "kvorum_snapshot_bytes_total",
        "counter",
        "Bytes of snapshots.",
        [
            ({"direction": "sent"}, snapshots.sent_bytes_total),
            ({"direction": "received"}, snapshots.received_bytes_total),
        ],
    )
    yield Metric(
        "kvorum_snapshot_duration_seconds",
        "histogram",
        "Time of each step of a snapshot that succeeded.",
        [({"op": step}, duration) for step, duration in snapshots.durations.items()],
    )
