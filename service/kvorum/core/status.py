"""What a node knows of itself and its peers, as plain values for getStatus, diagnostics and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvorum.core.ids import Index, NodeId, Term


class Health:
    """Status strings of contract section 7."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One configured member as seen from the answering node (contract section 7, NodeStatus and MemberInfo)."""

    node_id: NodeId
    client_endpoint: str
    peer_endpoint: str
    voter: bool
    health: str
    is_leader: bool
    term: Term
    last_contact_age_s: float | None
    """Seconds since anything was last heard from it; 0 for the node itself, None if never."""
    uptime_s: float | None
    """Its own process age if learned, else None."""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """The answering node about itself and the configuration in force, members ascending by id."""

    node_id: NodeId
    role: str
    term: Term
    leader_id: NodeId | None
    leader_endpoint: str | None
    commit_index: Index
    applied_index: Index
    low_watermark: Index
    uptime_s: float
    members: tuple[MemberStatus, ...]
