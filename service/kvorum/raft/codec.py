"""
Byte form of Raft messages (docs/formats/peer-messages.md): a fixed head per kind, then entry records as they are.

The records of an append are never copied or encoded again on the way out; on the way in they are cut into entries once
and the block is kept for the follower's own disk.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from kvorum.core.entries import EntryBatch, EntryKind, RecordDamagedError, parse_records
from kvorum.core.errors import RemoteError
from kvorum.raft.messages import (
    AppendReply,
    AppendRequest,
    CommitNotice,
    Heartbeat,
    HeartbeatReply,
    RaftMessage,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MESSAGE_VERSION: Final = 1

_VOTE_REQUEST: Final = 1
_VOTE_REPLY: Final = 2
_APPEND_REQUEST: Final = 3
_APPEND_REPLY: Final = 4
_HEARTBEAT: Final = 5
_HEARTBEAT_REPLY: Final = 6
_COMMIT_NOTICE: Final = 7
_TIMEOUT_NOW: Final = 8

_PREVOTE: Final = 1
_GRANTED: Final = 2
_TRANSFER: Final = 2
_REJECTED: Final = 1

NUMBER_MAX: Final = 2**62
"""Terms, indexes and rounds above this never occur; one is damage, and believing it would exhaust the terms."""

_vote_request: Final = struct.Struct(">BBQBQQ")
_vote_reply: Final = struct.Struct(">BBQB")
_append_request: Final = struct.Struct(">BBQQQQQI")
_append_reply: Final = struct.Struct(">BBQBQQQQ")
_heartbeat: Final = struct.Struct(">BBQQQ")
_commit_notice: Final = struct.Struct(">BBQQ")
_timeout_now: Final = struct.Struct(">BBQ")

_ENTRY_KINDS: Final = frozenset((EntryKind.COMMAND, EntryKind.NOOP, EntryKind.CONFIGURATION, EntryKind.MAINTENANCE))


def encode(message: RaftMessage) -> list[bytes]:
    """Byte form as parts to be sent back to back."""
    kind = type(message)
    if kind is AppendRequest:
        return _encode_append(message)  # type: ignore[arg-type]
    return [_ENCODERS[kind](message)]


def _encode_append(message: AppendRequest) -> list[bytes]:
    parts = message.parts
    if parts is None:
        batch = message.batch
        head = _append_request.pack(
            MESSAGE_VERSION,
            _APPEND_REQUEST,
            message.term,
            message.prev_index,
            message.prev_term,
            message.commit,
            message.round,
            0 if batch is None else len(batch.entries),
        )
        message.parts = parts = [head] if batch is None else [head, batch.block]
    return parts


def _encode_vote_request(message: VoteRequest) -> bytes:
    flags = (_PREVOTE if message.prevote else 0) | (_TRANSFER if message.transfer else 0)
    return _vote_request.pack(
        MESSAGE_VERSION, _VOTE_REQUEST, message.term, flags, message.last_index, message.last_term
    )


def _encode_vote_reply(message: VoteReply) -> bytes:
    flags = (_PREVOTE if message.prevote else 0) | (_GRANTED if message.granted else 0)
    return _vote_reply.pack(MESSAGE_VERSION, _VOTE_REPLY, message.term, flags)


def _encode_append_reply(message: AppendReply) -> bytes:
    return _append_reply.pack(
        MESSAGE_VERSION,
        _APPEND_REPLY,
        message.term,
        _REJECTED if message.rejected else 0,
        message.index,
        message.round,
        message.hint_index,
        message.hint_term,
    )


def _encode_heartbeat(message: Heartbeat) -> bytes:
    return _heartbeat.pack(MESSAGE_VERSION, _HEARTBEAT, message.term, message.commit, message.round)


def _encode_heartbeat_reply(message: HeartbeatReply) -> bytes:
    return _heartbeat.pack(MESSAGE_VERSION, _HEARTBEAT_REPLY, message.term, message.verified, message.round)


def _encode_commit_notice(message: CommitNotice) -> bytes:
    return _commit_notice.pack(MESSAGE_VERSION, _COMMIT_NOTICE, message.term, message.commit)


def _encode_timeout_now(message: TimeoutNow) -> bytes:
    return _timeout_now.pack(MESSAGE_VERSION, _TIMEOUT_NOW, message.term)


_ENCODERS: Final[dict[type, Callable[..., bytes]]] = {
    VoteRequest: _encode_vote_request,
    VoteReply: _encode_vote_reply,
    AppendReply: _encode_append_reply,
    Heartbeat: _encode_heartbeat,
    HeartbeatReply: _encode_heartbeat_reply,
    CommitNotice: _encode_commit_notice,
    TimeoutNow: _encode_timeout_now,
}


def decode(payload: bytes) -> RaftMessage:
    """
    Read what `encode` wrote.

    Raises:
        RemoteError: Anything `encode` would not have written; the link that brought it must be closed.
    """
    if len(payload) < _timeout_now.size:
        msg = f"raft message of {len(payload)} bytes is too short"
        raise RemoteError(msg)
    if payload[0] != MESSAGE_VERSION:
        msg = f"raft message has version {payload[0]}; this release reads {MESSAGE_VERSION}"
        raise RemoteError(msg)
    decoder = _DECODERS.get(payload[1])
    if decoder is None:
        msg = f"raft message of unknown kind {payload[1]}"
        raise RemoteError(msg)
    try:
        return decoder(payload)
    except (struct.error, RecordDamagedError) as error:
        msg = f"raft message of kind {payload[1]} and {len(payload)} bytes does not fit its form: {error}"
        raise RemoteError(msg) from error


def _checked(*numbers: int) -> None:
    if max(numbers) > NUMBER_MAX:
        msg = f"raft message holds the number {max(numbers)}, above all that can occur"
        raise RemoteError(msg)


def _flags(flags: int, known: int) -> int:
    if flags & ~known:
        msg = f"raft message has unknown flags {flags:#x}"
        raise RemoteError(msg)
    return flags


def _decode_vote_request(payload: bytes) -> VoteRequest:
    _, _, term, flags, last_index, last_term = _vote_request.unpack(payload)
    _checked(term, last_index, last_term)
    _flags(flags, _PREVOTE | _TRANSFER)
    return VoteRequest(term, last_index, last_term, prevote=bool(flags & _PREVOTE), transfer=bool(flags & _TRANSFER))


def _decode_vote_reply(payload: bytes) -> VoteReply:
    _, _, term, flags = _vote_reply.unpack(payload)
    _checked(term)
    _flags(flags, _PREVOTE | _GRANTED)
    return VoteReply(term, prevote=bool(flags & _PREVOTE), granted=bool(flags & _GRANTED))


def _decode_append_request(payload: bytes) -> AppendRequest:
    _, _, term, prev_index, prev_term, commit, read_round, count = _append_request.unpack_from(payload)
    _checked(term, prev_index, prev_term, commit, read_round)
    if count == 0:
        if len(payload) != _append_request.size:
            msg = f"raft append without entries has {len(payload) - _append_request.size} bytes left over"
            raise RemoteError(msg)
        return AppendRequest(term, prev_index, prev_term, commit, read_round, batch=None)
    entries = parse_records(payload, _append_request.size)
    index, entry_term = prev_index, prev_term
    for entry in entries:
        index += 1
        if entry.index != index or entry.term < entry_term or entry.kind not in _ENTRY_KINDS:
            msg = f"raft append after index {prev_index} of term {prev_term} holds {entry!r} at index {index}"
            raise RemoteError(msg)
        entry_term = entry.term
    if len(entries) != count or entry_term > term:
        msg = f"raft append of term {term} says {count} entries and holds {len(entries)} up to term {entry_term}"
        raise RemoteError(msg)
    return AppendRequest(
        term, prev_index, prev_term, commit, read_round, batch=EntryBatch(entries, payload[_append_request.size :])
    )


def _decode_append_reply(payload: bytes) -> AppendReply:
    _, _, term, flags, index, read_round, hint_index, hint_term = _append_reply.unpack(payload)
    _checked(term, index, read_round, hint_index, hint_term)
    return AppendReply(
        term,
        index,
        read_round,
        rejected=bool(_flags(flags, _REJECTED)),
        hint_index=hint_index,
        hint_term=hint_term,
    )


def _decode_heartbeat(payload: bytes) -> Heartbeat:
    _, _, term, commit, read_round = _heartbeat.unpack(payload)
    _checked(term, commit, read_round)
    return Heartbeat(term, commit, read_round)


def _decode_heartbeat_reply(payload: bytes) -> HeartbeatReply:
    _, _, term, verified, read_round = _heartbeat.unpack(payload)
    _checked(term, verified, read_round)
    return HeartbeatReply(term, read_round, verified)


def _decode_commit_notice(payload: bytes) -> CommitNotice:
    _, _, term, commit = _commit_notice.unpack(payload)
    _checked(term, commit)
    return CommitNotice(term, commit)


def _decode_timeout_now(payload: bytes) -> TimeoutNow:
    _, _, term = _timeout_now.unpack(payload)
    _checked(term)
    return TimeoutNow(term)


_DECODERS: Final[dict[int, Callable[[bytes], RaftMessage]]] = {
    _VOTE_REQUEST: _decode_vote_request,
    _VOTE_REPLY: _decode_vote_reply,
    _APPEND_REQUEST: _decode_append_request,
    _APPEND_REPLY: _decode_append_reply,
    _HEARTBEAT: _decode_heartbeat,
    _HEARTBEAT_REPLY: _decode_heartbeat_reply,
    _COMMIT_NOTICE: _decode_commit_notice,
    _TIMEOUT_NOW: _decode_timeout_now,
}
