"""
The stores of a data directory: the present one, and the one that a snapshot is building beside it.

A new store lives in a directory of its own and is never renamed: RocksDB writes by path, and a scan may hold the old
store open for a while after the switch. What makes it the store is the file that names it (`DataDirectory.set_store`).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from typing import TYPE_CHECKING

from kvorum.core.errors import OutOfSpaceError, StorageFailedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvorum.core.ports import StorageEngine
    from kvorum.core.snapshot import Manifest
    from kvorum.storage.data_directory import DataDirectory


class StagedStores:
    """`core.ports.StagingArea` on a data directory; also keeps the engine that is open."""

    def __init__(self, directory: DataDirectory, open_engine: Callable[[Path], StorageEngine]) -> None:
        """
        Open the present store.

        Args:
            directory: Locked by this process.
            open_engine: Opens a directory as a storage engine.

        Raises:
            StorageFailedError: It cannot be opened.
        """
        self.engine = open_engine(directory.state_path)
        self._directory = directory
        self._open_engine = open_engine
        self._staged: StorageEngine | None = None
        self._path: Path | None = None
        self._old: StorageEngine | None = None

    async def begin(self) -> StorageEngine:
        """An empty engine in a directory of its own."""
        await self.abandon()
        self._path = await asyncio.to_thread(self._directory.new_store_path)
        self._staged = await asyncio.to_thread(self._open_engine, self._path)
        return self._staged

    async def seal(self) -> None:
        """Flush what is staged."""
        assert self._staged is not None
        await asyncio.to_thread(self._staged.flush)

    async def commit(self, manifest: Manifest) -> None:
        """Make the staged store the store."""
        assert self._staged is not None
        assert self._path is not None
        await asyncio.to_thread(self._directory.set_store, self._path, manifest)
        self._old, self.engine, self._staged = self.engine, self._staged, None

    async def settle(self) -> None:
        """Note that the log follows; close the store of before and delete it."""
        assert self._path is not None
        await asyncio.to_thread(self._directory.set_store, self._path, None)
        self._path = None
        old, self._old = self._old, None
        if old is not None:
            with contextlib.suppress(OutOfSpaceError):  # it has given its place away: what it could not flush is void
                await asyncio.to_thread(old.close)
        await asyncio.to_thread(self._directory.remove_other_stores)

    async def abandon(self) -> None:
        """Close and delete what is staged."""
        staged, self._staged = self._staged, None
        if staged is not None:
            assert self._path is not None
            # On a full disk closing fails too, for it writes out what is in memory: all of that is void.
            with contextlib.suppress(StorageFailedError):
                await asyncio.to_thread(staged.close)
            await asyncio.to_thread(shutil.rmtree, self._path, ignore_errors=True)
            self._path = None

    def close(self) -> None:
        """
        Close every engine; a store that is staged stays for the next start to delete.

        On a full disk an engine is closed without what it could not flush: the log holds that.
        """
        for engine in (self._staged, self._old, self.engine):
            if engine is not None:
                with contextlib.suppress(OutOfSpaceError):
                    engine.close()
        self._staged = self._old = None
