"""
Decodes get, setKey, deleteKey and getReadVersion in the shapes clients really send, without walking or thriftpy2.

A shape is: the strict header with byte 3 zero, the request as field 1, its fields in ascending order, each once, no
unknown one. Every function returns None for anything else, also for a message that is not complete, and never refuses:
judging is the scanner's work. ``codec`` decodes every message of these methods to the very same fields; a property test
holds the two equal.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Identity: TypeAlias = tuple[bytes | None, int | None]
"""``client_id`` and ``request_id`` as sent."""

GetFields: TypeAlias = tuple[bytes | None, bytes, int | None, bytes]
"""Key, family, ``deadline_ms``, ``consistency``; names as raw bytes, empty if absent. None: absent."""

SetFields: TypeAlias = tuple[bytes | None, bytes | None, bytes, int | None, Identity | None]
"""Key, value, family, ``deadline_ms``, identity."""

DeleteFields: TypeAlias = tuple[bytes | None, bytes, int | None, Identity | None]
"""Key, family, ``deadline_ms``, identity."""

VersionFields: TypeAlias = tuple[int | None, bytes]
"""``deadline_ms``, ``consistency``."""

_u32: Final = struct.Struct(">I").unpack_from
_i64: Final = struct.Struct(">q").unpack_from


def _call(name: bytes) -> bytes:
    return b"\x80\x01\x00\x01" + struct.pack(">I", len(name)) + name


_GET: Final = _call(b"get")
_SET: Final = _call(b"setKey")
_DELETE: Final = _call(b"deleteKey")
_VERSION: Final = _call(b"getReadVersion")
_REQUEST: Final = b"\x0c\x00\x01"
_KEY: Final = _REQUEST + b"\x0b\x00\x01"
_VALUE: Final = b"\x0b\x00\x02"
_FAMILY_2: Final = b"\x0b\x00\x02"
_FAMILY_3: Final = b"\x0b\x00\x03"
_DEADLINE: Final = b"\x0a\x00\x14"
_IDENTITY: Final = b"\x0b\x00\x16\x00\x00\x00\x10"
"""Head of a client id of 16 bytes; one of another length is not for here."""
_REQUEST_ID: Final = b"\x0a\x00\x17"
_IDENTITY_BYTES: Final = 7 + 16 + 11
_CONSISTENCY: Final = b"\x0b\x00\x15"
_SHORT_CONSISTENCY: Final = _CONSISTENCY + b"\x00\x00\x00"
"""With a name below 256 bytes; alone behind the key it is what benchmarks and careful readers send."""
_END: Final = b"\x00\x00"
"""Both structs, the request and the arguments, end here."""

_Options: TypeAlias = tuple[int, bytes, int | None, bytes]
_WriteOptions: TypeAlias = tuple[int, bytes, int | None, Identity | None]


def _options(data: bytes, at: int, family_head: bytes) -> _Options | None:
    """Read what may follow the fields of a read: family, deadline, consistency, then the end."""
    size = len(data)
    family = level = b""
    deadline_ms = None
    head = data[at : at + 3]
    if head == family_head and at + 7 <= size:
        (length,) = _u32(data, at + 3)
        family = data[at + 7 : at + 7 + length]
        at += 7 + length
        head = data[at : at + 3]
    if head == _DEADLINE and at + 11 <= size:
        (deadline_ms,) = _i64(data, at + 3)
        at += 11
        head = data[at : at + 3]
    if head == _CONSISTENCY and at + 7 <= size:
        (length,) = _u32(data, at + 3)
        level = data[at + 7 : at + 7 + length]
        at += 7 + length
    if data[at : at + 2] != _END:
        return None
    return at + 2, family, deadline_ms, level


def _write_options(data: bytes, at: int, family_head: bytes) -> _WriteOptions | None:
    """Read what may follow the fields a write has: family, deadline, a whole identity, then the end."""
    size = len(data)
    family = b""
    deadline_ms = identity = None
    head = data[at : at + 3]
    if head == family_head and at + 7 <= size:
        (length,) = _u32(data, at + 3)
        family = data[at + 7 : at + 7 + length]
        at += 7 + length
        head = data[at : at + 3]
    if head == _DEADLINE and at + 11 <= size:
        (deadline_ms,) = _i64(data, at + 3)
        at += 11
    if data[at : at + 7] == _IDENTITY and data[at + 23 : at + 26] == _REQUEST_ID and at + _IDENTITY_BYTES <= size:
        identity = data[at + 7 : at + 23], _i64(data, at + 26)[0]
        at += _IDENTITY_BYTES
    if data[at : at + 2] != _END:
        return None
    return at + 2, family, deadline_ms, identity


def decode_get(data: bytes, at: int) -> tuple[int, bytes, GetFields] | None:
    """Where the message ends, its raw sequence id and its fields; None if it has another shape."""
    start = at + 25
    if data[at : at + 11] != _GET or data[at + 15 : at + 21] != _KEY or len(data) < start:
        return None
    (length,) = _u32(data, at + 21)
    end = start + length
    if data[end : end + 2] == _END:
        return end + 2, data[at + 11 : at + 15], (data[start:end], b"", None, b"")
    if data[end : end + 6] == _SHORT_CONSISTENCY and len(data) > end + 6:
        stop = end + 7 + data[end + 6]
        if data[stop : stop + 2] == _END:
            return stop + 2, data[at + 11 : at + 15], (data[start:end], b"", None, data[end + 7 : stop])
    options = _options(data, end, _FAMILY_2)
    if options is None:
        return None
    return options[0], data[at + 11 : at + 15], (data[start:end], *options[1:])


def decode_set(data: bytes, at: int) -> tuple[int, bytes, SetFields] | None:
    """As `decode_get`, for setKey."""
    start = at + 28
    size = len(data)
    if data[at : at + 14] != _SET or data[at + 18 : at + 24] != _KEY or size < start:
        return None
    (length,) = _u32(data, at + 24)
    key_end = start + length
    value_start = key_end + 7
    if data[key_end : key_end + 3] != _VALUE or size < value_start:
        return None
    (length,) = _u32(data, key_end + 3)
    end = value_start + length
    if data[end : end + 2] == _END:
        fields = (data[start:key_end], data[value_start:end], b"", None, None)
        return end + 2, data[at + 14 : at + 18], fields
    options = _write_options(data, end, _FAMILY_3)
    if options is None:
        return None
    return options[0], data[at + 14 : at + 18], (data[start:key_end], data[value_start:end], *options[1:])


def decode_delete(data: bytes, at: int) -> tuple[int, bytes, DeleteFields] | None:
    """As `decode_get`, for deleteKey."""
    start = at + 31
    if data[at : at + 17] != _DELETE or data[at + 21 : at + 27] != _KEY or len(data) < start:
        return None
    (length,) = _u32(data, at + 27)
    end = start + length
    if data[end : end + 2] == _END:
        return end + 2, data[at + 17 : at + 21], (data[start:end], b"", None, None)
    options = _write_options(data, end, _FAMILY_2)
    if options is None:
        return None
    return options[0], data[at + 17 : at + 21], (data[start:end], *options[1:])


def decode_read_version(data: bytes, at: int) -> tuple[int, bytes, VersionFields] | None:
    """As `decode_get`, for getReadVersion."""
    if data[at : at + 22] != _VERSION or data[at + 26 : at + 29] != _REQUEST:
        return None
    options = _options(data, at + 29, b"")
    if options is None:
        return None
    return options[0], data[at + 22 : at + 26], (options[2], options[3])


FastDecoder: TypeAlias = "Callable[[bytes, int], tuple[int, bytes, object] | None]"

FAST_DECODERS: Final[dict[str, FastDecoder]] = {
    "get": decode_get,
    "setKey": decode_set,
    "deleteKey": decode_delete,
    "getReadVersion": decode_read_version,
}
"""By method name; the names differ in length, so one byte of a message tells which to try."""
