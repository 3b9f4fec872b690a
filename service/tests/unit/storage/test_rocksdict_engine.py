"""What is particular to RocksDB: crashes, stalls, failures."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kvorum.core.errors import LocalError, StorageFailedError, WriteStalledError
from kvorum.storage.rocksdict_engine import EngineTuning, RocksdictEngine

if TYPE_CHECKING:
    from pathlib import Path

WRITE_AND_DIE = """
import os, sys, time
from pathlib import Path
from kvorum.core.errors import WriteStalledError
from kvorum.storage.rocksdict_engine import EngineTuning, RocksdictEngine
buffer_mb = int(sys.argv[2])
engine = RocksdictEngine.open(Path(sys.argv[1]), EngineTuning(write_buffer_size_mb=buffer_mb))
for number in range(3000 * buffer_mb):
    while True:
        batch = engine.batch()
        batch.put(b"applied", b"%d" % number)
        batch.put(b"data%06d" % number, b"v" * 1000)
        try:
            engine.write(batch)
            break
        except WriteStalledError:
            time.sleep(0.01)
    if number == 500:
        engine.flush()
os._exit(0)
"""

SHOW_NICENESS = """
import os, sys
from pathlib import Path
from kvorum.storage.rocksdict_engine import EngineTuning, RocksdictEngine
engine = RocksdictEngine.open(Path(sys.argv[1]), EngineTuning(write_buffer_size_mb=1))
for number in range(8000):
    batch = engine.batch()
    batch.put(b"%08d" % (number % 1000), b"v" * 500)
    engine.write(batch)
    if number % 1000 == 0:
        engine.flush()
for thread in sorted(map(int, os.listdir("/proc/self/task"))):
    print(Path(f"/proc/self/task/{thread}/comm").read_text().strip(), os.getpriority(os.PRIO_PROCESS, thread))
"""


@pytest.mark.parametrize("buffer_mb", [1, 12])
def test_rocksdict_engine_killed_keeps_a_prefix_of_its_batches(tmp_path: Path, buffer_mb: int) -> None:
    """After a crash there is some prefix of the batches, whole, and at least what was flushed: 12 MiB, 3 memtables."""
    subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(tmp_path), str(buffer_mb)], check=True)
    engine = RocksdictEngine.open(tmp_path)
    applied = int(engine.get(b"applied") or -1)
    keys = [key for key, _ in engine.iterate(b"data", b"datb")]
    engine.close()

    assert 500 <= applied
    assert keys == [b"data%06d" % number for number in range(applied + 1)]


def test_rocksdict_engine_full_memtables_stall_instead_of_waiting(tmp_path: Path) -> None:
    """When flushes cannot keep up, a write is refused at once, changes nothing, and succeeds later."""
    engine = RocksdictEngine.open(tmp_path, EngineTuning(write_buffer_size_mb=1, max_write_buffer_number=2))
    stalls = 0
    for number in range(60):
        for _ in range(100_000):
            batch = engine.batch()
            for part in range(10):
                batch.put(b"%03d/%d" % (number, part), os.urandom(100_000))
            try:
                engine.write(batch)
            except WriteStalledError:
                stalls += 1
                assert engine.get(b"%03d/0" % number) is None
            else:
                break

    assert stalls > 0
    assert len(list(engine.iterate(b"", b"\xff"))) == 600

    engine.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a niceness per thread")
def test_rocksdict_engine_works_in_the_background_with_less_priority(tmp_path: Path) -> None:
    """Every thread that RocksDB has started is nicer by ten than the one that uses it, but nobody is beyond 19."""
    shown = subprocess.run([sys.executable, "-c", SHOW_NICENESS, str(tmp_path)], check=True, capture_output=True)
    user, *background = (line.split() for line in shown.stdout.decode().splitlines())

    own = int(user[1])
    assert own == os.getpriority(os.PRIO_PROCESS, 0)
    assert {"rocksdb:low", "rocksdb:high"} <= {name for name, _ in background}
    assert {int(niceness) for _, niceness in background} == {min(own + 10, 19)}


def test_rocksdict_engine_directory_in_use_is_a_clear_error(tmp_path: Path) -> None:
    """A second engine on the same directory names it and says what to do."""
    engine = RocksdictEngine.open(tmp_path)

    with pytest.raises(StorageFailedError, match=f"cannot open the RocksDB directory {tmp_path}.*no other process"):
        RocksdictEngine.open(tmp_path)

    engine.close()


def test_rocksdict_engine_damaged_table_is_reported_while_iterating(tmp_path: Path) -> None:
    """A scan over a damaged file fails; it never ends early as if there were no more keys."""
    engine = RocksdictEngine.open(tmp_path)
    batch = engine.batch()
    for number in range(20_000):
        batch.put(b"%06d" % number, os.urandom(100))
    engine.write(batch)
    engine.flush()
    engine.close()
    for table in tmp_path.glob("*.sst"):
        data = bytearray(table.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 64] = bytes(64)
        table.write_bytes(data)
    engine = RocksdictEngine.open(tmp_path)

    for view in (engine, engine.snapshot()):
        for reverse in (False, True):
            with pytest.raises(StorageFailedError, match="the log rebuilds it"):
                list(view.iterate(b"", b"\xff", reverse=reverse))

    engine.close()


def test_rocksdict_engine_used_after_close_is_a_defect(tmp_path: Path) -> None:
    """A write after close is the caller's fault, not the disk's."""
    engine = RocksdictEngine.open(tmp_path)
    engine.close()

    with pytest.raises(LocalError, match="used wrongly"):
        engine.write(engine.batch())


def test_rocksdict_engine_writes_no_log_of_its_own(tmp_path: Path) -> None:
    """RocksDB's write-ahead log stays empty: the consensus log is the durability."""
    engine = RocksdictEngine.open(tmp_path)
    batch = engine.batch()
    batch.put(b"key", b"v" * 100_000)
    engine.write(batch)

    assert sum(log.stat().st_size for log in tmp_path.glob("*.log")) == 0

    engine.close()


def test_rocksdict_engine_hit_rate_is_measured(tmp_path: Path) -> None:
    """Reading one block many times shows as hits of the block cache."""
    engine = RocksdictEngine.open(tmp_path)
    batch = engine.batch()
    batch.put(b"key", b"value")
    engine.write(batch)
    engine.flush()
    for _ in range(50):
        assert engine.get(b"key") == b"value"

    assert engine.statistics().cache_hit_rate_percent > 50
    assert engine.statistics().bytes_on_disk > 0

    engine.close()
