"""
Log entries: one encoding that serves disk, memory and wire.

A record is a header of 29 bytes, then the payload::

    offset  bytes  field
    0       4      length of what follows these four bytes (25 + payload), unsigned big-endian
    4       1      kind, see `EntryKind`
    5       8      term
    13      8      index
    21      8      time, milliseconds since the Unix epoch on the leader's clock, never below the previous entry's
    29      ...    payload, opaque to consensus

The leader packs it once; followers, the segment files and the cache of recent entries keep the very same bytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvorum.core.ids import Index, NodeId, Term

_HEADER: Final = struct.Struct(">IBQQQ")
HEADER_BYTES: Final = _HEADER.size
LENGTH_BYTES: Final = 4
_pack = _HEADER.pack
_unpack_from = _HEADER.unpack_from


class EntryKind:
    """What the payload of a record is; plain integers, because they are compared per entry."""

    COMMAND: Final = 1
    """A client's write: proposal tag, then an operation (`core.operations`)."""
    NOOP: Final = 2
    """The empty entry with which a leader opens its term."""
    CONFIGURATION: Final = 3
    """A cluster configuration (`core.cluster`)."""
    MAINTENANCE: Final = 4
    """Watermark and session bounds, proposed by the leader (`core.maintenance`)."""
    HARD_STATE: Final = 16
    """Term and vote; a record of the log stream on disk, never sent."""
    BASE: Final = 17
    """Index and term before the first entry of a segment; on disk only."""


class Entry:
    """One record of the log. Immutable by convention; `record` is the only bytes ever copied or sent."""

    __slots__ = ("index", "kind", "record", "term", "time_ms")

    def __init__(self, index: Index, term: Term, kind: int, time_ms: int, record: bytes) -> None:
        self.index = index
        self.term = term
        self.kind = kind
        self.time_ms = time_ms
        self.record = record

    @classmethod
    def create(cls, index: Index, term: Term, kind: int, time_ms: int, payload: bytes) -> Entry:
        """Encode a new entry; the leader calls this once per entry and nobody encodes it again."""
        return cls(
            index,
            term,
            kind,
            time_ms,
            _pack(HEADER_BYTES - LENGTH_BYTES + len(payload), kind, term, index, time_ms) + payload,
        )

    @property
    def payload(self) -> bytes:
        """A copy of the payload; hot readers use ``record`` with `HEADER_BYTES` as offset instead."""
        return self.record[HEADER_BYTES:]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and self.record == other.record

    def __hash__(self) -> int:
        return hash(self.record)

    def __repr__(self) -> str:
        return f"Entry(index={self.index}, term={self.term}, kind={self.kind}, {len(self.record) - HEADER_BYTES} B)"


def create_entries(first: Index, term: Term, kind: int, time_ms: int, payloads: Sequence[bytes]) -> list[Entry]:
    """`Entry.create` for one payload after the other from index ``first`` on; written out, as it runs per write."""
    prefix_bytes = HEADER_BYTES - LENGTH_BYTES
    return [
        Entry(index, term, kind, time_ms, _pack(prefix_bytes + len(payload), kind, term, index, time_ms) + payload)
        for index, payload in enumerate(payloads, first)
    ]


class EntryBatch:
    """
    Consecutive entries that travel together, with their joined bytes made at most once.

    The core hands the same batch to the disk and to every follower, so one join serves all of them.
    """

    __slots__ = ("_block", "entries")

    def __init__(self, entries: Sequence[Entry], block: bytes | None = None) -> None:
        self.entries = entries
        self._block = block

    @property
    def block(self) -> bytes:
        """All records, one after the other."""
        if self._block is None:
            self._block = b"".join([entry.record for entry in self.entries])
        return self._block

    def __len__(self) -> int:
        return len(self.entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EntryBatch) and list(self.entries) == list(other.entries)

    def __hash__(self) -> int:
        return hash(self.block)

    def __repr__(self) -> str:
        return f"EntryBatch({list(self.entries)!r})"


class RecordDamagedError(ValueError):
    """Bytes that should be records are not: a bug or damage, never to be guessed around."""


def parse_records(block: bytes, offset: int = 0, end: int | None = None) -> list[Entry]:
    """
    Cut ``block[offset:end]`` into entries.

    Raises:
        RecordDamagedError: A length is impossible or bytes are left over.
    """
    stop = len(block) if end is None else end
    entries: list[Entry] = []
    append = entries.append
    while offset < stop:
        if offset + HEADER_BYTES > stop:
            msg = f"record header cut short at byte {offset}"
            raise RecordDamagedError(msg)
        length, kind, term, index, time_ms = _unpack_from(block, offset)
        following = offset + LENGTH_BYTES + length
        if length < HEADER_BYTES - LENGTH_BYTES or following > stop:
            msg = f"record of {length} bytes at byte {offset} passes the end at byte {stop}"
            raise RecordDamagedError(msg)
        append(Entry(index, term, kind, time_ms, block[offset:following]))
        offset = following
    return entries


def entry_bytes(entries: Iterable[Entry]) -> int:
    """Bytes of these entries on disk and wire."""
    return sum(len(entry.record) for entry in entries)


class HardState(NamedTuple):
    """What a node must never forget: its term and whom it voted for in it (Raft paper, figure 2)."""

    term: Term = 0
    voted_for: NodeId | None = None
