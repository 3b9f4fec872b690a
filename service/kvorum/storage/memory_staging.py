"""A staging area in memory for the simulator and for tests: the same promises as `staging`, crashes included."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kvorum.storage.memory_engine import MemoryEngine

if TYPE_CHECKING:
    from kvorum.core.ports import StorageEngine
    from kvorum.core.snapshot import Manifest


class MemoryStaging:
    """`core.ports.StagingArea` without a disk; ``engine`` and ``installed`` are what a new process finds."""

    def __init__(self, engine: MemoryEngine, installed: Manifest | None = None, *, delay_s: float = 0.002) -> None:
        """
        Begin with the present store.

        Args:
            engine: The present store.
            installed: As `DataDirectory.installed`.
            delay_s: How long each step on the disk takes.
        """
        self.engine = engine
        self.installed = installed
        self.delay_s = delay_s
        self._staged: MemoryEngine | None = None

    async def begin(self) -> StorageEngine:
        """An empty engine."""
        await asyncio.sleep(self.delay_s)
        self._staged = MemoryEngine()
        return self._staged

    async def seal(self) -> None:
        """Flush what is staged."""
        await asyncio.sleep(self.delay_s)
        assert self._staged is not None
        self._staged.flush()

    async def commit(self, manifest: Manifest) -> None:
        """Make the staged store the store, at one moment within the delay."""
        await asyncio.sleep(self.delay_s / 2)
        assert self._staged is not None
        self.engine, self.installed, self._staged = self._staged, manifest, None
        await asyncio.sleep(self.delay_s / 2)

    async def settle(self) -> None:
        """Note that the log follows."""
        await asyncio.sleep(self.delay_s)
        self.installed = None

    async def abandon(self) -> None:
        """Forget what is staged."""
        self._staged = None
