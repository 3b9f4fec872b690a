"""
Single bits turned over in everything that lies on disk: each field of a log's files, and of a snapshot's stream.

A flip in a group with good ones behind it must be refused, with file, offset and way out. One in the last group cannot
be told from a torn write: the log may then end before that group, and must say so. Void bytes change nothing. A
snapshot with a flipped bit is refused. Nothing ever comes back changed.
"""

from __future__ import annotations

import io
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from kvorum.cli.snapshot_files import SnapshotFileError, verified_chunks
from kvorum.core.codec import TAG_BYTES, encode_operation
from kvorum.core.entries import Entry, EntryBatch, EntryKind, HardState
from kvorum.core.errors import StorageFailedError
from kvorum.core.maintenance import Maintenance
from kvorum.core.operations import Mutation, MutationKind
from kvorum.core.ports import Base
from kvorum.core.snapshot import CHUNK_HEADER_BYTES, ChunkKind, Manifest, chunk_bytes
from kvorum.statemachine.executor import KvStoreExecutor
from kvorum.statemachine.transfer import Export, StreamCheck
from kvorum.storage.memory_engine import MemoryEngine
from kvorum.storage.wal.layout import FILE_HEADER_BYTES, FRAME_BYTES, Group, decode_file_header, group_at, records_in
from kvorum.storage.wal.segments import WAY_OUT
from kvorum_sim.crash.lives import DrivenLog, configuration
from kvorum_sim.filesystem import SimulatedFiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvorum.core.ports import RecoveredLog

SEGMENT_BYTES: Final = 1024
_HEADER: Final = (("magic", 7), ("version", 1), ("number", 8), ("salt", 4), ("checksum", 4))
_FRAME: Final = (("length", 4), ("salt", 4), ("sequence", 8), ("checksum", 4))
_RECORD: Final = (("length", 4), ("kind", 1), ("term", 8), ("index", 8), ("time", 8))
_KINDS: Final = {
    EntryKind.COMMAND: "command",
    EntryKind.NOOP: "no-op",
    EntryKind.CONFIGURATION: "configuration",
    EntryKind.MAINTENANCE: "maintenance",
    EntryKind.HARD_STATE: "hard state",
    EntryKind.BASE: "base",
}
_CHUNKS: Final = {ChunkKind.MANIFEST: "manifest", ChunkKind.ROWS: "rows", ChunkKind.END: "end"}


@dataclass(slots=True)
class FlipReport:
    """What came of the flips."""

    flips: Counter[str] = field(default_factory=Counter)
    """By field."""
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, other: FlipReport) -> None:
        """Count another report's flips too."""
        self.flips += other.flips
        self.outcomes += other.outcomes
        self.problems += other.problems


class Place(NamedTuple):
    """One byte of a log, and what it belongs to."""

    path: Path
    offset: int
    name: str
    sequence: int
    """Of the group it belongs to; 0 for a file header, -1 for zeros behind the last group of a file."""
    group_offset: int


def _fields(names: tuple[tuple[str, int], ...], prefix: str) -> list[str]:
    return [f"{prefix} {name}" for name, size in names for _ in range(size)]


def _group_fields(data: bytes, group: Group) -> list[str]:
    """The field of each byte of a group."""
    found = _fields(_FRAME, "frame")
    for record in records_in(data, group.body, group.end):
        kind = _KINDS[record.kind]
        names = _fields(_RECORD, kind)
        found += [*names, *[f"{kind} payload"] * (record.end - record.offset - len(names))]
    return found


def places(contents: dict[Path, bytes]) -> Iterator[Place]:
    """Every byte of an undamaged log."""
    for path, data in sorted(contents.items()):
        for offset, name in enumerate(_fields(_HEADER, "file header")):
            yield Place(path, offset, name, 0, 0)
        header = decode_file_header(data[:FILE_HEADER_BYTES])
        assert header is not None
        at = FILE_HEADER_BYTES
        while isinstance(group := group_at(data, at, header.salt), Group):
            for offset, name in enumerate(_group_fields(data, group), at):
                yield Place(path, offset, name, group.sequence, at)
            at = group.end
        assert at >= FILE_HEADER_BYTES + FRAME_BYTES
        for offset in range(at, len(data)):
            yield Place(path, offset, "zeros behind the groups", -1, at)


class _Sample:
    """A log with every kind of record in several segments, before and after its last group."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(f"flips {seed}")
        self.files = SimulatedFiles(random.Random(f"salts {seed}"))
        self._log = DrivenLog.boot(self.files.system, SEGMENT_BYTES)
        self._log.start(lambda _: None, lambda _: None)
        self._ticket = 0
        self._last = 0
        for _ in range(self.chance.randint(3, 6)):
            self._group(self.chance.randint(1, 3), 1)
        self._reset()
        for _ in range(self.chance.randint(5, 9)):
            self._group(self.chance.randint(1, 3), 3)
        self.before = self._said()
        self._group(1, 4)
        self.after = self._said()
        self._log.leave()

    def _said(self) -> tuple[RecoveredLog, list[Entry]]:
        """What a start says now."""
        return opened(self.files.contents())

    def _group(self, count: int, term: int) -> None:
        chance = self.chance
        made = []
        for index in range(self._last + 1, self._last + 1 + count):
            kind = chance.choice((EntryKind.COMMAND, EntryKind.NOOP, EntryKind.CONFIGURATION, EntryKind.MAINTENANCE))
            if kind == EntryKind.CONFIGURATION:
                made.append(configuration(chance, index, term))
                continue
            payload = {
                EntryKind.COMMAND: chance.randbytes(chance.randint(10, 70)),
                EntryKind.MAINTENANCE: Maintenance(index, 1000, 50).encode(),
            }.get(kind, b"")
            made.append(Entry.create(index, term, kind, 1000 + index, payload))
        self._ticket += 1
        self._last += count
        voted = chance.choice((None, 1, 2))
        self._log.append(self._ticket, HardState(term, voted), EntryBatch(made))
        self._log.pump()

    def _reset(self) -> None:
        self._ticket += 1
        self._last += 10
        entry = configuration(self.chance, self._last - 3, 2)
        self._log.reset(self._ticket, HardState(2, None), Base(self._last, 2), entry)
        self._log.pump()


def opened(contents: dict[Path, bytes]) -> tuple[RecoveredLog, list[Entry]]:
    """What a start says of these files, and every entry."""
    files = SimulatedFiles.holding(random.Random(5), contents)
    log = DrivenLog.boot(files.system, SEGMENT_BYTES)
    return log.recovered, log.entries()


def flip_log(seed: int, bits: int = 1) -> FlipReport:
    """
    Turn over bits of every byte of a log, one at a time, and open it each time.

    Args:
        seed: Draws the log and, if not all, the bits.
        bits: How many of each byte.
    """
    sample = _Sample(seed)
    report = FlipReport()
    contents = sample.files.contents()
    every = list(places(contents))
    last = max(place.sequence for place in every)
    newest = max(contents)
    for place in every:
        for bit in sample.chance.sample(range(8), bits):
            damaged = bytearray(contents[place.path])
            damaged[place.offset] ^= 1 << bit
            report.flips[place.name] += 1
            outcome, problem = _judge_flip(sample, {**contents, place.path: bytes(damaged)}, place, last, newest)
            report.outcomes[outcome] += 1
            if problem:
                where = f"seed {seed}: bit {bit} of byte {place.offset} in {place.path.name} ({place.name})"
                report.problems.append(f"{where}: {problem}")
    return report


def _judge_flip(sample: _Sample, damaged: dict[Path, bytes], place: Place, last: int, newest: Path) -> tuple[str, str]:
    """What came of one flip, and what is wrong with that."""
    void = place.sequence < 0 and place.path != newest
    cuttable = place.sequence in {last, -1}
    try:
        found, entries = opened(damaged)
    except StorageFailedError as error:
        text = str(error)
        named = str(place.path) in text and f"offset {place.group_offset}" in text and WAY_OUT in text
        return (
            "refused",
            f"bytes that say nothing were refused: {text}" if void else "" if named else f"refused: {text}",
        )
    except Exception as error:  # noqa: BLE001 - recovery must know what to say
        return "crashed", f"{type(error).__name__}: {error}"
    says = _meaning(found), entries
    if says == (_meaning(sample.after[0]), sample.after[1]):
        told = found.torn_bytes > 0 or void
        return "no effect", "" if place.sequence < 0 and told else "the damage went unnoticed"
    if says == (_meaning(sample.before[0]), sample.before[1]):
        told = bool(found.notes) and f"{place.path} at {place.group_offset}" in found.notes[0]
        if place.sequence == last and told:
            return "cut", ""
        return "cut", "the log was shortened" + (" and did not say so" if cuttable else ": groups behind it were good")
    if found.last_index < sample.before[0].last_index:
        return "shortened", f"the log was shortened to {found.last_index} entries, though groups behind it were good"
    return "changed", f"it says {found}"


def _meaning(found: RecoveredLog) -> tuple[object, ...]:
    return (
        found.hard_state, found.base_index, found.base_term, found.last_index, found.terms, found.configurations
    )  # fmt: skip


def flip_while_reading(seed: int) -> FlipReport:
    """Turn over a bit of every byte below a log that is open, and read everything back each time."""
    sample = _Sample(seed)
    report = FlipReport()
    contents = sample.files.contents()
    files = SimulatedFiles.holding(random.Random(5), contents)
    log = DrivenLog.boot(files.system, SEGMENT_BYTES)
    wanted = log.entries()
    for place in places(files.contents()):
        bit = sample.chance.randrange(8)
        files.flip(place.path, place.offset, bit)
        report.flips[place.name] += 1
        try:
            unchanged = log.entries() == wanted
            report.outcomes["read"] += 1
        except StorageFailedError as error:
            unchanged = str(place.path) in str(error) and WAY_OUT in str(error)
            report.outcomes["refused"] += 1
        if not unchanged:
            report.problems.append(f"seed {seed}: bit {bit} of byte {place.offset} in {place.path.name} was read back")
        files.flip(place.path, place.offset, bit)
    return report


def sample_snapshot(seed: int) -> bytes:
    """A small store as the file that `kvorum snapshot save` writes."""
    chance = random.Random(f"snapshot {seed}")
    executor = KvStoreExecutor(MemoryEngine())
    configured = configuration(chance, 1, 1)
    executor.apply_group([configured])
    for index in range(2, 9):
        mutation = Mutation(MutationKind.SET, chance.choice((b"", b"f")), b"key%d" % index, chance.randbytes(8))
        payload = bytes(TAG_BYTES) + encode_operation(mutation)
        executor.apply_group([Entry.create(index, 1, EntryKind.COMMAND, index, payload)])
    manifest = Manifest(chance.randbytes(16), executor.applied_index, 1, 99, configured)
    return b"".join(chunk for chunk in Export(executor.view(), manifest).chunks() if chunk is not None)


def flip_snapshot(seed: int) -> FlipReport:
    """Turn over every bit of a small snapshot, and cut it at every byte: all of it must be refused."""
    stream = sample_snapshot(seed)
    report = FlipReport()
    assert not _refusal(stream), "the snapshot itself must be good"
    for offset, name in enumerate(_snapshot_fields(stream)):
        for bit in range(8):
            damaged = bytearray(stream)
            damaged[offset] ^= 1 << bit
            _must_refuse(
                report, bytes(damaged), name, f"seed {seed}: bit {bit} of byte {offset} of a snapshot ({name})"
            )
        _must_refuse(report, stream[:offset], "snapshot cut short", f"seed {seed}: a snapshot cut at {offset}")
    return report


def _snapshot_fields(stream: bytes) -> Iterator[str]:
    at = 0
    while at < len(stream):
        kind, size = chunk_bytes(stream[at : at + CHUNK_HEADER_BYTES])
        yield from _fields((("length", 4), ("kind", 1), ("checksum", 4)), f"snapshot {_CHUNKS[kind]}")
        yield from [f"snapshot {_CHUNKS[kind]} payload"] * (size - CHUNK_HEADER_BYTES)
        at += size


def _refusal(stream: bytes) -> str:
    """Why a stream is refused; empty if it is not."""
    check = StreamCheck()
    try:
        for _ in verified_chunks(io.BytesIO(stream), check):
            pass
    except SnapshotFileError as error:
        return str(error) or "refused"
    return "" if check.finished else "it has no end"


def _must_refuse(report: FlipReport, stream: bytes, name: str, where: str) -> None:
    report.flips[name] += 1
    if _refusal(stream):
        report.outcomes["refused"] += 1
    else:
        report.outcomes["taken"] += 1
        report.problems.append(f"{where} was taken for a good one")
