"""What a ConsensusManager tells of itself: contact age, refusals with the leader in them, status, readiness."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvorum.core.errors import ErrorCode, Refusal
from kvorum.core.machine import Role
from kvorum.core.status import Health, NodeReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvorum.consensus.contacts import Contacts
    from kvorum.consensus.peering import Peering
    from kvorum.consensus.settings import ManagerSettings
    from kvorum.core.cluster import Configuration
    from kvorum.core.ids import Index, NodeId, Term
    from kvorum.core.machine import Machine
    from kvorum.core.ports import StateMachine


class Reporting:
    """The part of `manager.ConsensusManager` that only looks; the manager provides everything declared here."""

    settings: ManagerSettings
    node_id: NodeId
    machine: Machine | None
    contacts: Contacts
    log_hangs: bool
    removed: bool
    leader_heard: float
    installing: bool
    peering: Peering
    _started: float
    _state: StateMachine
    _stopping: bool
    _leaving: bool
    _replay: tuple[Index, Index]
    _complete: bool = False
    _short_of_space: set[str]

    clock: Callable[[], float]
    """Monotonic seconds."""

    @property
    def term(self) -> Term:
        """Current term; 0 before birth."""
        return self.machine.term if self.machine else 0

    @property
    def has_space(self) -> bool:
        """False while log or store meet a full disk, or the reserve kept free for them is used up."""
        return not self._short_of_space

    @property
    def speaks(self) -> bool:
        """False while the disk cannot be written: this node is then silent and deaf, like a paused one."""
        # Hot path: asked for every frame.
        return not self._short_of_space and not self.log_hangs and not self.installing and not self.removed

    @property
    def leader(self) -> NodeId | None:
        """Known leader of the current term, or None; None also while this node may not speak (disk full)."""
        return self.machine.leader if self.machine and self.speaks else None

    @property
    def is_leader(self) -> bool:
        """Whether this node leads, as far as it knows."""
        return self.machine is not None and self.machine.role == Role.LEADER and self.speaks

    @property
    def may_serve(self) -> bool:
        """This node leads, its no-op has committed, and it shows it."""
        machine = self.machine
        if machine is None or not self.is_leader or not machine.may_serve:
            return False
        # Safety: right after a restart the state is that of the last flush, and the log is applied in slices.
        return self._state.applied_index >= machine.term_start

    @property
    def applied_index(self) -> Index:
        """What reads on this node show."""
        return self._state.applied_index

    @property
    def uptime_s(self) -> float:
        """Age of this manager, in practice of the process."""
        return self.clock() - self._started

    @property
    def members(self) -> Configuration:
        """Configuration in force."""
        if self.machine is not None and self.machine.configuration.members:
            return self.machine.configuration
        return self.peering.learned.configuration if self.peering.learned else self.peering.birth.expected

    @property
    def complete(self) -> bool:
        """
        The birth of the cluster is over, as far as this node knows: clients may write, nodes may be ready.

        Once true it stays so for this process.
        """
        if not self._complete and self.machine is not None:
            machine = self.machine
            _, committed = machine.configuration_at(machine.commit_index)
            written = getattr(self._state, "last_commit_version", 0) > 0
            self._complete = self.peering.birth.complete(len(committed.voters), written=written)
        return self._complete

    def contact_age_s(self) -> float:
        """
        Seconds since this node was last in contact with a leader, by the real clock.

        A leader counts from the last moment at which it had heard a quorum, and is in contact (age 0) while that is
        younger than the election timeout.
        """
        now = self.clock()
        if not self.is_leader:
            return now - self.leader_heard
        age = self.contacts.quorum_age_s(self.members, now)
        return 0.0 if age < self.settings.timings.election_timeout_s else age

    def gone(self) -> Refusal:
        """What a node answers that stops, or that the cluster removed."""
        if self.removed:
            return Refusal(ErrorCode.UNAVAILABLE, "this node was removed from the cluster; use another one")
        return Refusal(ErrorCode.UNAVAILABLE, "this node is shutting down; use another one")

    @property
    def standing(self) -> str:
        """What this node is to the cluster: unborn, joining, learner, voter or removed."""
        if self.removed:
            return "removed"
        if self.machine is None:
            return "unborn"
        member = self.machine.configuration.member(self.node_id)
        if member is None:
            return "joining"
        return "voter" if member.voter else "learner"

    def unavailable(self, why: str) -> Refusal:
        """An UNAVAILABLE refusal that carries the leader, if one is known."""
        hint = self.leader_hint()
        if self.log_hangs:
            why = "the disk of this node does not answer; use another node"
        if not self.has_space:
            why = "the disk of this node is full; free space or use another node"
        if hint is None:
            return Refusal(ErrorCode.UNAVAILABLE, f"{why}; no leader is known, retry after a pause")
        return Refusal(ErrorCode.UNAVAILABLE, f"{why}; retry after a pause", *hint)

    def leader_hint(self) -> tuple[NodeId, str] | None:
        """Node id and client endpoint of the known leader."""
        leader = self.leader
        member = None if leader is None else self.members.member(leader)
        return None if member is None else (member.node_id, member.client_endpoint)

    def report(self) -> NodeReport:
        """This node and its members, for getStatus and diagnostics; costs O(members)."""
        now = self.clock()
        hint = self.leader_hint()
        leader = None if hint is None else hint[0]
        uptime_s = self.uptime_s
        return NodeReport(
            node_id=self.node_id,
            role=self.machine.role if self.machine else Role.FOLLOWER,
            term=self.term,
            leader_id=leader,
            leader_endpoint=None if hint is None else hint[1],
            commit_index=self.machine.commit_index if self.machine else 0,
            applied_index=self.applied_index,
            low_watermark=getattr(self._state, "low_watermark", 0),
            uptime_s=uptime_s,
            members=self.contacts.members(
                self.members.members,
                now,
                leader=leader,
                term=self.term,
                commit_index=self.machine.commit_index if self.machine else 0,
                own_health=Health.HEALTHY if self._knows_live_leader() else Health.DEGRADED,
                uptime_s=uptime_s,
            ),
        )

    def _knows_live_leader(self) -> bool:
        return self.leader is not None and self.contact_age_s() < self.settings.node_timeout_s

    def readiness(self) -> list[tuple[str, bool]]:
        """Named checks behind /readyz (operations L12)."""
        machine = self.machine
        member = self.members.member(self.node_id)
        caught_up = machine is not None and (
            self.may_serve if self.is_leader else self.leader is not None and self._caught_up()
        )
        return [
            ("member", machine is not None and not self.removed and member is not None and member.voter),
            ("leader", self._knows_live_leader()),
            ("caught_up", caught_up),
            ("complete", self.complete),
            ("disk_space", self.has_space),
            ("log_writable", self.speaks),
            ("serving", not (self._stopping or self._leaving or self.removed)),
        ]

    def apply_lag(self) -> int:
        """Entries the leader last said to be committed and this node does not show; never local-only (L12)."""
        report = self.contacts.reports.get(self.leader) if self.leader is not None else None
        committed = report.commit_index if report else 0
        if self.machine is not None:
            committed = max(committed, self.machine.commit_index)
        return max(0, committed - self.applied_index)

    def replay(self) -> tuple[int, float]:
        """Entries that the log held beyond the store when this process began, and the part of them applied since."""
        begin, end = self._replay
        if end <= begin:
            return 0, 1.0
        return end - begin, min(1.0, (self.applied_index - begin) / (end - begin))

    def voters_reachable(self) -> int:
        """Voters whose data directory was heard within the node timeout; this node too, if it votes and speaks."""
        now, limit = self.clock(), self.settings.node_timeout_s
        ages = {
            voter: 0.0 if voter == self.node_id and self.speaks else self.contacts.seat_age_s(voter, now)
            for voter in self.members.voters
        }
        return sum(age is not None and age < limit for age in ages.values())

    def _caught_up(self) -> bool:
        """Applied reaches what the leader itself said to be committed, but for what is under way."""
        heard = self.leader in self.contacts.reports
        return heard and self.apply_lag() <= self.settings.outstanding_max
