"""
The bytes of a segment file: file header, group frames, and the records that only the disk knows.

docs/formats/log.md is the normative text; this module is its only other copy. Pure: no files are opened here.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from kvorum.core.entries import HEADER_BYTES, Entry, EntryKind, HardState

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kvorum.core.ids import Index, Term

MAGIC: Final = b"kvorumL"
VERSION: Final = 1
SUFFIX: Final = ".log"
SEGMENT_BYTES: Final = 64 * 1024 * 1024
"""Default size of a segment: some 20 s of full write speed, so creating one is rare and dropping one is worth it."""

_FILE_HEADER: Final = struct.Struct(">7sBQII")
FILE_HEADER_BYTES: Final = _FILE_HEADER.size
_CHECKED_FILE_HEADER_BYTES: Final = FILE_HEADER_BYTES - 4

_FRAME: Final = struct.Struct(">IIQI")
_CHECKED_FRAME: Final = struct.Struct(">IIQ")
FRAME_BYTES: Final = _FRAME.size
"""Body bytes u32, salt u32, sequence u64, CRC32 u32."""
_SALT_OFFSET: Final = 4
_RECORD: Final = struct.Struct(">IBQQQ")
_NODE: Final = struct.Struct(">I")
_RELEASING_BYTES: Final = 5 * 1024
"""`zlib.crc32` lets the interpreter lock go above this size; getting it back can cost far more than the checksum."""
_HELD_BYTES_MAX: Final = 64 * 1024
"""Above this size the checksum is long enough to let others run meanwhile."""


class FileHeader(NamedTuple):
    """What a segment file says of itself."""

    version: int
    number: int
    salt: int


def segment_name(number: int) -> str:
    """File name of a segment."""
    return f"{number:016d}{SUFFIX}"


def segment_number(path: Path) -> int | None:
    """Number of a segment file, or None for a file that is not one."""
    stem = path.name.removesuffix(SUFFIX)
    return int(stem) if path.name.endswith(SUFFIX) and len(stem) == 16 and stem.isdecimal() else None


def encode_file_header(number: int, salt: int) -> bytes:
    """First bytes of a segment file."""
    checked = _FILE_HEADER.pack(MAGIC, VERSION, number, salt, 0)[:_CHECKED_FILE_HEADER_BYTES]
    return checked + zlib.crc32(checked).to_bytes(4, "big")


def decode_file_header(data: bytes) -> FileHeader | None:
    """Read a file header; None if these bytes are none. The version is the caller's to judge."""
    if len(data) < FILE_HEADER_BYTES:
        return None
    magic, version, number, salt, checksum = _FILE_HEADER.unpack_from(data)
    if magic != MAGIC or checksum != zlib.crc32(data[:_CHECKED_FILE_HEADER_BYTES]):
        return None
    return FileHeader(version, number, salt)


def encode_frame(body_bytes: int, salt: int, sequence: int, body: Iterable[bytes]) -> bytes:
    """Frame that goes before a body given in parts."""
    checksum = zlib.crc32(_CHECKED_FRAME.pack(body_bytes, salt, sequence))
    for part in body:
        if _RELEASING_BYTES < len(part) <= _HELD_BYTES_MAX:
            view = memoryview(part)
            for start in range(0, len(part), _RELEASING_BYTES):
                checksum = zlib.crc32(view[start : start + _RELEASING_BYTES], checksum)
        else:
            checksum = zlib.crc32(part, checksum)
    return _FRAME.pack(body_bytes, salt, sequence, checksum)


class Group(NamedTuple):
    """One good group inside the bytes of a segment."""

    sequence: int
    offset: int
    """Of its frame."""
    end: int
    """First byte behind its body."""

    @property
    def body(self) -> int:
        """Offset of its body."""
        return self.offset + FRAME_BYTES


class Flaw(NamedTuple):
    """Bytes that should be a group and are not."""

    offset: int
    reason: str
    claimed_sequence: int = 0
    """What the frame says its sequence is; 0 if it is no frame at all. Not to be trusted."""


def group_at(data: bytes, offset: int, salt: int) -> Group | Flaw | None:
    """The group whose frame begins at an offset; None where the log ends: at a zero length or the end of the file."""
    available = len(data) - offset
    if available < FRAME_BYTES:
        return Flaw(offset, "frame cut short") if any(data[offset:]) else None
    body_bytes, found_salt, sequence, checksum = _FRAME.unpack_from(data, offset)
    if body_bytes == 0:
        return None
    if found_salt != salt:
        return Flaw(offset, "frame does not belong to this file")
    end = offset + FRAME_BYTES + body_bytes
    if end > len(data):
        return Flaw(offset, f"group of {body_bytes} bytes passes the end of the file", sequence)
    body = memoryview(data)[offset + FRAME_BYTES : end]
    if zlib.crc32(body, zlib.crc32(_CHECKED_FRAME.pack(body_bytes, found_salt, sequence))) != checksum:
        return Flaw(offset, "checksum does not match", sequence)
    return Group(sequence, offset, end)


_ZEROS: Final = bytes(1024 * 1024)


def is_zero_from(data: bytes, offset: int) -> bool:
    """True if nothing but zeros stands at and behind an offset."""
    return all(data.startswith(_ZEROS[: len(data) - start], start) for start in range(offset, len(data), len(_ZEROS)))


def find_group(data: bytes, offset: int, salt: int, sequence: int) -> Group | None:
    """First good group with at least this sequence that begins anywhere at or behind an offset."""
    marker = salt.to_bytes(4, "big")
    at = data.find(marker, offset + _SALT_OFFSET)
    while at >= 0:
        found = group_at(data, at - _SALT_OFFSET, salt)
        if isinstance(found, Group) and found.sequence >= sequence:
            return found
        at = data.find(marker, at + 1)
    return None


class RecordAt(NamedTuple):
    """Header of one record inside the bytes of a segment."""

    kind: int
    term: Term
    entry_index: Index
    offset: int
    end: int
    time_ms: int


def records_in(data: bytes, start: int, end: int) -> list[RecordAt]:
    """
    Headers of the records in a body, without copying payloads.

    Raises:
        ValueError: They do not fill the body exactly; the checksum was right, so a bug wrote them.
    """
    records: list[RecordAt] = []
    offset = start
    while offset < end:
        if offset + HEADER_BYTES > end:
            msg = f"record header cut short at offset {offset}"
            raise ValueError(msg)
        length, kind, term, index, time_ms = _RECORD.unpack_from(data, offset)
        following = offset + 4 + length
        if following < offset + HEADER_BYTES or following > end:
            msg = f"record of {length} bytes at offset {offset} passes the end of its group at {end}"
            raise ValueError(msg)
        records.append(RecordAt(kind, term, index, offset, following, time_ms))
        offset = following
    return records


def hard_state_record(hard_state: HardState) -> bytes:
    """Record of a term and a vote; the payload is the node voted for, or empty."""
    vote = b"" if hard_state.voted_for is None else _NODE.pack(hard_state.voted_for)
    return Entry.create(0, hard_state.term, EntryKind.HARD_STATE, 0, vote).record


def decode_hard_state(data: bytes, record: RecordAt) -> HardState:
    """Read what `hard_state_record` wrote."""
    payload = data[record.offset + HEADER_BYTES : record.end]
    return HardState(record.term, _NODE.unpack(payload)[0] if payload else None)


def base_record(index: Index, term: Term, time_ms: int) -> bytes:
    """Record that says: everything up to this index is gone from the log; the entry there had this term and time."""
    return Entry.create(index, term, EntryKind.BASE, time_ms, b"").record
