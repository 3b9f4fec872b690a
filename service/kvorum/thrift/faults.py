"""Fault injection (contract section 8): one setting per process, judged once per request at the edge."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from kvorum.core.errors import ErrorCode, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable


class FaultTarget:
    """Groups of methods a fault can be aimed at."""

    GET: Final = "get"
    SET: Final = "set"
    DELETE: Final = "delete"
    RANGE: Final = "range"
    COMMIT: Final = "commit"


FAULT_TARGETS: Final = frozenset(
    (FaultTarget.GET, FaultTarget.SET, FaultTarget.DELETE, FaultTarget.RANGE, FaultTarget.COMMIT)
)

_CODES: Final = {
    "timeout": ErrorCode.TIMEOUT,
    "conflict": ErrorCode.CONFLICT,
    "corruption": ErrorCode.CORRUPTION,
    "network": ErrorCode.NETWORK,
}


class Strike(NamedTuple):
    """A fault that hits a request: wait, then fail with this code."""

    after_s: float
    refusal: Refusal


class FaultInjector:
    """The one fault setting of this node; lost at restart."""

    def __init__(self, draw: Callable[[], float], *, enabled: bool) -> None:
        self._draw = draw
        self._enabled = enabled
        self._code = ErrorCode.TIMEOUT
        self._probability = 0.0
        self._after_s = 0.0
        self._target = ""
        self.armed = False
        """Whether any request could be hit; the hot path looks at nothing else."""

    def configure(self, fault_type: str, probability: float, duration_ms: int, target: str) -> Refusal | None:
        """Replace the setting, or say why not; a probability of 0 or less clears it, whatever the type."""
        if not self._enabled:
            text = "fault injection is disabled; set [faults] enabled = true in the configuration of this node"
            return Refusal(ErrorCode.PERMISSION_DENIED, text)
        if math.isnan(probability):
            return Refusal(ErrorCode.INVALID_ARGUMENT, "probability is not a number; give 0 to clear, up to 1 to arm")
        if probability <= 0:
            self.armed = False
            return None
        code = _CODES.get(fault_type.lower())
        if code is None:
            text = f"unknown fault_type; allowed: {', '.join(sorted(_CODES))}"
            return Refusal(ErrorCode.INVALID_ARGUMENT, text)
        if target and target not in FAULT_TARGETS:
            text = f"unknown target_operation; allowed: {', '.join(sorted(FAULT_TARGETS))}, or none for all"
            return Refusal(ErrorCode.INVALID_ARGUMENT, text)
        self._code, self._probability, self._target = code, min(probability, 1.0), target
        self._after_s = max(0, duration_ms) / 1000
        self.armed = True
        return None

    def strike(self, target: str) -> Strike | None:
        """Decide whether a request of this group is hit."""
        if not self.armed or (self._target and self._target != target) or self._draw() >= self._probability:
            return None
        text = f"injected fault {self._code} (setFaultInjection on this node); clear it with probability 0"
        return Strike(self._after_s, Refusal(self._code, text))
