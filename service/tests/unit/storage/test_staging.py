"""The switch to an installed store: a crash after any step leaves the old store with the old log, or the new ones."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING

import pytest

from kvorum.core.entries import Entry, EntryKind
from kvorum.core.errors import StartupError
from kvorum.core.ports import Base
from kvorum.core.snapshot import Manifest
from kvorum.storage.data_directory import DataDirectory
from kvorum.storage.rocksdict_engine import RocksdictEngine
from kvorum.storage.staging import StagedStores
from kvorum.storage.wal.segmented_log import SegmentedLog
from tests.unit.storage.log_under_test import LogUnderTest, configuration, entry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvorum.core.ports import StorageEngine

CONFIGURED = Entry.create(90, 3, EntryKind.CONFIGURATION, 5, configuration(0, 1, 2).encode())
MANIFEST = Manifest(bytes(16), 100, 4, 1234, CONFIGURED)


def put(engine: StorageEngine, key: bytes, value: bytes) -> None:
    batch = engine.batch()
    batch.put(key, value)
    engine.write(batch)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A data directory with a store that says "old" and a log of five entries."""
    path = tmp_path / "data"
    directory = DataDirectory.open(path)
    stores = StagedStores(directory, RocksdictEngine.open)
    put(stores.engine, b"key", b"old")
    stores.engine.flush()
    stores.close()
    directory.close()
    log = LogUnderTest(directory.log_path)
    log.append(entry(1, 1, configuration(0, 1).encode(), EntryKind.CONFIGURATION))
    log.fill(2, 5)
    log.stop()
    return path


def found(path: Path) -> tuple[bytes | None, int]:
    """What a node finds that starts here, as `app.node` opens it: the store's word and the base of the log."""
    directory = DataDirectory.open(path)
    stores = StagedStores(directory, RocksdictEngine.open)
    log = SegmentedLog.open(
        directory.log_path, run_on_loop=lambda _: None, fail=lambda _: None, installed=directory.installed
    )
    if directory.installed is not None:
        directory.set_store(directory.state_path, None)
    value, base = stores.engine.get(b"key"), log.recovered.base_index
    asyncio.run(log.stop())
    stores.close()
    directory.close()
    left = sorted(entry.name for entry in path.iterdir() if entry.name.startswith("state"))
    assert left == [directory.state_path.name], "nothing of the other store is left"
    return value, base


async def install(path: Path, after_step: Callable[[str], None]) -> None:
    """An install as `consensus.snapshots` does it, with a look at the disk after each step."""
    directory = DataDirectory.open(path)
    stores = StagedStores(directory, RocksdictEngine.open)
    staged = await stores.begin()
    after_step("begin")
    put(staged, b"key", b"new")
    after_step("write")
    await stores.seal()
    after_step("seal")
    await stores.commit(MANIFEST)
    after_step("commit")
    log = await asyncio.to_thread(LogUnderTest, directory.log_path)
    after_step("open log")
    log.ticket += 1
    log.log.reset(log.ticket, log.recovered.hard_state, Base(100, 4), CONFIGURED)
    await asyncio.to_thread(log.run_until, lambda: log.durable >= log.ticket)
    after_step("reset")
    await stores.settle()
    after_step("settle")
    assert stores.engine.get(b"key") == b"new"
    await log.log.stop()
    stores.close()
    directory.close()


def test_install_crashed_after_any_step_is_old_or_new(old: Path, tmp_path: Path) -> None:
    """Up to the commit the old store counts, with its log; from the commit on the new one, and the log follows it."""
    images: dict[str, Path] = {}

    def after_step(step: str) -> None:
        images[step] = shutil.copytree(old, tmp_path / f"image {step}")

    asyncio.run(install(old, after_step))

    for step in ("begin", "write", "seal"):
        assert found(images[step]) == (b"old", 0), step
    for step in ("commit", "open log", "reset", "settle"):
        assert found(images[step]) == (b"new", 100), step
        assert found(images[step]) == (b"new", 100), step
    assert found(old) == (b"new", 100)


def test_install_crashed_within_the_commit_is_old_or_new(old: Path, tmp_path: Path) -> None:
    """The file that names the store is replaced whole: a draft, whole or not, changes nothing."""
    draft = old / "store.json.new"
    for content in ('{"format": 1, "directory": "state.1"', ""):
        draft.write_text(content)
        copy = shutil.copytree(old, tmp_path / f"copy{len(content)}")
        assert found(copy) == (b"old", 0)


def test_install_given_up_leaves_nothing(old: Path) -> None:
    """After an attempt that failed the directory is as it was, and the next attempt works."""

    async def give_up() -> None:
        directory = DataDirectory.open(old)
        stores = StagedStores(directory, RocksdictEngine.open)
        for _ in range(2):
            put(await stores.begin(), b"key", b"new")
        await stores.abandon()
        assert stores.engine.get(b"key") == b"old"
        stores.close()
        directory.close()

    asyncio.run(give_up())
    assert found(old) == (b"old", 0)
    asyncio.run(install(old, lambda _: None))
    assert found(old) == (b"new", 100)


def test_install_twice_numbers_stores_upwards(old: Path) -> None:
    """A name is never used twice while anything of it may be open."""
    asyncio.run(install(old, lambda _: None))
    directory = DataDirectory.open(old)
    assert directory.state_path.name == "state.1"
    assert directory.new_store_path().name == "state.2"
    directory.close()


def test_store_pointer_that_is_damaged_is_refused_by_name(old: Path) -> None:
    """Guessing which store counts could bring back an old one."""
    asyncio.run(install(old, lambda _: None))
    file = old / "store.json"
    pointer = json.loads(file.read_text())
    for damage in ({"directory": "state"}, {"directory": "../elsewhere"}, {"installed": "00"}, {"crc32": 1}):
        file.write_text(json.dumps(pointer | damage))
        with pytest.raises(StartupError, match="names the store, is damaged"):
            DataDirectory.open(old)
    file.write_text(json.dumps(pointer | {"format": 2}))
    with pytest.raises(StartupError, match="has format 2"):
        DataDirectory.open(old)
