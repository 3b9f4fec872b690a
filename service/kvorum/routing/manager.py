"""
RoutingManager: read/write separation, consistency levels, redirect or forward (named in the seed design).

Reads never enter the log, writes always do. A read is *served by its caller* when routing says that it is legal: at
once where the state at hand is fresh enough, else later through `PendingRead`. See contract section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from kvorum.core.errors import ErrorCode, Refusal
from kvorum.core.operations import Consistency

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvorum.core.ids import Index, NodeId
    from kvorum.core.ports import PendingRead, PendingWrite
    from kvorum.core.status import NodeReport


LOCAL_JUDGEMENT_S: Final = 0.02
"""How long one judgement of freshness serves all `local` reads: a tick."""


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """What routing takes from the configuration, in seconds."""

    consistency_level: str = Consistency.READ_INDEX
    allow_stale_reads: bool = True
    max_staleness_s: float = 5.0
    follower_writes: str = "forward"
    leader_wait_s: float = 4.0
    future_version_wait_s: float = 2.0


class Consensus(Protocol):
    """What routing needs of the ConsensusManager."""

    @property
    def is_leader(self) -> bool:
        """Whether this node leads, as far as it knows."""
        ...

    @property
    def may_serve(self) -> bool:
        """This node leads and its no-op has committed."""
        ...

    @property
    def applied_index(self) -> Index:
        """What reads on this node show."""
        ...

    def propose(self, body: bytes, pending: PendingWrite, received: float, deadline: float) -> None:
        """Take one write."""
        ...

    def read_index(self, pending: PendingRead, received: float, deadline: float, *, confirm: bool = True) -> None:
        """Serve a read once it is legal."""
        ...

    @property
    def alone(self) -> bool:
        """A cluster of one that serves."""
        ...

    def wait_applied(self, index: Index, pending: PendingRead, expires: float, refusal: Refusal) -> None:
        """Serve a read once this node shows ``index``."""
        ...

    def contact_age_s(self) -> float:
        """Seconds since the last contact with a leader."""
        ...

    def leader_hint(self) -> tuple[NodeId, str] | None:
        """Known leader."""
        ...

    def unavailable(self, why: str) -> Refusal:
        """An UNAVAILABLE refusal with the hint."""
        ...

    def report(self) -> NodeReport:
        """Status of this node."""
        ...


class VersionGate(Protocol):
    """What routing needs of the state machine."""

    def check_readable(self, version: int) -> Refusal | None:
        """Refuse negative versions and those below the watermark."""
        ...


class RoutingManager:
    """Decides when a request may be served here; the edge and the state machine do the serving."""

    def __init__(
        self, settings: RoutingSettings, consensus: Consensus, state: VersionGate, clock: Callable[[], float]
    ) -> None:
        self.settings = settings
        self.default_level = settings.consistency_level
        self._consensus = consensus
        self._state = state
        self._clock = clock
        self._fresh_until = 0.0
        self._redirects = settings.follower_writes == "redirect"

    # --- writes ---

    def write(self, body: bytes, pending: PendingWrite, received: float, deadline: float) -> None:
        """
        Take one write; ``pending`` is told exactly once, perhaps before this returns.

        Args:
            body: Operation bytes of `core.codec`.
            pending: Who waits.
            received: When the request was complete, monotonic seconds.
            deadline: When it must be answered.
        """
        if self._redirects and not self._consensus.is_leader and self._consensus.leader_hint() is not None:
            pending.decided(0, self._not_leader())
        else:
            self._consensus.propose(body, pending, received, deadline)

    def _not_leader(self) -> Refusal:
        hint = self._consensus.leader_hint()
        assert hint is not None
        return Refusal(ErrorCode.NOT_LEADER, f"this node does not lead; send it to {hint[1]}", *hint)

    # --- reads ---

    def read(self, level: str, pending: PendingRead, received: float, deadline: float) -> bool:
        """
        Make a newest-state read legal at a consistency level.

        Returns:
            True if the caller may read at once; ``pending`` is then forgotten. False if ``pending`` is (or already
            was) told.
        """
        if level == Consistency.LOCAL:
            return received < self._fresh_until or self._read_local(pending, received, deadline)
        if level == Consistency.READ_INDEX:
            if self._consensus.alone:
                return True
            self._consensus.read_index(pending, received, deadline)
            return False
        return self._read_leader(pending, received, deadline)

    def _read_local(self, pending: PendingRead, received: float, deadline: float) -> bool:
        consensus, settings = self._consensus, self.settings
        if not consensus.is_leader and not settings.allow_stale_reads:
            pending.refused(
                Refusal(ErrorCode.STALE, "local reads on a follower are switched off (allow_stale_reads = false)")
            )
            return False
        age = consensus.contact_age_s()
        if age > settings.max_staleness_s:
            text = f"last contact with a leader is {age:.1f} s old, more than max_staleness_ms allows; use another node"
            pending.refused(Refusal(ErrorCode.STALE, text))
            return False
        if consensus.applied_index > 0:
            if settings.allow_stale_reads:
                # Judged once per few milliseconds and not per read; a paused process is past it when it wakes.
                self._fresh_until = received + min(LOCAL_JUDGEMENT_S, settings.max_staleness_s - age)
            return True
        refusal = consensus.unavailable("this node has applied nothing yet")
        consensus.wait_applied(1, pending, min(deadline, self._clock() + settings.leader_wait_s), refusal)
        return False

    def _read_leader(self, pending: PendingRead, received: float, deadline: float) -> bool:
        consensus = self._consensus
        if consensus.may_serve:
            return True
        if self._redirects and not consensus.is_leader and consensus.leader_hint() is not None:
            pending.refused(self._not_leader())
        else:
            consensus.read_index(pending, received, deadline, confirm=False)
        return False

    def read_at(self, version: int, pending: PendingRead, received: float, deadline: float) -> bool:
        """
        Make a read at a version legal: wait for the own apply, refuse what is out of the window.

        Returns:
            As `read`.
        """
        refusal = self._state.check_readable(version)
        if refusal is not None:
            pending.refused(refusal)
            return False
        applied = self._consensus.applied_index
        if version <= applied:
            return True
        text = f"version {version} is not applied on this node yet (it shows {applied}); retry later or on another node"
        expires = min(deadline, received + self.settings.future_version_wait_s)
        self._consensus.wait_applied(version, pending, expires, Refusal(ErrorCode.FUTURE_VERSION, text))
        return False

    # --- status ---

    def report(self) -> NodeReport:
        """Status of this node, for the diagnostics."""
        return self._consensus.report()

    def leader_hint(self) -> tuple[NodeId, str] | None:
        """Known leader: node id and client endpoint."""
        return self._consensus.leader_hint()
