"""
The connections to one node: a bounded number, dialled when needed, the least loaded one first.

After a failed dial the node rests for a growing, jittered time; `rest_s` says how long, so that callers go elsewhere.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, cast

from kvorum_client.connection import Connection
from kvorum_client.errors import ClientClosedError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from kvorum_client.retry import Backoff, Deadline


class Connector(Protocol):
    """Opens a byte stream to ``host:port``; the default is the running loop's `create_connection`."""

    async def __call__(
        self, protocol_factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        """Connect and return what `asyncio.loop.create_connection` returns."""
        ...


async def connect_tcp(
    protocol_factory: Callable[[], asyncio.Protocol], host: str, port: int
) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
    """Open a TCP connection on the running loop, trying every address of a name in turn."""
    return await asyncio.get_running_loop().create_connection(protocol_factory, host, port)


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """
    Host and port of ``host:port`` or ``[v6]:port``.

    Raises:
        ValueError: Not of that form.
    """
    host, separator, port = endpoint.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isdigit() or not 0 < int(port) < 65536:
        text = f"endpoint {endpoint!r} is not host:port"
        raise ValueError(text)
    return host, int(port)


class NodePool:
    """All connections of one client to one endpoint."""

    def __init__(
        self,
        endpoint: str,
        *,
        connections_max: int,
        in_flight_max: int,
        connect_timeout_s: float,
        connector: Connector,
        random: Random,
        backoff: Backoff,
    ) -> None:
        self.endpoint = endpoint
        self._host, self._port = split_endpoint(endpoint)
        self._connections_max = connections_max
        self._in_flight_max = in_flight_max
        self._connect_timeout_s = connect_timeout_s
        self._connector = connector
        self._random = random
        self._connections: list[Connection] = []
        self._dialling = 0
        self._changed: asyncio.Event = asyncio.Event()
        self._backoff = backoff
        self._failures = 0
        self._rest_until = 0.0
        self._closed = False

    @property
    def rest_s(self) -> float:
        """Seconds until it makes sense to dial again; zero or less if it does now."""
        return self._rest_until - asyncio.get_running_loop().time()

    @property
    def connections(self) -> int:
        """Open connections that take calls."""
        return sum(not connection.retired for connection in self._connections)

    def note_failure(self) -> None:
        """Let the node rest, because it could not be reached or did not answer; many calls fail as one."""
        if self.rest_s > 0:
            return
        self._failures += 1
        pause = self._backoff.pause(self._failures, self._random)
        self._rest_until = asyncio.get_running_loop().time() + pause

    def note_success(self) -> None:
        """A reply came: the node is well."""
        self._failures = 0
        self._rest_until = 0.0

    async def acquire(self, deadline: Deadline) -> Connection:
        """
        Give a connection that can take one more call; the caller must use it without awaiting in between.

        Raises:
            UnavailableError: The node cannot be reached, or all connections stayed full until the deadline.
            ClientClosedError: The pool was closed.
        """
        while True:
            if self._closed:
                text = "the client is closed"
                raise ClientClosedError(text)
            usable = [connection for connection in self._connections if not connection.retired]
            best = min((connection for connection in usable if not connection.paused), key=_load, default=None)
            if best is not None and best.in_flight == 0:
                return best
            if len(usable) + self._dialling < self._connections_max:
                return await self._dial(deadline)
            if best is not None and best.in_flight < self._in_flight_max:
                return best
            await self._wait_for_change(deadline)

    async def _dial(self, deadline: Deadline) -> Connection:
        self._dialling += 1
        try:
            async with asyncio.timeout(min(self._connect_timeout_s, max(0.0, deadline.remaining))):
                _, protocol = await self._connector(self._new_connection, self._host, self._port)
        except OSError as problem:  # TimeoutError is one of them
            self.note_failure()
            reason = str(problem) or "no answer in time"
            text = f"cannot connect to {self.endpoint}: {reason}"
            raise UnavailableError(text, endpoint=self.endpoint) from problem
        finally:
            self._dialling -= 1
            self._wake()
        connection = cast("Connection", protocol)
        if self._closed:
            connection.abort()
            text = "the client is closed"
            raise ClientClosedError(text)
        if connection.retired:
            raise connection.failure or UnavailableError(f"{self.endpoint} hung up at once", endpoint=self.endpoint)
        self._connections.append(connection)
        return connection

    def _new_connection(self) -> Connection:
        return Connection(self.endpoint, self._lost, self._wake)

    async def _wait_for_change(self, deadline: Deadline) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(max(0.0, deadline.remaining)):
                await self._changed.wait()
        except TimeoutError:
            text = f"all connections to {self.endpoint} are full"
            raise UnavailableError(text, endpoint=self.endpoint) from None

    def _wake(self) -> None:
        self._changed.set()

    def _lost(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
        if not self._closed:
            self.note_failure()
        self._wake()

    def retire(self, connection: Connection) -> None:
        """Give no more calls to a connection that did not answer in time."""
        connection.retire()
        self._wake()

    async def close(self) -> None:
        """Abort every connection and wait until the sockets are gone."""
        self._closed = True
        self._wake()
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        for connection in connections:
            await connection.wait_closed()


def _load(connection: Connection) -> int:
    return connection.in_flight
