"""
A snapshot as a stream of bytes: what followers, `kvorum snapshot save` and restore all read and write.

A stream is a sequence of chunks, each of at most `CHUNK_BYTES_MAX`: MANIFEST first, then ROWS in ascending order of
their keys, then END. docs/formats/snapshot.md says every byte.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvorum.core.cluster import Configuration
from kvorum.core.entries import HEADER_BYTES, Entry, parse_records
from kvorum.core.errors import RemoteError
from kvorum.core.limits import PEER_FRAME_BYTES_MAX
from kvorum.core.ports import Base

if TYPE_CHECKING:
    from kvorum.core.ids import Index, Term

FORMAT_VERSION: Final = 1
CHUNK_BYTES_MAX: Final = 256 * 1024
"""Soft bound: a chunk is closed once it holds this much; a single larger row travels in a chunk of its own."""

_MANIFEST: Final = struct.Struct(">B16sQQQ")


class ChunkKind:
    """What a chunk holds."""

    MANIFEST: Final = 1
    ROWS: Final = 2
    END: Final = 3


@dataclass(frozen=True, slots=True)
class Manifest:
    """Which state a stream holds."""

    cluster_id: bytes
    index: Index
    """Applied index of the state."""
    term: Term
    """Term of the entry at that index."""
    time_ms: int
    """Time of that entry: entries behind it never get an earlier one."""
    configuration: Entry
    """The CONFIGURATION entry in force at that index, as it stands in the log."""

    @property
    def base(self) -> Base:
        """Of a log that goes on behind this state."""
        return Base(self.index, self.term, self.time_ms)

    @property
    def members(self) -> Configuration:
        """The configuration in force."""
        return Configuration.decode(self.configuration.record, HEADER_BYTES)

    def encode(self) -> bytes:
        """Payload of the MANIFEST chunk."""
        head = _MANIFEST.pack(FORMAT_VERSION, self.cluster_id, self.index, self.term, self.time_ms)
        return head + self.configuration.record

    @classmethod
    def decode(cls, payload: bytes) -> Manifest:
        """
        Read what `encode` wrote.

        Raises:
            RemoteError: Another version, or bytes that do not fit.
        """
        try:
            version, cluster_id, index, term, time_ms = _MANIFEST.unpack_from(payload)
            if version != FORMAT_VERSION:
                msg = f"the snapshot has format version {version}; this release reads {FORMAT_VERSION}"
                raise RemoteError(msg)
            (configuration,) = parse_records(payload, _MANIFEST.size)
            manifest = cls(cluster_id, index, term, time_ms, configuration)
            manifest.members  # noqa: B018 - a manifest whose members cannot be read is refused here
        except (struct.error, ValueError) as error:
            msg = f"the manifest of the snapshot does not parse: {error}"
            raise RemoteError(msg) from error
        return manifest


_CHUNK: Final = struct.Struct(">IBI")
CHUNK_HEADER_BYTES: Final = _CHUNK.size


def encode_chunk(kind: int, payload: bytes) -> bytes:
    """One chunk: payload length u32, kind u8, CRC32 of the payload with the kind as start value u32, payload."""
    return _CHUNK.pack(len(payload), kind, zlib.crc32(payload, kind)) + payload


def chunk_bytes(header: bytes) -> tuple[int, int]:
    """
    Kind and length, header included, of the chunk that begins with these `CHUNK_HEADER_BYTES`.

    Raises:
        RemoteError: No chunk is that long: these are not the bytes of a snapshot, or they are damaged.
    """
    length, kind, _ = _CHUNK.unpack(header)
    if length > PEER_FRAME_BYTES_MAX or not ChunkKind.MANIFEST <= kind <= ChunkKind.END:
        msg = f"no chunk of a snapshot has kind {kind} and {length} bytes: this is none, or it is damaged"
        raise RemoteError(msg)
    return kind, CHUNK_HEADER_BYTES + int(length)


def decode_chunk(chunk: bytes) -> tuple[int, bytes]:
    """
    Kind and payload of one whole chunk.

    Raises:
        RemoteError: Cut short or damaged on the way.
    """
    if len(chunk) < CHUNK_HEADER_BYTES:
        msg = "a chunk of the snapshot is cut short"
        raise RemoteError(msg)
    length, kind, checksum = _CHUNK.unpack_from(chunk)
    payload = chunk[CHUNK_HEADER_BYTES:]
    if len(payload) != length or zlib.crc32(payload, kind) != checksum:
        msg = f"a chunk of the snapshot (kind {kind}, {length} bytes) was damaged on the way"
        raise RemoteError(msg)
    return kind, payload
