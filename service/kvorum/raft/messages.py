"""
What Raft nodes say to each other; the byte form is in `codec`, each byte in docs/formats/peer-messages.md.

Plain slotted classes and no frozen dataclasses: thousands are made per second and frozen ones cost four times as much.
Immutable by convention. Every message carries the term of its sender; the sender itself is known from the link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from kvorum.core.entries import EntryBatch
    from kvorum.core.ids import Index, Term


class _Message:
    """Equality and a readable form, for tests and transcripts."""

    __slots__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Message) and type(self) is type(other) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), self._fields()))

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self._fields())
        return f"{type(self).__name__}({inside})"

    def _fields(self) -> tuple[tuple[str, object], ...]:
        return tuple((name, getattr(self, name)) for name in self.__slots__ if name != "parts")


class VoteRequest(_Message):
    """
    A candidate asks for a vote (Raft paper 5.2); with ``prevote``, whether it would get one (dissertation 9.6).

    With ``transfer`` its leader told it to stand, so a voter that still hears that leader need not protect it (3.10).
    """

    __slots__ = ("last_index", "last_term", "prevote", "term", "transfer")

    def __init__(
        self, term: Term, last_index: Index, last_term: Term, *, prevote: bool, transfer: bool = False
    ) -> None:
        self.term = term
        """Term of the candidacy; with ``prevote`` the term it *would* have, one above the sender's own."""
        self.last_index = last_index
        self.last_term = last_term
        self.prevote = prevote
        self.transfer = transfer


class VoteReply(_Message):
    """Answer to a VoteRequest; a granted prevote echoes the request's term, everything else carries the voter's own."""

    __slots__ = ("granted", "prevote", "term")

    def __init__(self, term: Term, *, prevote: bool, granted: bool) -> None:
        self.term = term
        self.prevote = prevote
        self.granted = granted


class AppendRequest(_Message):
    """Entries that follow ``prev_index``; without entries it asks whether the logs agree up to there."""

    __slots__ = ("batch", "commit", "parts", "prev_index", "prev_term", "round", "term")

    def __init__(
        self,
        term: Term,
        prev_index: Index,
        prev_term: Term,
        commit: Index,
        read_round: int,
        *,
        batch: EntryBatch | None,
    ) -> None:
        self.term = term
        self.prev_index = prev_index
        self.prev_term = prev_term
        self.commit = commit
        self.round = read_round
        self.batch = batch
        self.parts: list[bytes] | None = None
        """Byte form, once made: followers in step get the same message, so it is encoded once for all of them."""


class AppendReply(_Message):
    """
    Answer to an AppendRequest.

    Accepted: ``index`` is the last entry that was verified or appended *and is durable* on the sender. Rejected:
    ``index`` is the request's ``prev_index``, and ``hint_index`` with its term ``hint_term`` is the last place where
    the logs may agree.
    """

    __slots__ = ("hint_index", "hint_term", "index", "rejected", "round", "term")

    def __init__(
        self,
        term: Term,
        index: Index,
        read_round: int,
        *,
        rejected: bool = False,
        hint_index: Index = 0,
        hint_term: Term = 0,
    ) -> None:
        self.term = term
        self.index = index
        self.round = read_round
        self.rejected = rejected
        self.hint_index = hint_index
        self.hint_term = hint_term


class Heartbeat(_Message):
    """The leader lives, knows ``commit``, and asks for an echo of its read round."""

    __slots__ = ("commit", "round", "term")

    def __init__(self, term: Term, commit: Index, read_round: int) -> None:
        self.term = term
        self.commit = commit
        self.round = read_round


class HeartbeatReply(_Message):
    """
    Echo of a heartbeat. In a term above the leader's it is how a deposed leader learns that it is.

    ``verified`` is how far the sender's log in memory is known to equal the leader's: not a promise, only where to
    look for lost messages.
    """

    __slots__ = ("round", "term", "verified")

    def __init__(self, term: Term, read_round: int, verified: Index) -> None:
        self.term = term
        self.round = read_round
        self.verified = verified


class CommitNotice(_Message):
    """The commit index moved and no append is about to carry it; wants no answer."""

    __slots__ = ("commit", "term")

    def __init__(self, term: Term, commit: Index) -> None:
        self.term = term
        self.commit = commit


class TimeoutNow(_Message):
    """The leader hands over: its receiver, whose log is complete, stands at once (dissertation 3.10); no answer."""

    __slots__ = ("term",)

    def __init__(self, term: Term) -> None:
        self.term = term


RaftMessage: TypeAlias = (
    VoteRequest | VoteReply | AppendRequest | AppendReply | Heartbeat | HeartbeatReply | CommitNotice | TimeoutNow
)
