"""
The rows of sessions, and what they mean: heads, rings, and the journal of uses.

A write with an identity changes its session, and a row for that per write would cost as much as the write. So a group
puts one row with all its uses, the journal, and the rows of a session itself, head and ring, follow later
(`sessions.Sessions`). What a session is can always be said from the rows: its head and ring as stored, and every use
in the journal behind the head's last one. A use that the head covers already is passed over, so rows may be written at
any time and the journal cut at any row before the oldest use that counts.
"""

from __future__ import annotations

from heapq import merge
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from kvorum.core.errors import LocalError
from kvorum.statemachine.layout import (
    OUTCOME_CODE_AT,
    OUTCOME_PREFIX,
    OUTCOMES_KEPT,
    PLAIN_LENGTH,
    RING_PREFIX,
    SESSION_PREFIX,
    SESSION_PREFIX_END,
    SLOT_BYTES,
    SLOTS,
    SLOTS_END,
    USE_FORGOTTEN,
    USES_PREFIX,
    USES_PREFIX_END,
    Head,
    pack_head,
    pack_i64,
    pack_ring,
    parse_ring,
    parse_uses,
    request_of,
    unpack_head,
    unpack_request,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from kvorum.core.ids import Index
    from kvorum.core.ports import View
    from kvorum.statemachine.layout import Use

_Head: TypeAlias = tuple[int, int, int, int]
_CLIENT_AT: Final = len(SESSION_PREFIX)
_ROW_AT: Final = len(PLAIN_LENGTH)
"""Where the outcome begins in its slot."""


class JournalBounds(NamedTuple):
    """How far the rows of sessions may be behind. Local: nothing logical hangs on it, and nodes may differ."""

    sessions: int = 1536
    """Sessions whose rows are behind; fewer than have their outcomes in memory, or each use would write a ring."""
    uses: int = 16_384
    """Records, about a megabyte: what a start replays, and in how many uses of all sessions a ring is written once."""
    rows: int = 4096


class JournalRow(NamedTuple):
    """A row of the journal in the store."""

    first: Index
    """Entry of its first use."""
    last: Index
    """Last entry of its group, which is in its key."""
    uses: int


class Outcomes:
    """
    The kept outcomes of a session, in one buffer.

    As objects of their own they would be four times as large, and each would come back into the processor's cache only
    to be forgotten. So what is seldom asked for, the outcome of one request, is looked for in the buffer.
    """

    __slots__ = ("codes", "highest", "ring")

    def __init__(self, rows: Sequence[bytes] = (), recorded: int = 0) -> None:
        """Take over what a session keeps of so many recorded outcomes, oldest first."""
        oldest = _oldest_slot(recorded)
        split = len(rows) - oldest
        self.ring = bytearray(pack_ring(row[:OUTCOME_CODE_AT] for row in (*rows[split:], *rows[:split])))
        """The n-th outcome in slot n modulo `OUTCOMES_KEPT`, without its code: as in a row of the store, but turned."""
        self.codes = {request_of(row): row[OUTCOME_CODE_AT:] for row in rows if len(row) > OUTCOME_CODE_AT}
        """Of requests that were refused."""
        self.highest = max(map(request_of, rows), default=-1)
        """No request above this one is in here."""

    def get(self, request_id: int) -> bytes | None:
        """The outcome of a request as it lies in a row, or None."""
        if request_id > self.highest:
            return None
        ring, wanted = self.ring, PLAIN_LENGTH + pack_i64(request_id)
        at = ring.find(wanted)
        while at >= 0:
            beyond = at % SLOT_BYTES
            if not beyond:
                row = bytes(ring[at + _ROW_AT : at + SLOT_BYTES])
                return row + self.codes.get(request_id, b"")
            at = ring.find(wanted, at - beyond + SLOT_BYTES)
        return None

    def __contains__(self, request_id: int) -> bool:
        return self.get(request_id) is not None

    def packed(self, recorded: int) -> bytes:
        """The row of the store, oldest first."""
        if self.codes:
            return pack_ring(self.rows(recorded))
        cut = _oldest_slot(recorded) * SLOT_BYTES
        return bytes(self.ring[cut:] + self.ring[:cut])

    def rows(self, recorded: int) -> list[bytes]:
        """The outcomes, oldest first."""
        cut = _oldest_slot(recorded) * SLOT_BYTES
        rows = parse_ring(bytes(self.ring[cut:] + self.ring[:cut]))
        return [row + self.codes.get(request_of(row), b"") for row in rows] if self.codes else rows


def _oldest_slot(recorded: int) -> int:
    """Where the oldest of the kept outcomes lies; the next one lies behind it, and at the end it goes on at slot 0."""
    return recorded % OUTCOMES_KEPT if recorded > OUTCOMES_KEPT else 0


class Session:
    """One session in memory."""

    __slots__ = ("before", "client_id", "forgotten", "last_index", "last_time_ms", "outcomes", "recorded")

    def __init__(self, client_id: bytes, head: _Head, outcomes: Outcomes | None) -> None:
        self.client_id = client_id
        self.head = head
        self.outcomes = outcomes
        """None if they are not in memory."""
        self.before: _Head | None = None
        """What an unfinished group goes back to; None for a session that it created."""

    @property
    def head(self) -> _Head:
        """What its row holds, in the order of `layout.Head`."""
        return self.recorded, self.forgotten, self.last_index, self.last_time_ms

    @head.setter
    def head(self, head: _Head) -> None:
        self.recorded, self.forgotten, self.last_index, self.last_time_ms = head

    @property
    def kept(self) -> int:
        """How many outcomes are kept."""
        return min(self.recorded, OUTCOMES_KEPT)

    def note(self, request_id: int, row: bytes) -> None:
        """Take in an outcome; the oldest one beyond the ring is forgotten."""
        outcomes, recorded = self.outcomes, self.recorded
        assert outcomes is not None, "a session in use has its outcomes in memory"
        self.recorded = recorded + 1
        if recorded < OUTCOMES_KEPT:
            outcomes.ring += PLAIN_LENGTH + row[:OUTCOME_CODE_AT]
        else:
            begin = recorded % OUTCOMES_KEPT * SLOT_BYTES + _ROW_AT
            oldest = unpack_request(outcomes.ring, begin)[0]
            if oldest > self.forgotten:  # noqa: PLR1730 - a call of max costs as much as the rest
                self.forgotten = oldest
            if outcomes.codes:
                outcomes.codes.pop(oldest, None)
            outcomes.ring[begin : begin + OUTCOME_CODE_AT] = row[:OUTCOME_CODE_AT]
        if len(row) > OUTCOME_CODE_AT:
            outcomes.codes[request_id] = row[OUTCOME_CODE_AT:]
        if request_id > outcomes.highest:  # noqa: PLR1730 - a call of max costs more than all of this
            outcomes.highest = request_id


def outcomes_stored(view: View, client_id: bytes, recorded: int) -> tuple[list[bytes], bool]:
    """The outcomes of a session as its rows have them, oldest first, and whether they are rows of format 1."""
    ring = view.get(RING_PREFIX + client_id)
    if ring is not None:
        rows = parse_ring(ring)
    else:
        prefix = OUTCOME_PREFIX + client_id
        rows = [row for _, row in view.iterate(prefix, prefix + SLOTS_END)]
        first = _oldest_slot(recorded)
        rows = rows[first:] + rows[:first]
    if len(rows) != min(recorded, OUTCOMES_KEPT):
        msg = f"a session of {recorded} outcomes has {len(rows)} in its rows"
        raise AssertionError(msg)
    return rows, ring is None


class Replay:
    """Reads the journal of a view: what its sessions are beyond their own rows."""

    def __init__(self, view: View, wanted: Container[bytes] | None = None) -> None:
        """Nothing is read yet; with ``wanted`` only these clients count."""
        self.sessions: dict[bytes, Session | None] = {}
        """Who is not what the rows of the session say; None if forgotten."""
        self.behind: dict[bytes, Index] = {}
        """Whose rows are behind, and since which row of the journal; oldest first."""
        self.rows: list[JournalRow] = []
        self._view = view
        self._wanted = wanted
        self._covered: dict[bytes, Index] = {}

    def run(self, begin: bytes = USES_PREFIX) -> Iterator[None]:
        """Read all rows from a key on; yields after each."""
        for key, row in self._view.iterate(begin, USES_PREFIX_END):
            index = int.from_bytes(key[len(USES_PREFIX) :], "big")
            uses = list(parse_uses(row))
            if not uses:
                msg = f"the row of uses at entry {index} is empty"
                raise LocalError(msg)
            for use in uses:
                if self._wanted is None or use.client_id in self._wanted:
                    self._take(use, index)
            self.rows.append(JournalRow(uses[0].entry, index, len(uses)))
            yield None

    def _take(self, use: Use, index: Index) -> None:
        client_id = use.client_id
        covered = self._covered.get(client_id)
        if covered is None:
            head = self._view.get(SESSION_PREFIX + client_id)
            covered = self._covered[client_id] = 0 if head is None else unpack_head(head).last_index
        if use.entry <= covered:
            return
        if use.kind == USE_FORGOTTEN:
            self.sessions[client_id] = None
            self.behind.pop(client_id, None)
            return
        session = self.sessions.get(client_id)
        if session is None:
            session = self._begin(client_id)
            self.sessions[client_id] = session
            self.behind[client_id] = index
        session.last_index = use.entry
        session.last_time_ms = use.time_ms
        if use.outcome:
            session.note(request_of(use.outcome), use.outcome)

    def _begin(self, client_id: bytes) -> Session:
        """The session that the first use which counts meets: a forgotten one has no row any more."""
        row = None if client_id in self.sessions else self._view.get(SESSION_PREFIX + client_id)
        if row is None:
            return Session(client_id, Head(), Outcomes())
        head = unpack_head(row)
        rows, _ = outcomes_stored(self._view, client_id, head.recorded)
        return Session(client_id, head, Outcomes(rows, head.recorded))


def session_content(view: View) -> Iterator[tuple[bytes, bytes] | None]:
    """
    What the sessions of a view are, as rows of format 1: equal for equal sessions, wherever the journal was cut.

    Outcomes by client and slot, then heads; None where the caller may pause.
    """
    replay = Replay(view)
    yield from replay.run()
    for client_id, row in _heads(view, replay.sessions):
        session = replay.sessions.get(client_id)
        recorded = unpack_head(row).recorded
        if session is None:
            outcomes, _ = outcomes_stored(view, client_id, recorded)
        else:
            assert session.outcomes is not None, "a replay has the outcomes of whom it tells of"
            outcomes = session.outcomes.rows(recorded)
        split = len(outcomes) - _oldest_slot(recorded)
        for slot, outcome in zip(SLOTS, outcomes[split:] + outcomes[:split], strict=False):
            yield OUTCOME_PREFIX + client_id + slot, outcome
    for client_id, row in _heads(view, replay.sessions):
        yield SESSION_PREFIX + client_id, row


def _heads(view: View, changed: dict[bytes, Session | None]) -> Iterator[tuple[bytes, bytes]]:
    """Client ids and heads of all sessions, in order."""
    stored = ((key[_CLIENT_AT:], row) for key, row in view.iterate(SESSION_PREFIX, SESSION_PREFIX_END))
    return merge(
        (found for found in stored if found[0] not in changed),
        sorted((client_id, pack_head(*session.head)) for client_id, session in changed.items() if session is not None),
    )
