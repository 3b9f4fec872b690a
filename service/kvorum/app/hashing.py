"""The state hash of this node on request, for `kvorum verify`: in slices on the loop, at most one at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kvorum.core.ids import Index
    from kvorum.statemachine.executor import KvStoreExecutor

WAIT_S: Final = 5.0
"""How long a request waits for this node to apply the index it asks for."""

POLL_S: Final = 0.005


class StateHasher:
    """Answers `GET /state-hash`."""

    def __init__(self, executor: KvStoreExecutor) -> None:
        self._executor = executor
        self._busy = asyncio.Lock()

    async def at(self, wanted: Index | None) -> tuple[Index, str] | None:
        """
        Hash the state at an applied index, by default at the present one.

        Returns:
            The applied index and the hash, or None if the node did not reach that index in time or is past it.
        """
        async with self._busy:
            if wanted is not None:
                end = asyncio.get_running_loop().time() + WAIT_S
                while self._executor.applied_index < wanted and asyncio.get_running_loop().time() < end:
                    await asyncio.sleep(POLL_S)  # noqa: ASYNC110 - rare, operator's request
                if self._executor.applied_index != wanted:
                    return None
            for found in self._executor.state_hash():
                if found is not None:
                    return found
                await asyncio.sleep(0)
            return None
