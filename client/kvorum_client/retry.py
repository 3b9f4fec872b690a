"""What to do after a failed attempt: the error table as data, the time budget of a call, and back-off."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from kvorum_client.errors import (
    ConflictError,
    FutureVersionError,
    InvalidRequestError,
    KvorumError,
    OutcomeUnknownError,
    OverloadedError,
    PermissionDeniedError,
    QuotaExceededError,
    ReadTimeoutError,
    StaleReadError,
    TooLargeError,
    TransactionTooOldError,
    UnavailableError,
)

if TYPE_CHECKING:
    from random import Random


class CallKind(Enum):
    """How a method may be routed and repeated."""

    READ = "read"
    """Reads the newest state; repeat freely, best asked at the leader unless the level is local."""
    SNAPSHOT = "snapshot"
    """Reads at a fixed version; any node gives the same answer."""
    WRITE = "write"
    """Must not be repeated once it may have been done."""
    LOCAL = "local"
    """One node about itself; never sent elsewhere."""


class Retry(Enum):
    """What a failed attempt asks for."""

    FAIL = "fail"
    """Tell the caller."""
    AT_LEADER = "at leader"
    """At once, at the leader the reply names; the cached leader is wrong."""
    PAUSE = "pause"
    """After a pause; the node's answer was final for this attempt only."""
    ELSEWHERE = "elsewhere"
    """At another node, without a pause while there is one left to try."""
    UNKNOWN = "unknown"
    """The write may have been done."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the error table."""

    error: type[KvorumError]
    read: Retry
    write: Retry


RULES: Final[dict[str, Rule]] = {
    "BAD_REQUEST": Rule(InvalidRequestError, Retry.FAIL, Retry.FAIL),
    "INVALID_ARGUMENT": Rule(InvalidRequestError, Retry.FAIL, Retry.FAIL),
    "INVALID_KEY": Rule(InvalidRequestError, Retry.FAIL, Retry.FAIL),
    "INVALID_OPERATION": Rule(InvalidRequestError, Retry.FAIL, Retry.FAIL),
    "UNSUPPORTED": Rule(InvalidRequestError, Retry.FAIL, Retry.FAIL),
    "TOO_LARGE": Rule(TooLargeError, Retry.FAIL, Retry.FAIL),
    "CONFLICT": Rule(ConflictError, Retry.FAIL, Retry.FAIL),
    "TRANSACTION_TOO_OLD": Rule(TransactionTooOldError, Retry.FAIL, Retry.FAIL),
    "FUTURE_VERSION": Rule(FutureVersionError, Retry.ELSEWHERE, Retry.FAIL),
    "NOT_LEADER": Rule(UnavailableError, Retry.AT_LEADER, Retry.AT_LEADER),
    "UNAVAILABLE": Rule(UnavailableError, Retry.PAUSE, Retry.PAUSE),
    "OVERLOADED": Rule(OverloadedError, Retry.PAUSE, Retry.PAUSE),
    "STALE": Rule(StaleReadError, Retry.ELSEWHERE, Retry.FAIL),
    "QUOTA_EXCEEDED": Rule(QuotaExceededError, Retry.FAIL, Retry.FAIL),
    "TIMEOUT": Rule(ReadTimeoutError, Retry.ELSEWHERE, Retry.UNKNOWN),
    "INTERNAL": Rule(UnavailableError, Retry.ELSEWHERE, Retry.UNKNOWN),
    "UNAUTHENTICATED": Rule(PermissionDeniedError, Retry.FAIL, Retry.FAIL),
    "PERMISSION_DENIED": Rule(PermissionDeniedError, Retry.FAIL, Retry.FAIL),
    "CORRUPTION": Rule(UnavailableError, Retry.PAUSE, Retry.PAUSE),
    "NETWORK": Rule(UnavailableError, Retry.PAUSE, Retry.PAUSE),
}
"""Contract section 6. A code that is not listed comes from a newer server: nothing may be concluded from it."""

UNKNOWN_CODE: Final = Rule(UnavailableError, Retry.FAIL, Retry.UNKNOWN)


def rule_of(code: str) -> Rule:
    """The row for a code."""
    return RULES.get(code, UNKNOWN_CODE)


def error_of(code: str, text: str, endpoint: str, *, kind: CallKind, leader_endpoint: str | None = None) -> KvorumError:
    """The error to raise for a reply that failed."""
    rule = rule_of(code)
    kind_of_error = OutcomeUnknownError if kind is CallKind.WRITE and rule.write is Retry.UNKNOWN else rule.error
    return kind_of_error(
        f"{code} from {endpoint}: {text}", code=code, endpoint=endpoint, leader_endpoint=leader_endpoint
    )


class Deadline:
    """The time budget of one call, on the loop's clock."""

    __slots__ = ("_loop", "at")

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.at = self._loop.time() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left; zero or less when it is over."""
        return self.at - self._loop.time()


@dataclass(frozen=True, slots=True)
class Backoff:
    """Growing pauses with full jitter between half and the whole, so that clients do not come back in step."""

    first_s: float = 0.02
    factor: float = 2.0
    longest_s: float = 1.0

    def pause(self, failures: int, random: Random) -> float:
        """Seconds to wait after this many failures in a row (one or more)."""
        whole = min(self.longest_s, self.first_s * self.factor ** min(failures - 1, 30))
        return whole * (0.5 + 0.5 * random.random())
