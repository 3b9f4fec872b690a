"""
The listening edge: sockets, the table of connections, start and stop, and the counters others look at.

Both address families on one port, never SO_REUSEPORT: a second server on the port must fail to start. Connections are
never closed for being idle, except to make room when the table is full (contract section 9).
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import time
from typing import TYPE_CHECKING, Final

import structlog

from kvorum.core.errors import StartupError
from kvorum.core.ports import EngineStatistics
from kvorum.thrift.adapter.edge import Edge
from kvorum.thrift.adapter.methods import list_rules_by_name
from kvorum.thrift.connection import Connection, Routes
from kvorum.thrift.protocol.scanner import MALFORMED_REASONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvorum.thrift.adapter.edge import AppliedState, Routing
    from kvorum.thrift.settings import ThriftSettings

ACCEPT_BACKLOG: Final = 1024
"""Connections the kernel may hold until the loop accepts them; every client of a restarted node comes at once."""

KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
"""A peer that vanished is noticed after two minutes; seconds and counts."""

LOG_INTERVAL_S: Final = 10.0
"""At most one line about malformed input in this time, and one about defects."""

PORT_ATTEMPTS: Final = 16
"""With port 0, how often another free port is tried when its number is taken in the other family."""

log = structlog.get_logger("kvorum.thrift")


class ThriftServer:
    """Service TransactionalKV on the client port."""

    def __init__(
        self,
        routing: Routing,
        state: AppliedState,
        settings: ThriftSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
        engine_statistics: Callable[[], EngineStatistics] = EngineStatistics,
        on_defect: Callable[[BaseException], None] | None = None,
        logger: structlog.typing.FilteringBoundLogger | None = None,
    ) -> None:
        """
        Build the edge; nothing listens yet.

        Args:
            routing: Decides when reads are legal and takes writes.
            state: The applied state of this node.
            settings: Port and bounds.
            clock: Monotonic seconds, the same clock that routing uses.
            wall: Seconds since the Unix epoch.
            draw: Random number in [0, 1), for injected faults only.
            engine_statistics: Cheap figures of the storage engine.
            on_defect: Told of every exception a request caused; it may end the process if a disk failed.
            logger: Where to log; by default the room's own logger.
        """
        self.settings = settings
        self.edge = Edge(
            routing,
            state,
            settings,
            clock=clock,
            wall=wall,
            draw=draw,
            engine_statistics=engine_statistics,
            on_defect=self._defect,
        )
        self.routes = Routes(self.edge, list_rules_by_name(settings))
        self._on_defect = on_defect
        self._log = logger or log
        self._listeners: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._connections: dict[Connection, None] = {}
        """All that are open, oldest first: a set's order would differ from run to run."""
        self._marked: list[Connection] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._stopping = False
        self._malformed_logged = self._defect_logged = -LOG_INTERVAL_S
        self._malformed_unlogged = 0
        self.malformed_counts = dict.fromkeys(MALFORMED_REASONS, 0)
        self.connections_refused = 0
        """New connections that were closed because the table was full of busy ones."""
        self.connections_displaced = 0
        """Idle connections that were closed to make room."""

    # --- life -------------------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._sockets[0].getsockname()[1]) if self._sockets else self.settings.port

    @property
    def connection_count(self) -> int:
        """Open client connections."""
        return len(self._connections)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Work on this loop from now on; whoever has a client's bytes gives them to a `connection`."""
        self._loop = loop
        self.edge.later = loop.call_later

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop everything runs on."""
        assert self._loop is not None, "the server is attached to no loop"
        return self._loop

    def connection(self) -> Connection:
        """Make the protocol of one accepted client."""
        return Connection(self)

    async def start(self) -> None:
        """
        Listen.

        Raises:
            StartupError: The port is taken or not allowed; the text says how to choose another.
        """
        loop = asyncio.get_running_loop()
        self.attach(loop)
        self._sockets = listening_sockets(self.settings.port)
        for listener in self._sockets:
            server = await loop.create_server(self.connection, sock=listener, backlog=ACCEPT_BACKLOG)
            self._listeners.append(server)
        self._log.info("listening for clients", port=self.port, families=len(self._sockets))

    async def stop(self, grace_s: float) -> None:
        """Stop accepting, answer what is in flight within the bound, close everything."""
        self._stopping = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for connection in list(self._connections):
            connection.drain()
        try:
            await asyncio.wait_for(self._empty.wait(), grace_s)
        except TimeoutError:
            self._log.warning("closing connections with unanswered requests", connections=len(self._connections))
            for connection in list(self._connections):
                connection.abort()
            await self._empty.wait()
        self._sockets.clear()

    # --- for connections ----------------------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> bool:
        """Take a connection into the table; the longest idle one of the greediest address may have to leave."""
        if self._stopping:
            return False
        if len(self._connections) >= self.settings.connections_max and not self._make_room():
            self.connections_refused += 1
            return False
        self._connections[connection] = None
        self._empty.clear()
        return True

    def _make_room(self) -> bool:
        by_address: dict[str, list[Connection]] = {}
        for connection in self._connections:
            by_address.setdefault(connection.address, []).append(connection)
        greediest = max(by_address.values(), key=len, default=[])
        idle = min((c for c in greediest if c.idle), key=lambda c: c.received, default=None)
        if idle is None or self.edge.clock() - idle.received < self.settings.connection_idle_s:
            return False
        self.connections_displaced += 1
        self._connections.pop(idle, None)
        idle.abort()
        return True

    def lost(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.pop(connection, None)
        if not self._connections:
            self._empty.set()

    def malformed(self, connection: Connection, reason: str) -> None:
        """Count bytes that are no message, and log one line now and then."""
        self.malformed_counts[reason] += 1
        now = self.edge.clock()
        if now - self._malformed_logged >= LOG_INTERVAL_S:
            self._malformed_logged = now
            self._log.warning(
                "malformed input, connection closed",
                reason=reason,
                peer=connection.address,
                unlogged_before=self._malformed_unlogged,
            )
            self._malformed_unlogged = 0
        else:
            self._malformed_unlogged += 1

    def mark(self, connection: Connection) -> None:
        """Flush a connection when the present group of completions is over."""
        marked = self._marked
        marked.append(connection)
        if len(marked) == 1:
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is decided, one write per connection. Whoever completes a group may call it to save a turn."""
        marked, self._marked = self._marked, []
        now = self.edge.clock()
        for connection in marked:
            connection.flush(now)

    def _defect(self, method: str, defect: BaseException) -> None:
        now = self.edge.clock()
        if now - self._defect_logged >= LOG_INTERVAL_S:
            self._defect_logged = now
            self._log.error("a request failed with a defect", method=method, exc_info=defect)
        if self._on_defect is not None:
            self._on_defect(defect)


def listening_sockets(port: int) -> list[socket.socket]:
    """
    Bind one socket per address family, on all interfaces.

    Raises:
        StartupError: The port is taken or not allowed, or there is no network at all.
    """
    for attempt in range(PORT_ATTEMPTS):
        try:
            return _bind(port)
        except OSError as error:
            if port == 0 and error.errno == errno.EADDRINUSE and attempt + 1 < PORT_ATTEMPTS:
                continue
            raise StartupError(_why(port, error)) from error
    msg = "unreachable"
    raise AssertionError(msg)


def _why(port: int, error: OSError) -> str:
    way_out = "choose another with --port, THRIFT_PORT or this node's entry in [deployment] replica_endpoints"
    if error.errno == errno.EADDRINUSE:
        return f"client port {port} is already in use by another process; stop it, or {way_out}"
    if error.errno == errno.EACCES:
        return f"client port {port} needs privileges this process does not have; {way_out}"
    return f"cannot listen on client port {port}: {error.strerror}; {way_out}"


def _bind(port: int) -> list[socket.socket]:
    made: list[socket.socket] = []
    try:
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            listener = _socket(family)
            if listener is None:
                continue
            made.append(listener)
            try:
                listener.bind((address, port))
            except OSError as error:
                if family == socket.AF_INET6 and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    made.pop().close()
                    continue
                raise
            # Listening at once makes a second server fail even while this one is still starting.
            listener.listen(ACCEPT_BACKLOG)
            port = int(listener.getsockname()[1])
    except OSError:
        for listener in made:
            listener.close()
        raise
    if not made:
        raise OSError(errno.EAFNOSUPPORT, "neither IPv4 nor IPv6 is available")
    return made


def _socket(family: socket.AddressFamily) -> socket.socket | None:
    """Make a socket whose options the accepted ones inherit; None if the kernel lacks the family."""
    try:
        made = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in KEEPALIVE:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made
