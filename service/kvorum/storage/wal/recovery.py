"""
Reading a log directory: which groups make up the stream, what they say, and what is wrong with the rest.

Changes nothing on disk; `segmented_log` acts on the result. The rules stand in docs/formats/log.md. In short: the
groups carry consecutive sequence numbers across segments; a segment whose first group has sequence s makes void
whatever earlier segments hold from s on; damage with a good group behind it is corruption, damage with none is the
torn end of the last write.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvorum.core.entries import EntryKind
from kvorum.core.errors import StorageFailedError
from kvorum.storage.wal.layout import (
    FILE_HEADER_BYTES,
    VERSION,
    FileHeader,
    Flaw,
    Group,
    decode_file_header,
    find_group,
    group_at,
    is_zero_from,
    records_in,
    segment_number,
)
from kvorum.storage.wal.segments import WAY_OUT, Segment, SegmentIndex
from kvorum.storage.wal.stream import StreamState, read_head
from kvorum.storage.wal.system import REAL

if TYPE_CHECKING:
    from pathlib import Path

    from kvorum.core.ids import Index
    from kvorum.storage.wal.layout import RecordAt
    from kvorum.storage.wal.system import SystemCalls


@dataclass(slots=True)
class SegmentFile:
    """One file as found."""

    path: Path
    number: int
    header: FileHeader | None = None
    head: Group | None = None
    """Its first group, if that is good."""
    claimed_sequence: int = 0
    """What a damaged first group says its sequence is."""
    blank: bool = True
    """Nothing but zeros behind the file header."""
    kept_end: int = 0
    """First byte that is void; everything before it belongs to the stream. 0: the whole file is void."""


@dataclass(slots=True)
class Recovery:
    """What a log directory holds."""

    files: list[SegmentFile] = field(default_factory=list)
    state: StreamState = field(default_factory=StreamState)
    """After the last good group."""
    index: SegmentIndex = field(default_factory=SegmentIndex)
    """Of every good group but the last, which is written again elsewhere."""
    last_sequence: int = 0
    last_head: list[bytes] = field(default_factory=list)
    """Head of a segment that would begin with the last good group."""
    last_body: bytes = b""
    """Stream records of the last good group."""
    last_bounds: tuple[Index, Index, Index] = (0, 0, 0)
    """Lowest, last and highest index of the entries in them."""
    torn_bytes: int = 0
    notes: list[str] = field(default_factory=list)


def corrupt(path: Path, offset: int, reason: str) -> StorageFailedError:
    """The error for damage that must not be cut away."""
    return StorageFailedError(f"the consensus log is damaged: {path} at offset {offset}: {reason}; {WAY_OUT}")


def list_segments(directory: Path, system: SystemCalls = REAL) -> list[tuple[int, Path]]:
    """Segment files of a directory, ascending."""
    paths = system.list_directory(directory)
    return sorted((number, path) for path in paths if (number := segment_number(path)) is not None)


def recover(directory: Path, system: SystemCalls = REAL) -> Recovery:
    """
    Read a whole log directory.

    Raises:
        StorageFailedError: It is damaged in a way that may have cost acknowledged entries, or of another version.
    """
    recovery = Recovery(index=SegmentIndex(system))
    try:
        recovery.files = [_look_at(path, number, system) for number, path in list_segments(directory, system)]
        _Reader(recovery, system).run()
    except OSError as error:
        msg = f"cannot read the consensus log in {directory}: {error}; {WAY_OUT}"
        raise StorageFailedError(msg) from error
    return recovery


def _look_at(path: Path, number: int, system: SystemCalls) -> SegmentFile:
    data = system.read_file(path)
    file = SegmentFile(path, number, decode_file_header(data[:FILE_HEADER_BYTES]))
    file.blank = is_zero_from(data, FILE_HEADER_BYTES)
    if file.header is None:
        return file
    if file.header.version != VERSION:
        msg = f"{path} has log format {file.header.version}; this release reads {VERSION}: start the one that wrote it"
        raise StorageFailedError(msg)
    if file.header.number != number:
        raise corrupt(path, 0, f"the file says it is segment {file.header.number}")
    found = group_at(data, FILE_HEADER_BYTES, file.header.salt)
    if isinstance(found, Group):
        file.head = found
    elif isinstance(found, Flaw):
        file.claimed_sequence = found.claimed_sequence
    return file


class _Reader:
    """One pass over the good segments of a directory, always one group behind, to stop before the last."""

    def __init__(self, recovery: Recovery, system: SystemCalls) -> None:
        self._recovery = recovery
        self._read_file = system.read_file
        self._state = recovery.state
        self._index = recovery.index
        self._expected = 0
        self._held: tuple[SegmentFile, bytes, Group] | None = None
        self._started = False

    def run(self) -> None:
        files = self._recovery.files
        good = [position for position, file in enumerate(files) if file.head]
        if not good:
            self._refuse_lost_log()
            return
        self._expected = files[good[0]].head.sequence  # type: ignore[union-attr]
        if self._expected > 1:
            # The log goes on from older segments that were dropped; one that is still here and unreadable was not.
            for file in files[: good[0]]:
                if not file.blank:
                    offset = FILE_HEADER_BYTES if file.header else 0
                    raise corrupt(file.path, offset, "the oldest segment has no intact head")
        for nth, position in enumerate(good):
            file = files[position]
            bound = min((files[later].head.sequence for later in good[nth + 1 :]), default=None)  # type: ignore[union-attr]
            assert file.head is not None
            if bound is not None and file.head.sequence >= bound:
                continue
            data = self._read_file(file.path)
            flaw = self._read_groups(file, data, bound)
            if bound is not None and self._expected < bound:
                raise self._gap(position, flaw, bound)
            if bound is None:
                self._judge_end(position, data, flaw)
        self._finish()

    def _refuse_lost_log(self) -> None:
        """Without any good head this is a directory whose very first segment was never finished, or a lost log."""
        files = self._recovery.files
        if files and files[0].number > 1:
            offset = FILE_HEADER_BYTES if files[0].header else 0
            raise corrupt(files[0].path, offset, "no segment has an intact head")
        for file in files:
            if file.blank:
                continue
            if file.header is None:
                raise corrupt(file.path, 0, "the file header is damaged")
            data = self._read_file(file.path)
            behind = find_group(data, FILE_HEADER_BYTES, file.header.salt, 1)
            if behind:
                reason = f"the segment's head is damaged, but group {behind.sequence} behind it is intact"
                raise corrupt(file.path, FILE_HEADER_BYTES, reason)
            self._tear(file.path, FILE_HEADER_BYTES, "head cut short", len(data.rstrip(b"\0")) - FILE_HEADER_BYTES)

    def _gap(self, position: int, flaw: Flaw | None, bound: int) -> StorageFailedError:
        """The error for groups that are missing between two good segments; names the place that is to blame."""
        files = self._recovery.files
        behind = f"but groups from sequence {bound} on are intact in later files"
        if flaw:
            return corrupt(files[position].path, flaw.offset, f"{flaw.reason}, {behind}")
        for later in files[position + 1 :]:
            if later.head:
                break
            if later.header:
                return corrupt(later.path, FILE_HEADER_BYTES, f"the segment's head is damaged, {behind}")
            return corrupt(later.path, 0, f"the file header is damaged, {behind}")
        return corrupt(files[position].path, files[position].kept_end, f"the log ends too early, {behind}")

    def _read_groups(self, file: SegmentFile, data: bytes, bound: int | None) -> Flaw | None:
        assert file.header is not None
        offset = FILE_HEADER_BYTES
        file.kept_end = offset
        while bound is None or self._expected < bound:
            found = group_at(data, offset, file.header.salt)
            if found is None:
                if not is_zero_from(data, offset):
                    return Flaw(offset, "zero length with data behind it")
                return None
            if isinstance(found, Flaw):
                return found
            if found.sequence != self._expected:
                return Flaw(offset, f"group {found.sequence} where group {self._expected} belongs", found.sequence)
            self._release()
            self._held = (file, data, found)
            self._expected += 1
            offset = file.kept_end = found.end
        return None

    def _judge_end(self, position: int, data: bytes, flaw: Flaw | None) -> None:
        """Decide whether what follows the last good group is the torn end of the last write."""
        file = self._recovery.files[position]
        assert file.header is not None
        if flaw:
            behind = find_group(data, flaw.offset, file.header.salt, self._expected)
            if behind:
                reason = f"{flaw.reason}, but group {behind.sequence} at offset {behind.offset} is intact"
                raise corrupt(file.path, flaw.offset, reason)
            self._tear(file.path, flaw.offset, flaw.reason, len(data[flaw.offset :].rstrip(b"\0")))
        for later in self._recovery.files[position + 1 :]:
            if later.header is None and not later.blank:
                raise corrupt(later.path, 0, "the file header is damaged")
            if later.blank:
                continue
            assert later.header is not None
            content = self._read_file(later.path)
            behind = find_group(content, FILE_HEADER_BYTES, later.header.salt, self._expected)
            if behind:
                reason = f"the segment's head is damaged, but group {behind.sequence} behind it is intact"
                raise corrupt(later.path, FILE_HEADER_BYTES, reason)
            # The end of one segment and the head of the next both torn: only an interrupted recovery does that, and
            # it repeats the last good group. A head that claims more was written after the damaged group was synced.
            if flaw and later.claimed_sequence > self._expected:
                raise corrupt(file.path, flaw.offset, f"{flaw.reason}, and a later segment was begun")
            self._tear(later.path, FILE_HEADER_BYTES, "head cut short", len(content.rstrip(b"\0")) - FILE_HEADER_BYTES)

    def _tear(self, path: Path, offset: int, reason: str, torn_bytes: int) -> None:
        self._recovery.torn_bytes += torn_bytes
        self._recovery.notes.append(f"cut an unfinished group of {torn_bytes} bytes: {path} at {offset}: {reason}")

    def _release(self) -> None:
        """Apply the group held back, now that another good one follows it."""
        if self._held is None:
            return
        file, data, group = self._held
        bounds = self._replay(file, data, group, self._stream_records(file, data, group))
        self._index.place(group.offset, group.end, *bounds)

    def _stream_records(self, file: SegmentFile, data: bytes, group: Group) -> list[RecordAt]:
        """Records of a group that belong to the stream; the head of a segment is checked against what was read."""
        try:
            records = records_in(data, group.body, group.end)
            if group.offset != FILE_HEADER_BYTES:
                return records
            head, head_records = read_head(data, records)
        except ValueError as error:
            raise corrupt(file.path, group.offset, str(error)) from error
        assert file.header is not None
        self._index.add_segment(Segment(file.path, file.number, file.header.salt, FILE_HEADER_BYTES))
        state = self._state
        if not self._started:
            self._started = True
            state.describe(head)
            self._index.restart(head.last_index)
        else:
            said = (head.last_index, head.last_term, head.hard_state)
            known = (state.last_index, state.last_term, state.hard_state)
            if said != known:
                raise corrupt(file.path, group.offset, f"the head says {said}, the segments before it say {known}")
        return records[head_records:]

    def _replay(
        self, file: SegmentFile, data: bytes, group: Group, records: list[RecordAt]
    ) -> tuple[Index, Index, Index]:
        """Apply stream records; returns the bounds of their entries for the index."""
        try:
            if any(record.kind == EntryKind.BASE for record in records):
                described, head_records = read_head(data, records)
                self._state.describe(described)
                self._index.restart(described.last_index)
                records = records[head_records:]
            for record in records:
                self._state.replay(data, record)
        except ValueError as error:
            raise corrupt(file.path, group.offset, str(error)) from error
        return bounds_of(records)

    def _finish(self) -> None:
        """Take the last good group, keeping the head that a segment beginning with it must have."""
        assert self._held is not None
        file, data, group = self._held
        records = self._stream_records(file, data, group)
        recovery = self._recovery
        recovery.last_sequence = group.sequence
        recovery.last_head = self._state.head()
        recovery.last_body = data[records[0].offset : records[-1].end] if records else b""
        recovery.last_bounds = self._replay(file, data, group, records)
        # It moves to a new segment, so here it counts as void.
        file.kept_end = group.offset if group.offset > FILE_HEADER_BYTES else 0
        if not file.kept_end:
            self._index.segments.pop()


def bounds_of(records: list[RecordAt]) -> tuple[Index, Index, Index]:
    """Lowest, last and highest index of the entries among some records; zeros if there are none."""
    indexes = [record.entry_index for record in records if record.kind < EntryKind.HARD_STATE]
    return (min(indexes), indexes[-1], max(indexes)) if indexes else (0, 0, 0)
