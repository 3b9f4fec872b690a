"""
Rare states that a set of histories must have reached; one that never reaches them proves less than its number says.

Each probe counts how often a state was met. After many histories, a probe that is still at zero is a defect of the
workload and is reported as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class Probe:
    """Names of the rare states."""

    TAIL_OVERWRITTEN: Final = "uncommitted tail overwritten"
    LEADER_DEPOSED: Final = "leader deposed"
    ELECTION_LOST: Final = "candidacy lost"
    OLD_TERM_COMMITTED: Final = "entries of an earlier term committed by a later leader"
    COMMIT_BEFORE_OWN_SYNC: Final = "entry committed before the leader's own disk had it"
    VOTE_AFTER_RESTART: Final = "vote given by a restarted node"
    CONFIGURATION_ROLLED_BACK: Final = "uncommitted configuration rolled back"
    TORN_TAIL: Final = "torn tail cut at a restart"
    UNTOLD_GROUP: Final = "group found durable that nobody was told of"
    REPLAY: Final = "state machine replayed the log after a restart"
    SEGMENT_BEGUN: Final = "log went on in a new segment"
    DISK_FULL: Final = "node silent while its disk is full"
    DISK_FULL_LEADER: Final = "leader silent while its disk is full"
    STORE_FULL: Final = "node silent while its store has no space"
    STORE_FULL_LEADER: Final = "leader silent while its store has no space"
    DISK_FAILED: Final = "node ended by a failing disk"
    DAMAGE_REFUSED: Final = "damaged log refused at the start"
    START_REFUSED: Final = "start refused because the disk is full"
    SYNC_HANGS: Final = "node silent while a sync hangs"
    WRITE_UNKNOWN: Final = "write with an unknown outcome"
    UNKNOWN_APPLIED: Final = "write with an unknown outcome that took effect"
    UNKNOWN_LOST: Final = "write with an unknown outcome that never took effect"
    CONFLICT: Final = "transaction refused for a conflict"
    NO_LEADER: Final = "call refused for want of a leader"
    SNAPSHOT_INSTALLED: Final = "snapshot installed"
    SNAPSHOT_OVER_TAIL: Final = "snapshot installed over an uncommitted tail"
    LOG_CUT: Final = "log cut"
    MEMBER_CHANGED: Final = "committed change of the members"
    TRANSFERRED: Final = "leadership handed over on request"
    DEDUPLICATED: Final = "retry answered from its session"
    CLIENT_DEDUPLICATED: Final = "retry of a client answered from the recorded outcome"
    CLIENT_FAILOVER: Final = "client went to another node in the middle of a commit"
    CLIENT_RESOLVED: Final = "unknown outcome resolved by a retry of the client"
    REPLY_TORN: Final = "connection of a client cut in the middle of a reply"


PROBES: Final = tuple(value for name, value in vars(Probe).items() if name.isupper())


def missing(reached: Mapping[str, int], wanted: tuple[str, ...] = PROBES) -> list[str]:
    """Probes at zero."""
    return [probe for probe in wanted if not reached.get(probe)]
