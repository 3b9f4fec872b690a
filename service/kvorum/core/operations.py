"""
What clients ask for, as values; and in one place which requests read and which must go through the log.

Every replica applies a write from its log record and nothing else, so a write operation carries all that decides its
result. The byte form is in `codec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

DEFAULT_FAMILY: Final = b""
"""Families travel as UTF-8 bytes; the default family is the empty name, however the client spelt it."""


class RequestClass:
    """How routing must treat a method (contract section 2.2)."""

    READ: Final = "read"
    """Reads the newest state at a consistency level."""
    SNAPSHOT: Final = "snapshot"
    """Reads at a version the client names; any node, no level."""
    WRITE: Final = "write"
    """Enters the log; nothing else does."""
    LOCAL: Final = "local"
    """Answered by the node alone, at once."""


REQUEST_CLASS: Final[dict[str, str]] = {
    "getReadVersion": RequestClass.READ,
    "get": RequestClass.READ,
    "getRange": RequestClass.READ,
    "snapshotRead": RequestClass.SNAPSHOT,
    "snapshotGet": RequestClass.SNAPSHOT,
    "snapshotGetRange": RequestClass.SNAPSHOT,
    "setReadVersion": RequestClass.SNAPSHOT,
    "atomicCommit": RequestClass.WRITE,
    "setKey": RequestClass.WRITE,
    "deleteKey": RequestClass.WRITE,
    "setVersionstampedKey": RequestClass.WRITE,
    "setVersionstampedValue": RequestClass.WRITE,
    "addReadConflict": RequestClass.LOCAL,
    "addReadConflictRange": RequestClass.LOCAL,
    "getCommittedVersion": RequestClass.LOCAL,
    "setFaultInjection": RequestClass.LOCAL,
    "ping": RequestClass.LOCAL,
    "getClusterHealth": RequestClass.LOCAL,
    "getDatabaseStats": RequestClass.LOCAL,
    "getNodeInfo": RequestClass.LOCAL,
    "getStatus": RequestClass.LOCAL,
}


class Consistency:
    """Read levels (contract section 3.1)."""

    LOCAL: Final = "local"
    LEADER: Final = "leader"
    READ_INDEX: Final = "read_index"


CONSISTENCY_ALIASES: Final[dict[str, str]] = {
    "local": Consistency.LOCAL,
    "eventual": Consistency.LOCAL,
    "stale": Consistency.LOCAL,
    "leader": Consistency.LEADER,
    "read_index": Consistency.READ_INDEX,
    "strong": Consistency.READ_INDEX,
    "linearizable": Consistency.READ_INDEX,
}
"""Lower-case spelling to level."""


class MutationKind:
    """Kinds of a single mutation, alone or inside a commit; the numbers are the opcodes of `codec`."""

    SET: Final = 1
    DELETE: Final = 2
    VERSIONSTAMPED_KEY: Final = 3
    VERSIONSTAMPED_VALUE: Final = 4


class Mutation(NamedTuple):
    """One change of one key. ``value`` is empty for DELETE. A stamped buffer still ends in its 10 placeholder bytes."""

    kind: int
    family: bytes
    key: bytes
    value: bytes = b""


class KeyRange(NamedTuple):
    """Keys with begin <= key < end in one family."""

    family: bytes
    begin: bytes
    end: bytes


@dataclass(frozen=True, slots=True)
class AtomicCommit:
    """A transaction: conflict set checked against ``read_version``, then all mutations at one version, in order."""

    read_version: int
    mutations: tuple[Mutation, ...]
    conflict_keys: tuple[bytes, ...] = ()
    """Single keys of the default family."""
    conflict_ranges: tuple[KeyRange, ...] = ()
    existing_style: bool = True
    """Without ``client_id``: a read version below the watermark answers CONFLICT (contract section 5.3)."""


WriteOperation: TypeAlias = Mutation | AtomicCommit


class Applied(NamedTuple):
    """A write took effect, now or, for a known retry, earlier. Generated data in list order (contract 3.5)."""

    generated_keys: tuple[bytes, ...] = ()
    generated_values: tuple[bytes, ...] = ()
    version: int = 0
    """The version at which it took effect, if that is not the index of this entry but of its first attempt; else 0."""


APPLIED: Final = Applied()
"""The outcome of nearly every write, shared, so that apply allocates nothing for it."""
