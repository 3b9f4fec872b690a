"""
Replies of the hot methods as byte templates: a head, the raw sequence id of the request, a tail.

The templates are made by `codec` once, at import, and cut where a field goes; so they are by construction what the
general encoder writes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from kvorum.core.errors import LocalError
from kvorum.thrift.protocol.codec import encode_reply

if TYPE_CHECKING:
    from collections.abc import Iterable

_u32: Final = struct.Struct(">I").pack
_i64: Final = struct.Struct(">q").pack
_SEQID: Final = b"\xa5\x5a\xc3\x3c"
_MARK: Final = b"\xfe\xedmark\xfe\xed"
_MARK_VERSION: Final = 0x7A5AC33C0FF0A55A


def _cut(reply: bytes, *marks: bytes) -> tuple[bytes, ...]:
    """Cut a template at each mark, in order; each must be there exactly once."""
    parts = []
    for mark in marks:
        if reply.count(mark) != 1:
            msg = "reply template does not hold its mark exactly once"
            raise LocalError(msg)
        part, reply = reply.split(mark)
        parts.append(part)
    parts.append(reply)
    return tuple(parts)


SET_HEAD, SET_TAIL = _cut(encode_reply("setKey", _SEQID, {"success": True}), _SEQID)
DELETE_HEAD, DELETE_TAIL = _cut(encode_reply("deleteKey", _SEQID, {"success": True}), _SEQID)
GET_HEAD, GET_MISSING_TAIL = _cut(encode_reply("get", _SEQID, {"value": b"", "found": False}), _SEQID)
_, _FOUND_HEAD, FOUND_TAIL = _cut(
    encode_reply("get", _SEQID, {"value": _MARK, "found": True}), _SEQID, _u32(len(_MARK)) + _MARK
)
FOUND_HEAD: Final = _FOUND_HEAD
VERSION_HEAD, _VERSION_MIDDLE, _VERSION_TAIL = _cut(
    encode_reply("getReadVersion", _SEQID, {"read_version": _MARK_VERSION, "success": True}),
    _SEQID,
    _i64(_MARK_VERSION),
)
COMMIT_HEAD, _COMMIT_MIDDLE, _COMMIT_TAIL = _cut(
    encode_reply("atomicCommit", _SEQID, {"success": True, "committed_version": _MARK_VERSION}),
    _SEQID,
    _i64(_MARK_VERSION),
)


def found_reply(seqid: bytes, value: bytes) -> bytes:
    """Reply of get with a value."""
    return b"".join((GET_HEAD, seqid, FOUND_HEAD, _u32(len(value)), value, FOUND_TAIL))


def version_reply(seqid: bytes, version: int) -> bytes:
    """Reply of getReadVersion."""
    return VERSION_HEAD + seqid + _VERSION_MIDDLE + _i64(version) + _VERSION_TAIL


def commit_reply(seqid: bytes, version: int) -> bytes:
    """Reply of atomicCommit without generated data."""
    return COMMIT_HEAD + seqid + _COMMIT_MIDDLE + _i64(version) + _COMMIT_TAIL


class RangeTemplate:
    """Reply of getRange or snapshotGetRange around pairs that the caller encodes with `encode_pair`."""

    def __init__(self, method: str) -> None:
        empty: dict[str, object] = {"key_values": [], "success": True, "has_more": False}
        more: dict[str, object] = {"key_values": [], "success": True, "has_more": True, "next_key": _MARK}
        no_pairs = b"\x0c" + _u32(0)
        self._head, self._list, self._end = _cut(encode_reply(method, _SEQID, empty), _SEQID, no_pairs)
        _, _, self._more, self._end_more = _cut(
            encode_reply(method, _SEQID, more), _SEQID, no_pairs, _u32(len(_MARK)) + _MARK
        )

    def head(self, seqid: bytes, count: int) -> bytes:
        """Everything before the pairs."""
        return self._head + seqid + self._list + b"\x0c" + _u32(count)

    def tail(self, next_key: bytes | None) -> bytes:
        """Everything behind the pairs; a next key means that there is more."""
        if next_key is None:
            return self._end
        return b"".join((self._more, _u32(len(next_key)), next_key, self._end_more))


RANGE_TEMPLATES: Final = {name: RangeTemplate(name) for name in ("getRange", "snapshotGetRange")}
_pair_key: Final = struct.Struct(">3sI").pack
_KEY_FIELD: Final = b"\x0b\x00\x01"
_VALUE_FIELD: Final = b"\x0b\x00\x02"


def encode_pairs(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode structs KeyValue back to back."""
    parts: list[bytes] = []
    for key, value in pairs:
        parts += (_pair_key(_KEY_FIELD, len(key)), key, _pair_key(_VALUE_FIELD, len(value)), value, b"\0")
    return b"".join(parts)
