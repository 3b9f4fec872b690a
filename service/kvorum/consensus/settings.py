"""What a ConsensusManager is given: numbers from the configuration, and the outside world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvorum.consensus.registry import AlgorithmSettings
from kvorum.consensus.retention import RetentionSettings

if TYPE_CHECKING:
    import asyncio
    import random
    from collections.abc import Callable

    import structlog

    from kvorum.consensus.founding import Birth
    from kvorum.core.cluster import Configuration
    from kvorum.core.errors import StartupError
    from kvorum.core.ids import Incarnation, NodeId
    from kvorum.core.ports import Log, PeerLinks, StagingArea, StateMachine


def _unmarked(*_: object) -> None:
    """What keeps no marks in a data directory: a cluster of one, and tests."""


@dataclass(frozen=True, slots=True)
class ManagerSettings:
    """What the ConsensusManager takes from the configuration, in seconds and counts."""

    node_id: NodeId
    configuration: Configuration
    """First configuration, derived from the file."""
    algorithm: str = "raft"
    timings: AlgorithmSettings = AlgorithmSettings()  # noqa: RUF009 - frozen, so one shared default is safe
    leader_wait_s: float = 4.0
    outstanding_max: int = 1000
    node_timeout_s: float = 10.0
    health_check_interval_s: float = 1.0
    retention: RetentionSettings = RetentionSettings()  # noqa: RUF009 - frozen, so one shared default is safe
    retain_entries: int = 10_000
    """Log entries kept behind the durable applied index, for followers that lag."""
    retain_bytes: int = 256 * 1024 * 1024
    """A longer log is cut up to the durable applied index, whoever lags."""
    flush_entries: int = 50_000
    """Entries applied beyond the durable index after which the store is flushed."""
    version: str = "0"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The outside world, handed in by `app` or by the simulator."""

    loop: asyncio.AbstractEventLoop
    clock: Callable[[], float]
    """Monotonic seconds."""
    wall_ms: Callable[[], int]
    """Milliseconds since the Unix epoch."""
    randomness: random.Random
    log: Log
    links: PeerLinks | None
    """None for a cluster of one."""
    state: StateMachine
    flush: Callable[[Callable[[], None]], None]
    """Makes the state machine's storage durable in the background, then calls back on the loop."""
    incarnation: Incarnation
    cluster_id: bytes | None
    on_born: Callable[[bytes], None]
    """Writes the cluster id into the data directory."""
    on_refused: Callable[[StartupError], None]
    """This node may not join; the process must end with this message."""
    logger: structlog.typing.FilteringBoundLogger
    joining: bool = False
    """The data directory came to a cluster that was there, and has not shown its own seat yet."""
    on_joining: Callable[[bool], None] = _unmarked
    """Writes that mark into the data directory, or takes it away; called before ``on_born``."""
    on_removed: Callable[[], None] = _unmarked
    """Writes into the data directory that the cluster removed it for good."""
    birth: Birth | None = None
    """How a node without a cluster comes to one; None: as the file says (`founding.FileBirth`)."""
    staging: StagingArea | None = None
    """Where an incoming snapshot becomes the next store; without it a node neither sends nor takes snapshots."""
