"""What an operator may tune of the algorithm, and the timings that are part of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvorum.core import limits

FIRST_STAND_S: Final = 0.030
"""A node that never saw a leader stands this soon after its start, so that a fresh cluster serves at once."""

FIRST_STAND_STAGGER_S: Final = 0.150
"""Each further node of the configuration waits this much longer, so that the first one is not contested."""

FIRST_STAND_JITTER_S: Final = 0.020
"""Spread of the first stand, in case two files disagree about the ranks."""


@dataclass(frozen=True, slots=True)
class RaftSettings:
    """
    Timings in seconds and bounds of batches and windows.

    Raises:
        ValueError: A value that cannot work, with the reason.
    """

    election_timeout_s: float = 1.0
    """Upper end T of the random interval [T/2, T] after which a follower that hears no leader stands."""
    heartbeat_s: float = 0.1
    max_batch_entries: int = 1024
    """Entries of one append message and of one group on disk."""
    append_bytes_max: int = limits.APPEND_BYTES_MAX
    appends_in_flight_max: int = limits.APPENDS_IN_FLIGHT_MAX

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_s < self.election_timeout_s / 2:
            msg = (
                f"heartbeat of {self.heartbeat_s} s and election timeout of {self.election_timeout_s} s: "
                "the heartbeat must be above zero and below half the election timeout"
            )
            raise ValueError(msg)
        for name in ("max_batch_entries", "append_bytes_max", "appends_in_flight_max"):
            if getattr(self, name) < 1:
                msg = f"{name} is {getattr(self, name)}; it must be at least 1"
                raise ValueError(msg)
