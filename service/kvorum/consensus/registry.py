"""Which algorithms `[consensus] algorithm` may name; the one place that knows them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvorum.core.errors import StartupError
from kvorum.raft.machine import RaftMachine, RaftSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvorum.core.ids import Incarnation, Index, NodeId
    from kvorum.core.machine import Machine
    from kvorum.core.ports import Log, RecoveredLog


@dataclass(frozen=True, slots=True)
class AlgorithmSettings:
    """Timings and bounds that every algorithm understands."""

    election_timeout_s: float = 1.0
    """Upper end of the random interval."""
    heartbeat_s: float = 0.1
    max_batch_entries: int = 1024


def _raft(
    node_id: NodeId,
    recovered: RecoveredLog,
    log: Log,
    settings: AlgorithmSettings,
    *,
    applied: Index,
    now: float,
    incarnation: Incarnation,
) -> Machine:
    raft_settings = RaftSettings(
        election_timeout_s=settings.election_timeout_s,
        heartbeat_s=settings.heartbeat_s,
        max_batch_entries=settings.max_batch_entries,
    )
    return RaftMachine(
        node_id,
        recovered,
        log,
        raft_settings,
        applied_index=applied,
        now=now,
        base_time_ms=recovered.base_time_ms,
        incarnation=incarnation,
    )


ALGORITHMS: Final[dict[str, Callable[..., Machine]]] = {"raft": _raft}


def build_machine(
    algorithm: str,
    node_id: NodeId,
    recovered: RecoveredLog,
    log: Log,
    settings: AlgorithmSettings,
    *,
    applied_index: Index,
    now: float,
    incarnation: Incarnation = 0,
) -> Machine:
    """
    Build the machine that the configuration names.

    Raises:
        StartupError: There is no such algorithm here.
    """
    factory = ALGORITHMS.get(algorithm)
    if factory is None:
        known = ", ".join(sorted(ALGORITHMS))
        msg = f"[consensus] algorithm = {algorithm!r}: this release has {known}"
        raise StartupError(msg)
    return factory(node_id, recovered, log, settings, applied=applied_index, now=now, incarnation=incarnation)
