"""The state hash of this node on request, for `kvorum verify`: in slices on the loop, at most one at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvorum.consensus.applier import Applier
    from kvorum.core.ids import Index
    from kvorum.statemachine.executor import KvStoreExecutor

WAIT_S: Final = 5.0
"""How long a request waits for this node to apply the index it asks for."""


class StateHasher:
    """
    Answers `GET /state-hash`.

    Writes may go on: the applier stops for a moment at exactly the wanted index, the hash is taken from a view of it.
    """

    def __init__(self, executor: KvStoreExecutor, applier: Applier) -> None:
        self._executor = executor
        self._applier = applier
        self._busy = asyncio.Lock()

    async def at(self, wanted: Index | None) -> tuple[Index, str] | None:
        """
        Hash the state at an applied index, by default at the present one.

        Returns:
            The applied index and the hash, or None if the node did not reach that index in time or is past it.
        """
        steps = self._executor.state_hash() if wanted is None else await self._view_at(wanted)
        if steps is None:
            return None
        async with self._busy:
            for found in steps:
                if found is not None:
                    return found
                await asyncio.sleep(0)
        return None

    async def _view_at(self, wanted: Index) -> Iterator[tuple[Index, str] | None] | None:
        if self._executor.applied_index == wanted:
            return self._executor.state_hash()
        if self._executor.applied_index > wanted:
            return None
        reached: asyncio.Future[Iterator[tuple[Index, str] | None]] = asyncio.get_running_loop().create_future()

        def take() -> None:
            if not reached.done():
                reached.set_result(self._executor.state_hash())

        self._applier.stop_at(wanted, take)
        try:
            return await asyncio.wait_for(reached, WAIT_S)
        except TimeoutError:
            return None
