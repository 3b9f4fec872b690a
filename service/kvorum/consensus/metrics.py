"""The ConsensusManager in Prometheus' words (names of operations section 5.2); runs when somebody scrapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvorum.core.machine import Role
from kvorum.observe.metrics import Metric, counter, gauge, histogram

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvorum.consensus.manager import ConsensusManager

ROLES = (Role.LEADER, Role.FOLLOWER, Role.CANDIDATE, Role.LEARNER)


def consensus_metrics(manager: ConsensusManager) -> Iterable[Metric]:
    """Role, term, indexes, proposals, reads, apply and peers of one node."""
    report = manager.report()
    yield gauge("kvorum_raft_has_leader", "1 if this node knows a leader.", report.leader_id is not None)
    yield gauge("kvorum_raft_is_leader", "1 if this node leads, as far as it knows.", manager.is_leader)
    roles = [({"role": role}, float(role == report.role)) for role in ROLES]
    yield Metric("kvorum_raft_role", "gauge", "1 for the role of this node.", list(roles))
    yield gauge("kvorum_raft_term", "Current term.", report.term)
    yield counter("kvorum_raft_leader_changes_total", "Leaders this node has seen come.", manager.leader_changes_total)
    yield gauge("kvorum_raft_commit_index", "Highest log index known to be committed.", report.commit_index)
    yield gauge("kvorum_raft_applied_index", "Highest log index this node shows.", report.applied_index)
    yield gauge(
        "kvorum_raft_last_index", "Last entry of the log.", manager.machine.last_index if manager.machine else 0
    )
    yield gauge(
        "kvorum_raft_apply_lag_entries",
        "What the leader last said to be committed, less what this node shows.",
        manager.apply_lag(),
    )
    yield from _work(manager)
    voters = sum(member.voter for member in report.members)
    members = [({"type": "voter"}, voters), ({"type": "learner"}, len(report.members) - voters)]
    yield Metric("kvorum_raft_members", "gauge", "Members of the configuration in force.", list(members))
    membership = manager.membership
    yield counter(
        "kvorum_raft_membership_changes_total",
        "Configurations this process has seen become committed.",
        manager.peering.changes_total,
    )
    yield counter("kvorum_raft_transfers_total", "Hand-overs of leadership begun here.", membership.transfers_total)
    yield counter("kvorum_raft_promotions_total", "Learners made voters by this leader.", membership.promotions_total)
    yield counter(
        "kvorum_raft_replacements_total",
        "Seats given to an empty data directory by this leader.",
        membership.replacements_total,
    )
    yield gauge("kvorum_raft_quorum_size", "Voters that make a majority.", manager.members.quorum)
    yield Metric(
        "kvorum_peer_last_contact_seconds",
        "gauge",
        "Age of the last frame from a peer.",
        [
            ({"peer": str(member.node_id)}, member.last_contact_age_s)
            for member in report.members
            if member.node_id != report.node_id and member.last_contact_age_s is not None
        ],
    )


def _work(manager: ConsensusManager) -> Iterable[Metric]:
    """What passes through: proposals, reads, applied groups, turns of the loop."""
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
    applier = manager.applier
    yield histogram("kvorum_raft_apply_duration_seconds", "Time to apply one group of entries.", applier.histogram)
    yield counter("kvorum_backend_write_stalls_total", "Groups the storage engine asked to wait.", applier.stalls_total)
    yield counter("kvorum_backend_flushes_total", "Flushes that moved the durable index.", applier.flushes_total)
    yield gauge("kvorum_backend_durable_index", "Applied index that survives without the log.", applier.durable_index)
    yield counter("kvorum_wal_cut_entries_total", "Entries dropped from the log.", manager.cutter.cut_total)
    snapshots = manager.snapshots
    if snapshots is not None:
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
    yield histogram("kvorum_event_loop_lag_seconds", "How late the loop ran its tick.", manager.loop_lag)
