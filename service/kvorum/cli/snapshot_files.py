"""Snapshots in files: written so that a file under its own name is always whole, read with every checksum looked at."""

from __future__ import annotations

import os
from dataclasses import dataclass
from http.client import HTTPException
from typing import IO, TYPE_CHECKING, Final

from kvorum.core.errors import KvorumError, RemoteError
from kvorum.core.snapshot import CHUNK_HEADER_BYTES, ChunkKind, chunk_bytes, decode_chunk
from kvorum.statemachine.transfer import StreamCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kvorum.core.snapshot import Manifest

PART_SUFFIX: Final = ".part"
_DIGEST_BYTES: Final = 32


class SnapshotFileError(KvorumError):
    """A snapshot that cannot be written or must not be trusted; the text is for people."""


@dataclass(frozen=True, slots=True)
class SnapshotSummary:
    """What a whole, verified snapshot holds."""

    manifest: Manifest
    rows: int
    bytes: int
    sha256: str
    """Over all rows, as the END chunk carries it."""


def read_chunks(source: IO[bytes]) -> Iterator[bytes]:
    """
    Cut a stream into its chunks, up to and with END; what follows it is refused.

    Raises:
        SnapshotFileError: It ends in the middle, goes on behind its end, or is no snapshot.
    """
    while True:
        header = _read(source, CHUNK_HEADER_BYTES)
        if not header:
            message = "it ends before its end: it was cut short"
            raise SnapshotFileError(message)
        if len(header) < CHUNK_HEADER_BYTES:
            message = "it ends inside the header of a chunk: it was cut short"
            raise SnapshotFileError(message)
        try:
            kind, size = chunk_bytes(header)
        except RemoteError as problem:
            raise SnapshotFileError(str(problem)) from problem
        rest = _read(source, size - CHUNK_HEADER_BYTES)
        if len(rest) < size - CHUNK_HEADER_BYTES:
            message = f"it ends inside a chunk of {size} bytes: it was cut short"
            raise SnapshotFileError(message)
        yield header + rest
        if kind == ChunkKind.END:
            break
    if _read(source, 1):
        message = "there are bytes behind its end: it is not what a node sent"
        raise SnapshotFileError(message)


def _read(source: IO[bytes], size: int) -> bytes:
    parts = []
    while size:
        try:
            part = source.read(size)
        except (OSError, HTTPException) as problem:
            message = f"reading broke off: {str(problem) or type(problem).__name__}"
            raise SnapshotFileError(message) from problem
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def verified_chunks(source: IO[bytes], check: StreamCheck) -> Iterator[bytes]:
    """
    The chunks of a stream, each once ``check`` has found it right.

    Raises:
        SnapshotFileError: It is damaged, incomplete, or of a format that this release does not read.
    """
    for chunk in read_chunks(source):
        try:
            check.take(chunk)
        except RemoteError as problem:
            raise SnapshotFileError(str(problem)) from problem
        yield chunk


def summarize(check: StreamCheck, end: bytes) -> SnapshotSummary:
    """What was read, after the last chunk ``end``."""
    assert check.finished
    assert check.manifest is not None
    _, payload = decode_chunk(end)
    return SnapshotSummary(check.manifest, check.rows, check.bytes, payload[-_DIGEST_BYTES:].hex())


def verify_file(path: Path, advanced: Callable[[int], None]) -> SnapshotSummary:
    """
    Read a whole file and look at every checksum.

    Args:
        path: The file.
        advanced: Called with the bytes of each chunk.

    Raises:
        SnapshotFileError: It is not a whole snapshot.
    """
    check = StreamCheck()
    chunk = b""
    try:
        with path.open("rb") as file:
            for chunk in verified_chunks(file, check):
                advanced(len(chunk))
    except OSError as problem:
        message = f"{path} cannot be read: {problem.strerror or problem}"
        raise SnapshotFileError(message) from problem
    except SnapshotFileError as problem:
        message = f"{path} is not a whole snapshot: {problem}"
        raise SnapshotFileError(message) from problem
    return summarize(check, chunk)


def write_file(path: Path, source: IO[bytes], advanced: Callable[[int, int], None]) -> SnapshotSummary:
    """
    Store a stream; the file gets its name only once it is whole, verified and on disk.

    Args:
        path: The file; one of that name is replaced.
        source: The stream.
        advanced: Called with the bytes of each chunk and the rows so far.

    Raises:
        SnapshotFileError: The stream broke off or is damaged, or the disk refused; nothing is left behind.
    """
    part = path.with_name(path.name + PART_SUFFIX)
    check = StreamCheck()
    chunk = b""
    try:
        with part.open("wb") as file:
            for chunk in verified_chunks(source, check):
                file.write(chunk)
                advanced(len(chunk), check.rows)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
        _sync_directory(path)
    except SnapshotFileError as problem:
        part.unlink(missing_ok=True)
        message = f"the snapshot did not arrive whole: {problem}; try again"
        raise SnapshotFileError(message) from problem
    except OSError as problem:
        part.unlink(missing_ok=True)
        message = f"{path} cannot be written: {problem.strerror or problem}"
        raise SnapshotFileError(message) from problem
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return summarize(check, chunk)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
