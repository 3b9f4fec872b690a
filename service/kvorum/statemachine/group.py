"""
One applied group: a write batch, the overlay of what it will do, and one outcome per entry.

Nothing of the group can be seen until `finish` has written its batch; a group that is dropped has changed nothing. The
common cases, a plain set or delete and an identified set in the default family, are tight loops that cut the rows
straight out of the log record; everything else is decoded first.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from kvorum.core.codec import IDENTIFIED, IDENTITY_BYTES, TAG_BYTES, decode_operation, identity_of
from kvorum.core.entries import HEADER_BYTES, EntryKind
from kvorum.core.errors import ErrorCode, LocalError, Refusal
from kvorum.core.maintenance import Maintenance
from kvorum.core.operations import APPLIED, Applied, AtomicCommit, Mutation, MutationKind
from kvorum.statemachine.conflicts import ConflictCheck
from kvorum.statemachine.layout import (
    CHANGES_ROW_BYTES_MAX,
    CURRENT_DEFAULT,
    FAMILY_PREFIX,
    HISTORY_DEFAULT,
    IN_HISTORY,
    INLINE_VALUE_BYTES_MAX,
    KIND_DELETE,
    KIND_SET,
    STAMP_BYTES,
    STATE_KEY,
    TOMBSTONE,
    USE_APPLIED,
    VERSION_LIMIT,
    StateRow,
    change_record,
    changes_key,
    pack_family,
    pack_state,
    pack_u32,
    stamped,
)
from kvorum.statemachine.retries import digest_of, known_outcome, new_digest

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from kvorum.core.entries import Entry
    from kvorum.core.ids import Index
    from kvorum.core.operations import WriteOperation
    from kvorum.core.ports import StorageEngine
    from kvorum.statemachine.families import FamilyCatalogue, FamilyEntry
    from kvorum.statemachine.sessions import Sessions

SLICE_WORK: Final = 250
"""Work between two yields, in mutations: about a millisecond."""

OTHER_WORK: Final = 4
"""Work of decoding and dispatching an entry that is not plain."""

RANGE_WORK: Final = 16
"""Work of checking a short conflict range: two iterators."""

_OPCODE_AT: Final = HEADER_BYTES + TAG_BYTES
_KEY_LENGTH_AT: Final = _OPCODE_AT + 2
_KEY_AT: Final = _KEY_LENGTH_AT + 4
_PLAIN_HEAD: Final = struct.Struct(">HI")
"""Opcode and family length as one number, then the key length."""
_SET: Final = MutationKind.SET
_DELETE: Final = MutationKind.DELETE
_PLAIN_SET: Final = MutationKind.SET << 8
_PLAIN_DELETE: Final = MutationKind.DELETE << 8
_IDENTIFIED_SET: Final = MutationKind.SET | IDENTIFIED
_IDENTIFIED_HEAD: Final = struct.Struct(">16sqBI")
"""Client id, request id, family length, key length, behind the opcode."""
_CLIENT_AT: Final = _OPCODE_AT + 1
_REQUEST_AT: Final = _CLIENT_AT + 16
_BODY_AT: Final = _CLIENT_AT + IDENTITY_BYTES
_IDENTIFIED_KEY_LENGTH_AT: Final = _BODY_AT + 1
_IDENTIFIED_KEY_AT: Final = _IDENTIFIED_KEY_LENGTH_AT + 4
_SET_BYTE: Final = bytes((MutationKind.SET,))
_COMMAND: Final = EntryKind.COMMAND
_unpack_identified = _IDENTIFIED_HEAD.unpack_from
_unpack_plain = _PLAIN_HEAD.unpack_from
_INDEX_AT: Final = 13
_INDEX_END: Final = 21
"""The index in a record; the time follows and ends the header, as in a record of a use."""


class ApplyGroup:
    """The entries of one group on their way into the store. Stage every entry in order, then `finish`."""

    def __init__(self, engine: StorageEngine, families: FamilyCatalogue, sessions: Sessions, state: StateRow) -> None:
        self._engine = engine
        self._catalogue = families
        self._sessions = sessions
        self._state = state
        self._low_watermark = state.low_watermark
        self._batch = engine.batch()
        self._put = self._batch.put
        sessions.begin(self._batch)
        self._last_commit_version = state.last_commit_version
        self._changes: list[bytes] = []
        self._conflicts: ConflictCheck | None = None
        self.outcomes: list[Applied | Refusal | None] = []
        self.new_families: dict[bytes, FamilyEntry] = {}
        self.mutations = 0
        self.work = 0
        """Work done so far, in mutations; the executor paces itself by it."""
        self.refusals = 0
        self.conflicts = 0
        self.retries = 0
        self.large_bytes = 0
        """Bytes of values that are too large to be in `current` too."""

    def stage_plain(self, entries: Sequence[Entry], start: int, stop: int) -> int:
        """
        Stage entries from ``start`` while they are plain sets and deletes in the default family, at most to ``stop``.

        Returns:
            Position of the first entry that was not staged.
        """
        put = self._put
        changes = self._changes
        note = changes.append
        noted = len(changes)
        for entry in entries[start:stop]:
            if entry.kind != _COMMAND:
                break
            record = entry.record
            head, key_bytes = _unpack_plain(record, _OPCODE_AT)
            end = _KEY_AT + key_bytes
            version = record[_INDEX_AT:_INDEX_END]
            if head == _PLAIN_SET:
                value = record[end:]
                if len(value) <= INLINE_VALUE_BYTES_MAX:
                    if not value and end > len(record):
                        raise _cut_short(entry)
                    put(CURRENT_DEFAULT + record[_KEY_AT:end], version + value)
                else:
                    self.large_bytes += len(value)
                    put(CURRENT_DEFAULT + record[_KEY_AT:end], IN_HISTORY + version[1:])
                put(HISTORY_DEFAULT + record[_KEY_LENGTH_AT:end] + version + KIND_SET, value)
            elif head == _PLAIN_DELETE:
                if end > len(record):
                    raise _cut_short(entry)
                put(CURRENT_DEFAULT + record[_KEY_AT:end], TOMBSTONE + version[1:])
                put(HISTORY_DEFAULT + record[_KEY_LENGTH_AT:end] + version + KIND_DELETE, b"")
            else:
                break
            note(version + record[_OPCODE_AT:end])
        staged = len(changes) - noted
        if staged:
            start += staged
            self.mutations += staged
            self.work += staged
            self.outcomes += [APPLIED] * staged
            self._last_commit_version = entries[start - 1].index
        return start

    def stage_identified(self, entries: Sequence[Entry], start: int, stop: int) -> int:
        """
        Stage entries from ``start`` while they are new identified sets in the default family, at most to ``stop``.

        Returns:
            Position of the first entry that was not staged.
        """
        put, sessions, touched = self._put, self._sessions, self._sessions.touched
        note, used = self._changes.append, sessions.uses.append
        staged = 0
        for entry in entries[start:stop]:
            record = entry.record
            if entry.kind != _COMMAND or record[_OPCODE_AT] != _IDENTIFIED_SET:
                break
            client_id, request_id, family_bytes, key_bytes = _unpack_identified(record, _CLIENT_AT)
            end = _IDENTIFIED_KEY_AT + key_bytes
            value = record[end:]
            if family_bytes or (not value and end > len(record)):
                break
            session = touched.get(client_id)
            if session is None:
                session = sessions.use(client_id, entry.index, entry.time_ms)
            else:
                session.last_index = entry.index
                session.last_time_ms = entry.time_ms
            outcomes = session.outcomes
            if outcomes is None or request_id <= session.forgotten:
                break
            if request_id <= outcomes.highest and request_id in outcomes:
                break
            version = record[_INDEX_AT:_INDEX_END]
            if len(value) <= INLINE_VALUE_BYTES_MAX:
                put(CURRENT_DEFAULT + record[_IDENTIFIED_KEY_AT:end], version + value)
            else:
                self.large_bytes += len(value)
                put(CURRENT_DEFAULT + record[_IDENTIFIED_KEY_AT:end], IN_HISTORY + version[1:])
            put(HISTORY_DEFAULT + record[_IDENTIFIED_KEY_LENGTH_AT:end] + version + KIND_SET, value)
            note(version + _SET_BYTE + record[_BODY_AT:end])
            body = new_digest()
            body.update(record[_BODY_AT:])
            digest = _SET_BYTE + body.digest()
            used(USE_APPLIED + record[_INDEX_AT:HEADER_BYTES] + record[_CLIENT_AT:_BODY_AT] + digest)
            session.note(request_id, record[_REQUEST_AT:_BODY_AT] + version + digest)
            staged += 1
        if staged:
            start += staged
            self.mutations += staged
            self.work += 2 * staged
            self.outcomes += [APPLIED] * staged
            self._last_commit_version = entries[start - 1].index
        return start

    def stage_other(self, entry: Entry) -> Generator[None, None, None]:
        """Stage one entry of any kind; yields where the caller may serve others."""
        if entry.kind != _COMMAND:
            if entry.kind == EntryKind.MAINTENANCE:
                self._maintain(entry)
            elif entry.kind not in (EntryKind.NOOP, EntryKind.CONFIGURATION):
                msg = (
                    f"log entry {entry.index} has kind {entry.kind}, which this release does not know; "
                    "run the release that wrote it"
                )
                raise LocalError(msg)
            self.outcomes.append(None)
            return
        operation = decode_operation(entry.record, _OPCODE_AT)
        self.work += OTHER_WORK
        identity = identity_of(entry.record, _OPCODE_AT)
        if identity is None:
            outcome = yield from self._stage_operation(entry, operation)
        else:
            client_id, request_id = identity
            session = self._sessions.use(client_id, entry.index, entry.time_ms)
            digest = digest_of(entry.record, _OPCODE_AT)
            known = known_outcome(session, request_id, digest, operation)
            if known is not None:
                self._sessions.repeat(session)
                self.retries += 1
                self.outcomes.append(known)
                return
            outcome = yield from self._stage_operation(entry, operation)
            code = outcome.code if isinstance(outcome, Refusal) else ""
            self._sessions.record(session, request_id, digest, code)
        self.outcomes.append(outcome)
        if isinstance(outcome, Applied):
            self._last_commit_version = entry.index
        else:
            self.refusals += 1
            self.conflicts += outcome.code == ErrorCode.CONFLICT

    def _stage_operation(self, entry: Entry, operation: WriteOperation) -> Generator[None, None, Applied | Refusal]:
        """Decide and stage one operation that is no known retry."""
        if not isinstance(operation, AtomicCommit):
            return (yield from self._stage_mutations(entry, (operation,)))
        if operation.conflict_keys or operation.conflict_ranges:
            self.work += len(operation.conflict_keys) + RANGE_WORK * len(operation.conflict_ranges)
            refusal = yield from self._conflict_check().refusal(operation, entry.index)
            if refusal is not None:
                return refusal
        return (yield from self._stage_mutations(entry, operation.mutations))

    def _maintain(self, entry: Entry) -> None:
        """Move the watermark, never back and never beyond what is applied, and forget sessions."""
        maintenance = Maintenance.decode(entry.record, HEADER_BYTES)
        self._low_watermark = max(self._low_watermark, min(maintenance.low_watermark, entry.index))
        if self._conflicts is not None:
            self._conflicts.low_watermark = self._low_watermark
        removed = self._sessions.maintain(entry.index, maintenance.idle_before_ms, maintenance.sessions_max)
        self.work += OTHER_WORK + removed

    def finish(self, applied_index: Index) -> StateRow:
        """
        Write the batch: data, changes, new families and the state row, all or nothing.

        Raises:
            WriteStalledError: Nothing was written and nothing may be taken over from this group.
        """
        if applied_index >= VERSION_LIMIT:
            msg = f"log index {applied_index} is not below {VERSION_LIMIT}"
            raise AssertionError(msg)
        put = self._put
        if self._changes:
            self._put_changes()
        for name, family in self.new_families.items():
            put(FAMILY_PREFIX + name, pack_family(family.family_id, family.created))
        self._sessions.stage_rows(applied_index)
        state = StateRow(applied_index, self._last_commit_version, self._low_watermark)
        put(STATE_KEY, pack_state(*state))
        self._engine.write(self._batch)
        self._sessions.adopt()
        return state

    def _put_changes(self) -> None:
        """Write the change records: one row, or several of bounded size that are numbered within the group."""
        joined = b"".join(self._changes)
        if len(joined) <= CHANGES_ROW_BYTES_MAX:
            self._put(changes_key(int.from_bytes(self._changes[-1][:8], "big")), joined)
            return
        row: list[bytes] = []
        row_bytes = part = 0
        for position, record in enumerate(self._changes, 1):
            row.append(record)
            row_bytes += len(record)
            if row_bytes >= CHANGES_ROW_BYTES_MAX or position == len(self._changes):
                self._put(changes_key(int.from_bytes(record[:8], "big"), part), b"".join(row))
                row, row_bytes, part = [], 0, part + 1

    def _stage_mutations(self, entry: Entry, mutations: Sequence[Mutation]) -> Generator[None, None, Applied | Refusal]:
        """Stage mutations at one version, all or nothing; the last one on a key wins, one row per key."""
        version = entry.record[_INDEX_AT:_INDEX_END]
        net: dict[tuple[bytes, bytes], bytes | None] = {}
        keys: list[bytes] = []
        values: list[bytes] = []
        for position, (kind, family, key, value) in enumerate(mutations, 1):
            if kind == _SET:
                net[family, key] = value
            elif kind == _DELETE:
                net[family, key] = None
            else:
                buffer = key if kind == MutationKind.VERSIONSTAMPED_KEY else value
                if len(buffer) < STAMP_BYTES:
                    text = f"operation {position - 1}: a versionstamp needs a buffer of at least {STAMP_BYTES} bytes"
                    return Refusal(ErrorCode.INVALID_OPERATION, text)
                final = stamped(buffer, version, len(keys) + len(values))
                if kind == MutationKind.VERSIONSTAMPED_KEY:
                    keys.append(final)
                    net[family, final] = value
                elif kind == MutationKind.VERSIONSTAMPED_VALUE:
                    values.append(final)
                    net[family, key] = final
                else:
                    msg = f"log entry {entry.index} holds a mutation of unknown kind {kind}"
                    raise LocalError(msg)
            if position % SLICE_WORK == 0:
                yield
        for position, ((family, key), newest) in enumerate(net.items(), 1):
            self._put_rows(entry.index, version, family, key, newest)
            if position % SLICE_WORK == 0:
                yield
        self.mutations += len(net)
        self.work += len(net)
        return Applied(tuple(keys), tuple(values)) if keys or values else APPLIED

    def _put_rows(self, index: Index, version: bytes, family_name: bytes, key: bytes, value: bytes | None) -> None:
        """Stage the rows of one key's net effect: a value, or None for a delete."""
        family = self.family_of(family_name)
        if family is None:
            family = self._catalogue.next_entry(len(self.new_families), index)
            self.new_families[family_name] = family
        put = self._put
        history = family.history + pack_u32(len(key)) + key + version
        if value is None:
            put(family.current + key, TOMBSTONE + version[1:])
            put(history + KIND_DELETE, b"")
            self._changes.append(change_record(version, KIND_DELETE, family.varint, key))
            return
        inline = len(value) <= INLINE_VALUE_BYTES_MAX
        if not inline:
            self.large_bytes += len(value)
        put(family.current + key, version + value if inline else IN_HISTORY + version[1:])
        put(history + KIND_SET, value)
        self._changes.append(change_record(version, KIND_SET, family.varint, key))

    def family_of(self, name: bytes) -> FamilyEntry | None:
        """The family of this name, created before this group or in it."""
        return self._catalogue.by_name.get(name) or self.new_families.get(name)

    def _conflict_check(self) -> ConflictCheck:
        """The group's conflict check, made when the first commit with a conflict set comes by."""
        if self._conflicts is None:
            self._conflicts = ConflictCheck(
                self._engine,
                self._changes,
                self.family_of,
                self._low_watermark,
                self._state.last_commit_version,
            )
        return self._conflicts


def _cut_short(entry: Entry) -> LocalError:
    """The error for a record whose lengths do not fit; guessing is forbidden, because the entry was committed."""
    return LocalError(f"log entry {entry.index} is shorter than its key length says; the node must stop")
