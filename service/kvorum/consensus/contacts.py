"""
When each peer was last heard, and what it said of itself: the ground for contact ages, health and readiness.

Ages use the real monotonic clock, so a node that was paused knows at once how old its knowledge is (contract section 7;
architecture section 3.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvorum.core.machine import Role
from kvorum.core.status import Health, MemberStatus

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvorum.consensus.frames import Report
    from kvorum.core.cluster import Configuration, Member
    from kvorum.core.ids import Incarnation, NodeId
    from kvorum.core.ports import Greeting

FAR_BEHIND_ENTRIES: Final = 5_000
"""A member that lags the commit index by more is `degraded` (TiKV's alert threshold, operations section 5.3)."""


class Contacts:
    """What this node knows of its peers at first hand."""

    def __init__(self, node_id: NodeId, started: float, *, node_timeout_s: float) -> None:
        self._node_id = node_id
        self._started = started
        self._node_timeout_s = node_timeout_s
        self._heard: dict[NodeId, float] = {}
        self._heard_seat: dict[NodeId, float] = {}
        self.reports: dict[NodeId, Report] = {}
        self.greetings: dict[NodeId, Greeting] = {}
        self.incarnations: dict[NodeId, Incarnation] = {}

    def heard(self, peer: NodeId, now: float) -> None:
        """Anything came from this peer."""
        self._heard[peer] = now

    def heard_seat(self, peer: NodeId, now: float) -> None:
        """Something came from the data directory that holds this peer's seat."""
        self._heard_seat[peer] = self._heard[peer] = now

    def seat_age_s(self, peer: NodeId, now: float) -> float | None:
        """Seconds since the directory that holds (or held) this peer's seat was last heard, or None if never."""
        heard = self._heard_seat.get(peer)
        return None if heard is None else max(0.0, now - heard)

    def keep(self, peers: Iterable[NodeId]) -> None:
        """Forget everybody else, who has left."""
        kept = frozenset(peers)
        for known in (self._heard, self._heard_seat, self.reports, self.incarnations):
            for peer in [peer for peer in known if peer not in kept]:
                del known[peer]

    def age_s(self, peer: NodeId, now: float) -> float | None:
        """Seconds since this peer was last heard, or None if never."""
        heard = self._heard.get(peer)
        return None if heard is None else max(0.0, now - heard)

    def quorum_age_s(self, configuration: Configuration, now: float) -> float:
        """Age of the youngest moment at which this node had heard a quorum of the voters, itself included."""
        ages = sorted(
            0.0 if voter == self._node_id else now - self._heard.get(voter, float("-inf"))
            for voter in configuration.voters
        )
        return ages[configuration.quorum - 1]

    def health(self, peer: NodeId, now: float, commit_index: int) -> str:
        """Status string of a peer (contract section 7)."""
        age = self.age_s(peer, now)
        if age is None:
            return Health.UNKNOWN if now - self._started < self._node_timeout_s else Health.UNREACHABLE
        if age >= self._node_timeout_s:
            return Health.UNREACHABLE
        report = self.reports.get(peer)
        if report is None or report.leader is None or report.applied_index + FAR_BEHIND_ENTRIES < commit_index:
            return Health.DEGRADED
        return Health.HEALTHY

    def members(
        self,
        members: Iterable[Member],
        now: float,
        *,
        leader: NodeId | None,
        term: int,
        commit_index: int,
        own_health: str,
        uptime_s: float,
    ) -> tuple[MemberStatus, ...]:
        """One row per configured member, ascending by node id."""
        rows = []
        for member in members:
            me = member.node_id == self._node_id
            report = self.reports.get(member.node_id)
            learned = None if report is None else report.uptime_ms / 1000
            rows.append(
                MemberStatus(
                    node_id=member.node_id,
                    client_endpoint=member.client_endpoint,
                    peer_endpoint=member.peer_endpoint,
                    voter=member.voter,
                    health=own_health if me else self.health(member.node_id, now, commit_index),
                    is_leader=member.node_id == leader,
                    term=term,
                    last_contact_age_s=0.0 if me else self.age_s(member.node_id, now),
                    uptime_s=uptime_s if me else learned,
                )
            )
        return tuple(rows)

    def confirmed_leader(self) -> NodeId | None:
        """A peer that says it leads and that its term's no-op has committed."""
        return next(
            (peer for peer, report in self.reports.items() if report.role == Role.LEADER and report.may_serve), None
        )
