"""
Every system call of a log's life fails once: with an I/O error, with a full disk, or by doing less than it was asked.

After an I/O error, and after any failed sync, the process must end at once; the next one must find everything that had
been reported durable. A full disk must be waited for; only a start may give up on it. A short write changes nothing.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from kvorum_sim.crash.images import Image, durable_part
from kvorum_sim.crash.judge import judge
from kvorum_sim.crash.lives import live

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kvorum.storage.wal.system import SystemCalls
    from kvorum_sim.filesystem import SimulatedFiles

CALLS: Final = (
    "create", "allocate", "write", "sync_data", "sync_file", "sync_directory", "unlink", "truncate", "read_file",
    "list_directory", "file_size",
)  # fmt: skip
NEEDS_SPACE: Final = frozenset({"create", "allocate", "write"})
KINDS: Final = ("EIO", "ENOSPC", "EDQUOT", "short")


@dataclass(slots=True)
class FaultReport:
    """What came of the faults."""

    faults: Counter[str] = field(default_factory=Counter)
    """By kind and call."""
    problems: list[str] = field(default_factory=list)


class _Fault:
    """
    Counts the calls of all lives and spoils one of them.

    Args:
        kind: One of `KINDS`; empty spoils nothing.
        at: The call that is spoilt, counted from 0.
    """

    def __init__(self, kind: str = "", at: int = -1) -> None:
        self.kind = kind
        self.at = at
        self.count = 0
        self.hit = ""
        """Name of the call that was spoilt."""
        self.files: SimulatedFiles | None = None

    def alter(self, system: SystemCalls) -> SystemCalls:
        """The system calls of one life."""
        return replace(system, **{name: self._counted(name, getattr(system, name)) for name in CALLS})

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any) -> Any:
            self.count += 1
            if self.count - 1 != self.at:
                return call(*arguments)
            if self.kind == "short":
                return self._short(name, call, *arguments)
            if self.kind != "EIO" and name not in NEEDS_SPACE and not name.startswith("sync"):
                return call(*arguments)
            self.hit = name
            raise OSError(getattr(errno, self.kind), "the call was told to fail")

        return act

    def _short(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        if name != "write":
            return call(*arguments)
        descriptor, buffers, offset = arguments
        data = b"".join(buffers)
        self.hit = name
        return call(descriptor, [data[: max(1, len(data) // 3)]], offset)


def count_calls(seed: int) -> int:
    """System calls in the lives of a seed."""
    clean = _Fault()
    live(seed, clean.alter, mishaps=False)
    return clean.count


def fail_each_call(seed: int, indexes: Iterable[int] | None = None, kinds: Sequence[str] = KINDS) -> FaultReport:
    """
    Play a seed once for every call and kind of fault.

    Args:
        seed: Decides what the lives do.
        indexes: Which calls; all if not given.
        kinds: Which faults.
    """
    report = FaultReport()
    for at in range(count_calls(seed)) if indexes is None else indexes:
        for kind in kinds:
            fault = _Fault(kind, at)
            problem = _play(seed, fault)
            if fault.hit:
                report.faults[f"{kind} {fault.hit}"] += 1
            if problem:
                report.problems.append(f"seed {seed}, {kind} at call {at} ({fault.hit}): {problem}")
    return report


def _play(seed: int, fault: _Fault) -> str:
    """What is wrong after one fault, if anything."""
    try:
        recording = live(seed, fault.alter, mishaps=False)
    except Exception as error:  # noqa: BLE001 - whatever escapes is the finding
        return f"{type(error).__name__}: {error}"
    ended = recording.acts["failed sync"]
    fatal = bool(fault.hit) and (fault.kind == "EIO" or fault.hit.startswith("sync"))
    if fatal and ended != 1:
        return "the process went on"
    if fault.kind == "short" and ended:
        return "the process ended"
    calls = len(recording.journal)
    for contents in (recording.files.contents(), durable_part(recording.journal, {})):
        image = Image(calls, "the end", contents)
        outcome = judge(image, recording.history.expected(calls), recording.segment_bytes)
        if outcome.problem:
            return outcome.problem
    return ""
