"""What the in-memory engine adds to the port: crashes and stalls on demand."""

from __future__ import annotations

import pytest

from kvorum.core.errors import OutOfSpaceError, WriteStalledError
from kvorum.storage.memory_engine import WRITE_BUFFER_BATCHES, MemoryEngine


def write(engine: MemoryEngine, number: int) -> None:
    batch = engine.batch()
    batch.put(b"%06d" % number, b"value")
    engine.write(batch)


@pytest.mark.parametrize("kept", [0, 1, 3, 99])
def test_memory_engine_crash_keeps_what_was_flushed_and_a_prefix(kept: int) -> None:
    """A crash loses the newest batches that were not flushed, never one before another."""
    engine = MemoryEngine()
    for number in range(4):
        write(engine, number)
    engine.flush()
    for number in range(4, 8):
        write(engine, number)
    survivor = engine.crashed(kept)
    expected = [b"%06d" % number for number in range(min(4 + kept, 8))]

    assert [key for key, _ in survivor.iterate(b"", b"\xff")] == expected
    assert survivor.crashed().statistics().keys == min(4 + kept, 8)


def test_memory_engine_full_buffer_is_written_out_on_its_own() -> None:
    """What a crash can lose is bounded, as by a memtable's size."""
    engine = MemoryEngine()
    for number in range(WRITE_BUFFER_BATCHES + 5):
        write(engine, number)

    assert engine.crashed().statistics().keys == WRITE_BUFFER_BATCHES


def test_memory_engine_told_to_stall_refuses_and_changes_nothing() -> None:
    """A stalled engine writes nothing until it is told to go on."""
    engine = MemoryEngine()
    engine.stalled = True
    with pytest.raises(WriteStalledError):
        write(engine, 1)

    assert engine.statistics().keys == 0

    engine.stalled = False
    write(engine, 1)

    assert engine.statistics().keys == 1


def test_memory_engine_without_space_takes_writes_until_a_flush_fails_and_loses_nothing() -> None:
    """As RocksDB: the write buffer fills, a flush fails, then every write is refused whole until it goes on."""
    engine = MemoryEngine()
    engine.full = True
    write(engine, 0)
    with pytest.raises(OutOfSpaceError):
        engine.flush()
    with pytest.raises(OutOfSpaceError):
        write(engine, 1)
    assert engine.get(b"000001") is None
    survivor = engine.crashed(1)
    with pytest.raises(OutOfSpaceError):
        survivor.flush()

    engine.go_on()
    write(engine, 1)
    engine.flush()

    assert engine.crashed().statistics().keys == 2


def test_memory_engine_full_buffer_without_space_refuses_the_next_write() -> None:
    """The write that fills the buffer is taken; nothing can be written out behind it."""
    engine = MemoryEngine()
    engine.full = True
    for number in range(WRITE_BUFFER_BATCHES):
        write(engine, number)
    with pytest.raises(OutOfSpaceError):
        write(engine, WRITE_BUFFER_BATCHES)

    assert engine.crashed().statistics().keys == 0
