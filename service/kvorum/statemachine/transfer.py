"""
The whole store as a stream of chunks, and back (core/snapshot.py, docs/formats/snapshot.md).

Every row travels as it lies in the store, in order: history, tombstones, changes and sessions too, so that a store
built from a stream answers every read and decides every conflict as the one it came from. The END chunk counts the
rows and carries a SHA-256 over all of them, so a receiver knows that it has them all.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from kvorum.core.errors import RemoteError
from kvorum.core.snapshot import CHUNK_BYTES_MAX, ChunkKind, Manifest, decode_chunk, encode_chunk
from kvorum.statemachine.layout import FORMAT_KEY, FORMAT_VERSION, FORMATS_READ, STATE_KEY, unpack_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvorum.core.ports import StorageEngine, View

EVERYTHING: Final = (b"", b"\xff")

SLICE_ROWS: Final = 256
"""Rows between two yields: less than half a millisecond."""

WRITE_BYTES_MAX: Final = CHUNK_BYTES_MAX
"""Rows of one engine batch, and so the memory of an import."""

CHECKPOINTS_MAX: Final = 256
"""Chunks that may be under way when a connection breaks, 64 MiB of them: far more than sockets buffer."""

_END: Final = struct.Struct(">Q32s")
_U32: Final = struct.Struct(">I")
_pack_u32 = _U32.pack


class _Checkpoint(NamedTuple):
    """Where a chunk ended: enough to go on behind it as if nothing had happened."""

    last_key: bytes
    rows: int
    digest: hashlib._Hash


class Export:
    """
    One store as a stream; it may be interrupted and gone on with, always over the same view.

    It pins what the view pins: drop it when done.
    """

    def __init__(self, view: View, manifest: Manifest) -> None:
        """Take a view whose applied index is the manifest's; nothing is read yet."""
        self.manifest = manifest
        self.rows = 0
        self.bytes = 0
        self._view = view
        self._digest = hashlib.sha256()
        self._checkpoints: deque[_Checkpoint] = deque(maxlen=CHECKPOINTS_MAX)

    def chunks(self) -> Iterator[bytes | None]:
        """The stream from its beginning: None between slices, else a chunk."""
        self.rows = 0
        self._digest = hashlib.sha256()
        self._checkpoints.clear()
        yield encode_chunk(ChunkKind.MANIFEST, self.manifest.encode())
        yield from self._rows_from(EVERYTHING[0])

    def chunks_after(self, last_key: bytes) -> Iterator[bytes | None]:
        """
        The rest of the stream behind the chunk that ended with this key.

        Raises:
            RemoteError: No recent chunk of this stream ended there.
        """
        while self._checkpoints and self._checkpoints[-1].last_key != last_key:
            self._checkpoints.pop()
        if not self._checkpoints:
            msg = "the snapshot cannot be gone on with from there; begin a new one"
            raise RemoteError(msg)
        _, self.rows, digest = self._checkpoints[-1]
        self._digest = digest.copy()
        return self._rows_from(last_key + b"\0")

    def _rows_from(self, begin: bytes) -> Iterator[bytes | None]:
        parts: list[bytes] = []
        size = 0
        key = b""
        for key, value in self._view.iterate(begin, EVERYTHING[1]):
            parts += (_pack_u32(len(key)), key, _pack_u32(len(value)), value)
            size += 8 + len(key) + len(value)
            self.rows += 1
            if size >= CHUNK_BYTES_MAX:
                yield self._close_chunk(parts, key)
                parts.clear()
                size = 0
            elif self.rows % SLICE_ROWS == 0:
                yield None
        if parts:
            yield self._close_chunk(parts, key)
        yield encode_chunk(ChunkKind.END, _END.pack(self.rows, self._digest.digest()))

    def _close_chunk(self, parts: list[bytes], last_key: bytes) -> bytes:
        payload = b"".join(parts)
        self._digest.update(payload)
        self._checkpoints.append(_Checkpoint(last_key, self.rows, self._digest.copy()))
        self.bytes += len(payload)
        return encode_chunk(ChunkKind.ROWS, payload)


class StreamCheck:
    """Follows the chunks of a stream and refuses what no export wrote; for whoever stores, restores or verifies one."""

    def __init__(self) -> None:
        self.manifest: Manifest | None = None
        self.finished = False
        self.rows = 0
        self.bytes = 0
        self.last_key = b""
        self._digest = hashlib.sha256()
        self._applied_index: int | None = None
        self._format: bytes | None = None

    def take(self, chunk: bytes) -> list[tuple[bytes, bytes]]:
        """
        Check the next chunk of the stream and return its rows.

        Raises:
            RemoteError: It is damaged, out of order, or not of a format that this release reads.
        """
        kind, payload = decode_chunk(chunk)
        if self.finished:
            msg = "the snapshot goes on behind its end"
            raise RemoteError(msg)
        if (self.manifest is None) != (kind == ChunkKind.MANIFEST):
            msg = f"a chunk of kind {kind} at the wrong place of a snapshot"
            raise RemoteError(msg)
        if kind == ChunkKind.MANIFEST:
            self.manifest = Manifest.decode(payload)
            return []
        if kind == ChunkKind.ROWS:
            return self._take_rows(payload)
        if kind != ChunkKind.END:
            msg = f"the snapshot has a chunk of kind {kind}, which this release does not know"
            raise RemoteError(msg)
        self._take_end(payload)
        return []

    def _take_rows(self, payload: bytes) -> list[tuple[bytes, bytes]]:
        rows = parse_rows(payload)
        last = self.last_key
        for key, _ in rows:
            if key <= last or key >= EVERYTHING[1]:
                msg = f"the rows of the snapshot are out of order behind {last[:32]!r}"
                raise RemoteError(msg)
            last = key
        if self.last_key < STATE_KEY <= last:
            self._note_meta(dict(rows))
        elif self.last_key < FORMAT_KEY <= last:
            self._format = dict(rows).get(FORMAT_KEY)
        self._digest.update(payload)
        self.rows += len(rows)
        self.bytes += len(payload)
        self.last_key = last
        return rows

    def _note_meta(self, rows: dict[bytes, bytes]) -> None:
        self._format = rows.get(FORMAT_KEY, self._format)
        state = rows.get(STATE_KEY)
        if state is not None:
            self._applied_index = unpack_state(state).applied_index

    def _take_end(self, payload: bytes) -> None:
        assert self.manifest is not None
        try:
            rows, digest = _END.unpack(payload)
        except struct.error as error:
            msg = f"the end of the snapshot does not parse: {error}"
            raise RemoteError(msg) from error
        if rows != self.rows or digest != self._digest.digest():
            msg = f"the snapshot is not complete: {self.rows} of {rows} rows, or other ones than were sent"
            raise RemoteError(msg)
        if self._format not in FORMATS_READ:
            found = int.from_bytes(self._format or b"", "big")
            msg = f"the snapshot holds a store of format version {found}; this release reads up to {FORMAT_VERSION}"
            raise RemoteError(msg)
        if self._applied_index != self.manifest.index:
            msg = f"the snapshot says it ends at index {self.manifest.index}, its rows say {self._applied_index}"
            raise RemoteError(msg)
        self.finished = True


def parse_rows(payload: bytes) -> list[tuple[bytes, bytes]]:
    """
    Cut the payload of a ROWS chunk into keys and values.

    Raises:
        RemoteError: Lengths that do not fit.
    """
    rows: list[tuple[bytes, bytes]] = []
    at, end = 0, len(payload)
    unpack = _U32.unpack_from
    try:
        while at < end:
            begin = at + 4
            middle = begin + unpack(payload, at)[0]
            start = middle + 4
            at = start + unpack(payload, middle)[0]
            rows.append((payload[begin:middle], payload[start:at]))
    except struct.error:
        at = end + 1
    if at != end:
        msg = "the rows of the snapshot do not fill their chunk"
        raise RemoteError(msg)
    return rows


class Import:
    """Builds a store from a stream, in an engine that must be empty."""

    def __init__(self, engine: StorageEngine) -> None:
        self._engine = engine
        self.check = StreamCheck()

    def take(self, chunk: bytes) -> Iterator[None]:
        """
        Check a chunk and write its rows, in slices; do nothing else with the import until it is exhausted.

        Raises:
            RemoteError: The stream is not to be trusted; the engine's content is void.
            WriteStalledError: The engine asks to wait; go on with `rest` later.
        """
        self._rows = self.check.take(chunk)
        self._written = 0
        return self.rest()

    def rest(self) -> Iterator[None]:
        """Write what is left of the last chunk; as `take`."""
        while self._written < len(self._rows):
            batch = self._engine.batch()
            upto = min(self._written + SLICE_ROWS, len(self._rows))
            for key, value in self._rows[self._written : upto]:
                batch.put(key, value)
            self._engine.write(batch)
            self._written = upto
            yield None
