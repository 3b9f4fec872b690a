"""
What a change of the membership comes to: the next configuration, or why not. Pure, so that each case is a test row.

Voters change one at a time (Raft dissertation 4.1), and only while those who remain can be reached: a configuration
that its own voters cannot commit would stop the cluster.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvorum.config.endpoints import split_endpoint
from kvorum.core.cluster import Configuration, Member

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvorum.core.ids import Index, NodeId

MEMBERS_MAX: Final = 64
ENDPOINT_BYTES_MAX: Final = 512
PROMOTION_LAG_MAX: Final = 1_000
"""Entries a learner may be behind when an administrator makes it a voter."""


class Action:
    """What may be asked."""

    ADD: Final = "add"
    """Take a node in as a learner; it becomes a voter by itself once it has caught up."""
    PROMOTE: Final = "promote"
    REMOVE: Final = "remove"
    REPLACE: Final = "replace"
    """Give a seat to whichever data directory comes next, as a learner."""
    TRANSFER: Final = "transfer"
    """Hand leadership to a node, or to the best one."""


ACTIONS: Final = (Action.ADD, Action.PROMOTE, Action.REMOVE, Action.REPLACE, Action.TRANSFER)


@dataclass(frozen=True, slots=True)
class Change:
    """One request; which fields matter depends on the action."""

    action: str
    node_id: NodeId | None = None
    client_endpoint: str = ""
    peer_endpoint: str = ""
    force: bool = False
    """Do it although too few voters can be reached, or the learner is far behind."""

    def as_json(self) -> dict[str, Any]:
        """For a frame."""
        return {
            "action": self.action,
            "node": self.node_id,
            "client": self.client_endpoint,
            "peer": self.peer_endpoint,
            "force": self.force,
        }

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> Change:
        """
        Read what `as_json` wrote, from this release or another.

        Raises:
            ValueError: It says something else.
        """
        action, node = content.get("action"), content.get("node")
        client, peer = content.get("client", ""), content.get("peer", "")
        if action not in ACTIONS:
            msg = f"action {action!r} is none of {', '.join(ACTIONS)}"
            raise ValueError(msg)
        if not (node is None or (type(node) is int and 0 <= node < 2**32)):
            msg = f"node id {node!r} is no number from 0 to 4294967295"
            raise ValueError(msg)
        if not (isinstance(client, str) and isinstance(peer, str)):
            msg = "endpoints are texts, host:port"
            raise ValueError(msg)  # noqa: TRY004 - one kind of error for a bad request
        return cls(action, node, client, peer, content.get("force") is True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request."""

    ok: bool
    text: str
    configuration: Configuration | None = None
    """In force afterwards; None if no leader answered."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the leader knows of the members."""

    node_id: NodeId
    last_index: Index
    matches: Mapping[NodeId, Index]
    reachable: frozenset[NodeId] = field(default=frozenset())
    """Members heard a moment ago, the leader included."""


class Plan(NamedTuple):
    """Either a configuration to propose, or the answer at once."""

    following: Configuration | None
    text: str
    ok: bool = True


def plan(current: Configuration, change: Change, facts: Facts, *, again: bool = False) -> Plan:
    """
    Work out one change; `Action.TRANSFER` is none.

    Args:
        current: In force, committed.
        change: What is asked.
        facts: What the leader knows.
        again: The request may have taken effect before: then what is done already is a success.
    """
    if change.action == Action.ADD:
        return _add(current, change)
    if change.node_id is None:
        return Plan(None, "the request names no node", ok=False)
    member = current.member(change.node_id)
    if member is None:
        if change.action == Action.REMOVE and again:
            return Plan(None, f"node {change.node_id} is removed")
        known = ", ".join(str(m.node_id) for m in current.members)
        return Plan(None, f"node {change.node_id} is no member of this cluster; the members are {known}", ok=False)
    if change.action == Action.PROMOTE:
        return _promote(current, member, change, facts)
    if change.action == Action.REMOVE:
        return _remove(current, member, change, facts)
    return _replace(current, member, change, facts)


def _endpoint_flaw(current: Configuration, node_id: NodeId, client: str, peer: str) -> str | None:
    for name, endpoint in (("client", client), ("peer", peer)):
        try:
            split_endpoint(endpoint)
        except ValueError as error:
            return f"{name} endpoint {endpoint!r}: {error}"
        if len(endpoint.encode()) > ENDPOINT_BYTES_MAX:
            return f"the {name} endpoint is longer than {ENDPOINT_BYTES_MAX} bytes"
    for other in current.members:
        if other.node_id == node_id:
            continue
        taken = {other.client_endpoint, other.peer_endpoint} & {client, peer}
        if taken:
            return f"endpoint {min(taken)} is already that of node {other.node_id}; every member needs its own"
    return None


def _add(current: Configuration, change: Change) -> Plan:
    known = {(m.client_endpoint, m.peer_endpoint): m for m in current.members}
    client, peer = change.client_endpoint, change.peer_endpoint
    same = known.get((client, peer))
    if same is not None and change.node_id in (None, same.node_id):
        return Plan(None, f"node {same.node_id} is already a member with these endpoints")
    node_id = change.node_id if change.node_id is not None else max(m.node_id for m in current.members) + 1
    member = current.member(node_id)
    if member is not None:
        text = (
            f"node {node_id} is already a member, at {member.client_endpoint} and {member.peer_endpoint}; "
            "replace it to move it, or take another node id"
        )
        return Plan(None, text, ok=False)
    if len(current.members) >= MEMBERS_MAX:
        return Plan(None, f"the cluster has {MEMBERS_MAX} members, which is the most it takes", ok=False)
    flaw = _endpoint_flaw(current, node_id, client, peer)
    if flaw is not None:
        return Plan(None, flaw, ok=False)
    learner = Member(node_id, client, peer, voter=False)
    text = f"node {node_id} is a learner; it becomes a voter once it has caught up"
    return Plan(Configuration.of([*current.members, learner]), text)


def _with(current: Configuration, changed: Member) -> Configuration:
    return Configuration(tuple(changed if m.node_id == changed.node_id else m for m in current.members))


def quorum_flaw(following: Configuration, reachable: frozenset[NodeId]) -> str | None:
    """Why the voters that can be reached could not commit anything in a configuration; None if they can."""
    up = [voter for voter in following.voters if voter in reachable]
    if len(up) >= following.quorum:
        return None
    return (
        f"of the {len(following.voters)} voters there would be, only {len(up)} can be reached now, and "
        f"{following.quorum} are needed: the cluster would stop. Bring the others back first, or force it"
    )


def _promote(current: Configuration, member: Member, change: Change, facts: Facts) -> Plan:
    if member.voter:
        return Plan(None, f"node {member.node_id} is already a voter")
    if not member.incarnation and not change.force:
        return Plan(None, f"node {member.node_id} has not come yet: start it first", ok=False)
    behind = facts.last_index - facts.matches.get(member.node_id, 0)
    if behind > PROMOTION_LAG_MAX and not change.force:
        text = (
            f"node {member.node_id} is {behind} entries behind, more than {PROMOTION_LAG_MAX}: "
            "it becomes a voter by itself once it has caught up"
        )
        return Plan(None, text, ok=False)
    following = _with(current, replace(member, voter=True))
    flaw = None if change.force else quorum_flaw(following, facts.reachable)
    return Plan(None, flaw, ok=False) if flaw else Plan(following, f"node {member.node_id} is a voter")


def _remove(current: Configuration, member: Member, change: Change, facts: Facts) -> Plan:
    following = Configuration(tuple(m for m in current.members if m.node_id != member.node_id))
    if not following.voters:
        return Plan(None, f"node {member.node_id} is the last voter and cannot be removed", ok=False)
    flaw = None if change.force or not member.voter else quorum_flaw(following, facts.reachable)
    return Plan(None, flaw, ok=False) if flaw else Plan(following, f"node {member.node_id} is removed")


def _replace(current: Configuration, member: Member, change: Change, facts: Facts) -> Plan:
    client, peer = change.client_endpoint or member.client_endpoint, change.peer_endpoint or member.peer_endpoint
    fresh = Member(member.node_id, client, peer, voter=False)
    if fresh == member:
        return Plan(None, f"the seat of node {member.node_id} waits for a new data directory already")
    if member.node_id == facts.node_id:
        return Plan(None, f"node {member.node_id} leads; transfer leadership before it is replaced", ok=False)
    following = _with(current, fresh)
    if not following.voters:
        return Plan(None, f"node {member.node_id} is the last voter and cannot be replaced", ok=False)
    if member.node_id in facts.reachable and not change.force:
        text = f"node {member.node_id} is up; stop it before its seat is given to another data directory, or force it"
        return Plan(None, text, ok=False)
    flaw = _endpoint_flaw(current, member.node_id, client, peer)
    if flaw is None and member.voter and not change.force:
        flaw = quorum_flaw(following, facts.reachable)
    text = f"node {member.node_id} is a learner until its new data directory has caught up"
    return Plan(None, flaw, ok=False) if flaw else Plan(following, text)
