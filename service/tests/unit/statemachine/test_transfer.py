"""A store as a stream of chunks and back: equal in every row, checked at every step, gone on with after a break."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvorum.core.cluster import Configuration, Member
from kvorum.core.codec import TAG_BYTES, encode_operation
from kvorum.core.entries import Entry, EntryKind
from kvorum.core.errors import ErrorCode, Refusal, RemoteError
from kvorum.core.operations import AtomicCommit, KeyRange, Mutation, MutationKind
from kvorum.core.snapshot import ChunkKind, Manifest, decode_chunk, encode_chunk
from kvorum.statemachine.executor import EVERYTHING, KvStoreExecutor
from kvorum.statemachine.transfer import Export, Import, StreamCheck
from kvorum.storage.memory_engine import MemoryEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvorum.core.operations import WriteOperation

MEMBERS = Configuration.of(Member(node, f"c{node}:1", f"p{node}:1") for node in range(3))
CONFIGURED = Entry.create(1, 1, EntryKind.CONFIGURATION, 0, MEMBERS.encode())


def command(index: int, operation: WriteOperation) -> Entry:
    return Entry.create(index, 1, EntryKind.COMMAND, index, bytes(TAG_BYTES) + encode_operation(operation))


def put(key: bytes, value: bytes, family: bytes = b"") -> Mutation:
    return Mutation(MutationKind.SET, family, key, value)


def filled(keys: int = 3000, value_bytes: int = 200) -> tuple[MemoryEngine, KvStoreExecutor]:
    """A store with history, tombstones, two families, large values and changes."""
    engine = MemoryEngine()
    executor = KvStoreExecutor(engine)
    index = 1
    executor.apply_group([CONFIGURED])
    for number in range(keys):
        index += 1
        family = b"other" if number % 7 == 0 else b""
        executor.apply_group([command(index, put(b"key%d" % (number % 2000), bytes(value_bytes), family))])
    index += 1
    executor.apply_group([command(index, Mutation(MutationKind.DELETE, b"", b"key5", b""))])
    index += 1
    executor.apply_group([command(index, put(b"large", bytes(1_000_000)))])
    return engine, executor


def manifest_of(executor: KvStoreExecutor) -> Manifest:
    return Manifest(b"c" * 16, executor.applied_index, 1, 99, CONFIGURED)


def stream(executor: KvStoreExecutor) -> list[bytes]:
    return [chunk for chunk in Export(executor.view(), manifest_of(executor)).chunks() if chunk is not None]


def imported(chunks: list[bytes]) -> MemoryEngine:
    engine = MemoryEngine()
    incoming = Import(engine)
    for chunk in chunks:
        for _ in incoming.take(chunk):
            pass
    assert incoming.check.finished
    return engine


def rows(engine: MemoryEngine) -> list[tuple[bytes, bytes]]:
    return list(engine.iterate(*EVERYTHING))


def hashed(executor: KvStoreExecutor) -> tuple[int, str]:
    return next(found for found in executor.state_hash() if found is not None)


def test_stream_builds_an_equal_store() -> None:
    """Every row arrives; applied index, hash and families are those of the original."""
    engine, executor = filled()
    copy = imported(stream(executor))
    again = KvStoreExecutor(copy)

    assert rows(copy) == rows(engine)
    assert hashed(again) == hashed(executor)
    assert again.family_exists_at(b"other", executor.applied_index)
    assert again.get(b"", b"key5") is None


def test_stream_makes_conflicts_decide_equally() -> None:
    """Commits whose read version lies in the past get the same outcome on both stores, tombstones included."""
    _, executor = filled()
    again = KvStoreExecutor(imported(stream(executor)))
    index = executor.applied_index
    for version in range(index - 40, index + 1, 4):
        for operation in (
            AtomicCommit(version, (put(b"x", b"1"),), (b"key5",), ()),
            AtomicCommit(version, (put(b"y", b"1"),), (b"key990", b"key4"), ()),
            AtomicCommit(version, (), (), (KeyRange(b"", b"key4", b"key6"), KeyRange(b"other", b"key98", b"key99"))),
        ):
            index += 1
            expected = executor.apply_group([command(index, operation)])
            assert again.apply_group([command(index, operation)]) == expected
    assert hashed(again) == hashed(executor)


def test_stream_is_of_one_moment_whatever_is_written_meanwhile() -> None:
    """Writes that go on while the stream is drawn are not in it."""
    engine, executor = filled(keys=2500)
    before = rows(engine)
    export = Export(executor.view(), manifest_of(executor))
    chunks = []
    for chunk in export.chunks():
        if chunk is not None:
            chunks.append(chunk)
            executor.apply_group([command(executor.applied_index + 1, put(b"key%d" % len(chunks), b"new"))])

    assert rows(imported(chunks)) == before


def test_stream_pauses_often_and_chunks_are_bounded() -> None:
    """No slice reads more than a bounded number of rows; only a single large row makes a large chunk."""
    _, executor = filled(keys=6000, value_bytes=20)
    steps = list(Export(executor.view(), manifest_of(executor)).chunks())

    assert steps.count(None) >= 10
    sizes = sorted(len(chunk) for chunk in steps if chunk is not None)
    assert sizes[-2] < 300 * 1024


@pytest.mark.parametrize("kept", [1, 2, 3, 5])
def test_stream_goes_on_behind_a_chunk_that_arrived(kept: int) -> None:
    """A receiver that has some chunks gets exactly the rest, however many more had been drawn when it broke."""
    engine, executor = filled()
    before = rows(engine)
    export = Export(executor.view(), manifest_of(executor))
    whole = stream(executor)
    source: Iterator[bytes | None] = export.chunks()
    drawn: list[bytes] = []
    while len(drawn) < kept + 2:
        chunk = next(source)
        if chunk is not None:
            drawn.append(chunk)
    target = MemoryEngine()
    incoming = Import(target)
    for chunk in drawn[: kept + 1]:
        for _ in incoming.take(chunk):
            pass
    executor.apply_group([command(executor.applied_index + 1, put(b"key1", b"later"))])
    rest = [chunk for chunk in export.chunks_after(incoming.check.last_key) if chunk is not None]

    assert drawn[: kept + 1] + rest == whole
    for chunk in rest:
        for _ in incoming.take(chunk):
            pass
    assert incoming.check.finished
    assert rows(target) == before
    with pytest.raises(RemoteError, match="begin a new one"):
        export.chunks_after(b"no such key")


def test_stream_damaged_anywhere_is_refused() -> None:
    """A flipped bit, a missing chunk, a doubled chunk, a swapped one, a missing end: none is taken for a snapshot."""
    _, executor = filled()
    chunks = stream(executor)
    for position in range(len(chunks)):
        damaged = bytearray(chunks[position])
        damaged[len(damaged) // 2] ^= 1
        with pytest.raises(RemoteError):
            imported([*chunks[:position], bytes(damaged), *chunks[position + 1 :]])
        if position < len(chunks) - 1:
            with pytest.raises(RemoteError):
                imported([*chunks[:position], *chunks[position + 1 :]])
        with pytest.raises(RemoteError):
            imported([*chunks[: position + 1], *chunks[position:]])
    check = StreamCheck()
    for chunk in chunks[:-1]:
        check.take(chunk)
    assert not check.finished


def test_stream_whose_rows_contradict_its_manifest_is_refused() -> None:
    """The applied index in the rows must be the one that the manifest promises."""
    _, executor = filled(keys=10)
    lying = Manifest(b"c" * 16, executor.applied_index + 1, 1, 99, CONFIGURED)
    chunks = [chunk for chunk in Export(executor.view(), lying).chunks() if chunk is not None]
    with pytest.raises(RemoteError, match="its rows say"):
        imported(chunks)


def test_stream_of_another_store_format_is_refused() -> None:
    """A store of another format version is named as such."""
    _, executor = filled(keys=1)
    chunks = stream(executor)
    kind, payload = decode_chunk(chunks[0])
    with pytest.raises(RemoteError, match="format version"):
        imported([encode_chunk(kind, b"\x09" + payload[1:]), *chunks[1:]])
    assert kind == ChunkKind.MANIFEST


def test_executor_replaced_shows_the_other_store() -> None:
    """After `replace` reads, versions and conflicts are those of the installed store; old scans keep their view."""
    _, executor = filled()
    behind = KvStoreExecutor(MemoryEngine())
    behind.apply_group([CONFIGURED])
    behind.apply_group([command(2, put(b"gone", b"old"))])
    old_hash = behind.state_hash()
    behind.replace(imported(stream(executor)))

    assert behind.applied_index == executor.applied_index
    assert behind.get(b"", b"gone") is None
    assert hashed(behind) == hashed(executor)
    assert next(found for found in old_hash if found is not None)[0] in {2, executor.applied_index}
    conflicting = AtomicCommit(5, (put(b"x", b"1"),), (b"large",), ())
    [outcome] = behind.apply_group([command(behind.applied_index + 1, conflicting)])
    assert isinstance(outcome, Refusal)
    assert outcome.code == ErrorCode.CONFLICT
