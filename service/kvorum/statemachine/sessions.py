"""
Sessions: what makes a write that is sent twice take effect once (contract section 5.4).

A session remembers the latest outcomes of one client id in a ring of rows, and when it was last used. All of it is
replicated state: equal logs give equal rows. In memory there is one small object per session, and the outcomes of those
used last, so that a request costs no read of the store.

What a group stages here counts only once the group is written: `begin` undoes whatever an unfinished group left.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from operator import attrgetter
from typing import TYPE_CHECKING, Final, TypeAlias

from kvorum.core.codec import IDENTIFIED, IDENTITY_BYTES
from kvorum.core.errors import ErrorCode, Refusal
from kvorum.core.operations import Applied, AtomicCommit, MutationKind
from kvorum.statemachine.layout import (
    OUTCOME_CODE_AT,
    OUTCOME_DIGEST_AT,
    OUTCOME_PREFIX,
    OUTCOMES_KEPT,
    SESSION_PREFIX,
    SESSION_PREFIX_END,
    SESSIONS_MAX_KEY,
    SLOTS,
    SLOTS_END,
    Head,
    pack_head,
    pack_outcome,
    pack_u32,
    pack_u64,
    stamped,
    unpack_head,
    unpack_outcome,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvorum.core.ids import Index
    from kvorum.core.operations import WriteOperation
    from kvorum.core.ports import StorageEngine, WriteBatch

SESSIONS_MAX: Final = 100_000
"""Sessions kept until the log says otherwise. Part of the format: every replica must count the same."""

RINGS_LOADED_MAX: Final = 2048
"""Sessions whose outcomes are in memory: 22 KB each at most."""

FORGET_ROWS_MAX: Final = 4096
"""Rows one maintenance entry removes, some milliseconds; the rest goes with the next one. Part of the format."""

DIGEST_BYTES: Final = 16

_Head: TypeAlias = tuple[int, int, int, int]
_last_index: Final = attrgetter("last_index")


class Session:
    """One session in memory."""

    __slots__ = ("before", "client_id", "forgotten", "last_index", "last_time_ms", "outcomes", "recorded")

    def __init__(self, client_id: bytes, head: _Head, outcomes: dict[int, bytes] | None) -> None:
        self.client_id = client_id
        self.head = head
        self.outcomes = outcomes
        """Rows of the kept outcomes by request id, oldest first; None if they are not in memory."""
        self.before: _Head | None = None
        """What an unfinished group goes back to; None for a session that it created."""

    @property
    def head(self) -> _Head:
        """What its row holds, in the order of `layout.Head`."""
        return self.recorded, self.forgotten, self.last_index, self.last_time_ms

    @head.setter
    def head(self, head: _Head) -> None:
        self.recorded, self.forgotten, self.last_index, self.last_time_ms = head

    def note(self, request_id: int, row: bytes) -> None:
        """Take in an outcome; the oldest one beyond the ring is forgotten."""
        outcomes = self.outcomes
        assert outcomes is not None, "a session in use has its outcomes in memory"
        outcomes[request_id] = row
        self.recorded += 1
        if len(outcomes) > OUTCOMES_KEPT:
            oldest = next(iter(outcomes))
            del outcomes[oldest]
            self.forgotten = max(self.forgotten, oldest)


class Sessions:
    """All sessions of a store; see the module text."""

    def __init__(self, engine: StorageEngine) -> None:
        """Read the sessions of a store, but for their outcomes."""
        self._engine = engine
        bound = engine.get(SESSIONS_MAX_KEY)
        self.maximum = SESSIONS_MAX if bound is None else int.from_bytes(bound, "big")
        at = len(SESSION_PREFIX)
        found = [
            Session(key[at:], unpack_head(row), None) for key, row in engine.iterate(SESSION_PREFIX, SESSION_PREFIX_END)
        ]
        found.sort(key=_last_index)
        self._all = OrderedDict((session.client_id, session) for session in found)
        """Least recently used first."""
        self._loaded: OrderedDict[bytes, Session] = OrderedDict()
        self.touched: dict[bytes, Session] = {}
        """Sessions that the group at hand has used."""
        self._dropped: set[bytes] = set()
        self._created = 0
        self._walk: Iterator[Session] | None = None
        self._candidate: Session | None = None
        self._batch: WriteBatch | None = None
        self._new_maximum: int | None = None

    def __len__(self) -> int:
        """Sessions that exist."""
        return len(self._all)

    def oldest_time_ms(self) -> int | None:
        """Entry time of the last use of the session that was not used for longest; None without sessions."""
        for session in self._all.values():
            return session.last_time_ms
        return None

    # --- life of a group ----------------------------------------------------------------------------------------------

    def begin(self, batch: WriteBatch) -> None:
        """Begin a group whose rows go into ``batch``; one that was staged before and not finished is undone."""
        if self.touched or self._dropped:
            for client_id, session in self.touched.items():
                stored = self._loaded.pop(client_id, session)
                stored.outcomes = session.outcomes = None
                if session.before is not None:
                    session.head = session.before
        self._clear(batch)

    def stage_rows(self) -> None:
        """Put what the group changed, but for the outcomes, which are staged already."""
        assert self._batch is not None
        put = self._batch.put
        for client_id, session in self.touched.items():
            row = pack_head(session.recorded, session.forgotten, session.last_index, session.last_time_ms)
            put(SESSION_PREFIX + client_id, row)
        if self._new_maximum is not None:
            put(SESSIONS_MAX_KEY, pack_u32(self._new_maximum))

    def adopt(self) -> None:
        """The group is written: what it staged counts."""
        if self._new_maximum is not None:
            self.maximum = self._new_maximum
        everyone, loaded = self._all, self._loaded
        for client_id in self._dropped:
            del everyone[client_id]
            loaded.pop(client_id, None)
        last_of_all, last_loaded = everyone.move_to_end, loaded.move_to_end
        for session in sorted(self.touched.values(), key=_last_index):
            client_id = session.client_id
            if session.before is None:
                everyone[client_id] = loaded[client_id] = session
                continue
            session.before = None
            last_of_all(client_id)
            if client_id in loaded:
                last_loaded(client_id)
            else:
                loaded[client_id] = session
        while len(loaded) > RINGS_LOADED_MAX:
            loaded.popitem(last=False)[1].outcomes = None
        self._clear(None)

    def _clear(self, batch: WriteBatch | None) -> None:
        self._batch = batch
        self.touched.clear()
        self._dropped.clear()
        self._created = 0
        self._walk = None
        self._candidate = None
        self._new_maximum = None

    # --- use ----------------------------------------------------------------------------------------------------------

    def use(self, client_id: bytes, index: Index, time_ms: int) -> Session:
        """The session of a client, made if there is none, with its outcomes in memory; it counts as used just now."""
        session = self.touched.get(client_id)
        if session is None:
            session = None if client_id in self._dropped else self._all.get(client_id)
            if session is None:
                if self._alive >= (self.maximum if self._new_maximum is None else self._new_maximum):
                    self._forget_oldest()
                session = Session(client_id, Head(), {})
                self._created += 1
            else:
                session.before = (session.recorded, session.forgotten, session.last_index, session.last_time_ms)
                if session.outcomes is None:
                    session.outcomes = self._read_outcomes(session)
            self.touched[client_id] = session
        session.last_index = index
        session.last_time_ms = time_ms
        return session

    def _read_outcomes(self, session: Session) -> dict[int, bytes]:
        """The ring of a session, oldest first."""
        prefix = OUTCOME_PREFIX + session.client_id
        rows = [row for _, row in self._engine.iterate(prefix, prefix + SLOTS_END)]
        if len(rows) != min(session.recorded, OUTCOMES_KEPT):
            msg = f"a session of {session.recorded} outcomes has {len(rows)} rows"
            raise AssertionError(msg)
        first = session.recorded % OUTCOMES_KEPT if session.recorded > OUTCOMES_KEPT else 0
        return {unpack_outcome(row).request_id: row for row in rows[first:] + rows[:first]}

    def record(self, session: Session, request_id: int, version: Index, digest: bytes, code: str) -> None:
        """Keep the outcome of a request: ``code`` is empty if it was applied."""
        assert self._batch is not None
        row = pack_outcome(request_id, version, digest, code)
        self._batch.put(OUTCOME_PREFIX + session.client_id + SLOTS[session.recorded % OUTCOMES_KEPT], row)
        session.note(request_id, row)

    # --- forgetting ---------------------------------------------------------------------------------------------------

    @property
    def _alive(self) -> int:
        return len(self._all) - len(self._dropped) + self._created

    def maintain(self, idle_before_ms: int, maximum: int) -> int:
        """Forget who was idle for too long and who is too many, least recently used first; returns rows removed."""
        if maximum < 1:
            msg = f"a maintenance entry allows {maximum} sessions; the node must stop"
            raise AssertionError(msg)
        if maximum != self.maximum or self._new_maximum is not None:
            self._new_maximum = maximum
        removed = 0
        while removed < FORGET_ROWS_MAX:
            oldest = self._oldest()
            if oldest is None or (oldest.last_time_ms >= idle_before_ms and self._alive <= maximum):
                break
            removed += self._forget_oldest()
        return removed

    def _oldest(self) -> Session | None:
        """The least recently used session, the group's own doings included."""
        if self._walk is None:
            self._walk = iter(self._all.values())
        touched, dropped = self.touched, self._dropped
        candidate = self._candidate
        while candidate is None or candidate.client_id in touched or candidate.client_id in dropped:
            candidate = next(self._walk, None)
            if candidate is None:
                self._candidate = None
                return min(touched.values(), key=_last_index, default=None)
        self._candidate = candidate
        return candidate

    def _forget_oldest(self) -> int:
        """Remove the least recently used session; returns how many rows it had."""
        session = self._oldest()
        if session is None:
            return 0
        assert self._batch is not None
        client_id = session.client_id
        delete = self._batch.delete
        # Row by row: a range tombstone for each would be in the way of every read.
        kept = min(session.recorded, OUTCOMES_KEPT)
        for slot in SLOTS[:kept]:
            delete(OUTCOME_PREFIX + client_id + slot)
        delete(SESSION_PREFIX + client_id)
        used = self.touched.pop(client_id, None)
        if used is None or used.before is not None:
            self._dropped.add(client_id)
        else:
            self._created -= 1
        if used is not None and used.before is not None:
            # Only its place in the store goes; an undone group must find it as it was.
            used.head = used.before
            used.outcomes = None
            self._loaded.pop(client_id, None)
        return kept + 1


def digest_of(record: bytes, opcode_at: int) -> bytes:
    """Digest of an identified operation, which ends the record: its opcode and 15 bytes of the BLAKE2b of its body."""
    body = record[opcode_at + 1 + IDENTITY_BYTES :]
    return bytes((record[opcode_at] & ~IDENTIFIED,)) + blake2b(body, digest_size=DIGEST_BYTES - 1).digest()


def known_outcome(
    session: Session, request_id: int, digest: bytes, operation: WriteOperation
) -> Applied | Refusal | None:
    """What a request gets without being applied: its first outcome, or a refusal if it cannot be told; None if new."""
    assert session.outcomes is not None
    row = session.outcomes.get(request_id)
    if row is None:
        if request_id > session.forgotten:
            return None
        text = (
            f"request {request_id} of this client_id is no longer remembered (everything up to {session.forgotten} "
            "is forgotten, but for what is kept); read what it should have done, then use a higher request_id"
        )
        return Refusal(ErrorCode.INVALID_ARGUMENT, text)
    if row[OUTCOME_DIGEST_AT:OUTCOME_CODE_AT] != digest:
        text = f"request {request_id} of this client_id was another operation; use a new request_id for each operation"
        return Refusal(ErrorCode.INVALID_ARGUMENT, text)
    first = unpack_outcome(row)
    if first.code:
        text = f"this repeats request {request_id}, which version {first.version} refused with {first.code}"
        return Refusal(first.code, text)
    keys: list[bytes] = []
    values: list[bytes] = []
    version = pack_u64(first.version)
    mutations = operation.mutations if isinstance(operation, AtomicCommit) else (operation,)
    for kind, _, key, value in mutations:
        if kind == MutationKind.VERSIONSTAMPED_KEY:
            keys.append(stamped(key, version, len(keys) + len(values)))
        elif kind == MutationKind.VERSIONSTAMPED_VALUE:
            values.append(stamped(value, version, len(keys) + len(values)))
    return Applied(tuple(keys), tuple(values), first.version)
