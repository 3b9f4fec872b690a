"""
Byte form of a proposal: the payload of a COMMAND entry.

::

    offset  bytes  field
    0       8      incarnation of the answering node       the tag: whose client waits for this entry
    8       8      boot nonce of its process
    16      8      sequence number within that process
    24      1      opcode: 1 set, 2 delete, 3 versionstamped key, 4 versionstamped value, 5 atomic commit;
                   plus 128: an identity comes before the body
    25      24     only with 128: the identity, client id (16 bytes) and request id i64 (contract section 5.4)
    ...     ...    body

Body of opcodes 1 to 4: family length u8, family, key length u32, key, value to the end (none for delete).

Body of opcode 5: flags u8 (1 = existing-style), read version i64, count u32 of mutations, each opcode u8, family
length u8, family, key length u32, key, value length u32, value; count u32 of conflict keys, each length u32, key;
count u32 of conflict ranges, each family length u8, family, begin length u32, begin, end length u32, end.

All integers are big-endian. Opcodes 6 to 127 are free.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from kvorum.core.errors import LocalError
from kvorum.core.operations import AtomicCommit, KeyRange, Mutation, MutationKind

if TYPE_CHECKING:
    from kvorum.core.operations import WriteOperation

TAG: Final = struct.Struct(">QQQ")
TAG_BYTES: Final = TAG.size
OPCODE_COMMIT: Final = 5
IDENTIFIED: Final = 0x80
"""Bit of the opcode that says: the client wants this write to be done once, however often it is sent."""
IDENTITY: Final = struct.Struct(">16sq")
IDENTITY_BYTES: Final = IDENTITY.size
_U32: Final = struct.Struct(">I")
_COMMIT_HEAD: Final = struct.Struct(">BqI")
_EXISTING_STYLE: Final = 1
_pack_u32 = _U32.pack
_pack_identity = IDENTITY.pack
_IDENTIFIED_SET: Final = bytes((MutationKind.SET | IDENTIFIED,))

_SET_DEFAULT: Final = bytes((MutationKind.SET, 0))
_DELETE_DEFAULT: Final = bytes((MutationKind.DELETE, 0))


def encode_set(family: bytes, key: bytes, value: bytes) -> bytes:
    """Body of a single set, opcode included; the hot path of every client."""
    head = _SET_DEFAULT if not family else bytes((MutationKind.SET, len(family))) + family
    return head + _pack_u32(len(key)) + key + value


def encode_delete(family: bytes, key: bytes) -> bytes:
    """Body of a single delete, opcode included."""
    head = _DELETE_DEFAULT if not family else bytes((MutationKind.DELETE, len(family))) + family
    return head + _pack_u32(len(key)) + key


def encode_operation(operation: WriteOperation) -> bytes:
    """Body of any write, opcode included and tag excluded."""
    if isinstance(operation, Mutation):
        head = bytes((operation.kind, len(operation.family))) + operation.family
        return head + _pack_u32(len(operation.key)) + operation.key + operation.value
    flags = _EXISTING_STYLE if operation.existing_style else 0
    parts = [bytes((OPCODE_COMMIT,)), _COMMIT_HEAD.pack(flags, operation.read_version, len(operation.mutations))]
    for kind, family, key, value in operation.mutations:
        parts += (bytes((kind, len(family))), family, _pack_u32(len(key)), key, _pack_u32(len(value)), value)
    parts.append(_pack_u32(len(operation.conflict_keys)))
    for key in operation.conflict_keys:
        parts += (_pack_u32(len(key)), key)
    parts.append(_pack_u32(len(operation.conflict_ranges)))
    for family, begin, end in operation.conflict_ranges:
        parts += (bytes((len(family),)), family, _pack_u32(len(begin)), begin, _pack_u32(len(end)), end)
    return b"".join(parts)


def identified(body: bytes, client_id: bytes, request_id: int) -> bytes:
    """The same operation bytes with an identity: applied at most once per pair."""
    return bytes((body[0] | IDENTIFIED,)) + _pack_identity(client_id, request_id) + body[1:]


def identify_set(family: bytes, key: bytes, value: bytes, client_id: bytes, request_id: int) -> bytes:
    """`encode_set` and `identified` in one step, without copying the value twice."""
    if not family:
        return b"".join(
            (_IDENTIFIED_SET, _pack_identity(client_id, request_id), b"\0", _pack_u32(len(key)), key, value)
        )
    return identified(encode_set(family, key, value), client_id, request_id)


class _Cursor:
    """Reads fields one after the other; slicing past the end is caught once, by `finish`."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self.at = at

    def u8(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def u32(self) -> int:
        (value,) = _U32.unpack_from(self.data, self.at)
        self.at += 4
        return int(value)

    def take(self, count: int) -> bytes:
        start = self.at
        self.at += count
        return self.data[start : self.at]

    def finish(self) -> None:
        if self.at != len(self.data):
            msg = f"operation ends at byte {self.at} of {len(self.data)}"
            raise LocalError(msg)


def identity_of(data: bytes, offset: int = 0) -> tuple[bytes, int] | None:
    """
    Client id and request id of the operation that begins with its opcode at ``data[offset]``; None if it has none.

    Raises:
        LocalError: Cut short; the entry was committed, so the node must stop.
    """
    if not data[offset] & IDENTIFIED:
        return None
    if len(data) < offset + 1 + IDENTITY_BYTES:
        msg = f"operation ends inside its identity, at byte {len(data)}"
        raise LocalError(msg)
    client_id, request_id = IDENTITY.unpack_from(data, offset + 1)
    return client_id, request_id


def decode_operation(data: bytes, offset: int = 0) -> WriteOperation:
    """
    Read the operation that begins with its opcode at ``data[offset]`` and reaches to the end of ``data``.

    An identity is passed over: `identity_of` reads it.

    Raises:
        LocalError: Unknown opcode or lengths that do not fit. The entry was committed, so guessing is forbidden: the
            node must stop, for a newer release may have written it.
    """
    opcode = data[offset]
    cursor = _Cursor(data, offset + 1)
    if opcode & IDENTIFIED:
        opcode &= ~IDENTIFIED
        cursor.at += IDENTITY_BYTES
    if opcode in (
        MutationKind.SET,
        MutationKind.DELETE,
        MutationKind.VERSIONSTAMPED_KEY,
        MutationKind.VERSIONSTAMPED_VALUE,
    ):
        family = cursor.take(cursor.u8())
        key = cursor.take(cursor.u32())
        value = cursor.take(len(data) - cursor.at)
        cursor.finish()
        return Mutation(opcode, family, key, value)
    if opcode != OPCODE_COMMIT:
        msg = f"log entry holds operation {opcode}, which this release does not know; run the release that wrote it"
        raise LocalError(msg)
    flags, read_version, count = _COMMIT_HEAD.unpack_from(data, cursor.at)
    cursor.at += _COMMIT_HEAD.size
    mutations = []
    for _ in range(count):
        kind = cursor.u8()
        family = cursor.take(cursor.u8())
        key = cursor.take(cursor.u32())
        mutations.append(Mutation(kind, family, key, cursor.take(cursor.u32())))
    keys = tuple([cursor.take(cursor.u32()) for _ in range(cursor.u32())])
    ranges = []
    for _ in range(cursor.u32()):
        family = cursor.take(cursor.u8())
        begin = cursor.take(cursor.u32())
        ranges.append(KeyRange(family, begin, cursor.take(cursor.u32())))
    cursor.finish()
    return AtomicCommit(read_version, tuple(mutations), keys, tuple(ranges), bool(flags & _EXISTING_STYLE))
