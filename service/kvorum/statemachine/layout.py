"""
The rows of the store, byte by byte; docs/formats/store.md is the same in prose.

Layout "blind" (docs/decisions/0010): a write puts its value into `current` and into `history` and reads nothing. Four
key spaces, told apart by the first byte::

    00  meta      00 "format"                                 -> format version u8
                  00 "state"                                  -> applied index, last commit version, watermark: u64 each
                  00 "family" name                            -> family id u32, version of its creation u64
                  00 "session" 00 client id (16)              -> `Head`: what is known of one client id
                  00 "ring" 00 client id (16)                 -> its latest outcomes, see `pack_ring`
                  00 "uses" 00 index u64                      -> uses of sessions by one applied group, see `Use`
                  00 "outcome" 00 client id (16), slot u8     -> in format 1 only: one outcome of a ring
                  00 "sessions-max"                           -> most sessions, u32
    01  current   01 family id u32, key                       -> flag u8, version u56, value if the flag is INLINE
    02  history   02 family id u32, key length u32, key,
                     version u64, kind u8                     -> value (empty for a delete)
    03  changes   03 version u64, part u32                    -> records of one applied group, see `change_record`

All integers are big-endian. Flag and version of a `current` row are together the eight bytes of the version, because a
version is below 2**56: so an inline row begins with the very bytes that the log record holds as its index.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from kvorum.core.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kvorum.core.ids import Index

FORMAT_VERSION: Final = 2
FORMAT_ROW: Final = bytes((FORMAT_VERSION,))
FORMATS_READ: Final = (b"\x01", FORMAT_ROW)
"""
Format rows of stores that can be opened.

Format 1 kept each outcome in a row of its own; it is read, and becomes format 2 with the first group.
"""

VERSION_LIMIT: Final = 1 << 56
"""Versions stay below this: the first byte of a `current` row is its flag."""

INLINE_VALUE_BYTES_MAX: Final = 1024
"""Larger values are in `history` only: a second copy would cost more than the second look-up of a read."""

CHANGES_ROW_BYTES_MAX: Final = 64 * 1024
"""A group's records go on in a further part beyond this, so that walking the changes needs little memory."""

META: Final = b"\x00"
CURRENT: Final = b"\x01"
HISTORY: Final = b"\x02"
CHANGES: Final = b"\x03"
CHANGES_END: Final = b"\x04"

FORMAT_KEY: Final = META + b"format"
STATE_KEY: Final = META + b"state"
FAMILY_PREFIX: Final = META + b"family"
FAMILY_PREFIX_END: Final = META + b"familz"
SESSION_PREFIX: Final = META + b"session\x00"
SESSION_PREFIX_END: Final = META + b"session\x01"
OUTCOME_PREFIX: Final = META + b"outcome\x00"
OUTCOME_PREFIX_END: Final = META + b"outcome\x01"
RING_PREFIX: Final = META + b"ring\x00"
USES_PREFIX: Final = META + b"uses\x00"
USES_PREFIX_END: Final = META + b"uses\x01"
SESSIONS_MAX_KEY: Final = META + b"sessions-max"

USE_APPLIED: Final = b"\x01"
USE_REFUSED: Final = b"\x02"
USE_REPEATED: Final = b"\x03"
USE_FORGOTTEN: Final = b"\x04"
"""What a use was: a request applied or refused for the first time, one that was known, or the end of the session."""

OUTCOMES_KEPT: Final = 128
"""Outcomes that a session keeps (contract section 5.4); its n-th one is in slot n modulo this."""
SLOTS: Final = tuple(bytes((slot,)) for slot in range(OUTCOMES_KEPT))
SLOTS_END: Final = bytes((OUTCOMES_KEPT,))
OUTCOME_DIGEST_AT: Final = 16
OUTCOME_CODE_AT: Final = 32
"""Where the digest and the code begin in an outcome."""
STAMP_BYTES: Final = 10
"""Version, 8 bytes, and ordinal, 2 bytes, at the end of a versionstamped buffer."""

DEFAULT_FAMILY_ID: Final = 0
FAMILY_ID_BYTES: Final = 4
CURRENT_KEY_OFFSET: Final = 1 + FAMILY_ID_BYTES
"""Where the client's key begins in a `current` key."""
HISTORY_KEY_OFFSET: Final = CURRENT_KEY_OFFSET + 4
"""Where the client's key begins in a `history` key."""
HISTORY_SUFFIX_BYTES: Final = 9
"""Version and kind at the end of a `history` key."""
CHANGE_FAMILY_OFFSET: Final = 9
"""Where the family begins in a change record: one byte 0 for the default family."""
CHANGE_DEFAULT_KEY_OFFSET: Final = 14
"""Where the key begins in a change record of the default family, which it ends."""
ROW_HEAD_BYTES: Final = 8
"""Flag and version at the start of a `current` row."""

CURRENT_DEFAULT: Final = CURRENT + bytes(FAMILY_ID_BYTES)
HISTORY_DEFAULT: Final = HISTORY + bytes(FAMILY_ID_BYTES)

FLAG_INLINE: Final = 0
"""The value follows."""
FLAG_TOMBSTONE: Final = 1
"""The key was deleted at this version."""
FLAG_HISTORY: Final = 2
"""The value is in the `history` row of this version."""
TOMBSTONE: Final = bytes((FLAG_TOMBSTONE,))
IN_HISTORY: Final = bytes((FLAG_HISTORY,))

KIND_SET: Final = b"\x01"
KIND_DELETE: Final = b"\x02"

_STATE: Final = struct.Struct(">QQQ")
_FAMILY: Final = struct.Struct(">IQ")
_CHANGES_KEY: Final = struct.Struct(">QI")
_HEAD: Final = struct.Struct(">QqQQ")
_OUTCOME: Final = struct.Struct(">qQ16s")
_USE: Final = struct.Struct(">cQQ16s")
_I64: Final = struct.Struct(">q")
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")
PLAIN_LENGTH: Final = _U16.pack(OUTCOME_CODE_AT)
"""Length of an outcome without a code, before it in a ring."""
SLOT_BYTES: Final = len(PLAIN_LENGTH) + OUTCOME_CODE_AT
"""What it takes up in a ring."""
pack_u32 = _U32.pack
pack_u64 = _U64.pack
pack_state = _STATE.pack
pack_family = _FAMILY.pack
pack_head = _HEAD.pack
pack_i64 = _I64.pack
unpack_request = _I64.unpack_from
"""Request id at the beginning of an outcome, in a tuple."""


class StateRow(NamedTuple):
    """Where the store stands; written with every group."""

    applied_index: Index = 0
    last_commit_version: Index = 0
    low_watermark: Index = 0


class Family(NamedTuple):
    """A catalogue row."""

    family_id: int
    created: Index


class Head(NamedTuple):
    """The row of a session."""

    recorded: int = 0
    """Outcomes recorded so far."""
    forgotten: int = -1
    """Highest request id whose outcome was recorded and is not kept any more; -1 if none."""
    last_index: Index = 0
    """Entry that used the session last."""
    last_time_ms: int = 0
    """Time of that entry."""


class Outcome(NamedTuple):
    """What was decided about one request."""

    request_id: int
    version: Index
    """Index of the entry that decided."""
    digest: bytes
    code: str
    """Why it was refused; empty if it was applied."""


class Use(NamedTuple):
    """One record of the uses: an entry used a session, or ended it."""

    kind: bytes
    entry: Index
    time_ms: int
    """Of the entry; 0 if the session ended."""
    client_id: bytes
    outcome: bytes
    """What was decided; empty unless a request was new."""


class Change(NamedTuple):
    """One record of the changes: a key was written at a version."""

    version: Index
    kind: int
    family_id: int
    key: bytes


def unpack_state(row: bytes) -> StateRow:
    """Inverse of `pack_state`."""
    return StateRow(*_STATE.unpack(row))


def unpack_family(row: bytes) -> Family:
    """Inverse of `pack_family`."""
    return Family(*_FAMILY.unpack(row))


def unpack_head(row: bytes) -> Head:
    """Inverse of `pack_head`."""
    return Head(*_HEAD.unpack(row))


def pack_outcome(request_id: int, version: Index, digest: bytes, code: str) -> bytes:
    """An outcome as it lies in a ring."""
    return _OUTCOME.pack(request_id, version, digest) + code.encode("ascii")


def unpack_outcome(row: bytes) -> Outcome:
    """Inverse of `pack_outcome`."""
    request_id, version, digest = _OUTCOME.unpack_from(row)
    return Outcome(request_id, version, digest, row[OUTCOME_CODE_AT:].decode("ascii"))


def request_of(outcome: bytes) -> int:
    """Request id of an outcome."""
    request_id: int = unpack_request(outcome)[0]
    return request_id


def pack_ring(outcomes: Iterable[bytes]) -> bytes:
    """The kept outcomes of a session, oldest first: length u16 and outcome, for each."""
    return b"".join([PLAIN_LENGTH + row if len(row) == OUTCOME_CODE_AT else _sized(row) for row in outcomes])


def _sized(row: bytes) -> bytes:
    return _U16.pack(len(row)) + row


def parse_ring(ring: bytes) -> list[bytes]:
    """Inverse of `pack_ring`."""
    rows: list[bytes] = []
    at, end = 0, len(ring)
    while at < end:
        begin = at + 2
        at = begin + int.from_bytes(ring[at:begin], "big")
        rows.append(ring[begin:at])
    if at != end:
        msg = f"a row of outcomes ends at byte {at} of {end}"
        raise LocalError(msg)
    return rows


def pack_use(kind: bytes, entry: Index, time_ms: int, client_id: bytes, outcome: bytes = b"") -> bytes:
    """
    One record of the uses: kind u8, entry u64, time u64, client id; of a new request then request id i64 and digest.

    A refusal ends with its code, the length before it u8. The version of an outcome is the entry.
    """
    head = _USE.pack(kind, entry, time_ms, client_id)
    if not outcome:
        return head
    code = outcome[OUTCOME_CODE_AT:]
    body = outcome[:8] + outcome[OUTCOME_DIGEST_AT:OUTCOME_CODE_AT]
    return head + body + bytes((len(code),)) + code if code else head + body


def parse_uses(row: bytes) -> Iterator[Use]:
    """Read the records of one row of uses in the order of the log."""
    at, end = 0, len(row)
    while at + _USE.size <= end:
        kind, entry, time_ms, client_id = _USE.unpack_from(row, at)
        at += _USE.size
        outcome = b""
        if kind in (USE_APPLIED, USE_REFUSED):
            outcome = row[at : at + 8] + pack_u64(entry) + row[at + 8 : at + 24]
            at += 24
            if kind == USE_REFUSED:
                begin = at + 1
                at = begin + row[at] if at < end else end + 1
                outcome += row[begin:at]
        elif kind not in (USE_REPEATED, USE_FORGOTTEN):
            msg = f"a row of uses has a record of kind {kind.hex()}, which this release does not know"
            raise LocalError(msg)
        yield Use(kind, entry, time_ms, client_id, outcome)
    if at != end:
        msg = f"a row of uses ends at byte {at} of {end}"
        raise LocalError(msg)


def stamped(buffer: bytes, version: bytes, ordinal: int) -> bytes:
    """A versionstamped buffer: its last ten bytes become the version, packed, and an ordinal."""
    return buffer[:-STAMP_BYTES] + version + _U16.pack(ordinal)


def current_prefix(family_id: int) -> bytes:
    """Start of every `current` key of a family."""
    return CURRENT + pack_u32(family_id)


def row_version(row: bytes) -> Index:
    """Version of a `current` row."""
    return int.from_bytes(row[1:ROW_HEAD_BYTES], "big")


def history_prefix(family_id: int, key: bytes) -> bytes:
    """Start of the `history` keys of one key; neighbours of other lengths never interleave."""
    return HISTORY + pack_u32(family_id) + pack_u32(len(key)) + key


def history_prefix_of_current(current_key: bytes) -> bytes:
    """`history_prefix` of the same key as a `current` key."""
    key = current_key[CURRENT_KEY_OFFSET:]
    return HISTORY + current_key[1:CURRENT_KEY_OFFSET] + pack_u32(len(key)) + key


def current_key_of_history(history_key: bytes) -> bytes:
    """The `current` key of the same key as a `history` key."""
    return CURRENT + history_key[1:CURRENT_KEY_OFFSET] + history_key[HISTORY_KEY_OFFSET:-HISTORY_SUFFIX_BYTES]


def history_version(history_key: bytes) -> Index:
    """Version of a `history` row."""
    return int.from_bytes(history_key[-HISTORY_SUFFIX_BYTES:-1], "big")


def changes_key(version: Index, part: int = 0) -> bytes:
    """
    Key of a changes row: the version of its last record.

    A walk from ``changes_key(v + 1)`` meets every record above ``v`` and, in the first rows, perhaps older ones.
    """
    return CHANGES + _CHANGES_KEY.pack(version, part)


def family_varint(family_id: int) -> bytes:
    """
    Family id as it stands in a change record: seven bits a byte, lowest first, 128 marks that more follow.

    The default family is one zero byte, like its empty name in the log, so that a plain write's record is a slice.
    """
    out = bytearray()
    while family_id >= 0x80:
        out.append(family_id & 0x7F | 0x80)
        family_id >>= 7
    out.append(family_id)
    return bytes(out)


def change_record(version: bytes, kind: bytes, varint: bytes, key: bytes) -> bytes:
    """One record: version u64, kind u8, family varint, key length u32, key."""
    return version + kind + varint + pack_u32(len(key)) + key


def parse_changes(row: bytes) -> Iterator[Change]:
    """Read the records of one changes row in the order in which they were applied."""
    at, end = 0, len(row)
    while at < end:
        version, kind = int.from_bytes(row[at : at + 8], "big"), row[at + 8]
        at += 9
        family_id, shift = 0, 0
        while True:
            byte = row[at]
            at += 1
            family_id |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        begin = at + 4
        at = begin + int.from_bytes(row[at:begin], "big")
        yield Change(version, kind, family_id, row[begin:at])
    if at != end:
        msg = f"changes row ends at byte {at} of {end}"
        raise LocalError(msg)
