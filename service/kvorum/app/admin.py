"""What operators ask of a node over HTTP, carried out by the rooms that can (`observe.admin.AdminOperations`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kvorum.core.errors import ErrorCode, Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from kvorum.consensus.manager import ConsensusManager

TIMEOUT_S_MAX: Final = 600.0


class Administration:
    """Every node takes every request; what only the leader can do travels to it."""

    def __init__(self, consensus: ConsensusManager) -> None:
        self._consensus = consensus

    def members(self) -> dict[str, Any]:
        """The configuration in force, with what this node knows of each member."""
        consensus = self._consensus
        report = consensus.report()
        configuration = consensus.members
        matches = consensus.machine.matches() if consensus.machine is not None and consensus.is_leader else {}
        rows = []
        for status in report.members:
            member = configuration.member(status.node_id)
            incarnation = member.incarnation if member is not None else 0
            rows.append(
                {
                    "node_id": status.node_id,
                    "client_endpoint": status.client_endpoint,
                    "peer_endpoint": status.peer_endpoint,
                    "voter": status.voter,
                    "is_leader": status.is_leader,
                    "incarnation": f"{incarnation:016x}" if incarnation else None,
                    "health": status.health,
                    "last_contact_s": status.last_contact_age_s,
                    "behind": self._behind(status.node_id, report.commit_index, matches),
                }
            )
        return {
            "cluster_id": (consensus.cluster_id or b"").hex(),
            "answered_by": report.node_id,
            "term": report.term,
            "leader_id": report.leader_id,
            "leader_endpoint": report.leader_endpoint,
            "commit_index": report.commit_index,
            "members": rows,
        }

    def _behind(self, node_id: int, commit_index: int, matches: Mapping[int, int]) -> int | None:
        """Committed entries that a member does not hold (as the leader knows), or does not show (as it says itself)."""
        consensus = self._consensus
        if node_id == consensus.node_id:
            return max(0, commit_index - consensus.applied_index)
        if node_id in matches:
            return max(0, commit_index - matches[node_id])
        said = consensus.contacts.reports.get(node_id)
        return None if said is None else max(0, commit_index - said.applied_index)

    async def perform(self, action: str, arguments: Mapping[str, Any]) -> dict[str, Any] | Refusal:
        """See `observe.admin.AdminOperations.perform`."""
        if action == "log-compact":
            return self._compact()
        return Refusal(ErrorCode.UNSUPPORTED, f"{action} is not known to this release")

    def _compact(self) -> dict[str, Any]:
        before, after = self._consensus.compact_log()
        return {"base_index_before": before, "base_index": after}

    def snapshot(self) -> AsyncIterator[bytes]:
        """See `observe.admin.AdminOperations.snapshot`."""
        snapshots = self._consensus.snapshots
        assert snapshots is not None, "a node on a disk has a staging area"
        return snapshots.save()
