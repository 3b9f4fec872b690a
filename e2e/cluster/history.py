"""What the writers printed, and whether it may have happened."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from kvorum_sim.linearizability import Kind, Operation, Outcome, check

if TYPE_CHECKING:
    from collections.abc import Iterable

_KINDS: Final = frozenset((Kind.GET, Kind.SET, Kind.DELETE))
_OUTCOMES: Final = frozenset((Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN))

LEADER_LAG_US: Final = 3_000_000
"""A leader that was deposed without knowing it may answer reads of that level until it has missed its quorum for an
election timeout, 1 s by default: such a read is judged as if it had begun this much earlier."""


@dataclass
class History:
    """One run of the writers, read from its output."""

    operations: list[Operation] = field(default_factory=list)
    final: dict[str, Any] = field(default_factory=dict)
    batches: list[dict[str, Any]] = field(default_factory=list)
    """Progress once a second, without the operations."""

    def judge(self) -> None:
        """
        Raise unless everything the writers were told may have happened, and nothing acknowledged is lost.

        Raises:
            AssertionError: With the reason, and for a register with the operations around the one that gives it away.
        """
        final = self.final
        assert final, "the writers did not print their totals: they did not end, or the log is cut"
        assert final["batches"] == len(self.batches), f"{len(self.batches)} of {final['batches']} batches arrived"
        assert final["operations"] == len(self.operations), "the log of the writers is not complete"
        assert final["violations"] == [], "\n".join(final["violations"])
        verdict = check(self.operations)
        assert verdict.linearizable, verdict.explanation
        assert final["succeeded"] > 0, "nothing succeeded, so nothing was tested"
        assert final["counted"] > 0, "the counter never counted"
        assert final["audits"] > 0, "nobody looked at the accounts"

    @property
    def summary(self) -> str:
        """One line of figures."""
        names = ("attempted", "succeeded", "failed", "unknown", "conflicts", "counted", "transfers", "audits", "own")
        figures = ", ".join(f"{name} {self.final.get(name)}" for name in names)
        return f"{figures}, slowest {self.final.get('slowest_s')} s, longest silence {self.longest_silence_s} s"

    @property
    def longest_silence_s(self) -> int:
        """Seconds, in whole batches, in which no call at all succeeded."""
        longest = current = 0
        for before, after in zip(self.batches, self.batches[1:], strict=False):
            current = current + 1 if after["succeeded"] == before["succeeded"] else 0
            longest = max(longest, current)
        return longest


def read(lines: Iterable[str]) -> History:
    """Parse the output of ``workload.py run``; a line that is none of its own is an error."""
    history = History()
    for line in lines:
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except json.JSONDecodeError as problem:
            text = f"the writers printed something else: {line[:300]!r}"
            raise AssertionError(text) from problem
        if "batch" in document:
            history.operations += [_operation(fields) for fields in document.pop("ops")]
            history.batches.append(document)
        elif "final" in document:
            history.final = document["final"]
    return history


def _operation(fields: list[Any]) -> Operation:
    client, key, kind, argument, result, invoked, returned, outcome, level = fields
    assert kind in _KINDS, f"unknown kind of operation: {fields}"
    assert outcome in _OUTCOMES, f"unknown outcome: {fields}"
    if level == "leader":
        invoked -= LEADER_LAG_US
    return Operation(client, key, kind, argument, result, invoked, math.inf if returned is None else returned, outcome)
