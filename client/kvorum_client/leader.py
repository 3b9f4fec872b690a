"""
Where to send a call: the nodes a client knows, and which of them it believes to lead.

Belief comes from getStatus, refreshed when a call finds it wrong or after a while. It is only a hint: every node takes
every call and forwards what it must.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from kvorum_client.errors import KvorumError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence
    from random import Random

    from kvorum_client.pool import NodePool
    from kvorum_client.results import NodeStatus
    from kvorum_client.retry import Deadline

LEARNED_ENDPOINTS_MAX: Final = 16
"""Endpoints taken over from hints and member lists; members come and go, so the list must not grow for ever."""


class LeaderTracker:
    """Chooses the node for each attempt. One per client."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        make_pool: Callable[[str, bool], NodePool],
        ask_status: Callable[[str], Awaitable[NodeStatus]],
        random: Random,
        refresh_s: float,
        discovery_interval_s: float,
    ) -> None:
        self._make_pool = make_pool
        self._ask_status = ask_status
        self._random = random
        self._refresh_s = refresh_s
        self._discovery_interval_s = discovery_interval_s
        self.configured: tuple[str, ...] = tuple(dict.fromkeys(endpoint.strip() for endpoint in endpoints))
        self.pools: dict[str, NodePool] = {endpoint: make_pool(endpoint, False) for endpoint in self.configured}
        self.leader: str | None = None
        """Endpoint believed to lead; None if nothing is known."""
        self._spares: tuple[str, ...] = ()
        """Members that a node named last. Asked only when nobody else is left: their names may not resolve here."""
        self._believed_until = 0.0
        self._discovery: asyncio.Task[None] | None = None
        self._discover_after = 0.0

    # --- what calls teach -----------------------------------------------------------------------------------------

    def lead_by(self, endpoint: str) -> None:
        """Believe that an endpoint leads, perhaps one that was not configured."""
        if not self._learn(endpoint):
            return
        self.leader = endpoint
        self._believed_until = asyncio.get_running_loop().time() + self._refresh_s

    def _learn(self, endpoint: str) -> bool:
        """Have a pool for an endpoint, perhaps a new one; False if there cannot be one."""
        if endpoint in self.pools:
            return True
        learned = [known for known in self.pools if known not in self.configured]
        if len(learned) >= LEARNED_ENDPOINTS_MAX:
            return False
        try:
            self.pools[endpoint] = self._make_pool(endpoint, True)
        except ValueError:
            return False
        return True

    def doubt(self, endpoint: str) -> None:
        """Stop believing that this endpoint leads; another one may already be believed."""
        if self.leader == endpoint:
            self.leader = None

    # --- choosing -------------------------------------------------------------------------------------------------

    async def choose(self, avoid: Collection[str], deadline: Deadline, *, prefer_leader: bool) -> NodePool:
        """
        Pick the node for the next attempt: the leader if wanted and known, else one that is not resting.

        It may take time to find out who leads, but not more than the deadline leaves.
        """
        if prefer_leader:
            await self._freshen(deadline)
            if self.leader is not None and self.leader not in avoid and self.pools[self.leader].rest_s <= 0:
                return self.pools[self.leader]
        fresh = [pool for endpoint, pool in self.pools.items() if endpoint not in avoid]
        candidates = fresh or list(self.pools.values())
        rested = [pool for pool in candidates if pool.rest_s <= 0] or self.take_spares()
        if rested:
            return self._random.choice(rested)
        return min(candidates, key=lambda pool: pool.rest_s)

    def take_spares(self) -> list[NodePool]:
        """Take in the members that were named while somebody still answered; the new ones."""
        spares, self._spares = self._spares, ()
        return [self.pools[spare] for spare in spares if spare not in self.pools and self._learn(spare)]

    async def _freshen(self, deadline: Deadline) -> None:
        now = asyncio.get_running_loop().time()
        if len(self.pools) == 1:
            # It may be a Service's name, so it is neither left for the leader nor asked who leads; but who else is
            # there must be known before it falls silent.
            self.leader = next(iter(self.pools))
            if now >= self._believed_until:
                self._begin_discovery(now)
            return
        if self.leader is not None and self.pools[self.leader].rest_s > 0:
            self.leader = None
        if self.leader is not None and now < self._believed_until:
            return
        self._begin_discovery(now)
        if self._discovery is not None and self.leader is None:
            await asyncio.wait((self._discovery,), timeout=max(0.0, deadline.remaining))

    def _begin_discovery(self, now: float) -> None:
        if self._discovery is None and now >= self._discover_after:
            self._discover_after = now + self._discovery_interval_s
            # An old belief is renewed while other calls still follow it.
            self._believed_until = now + self._refresh_s
            self._discovery = asyncio.create_task(self._discover(), name="kvorum client leader discovery")
            self._discovery.add_done_callback(self._discovered)

    def _discovered(self, task: asyncio.Task[None]) -> None:
        self._discovery = None
        if not task.cancelled() and (problem := task.exception()) is not None:
            raise problem

    async def _discover(self) -> None:
        """Ask every node that is not resting; believe the leader of the highest term that was named."""
        asked = [endpoint for endpoint, pool in self.pools.items() if pool.rest_s <= 0]
        tasks = [asyncio.create_task(self._status_or_none(endpoint), name=f"ask {endpoint}") for endpoint in asked]
        best: tuple[int, bool] = (-1, False)
        leader: str | None = None
        answers = 0
        try:
            for answered in asyncio.as_completed(tasks):
                status = await answered
                if status is None:
                    continue
                answers += 1
                if status.members:
                    self._spares = tuple(member.kv_endpoint for member in status.members)[:LEARNED_ENDPOINTS_MAX]
                leads = status.role == "leader"
                named = status.endpoint if leads else status.leader_endpoint
                if named and (status.term, leads) > best and not self._rests(named):
                    best, leader = (status.term, leads), named
                # A node that hangs must not hold up the others' answer.
                if best[1] and answers * 2 > len(self.pools):
                    break
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if leader is not None and len(self.pools) > 1:
            self.lead_by(leader)

    def _rests(self, endpoint: str) -> bool:
        pool = self.pools.get(endpoint)
        return pool is not None and pool.rest_s > 0

    async def _status_or_none(self, endpoint: str) -> NodeStatus | None:
        try:
            return await self._ask_status(endpoint)
        except KvorumError:
            return None

    async def close(self) -> None:
        """End the discovery and close every connection."""
        if self._discovery is not None:
            self._discovery.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((self._discovery,))
        for pool in self.pools.values():
            await pool.close()
