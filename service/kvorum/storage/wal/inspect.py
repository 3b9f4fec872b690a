"""
What a log directory holds, for people: read-only, and good enough on a directory that a live node writes to.

Unlike `recovery` it never refuses: it lists what it finds and says where it stopped understanding. A live node may
remove a segment while this looks; that segment is then simply not listed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvorum.core.entries import EntryKind, HardState
from kvorum.core.errors import StorageFailedError
from kvorum.storage.wal.layout import (
    FILE_HEADER_BYTES,
    VERSION,
    FileHeader,
    Flaw,
    Group,
    decode_file_header,
    decode_hard_state,
    find_group,
    group_at,
    is_zero_from,
    records_in,
)
from kvorum.storage.wal.recovery import list_segments, recover
from kvorum.storage.wal.stream import read_head

if TYPE_CHECKING:
    from pathlib import Path

    from kvorum.core.ids import Index, Term
    from kvorum.core.ports import RecoveredLog
    from kvorum.storage.wal.layout import RecordAt

KIND_NAMES: Final = {
    EntryKind.COMMAND: "command",
    EntryKind.NOOP: "noop",
    EntryKind.CONFIGURATION: "configuration",
    EntryKind.HARD_STATE: "hard_state",
    EntryKind.BASE: "base",
}
_ATTEMPTS: Final = 3
"""A live node drops old segments every few minutes at most, so a second look meets a directory at rest."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a segment that are no good group. At the end of the newest segment this may be a write in progress."""

    path: Path
    offset: int
    reason: str
    good_group_behind: bool
    """True: corruption. False: the torn end of a write, if this is the newest segment."""


@dataclass(frozen=True, slots=True)
class SegmentDescription:
    """One segment file."""

    path: Path
    version: int
    file_bytes: int
    used_bytes: int
    groups: int
    first_sequence: int
    last_sequence: int
    base_index: Index
    base_term: Term
    head_hard_state: HardState
    head_configurations: tuple[Index, ...]
    hard_state: HardState
    """The newest in this segment."""
    records: dict[str, int]
    """Stream records by kind name; the head's own are not counted."""
    first_index: Index
    """Lowest index of any entry in it, 0 if there is none."""
    last_index: Index
    """Index of its last entry, 0 if there is none."""
    replaced_entries: int
    """Entries in it that a later entry of the same segment replaced."""
    terms: tuple[Term, ...]
    """Terms of its entries, ascending."""
    damage: Damage | None


@dataclass(frozen=True, slots=True)
class LogDescription:
    """A log directory, and what a node that starts on it would find."""

    directory: Path
    segments: tuple[SegmentDescription, ...]
    recovered: RecoveredLog | None
    error: str
    """Why a node would refuse to start on it; empty if it would start."""


def inspect_log(directory: Path) -> LogDescription:
    """
    Describe a log directory without changing it.

    Raises:
        FileNotFoundError: There is no such directory.
    """
    segments = []
    for number, path in list_segments(directory):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        segments.append(_describe(path, number, data))
    for attempt in range(_ATTEMPTS):
        try:
            recovery = recover(directory)
        except StorageFailedError as error:
            if isinstance(error.__cause__, FileNotFoundError) and attempt < _ATTEMPTS - 1:
                continue
            return LogDescription(directory, tuple(segments), None, str(error))
        recovered = recovery.state.recovered(recovery.torn_bytes, tuple(recovery.notes))
        return LogDescription(directory, tuple(segments), recovered, "")
    raise AssertionError


class _Tally:
    """What the groups of one segment add up to."""

    def __init__(self) -> None:
        self.groups = 0
        self.first_sequence = self.last_sequence = 0
        self.base: tuple[Index, Term] = (0, 0)
        self.head_hard_state = self.hard_state = HardState()
        self.head_configurations: tuple[Index, ...] = ()
        self.records: Counter[str] = Counter()
        self.first_index = self.last_index = self.replaced = 0
        self.terms: set[Term] = set()

    def take(self, data: bytes, group: Group, records: list[RecordAt]) -> None:
        if not self.groups:
            head, head_records = read_head(data, records)
            self.first_sequence = group.sequence
            self.base = (head.last_index, head.last_term)
            self.head_hard_state = self.hard_state = head.hard_state
            self.head_configurations = tuple(index for index, _ in head.configurations)
            records = records[head_records:]
        self.groups += 1
        self.last_sequence = group.sequence
        for record in records:
            self.records[KIND_NAMES.get(record.kind, f"kind {record.kind}")] += 1
            if record.kind == EntryKind.HARD_STATE:
                self.hard_state = decode_hard_state(data, record)
            elif record.kind < EntryKind.HARD_STATE:
                index = record.entry_index
                self.replaced += max(0, self.last_index - max(index, self.first_index) + 1) if self.first_index else 0
                self.first_index = min(self.first_index or index, index)
                self.last_index = index
                self.terms.add(record.term)


def _describe(path: Path, number: int, data: bytes) -> SegmentDescription:
    header = decode_file_header(data[:FILE_HEADER_BYTES])
    tally = _Tally()
    damage = _damage_of_header(path, number, data, header)
    offset = FILE_HEADER_BYTES
    while header is not None and damage is None:
        found = group_at(data, offset, header.salt)
        if found is None and not is_zero_from(data, offset):
            found = Flaw(offset, "zero length with data behind it")
        if found is None:
            break
        if isinstance(found, Group):
            try:
                tally.take(data, found, records_in(data, found.body, found.end))
            except ValueError as error:
                found = Flaw(offset, str(error))
            else:
                offset = found.end
                continue
        behind = find_group(data, found.offset + 1, header.salt, tally.last_sequence + 1)
        damage = Damage(path, found.offset, found.reason, behind is not None)
    return SegmentDescription(
        path=path,
        version=header.version if header else 0,
        file_bytes=len(data),
        used_bytes=offset,
        groups=tally.groups,
        first_sequence=tally.first_sequence,
        last_sequence=tally.last_sequence,
        base_index=tally.base[0],
        base_term=tally.base[1],
        head_hard_state=tally.head_hard_state,
        head_configurations=tally.head_configurations,
        hard_state=tally.hard_state,
        records=dict(sorted(tally.records.items())),
        first_index=tally.first_index,
        last_index=tally.last_index,
        replaced_entries=tally.replaced,
        terms=tuple(sorted(tally.terms)),
        damage=damage,
    )


def _damage_of_header(path: Path, number: int, data: bytes, header: FileHeader | None) -> Damage | None:
    if header is None:
        return Damage(path, 0, "no intact file header", good_group_behind=not is_zero_from(data, FILE_HEADER_BYTES))
    if header.version != VERSION:
        return Damage(path, 0, f"log format {header.version}, this release reads {VERSION}", good_group_behind=True)
    if header.number != number:
        return Damage(path, 0, f"the file says it is segment {header.number}", good_group_behind=True)
    return None
