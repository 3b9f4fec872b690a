"""Requests of simulated clients: the ports' `PendingWrite` and `PendingRead`, each answered exactly once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from kvorum.core.errors import ErrorCode
from kvorum.core.operations import Applied
from kvorum_sim.linearizability import Outcome

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from kvorum.core.errors import Refusal
    from kvorum.core.ids import Index
    from kvorum_sim.process import Process

UNKNOWN_CODES = frozenset({ErrorCode.TIMEOUT, ErrorCode.INTERNAL})
"""Refusals of a write that may still have taken effect."""

DEADLINE_SLACK_S: Final = 0.5
"""A call may end this much after its deadline (contract section 1.3)."""


class Violation(AssertionError):  # noqa: N818 - not an error of the program that runs but of the one that is judged
    """Something that must never happen did."""


class Call:
    """
    One request through one process.

    Args:
        number: Of the call in its world.
        process: Who answers.
        what: For people.
        decision: Done with the outcome.
        look: For a read: what to answer, looked up at the moment it may be served. None for a write.
    """

    def __init__(
        self,
        number: int,
        process: Process,
        what: str,
        decision: asyncio.Future[str],
        look: Callable[[], Any] | None = None,
    ) -> None:
        self.number = number
        self.process = process
        self.what = what
        self.decision = decision
        self.look = look
        self.taken = math.inf
        """When the process has taken it: with a pause in between, later than it was made."""
        self.result: Any = None
        self.index: Index = 0
        self.refusal: Refusal | None = None

    def __repr__(self) -> str:
        return f"call {self.number}: {self.what} through {self.process!r}"

    def decided(self, index: Index, outcome: Applied | Refusal) -> None:
        """A write was applied or refused."""
        self.index = index
        if isinstance(outcome, Applied):
            assert index > 0
            self.result = outcome
            self._answer(Outcome.OK)
        else:
            self.refusal = outcome
            unknown = index == 0 and outcome.code in UNKNOWN_CODES
            self._answer(Outcome.UNKNOWN if unknown else Outcome.FAILED)

    def serve(self) -> None:
        """A read may be served now."""
        assert self.look is not None
        self.result = self.look()
        self._answer(Outcome.OK)

    def refused(self, refusal: Refusal) -> None:
        """A read will not be served."""
        self.refusal = refusal
        self._answer(Outcome.FAILED)

    def lost(self) -> None:
        """The node died under the call: its client sees a broken connection."""
        if not self.decision.done():
            self.decision.set_result(Outcome.FAILED if self.look is not None else Outcome.UNKNOWN)

    def _answer(self, outcome: str) -> None:
        assert self.process.alive, f"{self!r} is answered by a dead process"
        if self.decision.done():
            msg = f"{self!r} is answered twice"
            raise Violation(msg)
        self.decision.set_result(outcome)
