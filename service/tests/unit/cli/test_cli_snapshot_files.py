"""Snapshot files are whole or they are not there, and every kind of damage is noticed."""

from __future__ import annotations

import io
import random
from http.client import IncompleteRead
from typing import TYPE_CHECKING

import pytest

from kvorum.cli.snapshot_files import SnapshotFileError, read_chunks, verify_file, write_file
from kvorum.core.cluster import Configuration, Member
from kvorum.core.entries import Entry, EntryKind
from kvorum.core.snapshot import Manifest
from kvorum.statemachine.executor import KvStoreExecutor
from kvorum.statemachine.transfer import Export
from kvorum.storage.memory_engine import MemoryEngine

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def stream() -> bytes:
    """The snapshot of a store that has seen one entry."""
    engine = MemoryEngine()
    executor = KvStoreExecutor(engine)
    configuration = Configuration.of([Member(0, "a:9090", "a:7090")]).encode()
    entry = Entry.create(1, 1, EntryKind.CONFIGURATION, 1_700_000_000_000, configuration)
    for _ in executor.apply([entry]):
        pass
    manifest = Manifest(b"c" * 16, 1, 1, 1_700_000_000_000, entry)
    return b"".join(chunk for chunk in Export(engine.snapshot(), manifest).chunks() if chunk is not None)


def test_snapshot_file_written_is_verified_and_read_back(stream: bytes, tmp_path: Path) -> None:
    """What is written says the same when it is read, and nothing else is left behind."""
    path = tmp_path / "one.snapshot"
    seen: list[int] = []
    written = write_file(path, io.BytesIO(stream), lambda size, _: seen.append(size))

    assert path.read_bytes() == stream
    assert sum(seen) == len(stream)
    assert verify_file(path, lambda _: None) == written
    assert (written.manifest.index, written.manifest.members.voters, written.rows > 0) == (1, (0,), True)
    assert [path] == list(tmp_path.iterdir())


def test_snapshot_file_of_a_broken_transfer_is_not_there_and_the_old_one_stays(stream: bytes, tmp_path: Path) -> None:
    """A stream that ends early, or breaks off, leaves the file of before."""
    path = tmp_path / "one.snapshot"
    path.write_bytes(b"the old one")

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            found = super().read(size)
            if not found:
                raise IncompleteRead(found)
            return found

    for source in (io.BytesIO(stream[:-5]), Broken(stream[:-5]), io.BytesIO(b""), io.BytesIO(stream + b"x")):
        with pytest.raises(SnapshotFileError, match="did not arrive whole"):
            write_file(path, source, lambda *_: None)
        assert path.read_bytes() == b"the old one"
        assert [path] == list(tmp_path.iterdir())


def test_snapshot_file_that_cannot_be_written_is_said_to_be(stream: bytes, tmp_path: Path) -> None:
    """A disk that refuses is an error with the file's name."""
    with pytest.raises(SnapshotFileError, match="cannot be written"):
        write_file(tmp_path / "missing" / "one.snapshot", io.BytesIO(stream), lambda *_: None)


def test_snapshot_file_cut_anywhere_is_not_whole(stream: bytes, tmp_path: Path) -> None:
    """Every proper prefix is refused."""
    path = tmp_path / "cut.snapshot"
    for size in range(len(stream)):
        path.write_bytes(stream[:size])
        with pytest.raises(SnapshotFileError, match="not a whole snapshot"):
            verify_file(path, lambda _: None)


def test_snapshot_file_with_any_bit_flipped_is_refused(stream: bytes, tmp_path: Path) -> None:
    """Each byte is covered by a checksum or a check."""
    path = tmp_path / "bad.snapshot"
    draw = random.Random(4)
    for at in range(len(stream)):
        damaged = bytearray(stream)
        damaged[at] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(SnapshotFileError):
            verify_file(path, lambda _: None)


def test_snapshot_chunks_of_a_foreign_file_are_refused_before_anything_is_allocated() -> None:
    """Four bytes that read as a gigabyte are no reason to ask for one."""
    with pytest.raises(SnapshotFileError, match="this is none"):
        list(read_chunks(io.BytesIO(b"\x7f\xff\xff\xff\x02\0\0\0\0")))
