"""What operators ask of a node over HTTP, carried out by the rooms that can (`observe.admin.AdminOperations`)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from kvorum.config.endpoints import join_endpoint, split_endpoint
from kvorum.config.load import PEER_PORT_DISTANCE
from kvorum.consensus.changes import Action, Change
from kvorum.core.errors import ErrorCode, Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from kvorum.consensus.changes import Outcome
    from kvorum.consensus.manager import ConsensusManager
    from kvorum.core.ids import NodeId

TIMEOUT_S: Final = 30.0
TIMEOUT_S_MAX: Final = 600.0
POLL_S: Final = 0.02

_CHANGES: Final = {
    "member-add": Action.ADD,
    "member-promote": Action.PROMOTE,
    "member-remove": Action.REMOVE,
    "member-replace": Action.REPLACE,
    "leader-move": Action.TRANSFER,
}
_ARGUMENTS: Final = {"node_id", "client_endpoint", "peer_endpoint", "force", "timeout_s"}
_OPTIONAL_NODE: Final = {Action.ADD, Action.TRANSFER}


class Administration:
    """Every node takes every request; what only the leader can do travels to it."""

    def __init__(self, consensus: ConsensusManager, wanted: Callable[[NodeId], bool] = lambda _: False) -> None:
        """
        Remember whom to ask.

        Args:
            consensus: Of this node.
            wanted: Whether somebody else, the StatefulSet, takes a node in again as soon as it was removed.
        """
        self._consensus = consensus
        self._wanted = wanted

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
        timeout_s = arguments.get("timeout_s", TIMEOUT_S)
        if type(timeout_s) not in (int, float) or not 0 < timeout_s <= TIMEOUT_S_MAX:
            return Refusal(ErrorCode.INVALID_ARGUMENT, f"timeout_s must be a number up to {TIMEOUT_S_MAX:g}")
        if action == "log-compact":
            return await self._compact(timeout_s)
        try:
            change = _change(_CHANGES[action], arguments)
        except ValueError as problem:
            return Refusal(ErrorCode.INVALID_ARGUMENT, str(problem))
        if change.action == Action.REMOVE and not change.force and self._wanted(change.node_id or 0):
            text = (
                f"pod {change.node_id} is wanted by the StatefulSet and would be taken in again at once; scale the "
                "StatefulSet down, or force it to have the pod join anew with an empty data directory"
            )
            return Refusal(ErrorCode.CONFLICT, text)
        outcome = await self._consensus.membership.change(change, timeout_s)
        if outcome.ok:
            return _described(change, outcome)
        if self._consensus.alone:
            return Refusal(ErrorCode.UNSUPPORTED, outcome.text)
        # Only a leader's own word says for certain that the change cannot be made as things stand.
        code = ErrorCode.UNAVAILABLE if outcome.configuration is None else ErrorCode.CONFLICT
        return Refusal(code, outcome.text, *(self._consensus.leader_hint() or (None, None)))

    async def _compact(self, timeout_s: float) -> dict[str, Any] | Refusal:
        """Make durable what is applied, so that as much of the log as possible may go; then cut."""
        applier = self._consensus.applier
        index = self._consensus.applied_index
        end = self._consensus.clock() + timeout_s
        while applier.durable_index < index:
            if self._consensus.clock() >= end:
                return Refusal(ErrorCode.TIMEOUT, f"the store was not durable within {timeout_s:g} s; try again")
            applier.flush_now()
            await asyncio.sleep(POLL_S)
        before, after = self._consensus.compact_log()
        return {"base_index_before": before, "base_index": after}

    def snapshot(self) -> AsyncIterator[bytes]:
        """See `observe.admin.AdminOperations.snapshot`."""
        snapshots = self._consensus.snapshots
        assert snapshots is not None, "a node on a disk has a staging area"
        return snapshots.save()


def _change(action: str, arguments: Mapping[str, Any]) -> Change:
    """
    What was asked, checked as far as this node can.

    Raises:
        ValueError: A name or a value that does not fit; the text says which.
    """
    unknown = sorted(set(arguments) - _ARGUMENTS)
    if unknown:
        msg = f"{unknown[0]!r} is not known; the names are {', '.join(sorted(_ARGUMENTS))}"
        raise ValueError(msg)
    node_id, client = arguments.get("node_id"), arguments.get("client_endpoint", "")
    if node_id is None and action not in _OPTIONAL_NODE:
        msg = "node_id is missing: the number of the member, as GET /admin/members shows it"
        raise ValueError(msg)
    if action == Action.ADD and not client:
        msg = "client_endpoint is missing: host:port at which clients reach the new node"
        raise ValueError(msg)
    if not isinstance(arguments.get("force", False), bool):
        msg = "force must be true or false"
        raise ValueError(msg)  # noqa: TRY004 - one kind of error for a bad request
    peer = arguments.get("peer_endpoint", "")
    if client and not peer and isinstance(client, str):
        try:
            host, port = split_endpoint(client)
        except ValueError as problem:
            msg = f"client_endpoint {client[:100]!r} {problem}"
            raise ValueError(msg) from problem
        if port <= PEER_PORT_DISTANCE:
            msg = f"{client} has no peer port by default ({port} - {PEER_PORT_DISTANCE}); give peer_endpoint as well"
            raise ValueError(msg)
        peer = join_endpoint(host, port - PEER_PORT_DISTANCE)
    asked = {"action": action, "node": node_id, "client": client, "peer": peer, "force": arguments.get("force", False)}
    return Change.of_json(asked)


def _described(change: Change, outcome: Outcome) -> dict[str, Any]:
    """What came of a change, with the members in force afterwards."""
    members = outcome.configuration.members if outcome.configuration is not None else ()
    node_id = change.node_id
    if change.action == Action.ADD:
        node_id = next((m.node_id for m in members if m.client_endpoint == change.client_endpoint), node_id)
    return {
        "text": outcome.text,
        "node_id": node_id,
        "members": [
            {
                "node_id": member.node_id,
                "client_endpoint": member.client_endpoint,
                "peer_endpoint": member.peer_endpoint,
                "voter": member.voter,
                "incarnation": f"{member.incarnation:016x}" if member.incarnation else None,
            }
            for member in members
        ],
    }
