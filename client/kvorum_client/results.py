"""Values that calls return: plain, frozen, free of Thrift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class KeyValue(NamedTuple):
    """One pair of a range."""

    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Member:
    """One configured member, as the answering node knows it."""

    node_id: int
    kv_endpoint: str
    peer_endpoint: str | None
    voter: bool
    last_contact_ms: int | None
    """Age of the last contact as seen there; None if never."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What one node says of itself."""

    endpoint: str
    """The endpoint that was asked."""
    node_id: int
    role: str
    """``leader``, ``follower``, ``candidate`` or ``learner``."""
    term: int
    leader_id: int | None
    leader_endpoint: str | None
    commit_index: int
    applied_index: int
    low_watermark: int
    members: tuple[Member, ...]
    server_version: str
    uptime_seconds: int


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """One member in a health report."""

    node_id: int
    endpoint: str
    status: str
    """``healthy``, ``degraded``, ``unreachable`` or ``unknown``."""
    is_leader: bool
    last_seen_timestamp: int
    """Unix seconds of the last contact."""
    term: int
    uptime_seconds: int | None


@dataclass(frozen=True, slots=True)
class ClusterHealth:
    """The cluster as one node sees it."""

    nodes: tuple[NodeHealth, ...]
    healthy_nodes_count: int
    total_nodes_count: int
    leader: NodeHealth | None
    cluster_status: str
    """``healthy``: all members; ``degraded``: a majority; ``unhealthy``: no majority."""
    current_term: int
