"""
The judge of transactions: every entry that was applied, replayed by a second, much simpler state machine.

The reference keeps all versions of every key in plain dictionaries and knows the conflict rule and the sessions by the
contract's words (5.3, 5.4). What clients were told – outcomes, versions, snapshot reads – and what the nodes hold at
the end must agree with it; and apart from any log, versions must respect the order of real time.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvorum.core.codec import TAG_BYTES, decode_operation, identity_of
from kvorum.core.entries import HEADER_BYTES, EntryKind
from kvorum.core.operations import AtomicCommit, MutationKind
from kvorum_sim.linearizability import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvorum.core.entries import Entry
    from kvorum.core.ids import Index

_OPERATION_AT = HEADER_BYTES + TAG_BYTES


@dataclass(frozen=True, slots=True)
class Commit:
    """One transaction or identified write as its client saw it."""

    what: str
    invoked: float
    returned: float
    outcome: str
    version: Index
    """Where it took effect; 0 if it did not or nobody knows."""


@dataclass(frozen=True, slots=True)
class SnapshotRead:
    """A value at a version, as a client saw it."""

    version: Index
    key: bytes
    value: bytes | None


class Reference:
    """All versions of all keys, from the log alone."""

    def __init__(self, records: Mapping[Index, Entry]) -> None:
        self._versions: dict[bytes, list[tuple[Index, bytes | None]]] = {}
        self._outcomes: dict[tuple[bytes, int], tuple[Index, bool]] = {}
        self.applied: dict[Index, bool] = {}
        """Per command: whether it took effect, at this entry or, for a retry, earlier."""
        self.effect: dict[Index, Index] = {}
        """Per command that took effect: at which version."""
        self.retries = 0
        self.stamped = 0
        """Versionstamped keys that must be there."""
        for index in range(1, len(records) + 1):
            entry = records[index]
            if entry.kind == EntryKind.COMMAND:
                self._apply(index, entry.record)

    def _apply(self, index: Index, record: bytes) -> None:
        identity = identity_of(record, _OPERATION_AT)
        if identity is not None and identity in self._outcomes:
            self.retries += 1
            version, done = self._outcomes[identity]
        else:
            version, done = index, self._do(index, record)
            if identity is not None:
                self._outcomes[identity] = (index, done)
        self.applied[index] = done
        if done:
            self.effect[index] = version

    def _do(self, index: Index, record: bytes) -> bool:
        operation = decode_operation(record, _OPERATION_AT)
        mutations = (operation,)
        if isinstance(operation, AtomicCommit):
            read_version = operation.read_version
            if any(self._changed(key) > read_version for key in operation.conflict_keys):
                return False
            for wanted in operation.conflict_ranges:
                for key in self._versions:
                    if wanted.begin <= key < wanted.end and self._changed(key) > read_version:
                        return False
            mutations = operation.mutations  # type: ignore[assignment]
        for mutation in mutations:
            if mutation.kind == MutationKind.VERSIONSTAMPED_KEY:  # type: ignore[union-attr]
                self.stamped += 1
                continue
            value = None if mutation.kind == MutationKind.DELETE else mutation.value  # type: ignore[union-attr]
            rows = self._versions.setdefault(mutation.key, [])  # type: ignore[union-attr]
            if rows and rows[-1][0] == index:
                rows.pop()
            rows.append((index, value))
        return True

    def _changed(self, key: bytes) -> Index:
        rows = self._versions.get(key)
        return rows[-1][0] if rows else 0

    def value_at(self, key: bytes, version: Index) -> bytes | None:
        """Value of a key at a version."""
        rows = self._versions.get(key, [])
        position = bisect_right(rows, version, key=lambda row: row[0])
        return rows[position - 1][1] if position else None

    def final(self) -> dict[bytes, bytes | None]:
        """Every key that was ever written, with what it holds now."""
        return {key: rows[-1][1] for key, rows in self._versions.items()}


def judge(reference: Reference, commits: Iterable[Commit], reads: Iterable[SnapshotRead]) -> str | None:
    """What of all that clients were told is not true, or None."""
    told = list(commits)
    effects = set(reference.effect.values())
    for commit in told:
        if commit.outcome == Outcome.OK and commit.version not in effects:
            return f"{commit} was acknowledged, but no entry took effect at its version"
    for read in reads:
        expected = reference.value_at(read.key, read.version)
        if read.value != expected:
            return f"{read} is wrong: the log says {expected!r}"
    known = sorted((c for c in told if c.outcome == Outcome.OK and c.version), key=lambda c: c.version)
    versions = [commit.version for commit in known]
    if len(set(versions)) != len(versions):
        return "two acknowledged commits have one version"
    # Whoever has a later version must not have ended before an earlier one began.
    earliest_end = float("inf")
    for commit in reversed(known):
        if commit.invoked > earliest_end:
            return f"{commit} began after a commit of a later version had ended"
        earliest_end = min(earliest_end, commit.returned)
    return None
