"""Messages as bytes, and bytes that are no messages."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvorum.core.entries import Entry, EntryBatch, EntryKind
from kvorum.core.errors import RemoteError
from kvorum.raft.codec import NUMBER_MAX, decode, encode
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

number = st.integers(0, NUMBER_MAX)
small = st.integers(0, 2**40)
ENTRY_KINDS = (EntryKind.COMMAND, EntryKind.NOOP, EntryKind.CONFIGURATION, EntryKind.MAINTENANCE)


@st.composite
def append_requests(draw: st.DrawFn) -> AppendRequest:
    prev_index, prev_term = draw(small), draw(small)
    batch = None
    entry_term = prev_term
    if draw(st.booleans()):
        entries = []
        for position in range(draw(st.integers(1, 5))):
            entry_term += draw(st.integers(0, 3))
            kind = draw(st.sampled_from(ENTRY_KINDS))
            payload = draw(st.binary(max_size=40))
            entries.append(Entry.create(prev_index + 1 + position, entry_term, kind, draw(small), payload))
        batch = EntryBatch(entries)
    term = entry_term + draw(st.integers(0, 3))
    return AppendRequest(term, prev_index, prev_term, draw(number), draw(number), batch=batch)


messages = st.one_of(
    st.builds(VoteRequest, number, number, number, prevote=st.booleans(), transfer=st.booleans()),
    st.builds(VoteReply, number, prevote=st.booleans(), granted=st.booleans()),
    append_requests(),
    st.builds(AppendReply, number, number, number, rejected=st.booleans(), hint_index=number, hint_term=number),
    st.builds(Heartbeat, number, number, number),
    st.builds(HeartbeatReply, number, number, number),
    st.builds(CommitNotice, number, number),
    st.builds(TimeoutNow, number),
)


@given(messages)
def test_message_encoded_and_decoded_is_the_same(message: RaftMessage) -> None:
    """What goes out comes in."""
    assert message == decode(b"".join(encode(message)))


@given(st.binary(max_size=120))
@example(b"")
@example(b"\x01" * 60)
def test_garbage_decoded_is_a_remote_error_or_a_message(payload: bytes) -> None:
    """No bytes from a peer raise anything but RemoteError."""
    try:
        message = decode(payload)
    except RemoteError:
        return
    assert payload == b"".join(encode(message))


@given(messages, st.data())
def test_damaged_message_is_a_remote_error_or_another_message(message: RaftMessage, data: st.DataObject) -> None:
    """A flipped byte, a missing or an extra one never crash the receiver."""
    payload = bytearray(b"".join(encode(message)))
    at = data.draw(st.integers(0, len(payload) - 1))
    how = data.draw(st.sampled_from(("flip", "cut", "add")))
    if how == "flip":
        payload[at] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del payload[at:]
    else:
        payload.insert(at, 7)
    try:
        decode(bytes(payload))
    except RemoteError:
        return


def test_append_request_keeps_blocks_as_they_are() -> None:
    """The leader's block goes out uncopied, is encoded once for all followers, and is kept for the follower's disk."""
    batch = EntryBatch([Entry.create(2, 1, EntryKind.COMMAND, 5, b"a"), Entry.create(3, 1, EntryKind.NOOP, 5, b"")])
    message = AppendRequest(1, 1, 1, 0, 0, batch=batch)

    parts = encode(message)
    received = decode(b"".join(parts))

    assert parts[1] is batch.block
    assert parts is encode(message)
    assert isinstance(received, AppendRequest)
    assert received.batch is not None
    assert received.batch.block == batch.block


def refused(message: RaftMessage) -> str:
    with pytest.raises(RemoteError) as error:
        decode(b"".join(encode(message)))
    return str(error.value)


def test_entries_that_no_leader_sends_are_refused() -> None:
    """Gaps, falling terms, terms above the leader's and kinds that live on disk only."""

    def append(*entries: Entry) -> AppendRequest:
        return AppendRequest(5, 7, 3, 0, 0, batch=EntryBatch(entries))

    assert "index 8" in refused(append(Entry.create(9, 3, EntryKind.COMMAND, 0, b"")))
    assert "index 8" in refused(append(Entry.create(8, 2, EntryKind.COMMAND, 0, b"")))
    assert "index 8" in refused(append(Entry.create(8, 3, EntryKind.HARD_STATE, 0, b"")))
    assert "term 6" in refused(append(Entry.create(8, 6, EntryKind.COMMAND, 0, b"")))


def test_version_kind_and_numbers_of_another_world_are_named() -> None:
    """The text says what was wrong, for the log of the refused link."""
    good = b"".join(encode(CommitNotice(1, 1)))
    with pytest.raises(RemoteError, match="version 2; this release reads 1"):
        decode(b"\x02" + good[1:])
    with pytest.raises(RemoteError, match="unknown kind 99"):
        decode(b"\x01\x63" + good[2:])
    with pytest.raises(RemoteError, match="above all that can occur"):
        decode(good[:2] + b"\xff" * 16)
    with pytest.raises(RemoteError, match="unknown flags"):
        decode(b"".join(encode(VoteReply(1, prevote=False, granted=False)))[:-1] + b"\x80")
