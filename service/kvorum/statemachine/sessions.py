"""
Sessions: what makes a write that is sent twice take effect once (contract section 5.4).

A session remembers the latest outcomes of one client id, and when it was last used. All of it is replicated state:
equal logs give equal sessions. In memory there is one small object per session, and the outcomes of those used last, so
that a request costs no read of the store. In the store a group leaves one row with its uses, and now and then the rows
of sessions that fell behind (`journal`).

What a group stages here counts only once the group is written: `begin` undoes whatever an unfinished group left.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import chain, islice
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from kvorum.statemachine.journal import JournalBounds, JournalRow, Outcomes, Replay, Session, outcomes_stored
from kvorum.statemachine.layout import (
    FORMAT_KEY,
    FORMAT_ROW,
    OUTCOME_PREFIX,
    OUTCOME_PREFIX_END,
    RING_PREFIX,
    SESSION_PREFIX,
    SESSION_PREFIX_END,
    SESSIONS_MAX_KEY,
    SLOTS,
    USE_APPLIED,
    USE_FORGOTTEN,
    USE_REFUSED,
    USE_REPEATED,
    USES_PREFIX,
    Head,
    pack_head,
    pack_outcome,
    pack_u32,
    pack_u64,
    pack_use,
    unpack_head,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvorum.core.ids import Index
    from kvorum.core.ports import StorageEngine, WriteBatch

SESSIONS_MAX: Final = 100_000
"""Sessions kept until the log says otherwise. Part of the format: every replica must count the same."""

RINGS_LOADED_MAX: Final = 2048
"""Sessions whose outcomes are in memory: 5 KB each, or a few more if requests were refused."""

FORGET_ROWS_MAX: Final = 4096
"""
What one maintenance entry removes, some milliseconds; the rest goes with the next one. Part of the format.

Counted in outcomes and heads, which were once a row each: every replica must stop at the same session.
"""

JOURNAL_BOUNDS: Final = JournalBounds()
_last_index: Final = attrgetter("last_index")


class Sessions:
    """All sessions of a store; see the module text."""

    def __init__(self, engine: StorageEngine, bounds: JournalBounds = JOURNAL_BOUNDS) -> None:
        """Read the sessions of a store, but for the outcomes of those whose rows are up to date."""
        self._engine = engine
        self._bounds = bounds
        bound = engine.get(SESSIONS_MAX_KEY)
        self.maximum = SESSIONS_MAX if bound is None else int.from_bytes(bound, "big")
        self._old_format = engine.get(FORMAT_KEY) != FORMAT_ROW
        self._old_rows = next(iter(engine.iterate(OUTCOME_PREFIX, OUTCOME_PREFIX_END)), None) is not None
        """There may be outcomes as format 1 kept them, of sessions that were not used since."""
        at = len(SESSION_PREFIX)
        found = {
            key[at:]: Session(key[at:], unpack_head(row), None)
            for key, row in engine.iterate(SESSION_PREFIX, SESSION_PREFIX_END)
        }
        replay = Replay(engine)
        for _ in replay.run():
            pass
        for client_id, session in replay.sessions.items():
            if session is not None:
                found[client_id] = session
            else:
                found.pop(client_id, None)
        ordered = sorted(found.values(), key=_last_index)
        self._all = OrderedDict((session.client_id, session) for session in ordered)
        """Least recently used first."""
        self._loaded = OrderedDict((each.client_id, each) for each in ordered if each.outcomes is not None)
        self._behind = replay.behind
        """Whose rows are behind, and since which row of the journal; oldest first."""
        self._journal = deque(replay.rows)
        self._journal_uses = sum(row.uses for row in replay.rows)
        self.touched: dict[bytes, Session] = {}
        """Sessions that the group at hand has used."""
        self.uses: list[bytes] = []
        """Records of what it did with them."""
        self._dropped: set[bytes] = set()
        self._created = 0
        self._walk: Iterator[Session] | None = None
        self._candidate: Session | None = None
        self._batch: WriteBatch | None = None
        self._new_maximum: int | None = None
        self._newly_behind = 0
        self._outdated: list[Session] = []
        """Touched, and their rows are of format 1."""
        self._written: set[bytes] = set()
        """Whose rows the group writes."""
        self._cut = 0
        """Rows of the journal that the group deletes."""
        self._new_row: JournalRow | None = None

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

    def stage_rows(self, index: Index) -> None:
        """Put what the group that ends with this entry changed."""
        assert self._batch is not None
        put = self._batch.put
        if self._old_format:
            put(FORMAT_KEY, FORMAT_ROW)
        if self.uses:
            self._stage_uses(index)
        if self._new_maximum is not None:
            put(SESSIONS_MAX_KEY, pack_u32(self._new_maximum))

    def adopt(self) -> None:
        """The group is written: what it staged counts."""
        if self._new_maximum is not None:
            self.maximum = self._new_maximum
        self._old_format = False
        everyone, loaded, behind, written = self._all, self._loaded, self._behind, self._written
        for client_id in self._dropped:
            del everyone[client_id]
            loaded.pop(client_id, None)
            behind.pop(client_id, None)
        for client_id in written:
            behind.pop(client_id, None)
        self._adopt_journal()
        row = 0 if self._new_row is None else self._new_row.last
        last_of_all, last_loaded = everyone.move_to_end, loaded.move_to_end
        for session in sorted(self.touched.values(), key=_last_index):
            client_id = session.client_id
            if client_id not in behind and client_id not in written:
                behind[client_id] = row
            if session.before is None:
                everyone[client_id] = loaded[client_id] = session
                continue
            session.before = None
            last_of_all(client_id)
            if client_id in loaded:
                last_loaded(client_id)
            else:
                loaded[client_id] = session
        excess = len(loaded) - RINGS_LOADED_MAX
        if excess > 0:
            # Who is behind stays: the outcomes are in no ring yet. They are always few.
            for client_id in list(islice((each for each in loaded if each not in behind), excess)):
                loaded.pop(client_id).outcomes = None
        self._clear(None)

    def _adopt_journal(self) -> None:
        for _ in range(self._cut):
            self._journal_uses -= self._journal.popleft().uses
        if self._new_row is not None:
            self._journal.append(self._new_row)
            self._journal_uses += self._new_row.uses

    def _clear(self, batch: WriteBatch | None) -> None:
        self._batch = batch
        self.touched.clear()
        self.uses.clear()
        self._dropped.clear()
        self._created = 0
        self._walk = None
        self._candidate = None
        self._new_maximum = None
        self._newly_behind = 0
        self._outdated.clear()
        self._written.clear()
        self._cut = 0
        self._new_row = None

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _stage_uses(self, index: Index) -> None:
        """Put the journal's row of the group, after rows of sessions if too many are behind."""
        assert self._batch is not None
        bounds = self._bounds
        current = False
        if (
            len(self._behind) + self._newly_behind > bounds.sessions
            or self._journal_uses + len(self.uses) > bounds.uses
            or len(self._journal) >= bounds.rows
        ):
            current = self._catch_up(index)
        for session in self._outdated:
            if self.touched.get(session.client_id) is session and session.client_id not in self._written:
                self._put_session(session)
        if not current:
            self._batch.put(USES_PREFIX + pack_u64(index), b"".join(self.uses))
            first = int.from_bytes(self.uses[0][1:9], "big")
            self._new_row = JournalRow(first, index, len(self.uses))

    def _catch_up(self, index: Index) -> bool:
        """
        Write the rows of sessions that are behind for longest, and cut the journal before what still counts of it.

        Only as many as the bounds demand: so the work is spread over the groups, and a session that is used all the
        time is written once in many uses. Returns whether nothing of the journal counts any more, this group included.
        """
        assert self._batch is not None
        bounds, journal, behind, dropped = self._bounds, self._journal, self._behind, self._dropped
        late = [client_id for client_id in self.touched if client_id not in behind or client_id in dropped]
        sessions = len(behind) - len(behind.keys() & dropped) + len(late)
        uses, rows, cut = self._journal_uses + len(self.uses), len(journal) + 1, 0
        current = True
        for client_id, since in chain(
            ((each, row) for each, row in behind.items() if each not in dropped), ((each, index) for each in late)
        ):
            while cut < len(journal) and journal[cut].last < since:
                uses -= journal[cut].uses
                rows -= 1
                cut += 1
            if sessions <= bounds.sessions and uses <= bounds.uses and rows <= bounds.rows:
                current = False
                break
            self._put_session(self.touched.get(client_id) or self._all[client_id])
            sessions -= 1
        self._cut = len(journal) if current else cut
        for row in islice(journal, self._cut):
            self._batch.delete(USES_PREFIX + pack_u64(row.last))
        return current

    def _put_session(self, session: Session) -> None:
        """Put head and ring of a session as it is at the end of the group."""
        assert self._batch is not None
        if session.outcomes is None:
            self._load(session)
        assert session.outcomes is not None
        client_id = session.client_id
        self._delete_old_rows(session)
        head = pack_head(session.recorded, session.forgotten, session.last_index, session.last_time_ms)
        self._batch.put(SESSION_PREFIX + client_id, head)
        self._batch.put(RING_PREFIX + client_id, session.outcomes.packed(session.recorded))
        self._written.add(client_id)

    def _delete_old_rows(self, session: Session) -> None:
        """Remove what format 1 kept of a session: it is there as long as there is no ring."""
        if self._old_rows and self._engine.get(RING_PREFIX + session.client_id) is None:
            assert self._batch is not None
            for slot in SLOTS[: session.kept]:
                self._batch.delete(OUTCOME_PREFIX + session.client_id + slot)

    # --- use ----------------------------------------------------------------------------------------------------------

    def use(self, client_id: bytes, index: Index, time_ms: int) -> Session:
        """The session of a client, made if there is none, with its outcomes in memory; it counts as used just now."""
        session = self.touched.get(client_id)
        if session is None:
            session = None if client_id in self._dropped else self._all.get(client_id)
            if session is None:
                if self._alive >= (self.maximum if self._new_maximum is None else self._new_maximum):
                    self._forget_oldest(index)
                session = Session(client_id, Head(), Outcomes())
                self._created += 1
            else:
                session.before = (session.recorded, session.forgotten, session.last_index, session.last_time_ms)
                if session.outcomes is None:
                    self._load(session)
            if client_id not in self._behind or client_id in self._dropped:
                self._newly_behind += 1
            self.touched[client_id] = session
        session.last_index = index
        session.last_time_ms = time_ms
        return session

    def _load(self, session: Session) -> None:
        """Bring the outcomes of a session into memory, as they were before the group."""
        if session.client_id not in self._behind:
            rows, old = outcomes_stored(self._engine, session.client_id, session.recorded)
            session.outcomes = Outcomes(rows, session.recorded)
            if old:
                self._outdated.append(session)
            return
        # Only a group that was not written makes this happen, and mostly to many sessions: one pass serves all.
        wanted = {each for each in self._behind if self._all[each].outcomes is None}
        replay = Replay(self._engine, wanted)
        for _ in replay.run(USES_PREFIX + pack_u64(self._journal[0].last)):
            pass
        for client_id in wanted:
            found, missing = replay.sessions.get(client_id), self._all[client_id]
            if found is None or found.head != missing.head:
                msg = f"a session is {missing.head} in memory and {found and found.head} in the store"
                raise AssertionError(msg)
            missing.outcomes = found.outcomes
            self._loaded[client_id] = missing

    def record(self, session: Session, request_id: int, digest: bytes, code: str) -> None:
        """Keep the outcome of a request that the newest use of its session decided: no ``code`` if it was applied."""
        index = session.last_index
        row = pack_outcome(request_id, index, digest, code)
        kind = USE_REFUSED if code else USE_APPLIED
        self.uses.append(pack_use(kind, index, session.last_time_ms, session.client_id, row))
        session.note(request_id, row)

    def repeat(self, session: Session) -> None:
        """The newest use of a session decided nothing: its request was known, or is forgotten."""
        self.uses.append(pack_use(USE_REPEATED, session.last_index, session.last_time_ms, session.client_id))

    # --- forgetting ---------------------------------------------------------------------------------------------------

    @property
    def _alive(self) -> int:
        return len(self._all) - len(self._dropped) + self._created

    def maintain(self, index: Index, idle_before_ms: int, maximum: int) -> int:
        """Forget who was idle for too long and who is too many, least recently used first; returns what it removed."""
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
            removed += self._forget_oldest(index)
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

    def _forget_oldest(self, index: Index) -> int:
        """Remove the least recently used session; returns how many outcomes and heads that are."""
        session = self._oldest()
        if session is None:
            return 0
        assert self._batch is not None
        client_id = session.client_id
        # Row by row: a range tombstone for each would be in the way of every read.
        kept = session.kept
        self._delete_old_rows(session)
        self._batch.delete(RING_PREFIX + client_id)
        self._batch.delete(SESSION_PREFIX + client_id)
        used = self.touched.pop(client_id, None)
        if used is not None or (self._journal and session.last_index >= self._journal[0].first):
            # The journal may know it, also from before its rows were written; without them it would come back.
            self.uses.append(pack_use(USE_FORGOTTEN, index, 0, client_id))
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
