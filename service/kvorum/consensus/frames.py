"""
Frames between ConsensusManagers (docs/formats/peer-frames.md): kinds, and the byte form of all but the machine's own.

All integers are big-endian. Frame kinds below 16 belong to the links themselves.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvorum.core.cluster import Configuration
from kvorum.core.errors import Refusal, RemoteError
from kvorum.core.machine import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

MACHINE: Final = 16
"""One message of the consensus algorithm, in its own encoding."""
FORWARD: Final = 17
"""Proposals of a follower's clients, in unbroken sequence."""
FORWARD_REPLY: Final = 18
"""What went wrong with a forward; success is told by the log alone."""
READ_INDEX: Final = 19
READ_INDEX_REPLY: Final = 20
REPORT: Final = 21
"""What a node tells every peer about itself, once per health check interval and at each new link."""
SNAPSHOT_OFFER: Final = 22
"""The receiver needs entries that are gone: it should fetch the sender's state."""
SNAPSHOT_DONE: Final = 23
"""Answer to an offer, once it is over: the index installed, or 0."""
ADMIN: Final = 24
"""A change of the membership that a node asks the leader for."""
ADMIN_REPLY: Final = 25
MEMBERS: Final = 26
"""The newest committed configuration that a member knows, so that the others can reach nodes new to them."""

_FORWARD_HEAD: Final = struct.Struct(">BQQHB")
_FORWARD_ITEM: Final = struct.Struct(">II")
_FORWARD_REPLY: Final = struct.Struct(">BBQQBH")
_READ: Final = struct.Struct(">BQB")
_READ_REPLY: Final = struct.Struct(">BQBQ")
_ADMIN: Final = struct.Struct(">BQ")
_MEMBERS: Final = struct.Struct(">B16sQ")
_REPORT: Final = struct.Struct(">BBBQqQQQQ")

VERSION: Final = 1
ADMIN_BYTES_MAX: Final = 64 * 1024
"""Largest JSON text of an ADMIN or ADMIN_REPLY frame."""
_RESYNC: Final = 1
_HAS_DATA: Final = 1
_MAY_SERVE: Final = 2

GAP: Final = 1
"""Forward reply: an earlier position is missing; send everything undecided again from ``position``."""
NOT_LEADER: Final = 2
"""Forward reply: the receiver does not lead in that term, so it proposed none of these."""
REFUSED: Final = 3
"""Forward reply: this one position was refused before proposing, certainly."""

_ROLES: Final = (Role.FOLLOWER, Role.CANDIDATE, Role.LEADER, Role.LEARNER)


class ForwardItem(NamedTuple):
    """One forwarded proposal: how long the leader may let it wait, and the payload with its tag."""

    wait_ms: int
    payload: bytes


class Forward(NamedTuple):
    """Proposals at positions ``first``, ``first + 1`` ... of the stream that this node sends in ``term``."""

    term: int
    first: int
    resync: bool
    """Positions below ``first`` will never be sent again."""
    items: list[ForwardItem]


class ForwardReply(NamedTuple):
    """Why a forward was not taken; see the reply kinds above."""

    kind: int
    term: int
    position: int
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Members:
    """A committed configuration of a cluster."""

    cluster_id: bytes
    index: int
    """Index of its entry."""
    configuration: Configuration


@dataclass(frozen=True, slots=True)
class Report:
    """A node about itself."""

    has_data: bool
    """It took part in an election: its term rose, or its log holds more than the first entry, which all derive."""
    role: str
    may_serve: bool
    """Leader whose no-op of this term has committed."""
    term: int
    leader: int | None
    commit_index: int
    applied_index: int
    uptime_ms: int
    recorded_incarnation: int
    """Incarnation its configuration records for the seat of the node it is talking to; 0 if none yet."""


def encode_forward(term: int, first: int, items: Sequence[ForwardItem], *, resync: bool) -> list[bytes]:
    """Parts of a FORWARD frame; payloads are not copied."""
    parts = [_FORWARD_HEAD.pack(VERSION, term, first, len(items), _RESYNC if resync else 0)]
    for wait_ms, payload in items:
        parts += (_FORWARD_ITEM.pack(wait_ms, len(payload)), payload)
    return parts


def _check_version(payload: bytes) -> None:
    if not payload or payload[0] != VERSION:
        msg = f"peer frame of version {payload[0] if payload else 'none'}; this release speaks {VERSION}"
        raise RemoteError(msg)


def decode_forward(payload: bytes) -> Forward:
    """Read a FORWARD frame. Raises RemoteError if it does not fit."""
    _check_version(payload)
    try:
        _, term, first, count, flags = _FORWARD_HEAD.unpack_from(payload)
        at = _FORWARD_HEAD.size
        items = []
        for _ in range(count):
            wait_ms, length = _FORWARD_ITEM.unpack_from(payload, at)
            at += _FORWARD_ITEM.size
            items.append(ForwardItem(wait_ms, payload[at : at + length]))
            at += length
    except struct.error as error:
        msg = f"forward frame cut short: {error}"
        raise RemoteError(msg) from error
    if at != len(payload):
        msg = f"forward frame of {len(payload)} bytes ends at {at}"
        raise RemoteError(msg)
    return Forward(term, first, bool(flags & _RESYNC), items)


def encode_forward_reply(reply: ForwardReply) -> list[bytes]:
    """Parts of a FORWARD_REPLY frame."""
    code, text = (reply.refusal.code.encode(), reply.refusal.text.encode()) if reply.refusal else (b"", b"")
    head = _FORWARD_REPLY.pack(VERSION, reply.kind, reply.term, reply.position, len(code), len(text))
    return [head, code, text]


def decode_forward_reply(payload: bytes) -> ForwardReply:
    """Read a FORWARD_REPLY frame. Raises RemoteError if it does not fit."""
    _check_version(payload)
    try:
        _, kind, term, position, code_bytes, text_bytes = _FORWARD_REPLY.unpack_from(payload)
        at = _FORWARD_REPLY.size
        code = payload[at : at + code_bytes].decode()
        text = payload[at + code_bytes : at + code_bytes + text_bytes].decode()
    except (struct.error, UnicodeDecodeError) as error:
        msg = f"forward reply does not parse: {error}"
        raise RemoteError(msg) from error
    return ForwardReply(kind, term, position, Refusal(code, text) if code else None)


def encode_read(request: int, *, confirm: bool) -> list[bytes]:
    """Parts of a READ_INDEX frame; without ``confirm`` the leader names its applied index at once."""
    return [_READ.pack(VERSION, request, 1 if confirm else 0)]


def decode_read(payload: bytes) -> tuple[int, bool]:
    """Request number and whether a quorum must confirm. Raises RemoteError if it does not fit."""
    _check_version(payload)
    try:
        _, request, confirm = _READ.unpack(payload)
    except struct.error as error:
        msg = f"read-index frame does not parse: {error}"
        raise RemoteError(msg) from error
    return request, bool(confirm)


def encode_read_reply(request: int, index: int | None) -> list[bytes]:
    """Parts of a READ_INDEX_REPLY frame; None says: not (or no longer) the leader, ask again."""
    return [_READ_REPLY.pack(VERSION, request, index is not None, index or 0)]


def decode_read_reply(payload: bytes) -> tuple[int, int | None]:
    """Request number and index, or None. Raises RemoteError if it does not fit."""
    _check_version(payload)
    try:
        _, request, confirmed, index = _READ_REPLY.unpack(payload)
    except struct.error as error:
        msg = f"read-index reply does not parse: {error}"
        raise RemoteError(msg) from error
    return request, index if confirmed else None


def encode_report(report: Report) -> list[bytes]:
    """Parts of a REPORT frame."""
    flags = (_HAS_DATA if report.has_data else 0) | (_MAY_SERVE if report.may_serve else 0)
    leader = -1 if report.leader is None else report.leader
    return [
        _REPORT.pack(
            VERSION,
            flags,
            _ROLES.index(report.role),
            report.term,
            leader,
            report.commit_index,
            report.applied_index,
            report.uptime_ms,
            report.recorded_incarnation,
        )
    ]


def decode_report(payload: bytes) -> Report:
    """Read a REPORT frame. Raises RemoteError if it does not fit."""
    _check_version(payload)
    try:
        _, flags, role, term, leader, commit, applied, uptime_ms, recorded = _REPORT.unpack(payload)
        name = _ROLES[role]
    except (struct.error, IndexError) as error:
        msg = f"report frame does not parse: {error}"
        raise RemoteError(msg) from error
    return Report(
        has_data=bool(flags & _HAS_DATA),
        role=name,
        may_serve=bool(flags & _MAY_SERVE),
        term=term,
        leader=None if leader < 0 else leader,
        commit_index=commit,
        applied_index=applied,
        uptime_ms=uptime_ms,
        recorded_incarnation=recorded,
    )


def encode_admin(number: int, content: dict[str, Any]) -> list[bytes]:
    """Parts of an ADMIN or ADMIN_REPLY frame: the asker's number and a JSON object."""
    text = json.dumps(content).encode()
    assert len(text) <= ADMIN_BYTES_MAX
    return [_ADMIN.pack(VERSION, number), text]


def decode_admin(payload: bytes) -> tuple[int, dict[str, Any]]:
    """Number and JSON object. Raises RemoteError if it does not fit."""
    _check_version(payload)
    try:
        _, number = _ADMIN.unpack_from(payload)
        if len(payload) > ADMIN_BYTES_MAX + _ADMIN.size:
            msg = f"it is longer than {ADMIN_BYTES_MAX} bytes"
            raise ValueError(msg)
        content = json.loads(payload[_ADMIN.size :])
        if not isinstance(content, dict):
            msg = "it is no JSON object"
            raise ValueError(msg)  # noqa: TRY004 - turned into a RemoteError right here
    except (struct.error, ValueError, RecursionError) as error:
        msg = f"membership frame does not parse: {error}"
        raise RemoteError(msg) from error
    return number, content


def encode_members(members: Members) -> list[bytes]:
    """Parts of a MEMBERS frame: cluster id, index of the configuration's entry, the configuration as in the log."""
    return [_MEMBERS.pack(VERSION, members.cluster_id, members.index), members.configuration.encode()]


def decode_members(payload: bytes) -> Members:
    """Read a MEMBERS frame. Raises RemoteError if it does not fit."""
    _check_version(payload)
    try:
        _, cluster_id, index = _MEMBERS.unpack_from(payload)
        return Members(cluster_id, index, Configuration.decode(payload[_MEMBERS.size :]))
    except (struct.error, ValueError) as error:
        msg = f"members frame does not parse: {error}"
        raise RemoteError(msg) from error
