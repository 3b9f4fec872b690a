"""`KvorumClient`: the calls of the contract over several nodes, with failover inside one time budget per call."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from kvorum_client.calls import Caller, Settings
from kvorum_client.errors import InvalidRequestError, KvorumError
from kvorum_client.results import ClusterHealth, KeyValue, NodeHealth
from kvorum_client.retry import Backoff
from kvorum_client.sessions import random_client_id
from kvorum_client.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from types import TracebackType

    from kvorum_client.pool import Connector
    from kvorum_client.results import NodeStatus

T = TypeVar("T")

PAGE_PAIRS: Final = 10_000
"""Pairs asked for at once by an unlimited range; the server's size limit usually cuts earlier."""

_LOCAL_LEVELS: Final = frozenset({"local", "eventual", "stale"})
_TRANSACTION_PAUSE: Final = Backoff(first_s=0.005, longest_s=0.5)


class KvorumClient:
    """
    A client of one kvorum cluster, for use on one event loop.

    ::

        async with KvorumClient(["10.0.0.1:9090", "10.0.0.2:9090"]) as client:
            await client.set(b"key", b"value")

    Args:
        endpoints: ``host:port`` of one or more nodes; the others are found through them.
        timeout_s: Time budget of one call with all its attempts; keep it above the server's own bound (10 s).
        attempt_timeout_s: Longest wait for one node where the call may be repeated elsewhere.
        connect_timeout_s: Longest wait for a connection.
        consistency: Read level for get, get_range, scan and get_read_version; None leaves it to the node.
        connections_max: Connections to one node.
        in_flight_max: Calls on one connection whose reply has not come yet.
        exactly_once: Give every write an identity, so that it is repeated after a lost reply and still takes effect
            once. Without, a write whose reply is lost ends as `OutcomeUnknownError` at once.
        connector: Opens connections; default TCP on the running loop.
        random: Source of jitter and of choices among equal nodes; a seeded one makes a run repeatable.
        new_client_id: Draws the 16 bytes that identify this client to the cluster. No two clients may share them, so
            leave it alone outside of simulations.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        timeout_s: float = 15.0,
        attempt_timeout_s: float = 5.5,
        connect_timeout_s: float = 2.0,
        consistency: str | None = None,
        connections_max: int = 8,
        in_flight_max: int = 256,
        exactly_once: bool = True,
        connector: Connector | None = None,
        random: Random | None = None,
        new_client_id: Callable[[], bytes] = random_client_id,
    ) -> None:
        if isinstance(endpoints, str) or not endpoints:
            text = "endpoints must be a list of host:port with at least one entry"
            raise ValueError(text)
        self._consistency = consistency
        self._settings = Settings(
            timeout_s=timeout_s,
            attempt_timeout_s=attempt_timeout_s,
            connect_timeout_s=connect_timeout_s,
            status_timeout_s=1.0,
            connections_max=connections_max,
            in_flight_max=in_flight_max,
            leader_refresh_s=5.0,
            discovery_interval_s=0.1,
            exactly_once=exactly_once,
        )
        self._caller = Caller(
            endpoints,
            self._settings,
            connector=connector,
            random=random or Random(),
            new_client_id=new_client_id,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Calls in flight fail; a write among them with `OutcomeUnknownError`."""
        await self._caller.close()

    # --- single keys ----------------------------------------------------------------------------------------------

    async def get(
        self, key: bytes, *, family: str | None = None, consistency: str | None = None, timeout_s: float | None = None
    ) -> bytes | None:
        """Value of a key, or None."""
        level = consistency or self._consistency
        reply = await self._caller.call(
            "get",
            {"key": key, "column_family": family, "consistency": level},
            timeout_s=timeout_s,
            prefer_leader=_wants_leader(level),
        )
        return _bytes(reply.value) if reply.found else None

    async def set(
        self,
        key: bytes,
        value: bytes,
        *,
        family: str | None = None,
        retry_unknown: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        """
        Write a key; returns once the write is durable on a quorum.

        Args:
            key: 1 to 10,240 bytes.
            value: May be empty.
            family: Column family; None is the default one.
            retry_unknown: Matters only without ``exactly_once``: repeat the write also if an attempt may have been
                done. Harmless unless somebody else writes the key in between: then the repetition overwrites theirs.
            timeout_s: Time budget instead of the client's.

        Raises:
            OutcomeUnknownError: No attempt said in time what became of the write: it may have been done, or may
                still be, once.
        """
        fields: dict[str, object] = {"key": key, "value": value, "column_family": family}
        await self._caller.call("setKey", fields, timeout_s=timeout_s, retry_unknown=retry_unknown)

    async def delete(
        self, key: bytes, *, family: str | None = None, retry_unknown: bool = False, timeout_s: float | None = None
    ) -> None:
        """Remove a key; a missing key is no error. ``retry_unknown`` and errors as for `set`."""
        fields: dict[str, object] = {"key": key, "column_family": family}
        await self._caller.call("deleteKey", fields, timeout_s=timeout_s, retry_unknown=retry_unknown)

    async def set_versionstamped_key(
        self, key_buffer: bytes, value: bytes, *, family: str | None = None, timeout_s: float | None = None
    ) -> bytes:
        """Write under a key whose last 10 bytes the server replaces by the versionstamp; returns the final key."""
        fields: dict[str, object] = {"key_prefix": key_buffer, "value": value, "column_family": family}
        reply = await self._caller.call("setVersionstampedKey", fields, timeout_s=timeout_s)
        return _bytes(reply.generated_key)

    async def set_versionstamped_value(
        self, key: bytes, value_buffer: bytes, *, family: str | None = None, timeout_s: float | None = None
    ) -> bytes:
        """Write a value whose last 10 bytes the server replaces by the versionstamp; returns the final value."""
        fields: dict[str, object] = {"key": key, "value_prefix": value_buffer, "column_family": family}
        reply = await self._caller.call("setVersionstampedValue", fields, timeout_s=timeout_s)
        return _bytes(reply.generated_value)

    # --- ranges -----------------------------------------------------------------------------------------------------

    async def get_range(
        self,
        begin: bytes = b"",
        end: bytes | None = None,
        *,
        limit: int | None = None,
        reverse: bool = False,
        family: str | None = None,
        consistency: str | None = None,
        timeout_s: float | None = None,
    ) -> list[KeyValue]:
        """
        Pairs with begin <= key < end, ascending, or descending with ``reverse``.

        One reply holds at most about 8 MiB; a longer result is fetched in pages, each of its own moment. Where all
        must be of one moment, read in a transaction. ``end`` None means ``ff``: keys that start with the byte ff lie
        behind it.
        """
        pages = self._pages(
            begin, end, limit=limit, reverse=reverse, family=family, consistency=consistency, timeout_s=timeout_s
        )
        return [pair async for page in pages for pair in page]

    async def scan(
        self,
        begin: bytes = b"",
        end: bytes | None = None,
        *,
        limit: int | None = None,
        reverse: bool = False,
        family: str | None = None,
        consistency: str | None = None,
    ) -> AsyncIterator[KeyValue]:
        """Like `get_range`, pair by pair, with one page in memory at a time."""
        async for page in self._pages(
            begin, end, limit=limit, reverse=reverse, family=family, consistency=consistency, timeout_s=None
        ):
            for pair in page:
                yield pair

    async def _pages(
        self,
        begin: bytes,
        end: bytes | None,
        *,
        limit: int | None,
        reverse: bool,
        family: str | None,
        consistency: str | None,
        timeout_s: float | None,
    ) -> AsyncIterator[list[KeyValue]]:
        level = consistency or self._consistency
        left = limit
        end_inclusive = False
        while left is None or left > 0:
            fields: dict[str, object] = {
                "begin_key": begin,
                "end_key": end,
                "end_or_equal": end_inclusive,
                "limit": PAGE_PAIRS if left is None else min(left, PAGE_PAIRS),
                "reverse": reverse or None,
                "column_family": family,
                "consistency": level,
            }
            reply = await self._caller.call("getRange", fields, timeout_s=timeout_s, prefer_leader=_wants_leader(level))
            page = [KeyValue(pair.key, pair.value) for pair in reply.key_values]
            if left is not None:
                left -= len(page)
            yield page
            if not reply.has_more:
                return
            if reply.next_key is None:
                text = "the node cut a range short without saying where to go on; it is older than this client"
                raise KvorumError(text)
            if reverse:
                end, end_inclusive = _bytes(reply.next_key), True
            else:
                begin = _bytes(reply.next_key)

    # --- versions and the cluster -------------------------------------------------------------------------------------

    async def get_read_version(self, *, consistency: str | None = None, timeout_s: float | None = None) -> int:
        """Return a version that shows, by default, everything acknowledged before the call."""
        level = consistency or self._consistency
        reply = await self._caller.call(
            "getReadVersion", {"consistency": level}, timeout_s=timeout_s, prefer_leader=_wants_leader(level)
        )
        return int(reply.read_version)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoints this client was given."""
        return self._caller.nodes.configured

    async def status(self, endpoint: str | None = None) -> NodeStatus:
        """What a node says of itself; without ``endpoint`` the first node that answers."""
        if endpoint is not None:
            return await self._caller.status(endpoint)
        return await self._first(self._caller.status)

    async def status_all(self) -> dict[str, NodeStatus | KvorumError]:
        """Ask every configured endpoint at once; what could not be reached gives its error."""
        endpoints = self.endpoints
        answers = await asyncio.gather(*(self._status_or_error(endpoint) for endpoint in endpoints))
        return dict(zip(endpoints, answers, strict=True))

    async def _status_or_error(self, endpoint: str) -> NodeStatus | KvorumError:
        try:
            return await self._caller.status(endpoint)
        except KvorumError as problem:
            return problem

    async def cluster_health(self, endpoint: str | None = None) -> ClusterHealth:
        """The cluster as one node sees it; without ``endpoint`` the first node that answers."""
        if endpoint is None:
            return await self._first(self._health)
        return await self._health(endpoint)

    async def _health(self, endpoint: str) -> ClusterHealth:
        reply = await self._caller.call_node(endpoint, "getClusterHealth", {}, self._settings.status_timeout_s)
        health = reply.cluster_health
        return ClusterHealth(
            nodes=tuple(_node_health(node) for node in health.nodes),
            healthy_nodes_count=health.healthy_nodes_count,
            total_nodes_count=health.total_nodes_count,
            leader=None if health.leader is None else _node_health(health.leader),
            cluster_status=health.cluster_status,
            current_term=health.current_term,
        )

    async def _first(self, ask: Callable[[str], Awaitable[T]]) -> T:
        problem: KvorumError | None = None
        leader = self._caller.nodes.leader
        for endpoint in sorted(self._caller.nodes.pools, key=lambda known: known != leader):
            try:
                return await ask(endpoint)
            except KvorumError as failure:
                problem = failure
        assert problem is not None, "a client has at least one endpoint"
        raise problem

    # --- transactions -------------------------------------------------------------------------------------------------

    def transaction(self, *, timeout_s: float | None = None) -> Transaction:
        """Begin a transaction; nothing is sent before its first read or its commit."""
        return Transaction(self._caller, timeout_s=timeout_s)

    async def run(
        self,
        body: Callable[[Transaction], Awaitable[T]],
        *,
        attempts: int = 16,
        retry_unknown: bool = False,
        timeout_s: float | None = None,
    ) -> T:
        """
        Run a function in a transaction, commit, and start it again on conflict.

        Args:
            body: Called with a new transaction each time; must have no effects that may not happen twice. What it
                returns is returned after the commit.
            attempts: How often to try, at least once.
            retry_unknown: Start again also if a commit may have been done; ``body`` must then find its own earlier
                writes harmless.
            timeout_s: Time budget of each single call.

        Raises:
            ConflictError: Still in conflict after the last attempt.
            OutcomeUnknownError: A commit may have been done, and ``retry_unknown`` is off.
        """
        if attempts < 1:
            text = "attempts must be at least 1"
            raise InvalidRequestError(text)
        attempt = 0
        while True:
            attempt += 1
            transaction = self.transaction(timeout_s=timeout_s)
            try:
                result = await body(transaction)
                if not transaction.closed:
                    await transaction.commit()
            except KvorumError as problem:
                again = problem.retry_transaction or (retry_unknown and not problem.outcome_known)
                if not again or attempt >= attempts:
                    raise
            else:
                return result
            await asyncio.sleep(_TRANSACTION_PAUSE.pause(attempt, self._caller.random))


def _wants_leader(level: str | None) -> bool:
    return level is None or level.lower() not in _LOCAL_LEVELS


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes), "a binary field arrives as bytes"
    return value


def _node_health(node: Any) -> NodeHealth:
    return NodeHealth(
        node_id=node.node_id,
        endpoint=node.endpoint,
        status=node.status,
        is_leader=node.is_leader,
        last_seen_timestamp=node.last_seen_timestamp,
        term=node.term,
        uptime_seconds=node.uptime_seconds,
    )
