"""A node whose disk is full, from inside: what ends it, what it survives, and how it waits at its start."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kvorum.app import node as node_module
from kvorum.app import space as space_module
from kvorum.app.node import Node
from kvorum.app.space import open_node
from kvorum.config.settings import Database, Settings
from kvorum.core.errors import OutOfSpaceError, StorageFailedError
from kvorum.storage.rocksdict_engine import RocksdictEngine
from tests.process.harness import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUOTA = "IO error: While appending to file: x.sst: Disk quota exceeded"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A standalone node without HTTP and without a reserve, on a directory of its own."""
    return Settings(data_directory=tmp_path / "data", database=Database(reserve_bytes=0), client_port=0)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """As long as it holds a text, flushes of RocksDB fail with it, as the disk of its tests is not really full."""
    texts: list[str] = []
    flush = RocksdictEngine.flush

    def failing(engine: RocksdictEngine) -> None:
        if texts:
            raise engine._translated(Exception(texts[0]))
        flush(engine)

    monkeypatch.setattr(RocksdictEngine, "flush", failing)
    return texts


@pytest.mark.parametrize("text", ["IO error: No space left on device: While appending to file: x.sst", QUOTA])
async def test_flush_on_a_full_disk_is_survived(settings: Settings, full: list[str], text: str) -> None:
    """The node stops serving and says why, tries again by itself, and goes on with the first flush that succeeds."""
    failed: list[BaseException] = []
    node = Node(settings, asyncio.get_running_loop(), failed.append)
    await node.start()
    full.append(text)
    node.consensus.applier.flush_now()
    await eventually(lambda: _is(not node.consensus.has_space), "the node steps aside", 5)
    assert ("disk_space", False) in node.consensus.readiness()
    full.clear()
    await eventually(lambda: _is(node.consensus.may_serve), "the node serves again", 5)
    await node.stop()

    assert failed == []


async def test_flush_on_a_broken_disk_ends_the_node(settings: Settings, full: list[str]) -> None:
    """Only a lack of space is survived: with any other error nobody knows what is on the disk."""
    failed: list[BaseException] = []
    node = Node(settings, asyncio.get_running_loop(), failed.append)
    await node.start()
    full.append("IO error: While fsync: x.sst: Input/output error")
    node.consensus.applier.flush_now()
    await eventually(lambda: _is(bool(failed)), "the node ends", 5)
    full.clear()
    await node.stop()

    assert [type(error) for error in failed] == [StorageFailedError]


async def test_store_that_does_not_go_on_although_there_is_space_ends_the_node(
    settings: Settings, full: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a quota RocksDB has to be opened again; ample space and a store that refuses for long is how that looks."""
    monkeypatch.setattr(node_module, "STORE_RESUME_S", 0.6)
    failed: list[BaseException] = []
    node = Node(settings, asyncio.get_running_loop(), failed.append)
    await node.start()
    full.append(QUOTA)
    node.consensus.applier.flush_now()
    await eventually(lambda: _is(bool(failed)), "the node ends", 5)
    full.clear()
    await node.stop()

    assert "start the node again: nothing is lost" in str(failed[0])


async def test_start_on_a_full_disk_waits_and_can_be_stopped(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens as soon as there is space, leaves nothing open between attempts, and heeds a signal while it waits."""
    monkeypatch.setattr(space_module, "WAIT_S", 0.01)
    attempts = 0
    open_engine = RocksdictEngine.open

    def open_later(*arguments: object) -> RocksdictEngine:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            msg = "cannot open"
            raise OutOfSpaceError(msg)
        return open_engine(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(RocksdictEngine, "open", open_later)
    stop = asyncio.Event()
    node = await open_node(settings, pytest.fail, stop)
    assert node is not None
    assert attempts == 4
    await node.start()
    await node.stop()

    attempts = -1_000_000
    asyncio.get_running_loop().call_later(0.05, stop.set)
    assert await open_node(settings, pytest.fail, stop) is None


async def _is(condition: bool) -> bool:  # noqa: FBT001 - what `eventually` asks for
    return condition
