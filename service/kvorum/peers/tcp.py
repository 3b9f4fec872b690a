"""The real `PeerLinks`: one listener for callers, one dialled connection per peer, all on the running loop."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, Any

from kvorum.core.errors import StartupError
from kvorum.peers.connection import AcceptedConnection
from kvorum.peers.limits import GREETING_CONNECTIONS_MAX, STOP_FLUSH_S, TICK_S
from kvorum.peers.link import OutgoingLink
from kvorum.peers.quiet_log import QuietLog

if TYPE_CHECKING:
    import random
    from collections.abc import Coroutine, Mapping, Sequence

    from kvorum.core.ids import NodeId
    from kvorum.core.ports import Greeting, PeerHandler
    from kvorum.observe.histogram import LatencyHistogram

_BACKLOG = 128


def _listen(port: int) -> socket.socket:
    """
    Bind all addresses, IPv6 and IPv4 with one socket where the machine has both.

    Raises:
        StartupError: The port cannot be had.
    """
    try:
        if socket.has_dualstack_ipv6():
            try:
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
        return socket.create_server(("", port), backlog=_BACKLOG)
    except OSError as error:
        taken = "another process listens there" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        msg = (
            f"cannot listen for peers on TCP port {port}: {taken}; stop it, or give this node another port in "
            "[consensus] endpoints on every node"
        )
        raise StartupError(msg) from error


class TcpPeerLinks:
    """
    `core.ports.PeerLinks` over TCP.

    Args:
        node_id: This node; an entry for it in ``peers`` is ignored.
        listen_port: Port for callers; 0 lets the system choose, see `port`.
        peers: Endpoint ``host:port`` of each node, read and resolved again at every dial.
        chance: Draws the jitter of dial pauses.
    """

    def __init__(
        self, node_id: NodeId, listen_port: int, peers: Mapping[NodeId, str], *, chance: random.Random
    ) -> None:
        self._node_id = node_id
        self._listen_port = listen_port
        self._endpoints = peers
        self._chance = chance
        self._links: dict[NodeId, OutgoingLink] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._strangers: set[AcceptedConnection] = set()
        """Connections that have not greeted yet, or were refused and are closing."""
        self._callers: dict[NodeId, AcceptedConnection] = {}
        self._frames_received: dict[NodeId, int] = {}
        self._bytes_received: dict[NodeId, int] = {}
        self._refused = 0
        self._server: asyncio.Server | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._stopping = False
        self.port = listen_port
        """Port that is really bound, once started."""

    # --- core.ports.PeerLinks ---

    def start(self, handler: PeerHandler) -> None:
        """
        Listen and dial; to be called on the loop.

        Raises:
            StartupError: The port is taken.
        """
        assert not self._tasks, "links start once"
        self._loop = asyncio.get_running_loop()
        self._handler = handler
        self._log = QuietLog(self._node_id, self._loop.time)
        self._listener = _listen(self._listen_port)
        self.port = self._listener.getsockname()[1]
        self._begin(self._serve(), "peers-listen")
        for peer in self._endpoints:
            if peer != self._node_id:
                link = OutgoingLink(peer, self._endpoints, handler, self._chance, self._log)
                self._links[peer] = link
                self._begin(link.run(), f"peers-dial-{peer}")
        self._tick = self._loop.call_later(TICK_S, self._ticked)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(work, name=name)
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A task that failed must not fail in silence: its link would stay dead for ever (catalogue bug 79)."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._loop.call_exception_handler(
                {"message": f"{task.get_name()} failed", "exception": error, "task": task}
            )

    def send(self, peer: NodeId, kind: int, parts: Sequence[bytes], *, urgent: bool = False) -> bool:
        """See `core.ports.PeerLinks.send`; False for a node that is no peer, too."""
        link = self._links.get(peer)
        return link is not None and link.send(kind, parts, urgent=urgent)

    async def stop(self) -> None:
        """Let written frames leave for a moment, then close everything; no callback comes any more."""
        self._stopping = True
        if self._tick is not None:
            self._tick.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        self._listener.close()
        callers = [*self._strangers, *self._callers.values()]
        for caller in callers:
            caller.finish("this node stops")
        ends = [link.drained() for link in self._links.values()] + [_end_of(caller) for caller in callers]
        try:
            async with asyncio.timeout(STOP_FLUSH_S):
                await asyncio.gather(*ends)
        except TimeoutError:
            for link in self._links.values():
                link.cut()
            for caller in callers:
                if caller.transport is not None:
                    caller.transport.abort()
            await asyncio.sleep(0)

    def statistics(self) -> dict[NodeId, dict[str, float]]:
        """Per peer: both directions, dials, losses, bytes waiting, last round trip in seconds."""
        figures = {}
        for peer, link in self._links.items():
            caller = self._callers.get(peer)
            figures[peer] = link.statistics() | {
                "frames_received": self._frames_received.get(peer, 0) + (caller.frames_received if caller else 0),
                "bytes_received": self._bytes_received.get(peer, 0) + (caller.bytes_received if caller else 0),
            }
        return figures

    # --- figures beside the port ---

    def round_trips(self) -> dict[NodeId, LatencyHistogram]:
        """Histogram of ping round trips per peer."""
        return {peer: link.round_trips for peer, link in self._links.items()}

    @property
    def callers_refused(self) -> int:
        """Connections that were turned away since the start."""
        return self._refused

    # --- listening ---

    async def _serve(self) -> None:
        self._server = await self._loop.create_server(self._new_caller, sock=self._listener)

    def _new_caller(self) -> AcceptedConnection:
        return AcceptedConnection(self._node_id, self._handler, self)

    def _ticked(self) -> None:
        self._tick = self._loop.call_later(TICK_S, self._ticked)
        now = self._loop.time()
        for link in self._links.values():
            link.tick(now)
        for caller in list(self._callers.values()):
            caller.tick()

    def caller_came(self, connection: AcceptedConnection) -> None:
        """Count strangers; too many are turned away unheard."""
        self._strangers.add(connection)
        if self._stopping or len(self._strangers) > GREETING_CONNECTIONS_MAX:
            connection.fail(f"more than {GREETING_CONNECTIONS_MAX} connections wait for their handshake")

    def caller_admitted(self, connection: AcceptedConnection, greeting: Greeting) -> None:
        """Take frames from this caller; an older connection of the same peer is a leftover."""
        self._strangers.discard(connection)
        peer = greeting.node_id
        older = self._callers.get(peer)
        self._callers[peer] = connection
        if older is not None:
            self._count(peer, older)
            older.fail("the peer dialled anew")
        link = self._links.get(peer)
        if link is not None:
            link.hurry()

    def caller_left(self, connection: AcceptedConnection, reason: str) -> None:
        """Forget a caller and say why it went, unless that is the normal end of a life."""
        greeting = connection.greeting
        if greeting is None:
            self._strangers.discard(connection)
            self._refused += 1
            if not self._stopping:
                host = connection.address.rpartition(":")[0]
                self._log.warning(
                    "caller turned away", subject=f"stranger {host}", reason=reason, address=connection.address
                )
            return
        peer = greeting.node_id
        if self._callers.get(peer) is connection:
            self._count(peer, connection)
            del self._callers[peer]
            if not self._stopping:
                self._log.warning("caller gone", subject=f"caller {peer}", reason=reason, peer=peer)

    def _count(self, peer: NodeId, connection: AcceptedConnection) -> None:
        self._frames_received[peer] = self._frames_received.get(peer, 0) + connection.frames_received
        self._bytes_received[peer] = self._bytes_received.get(peer, 0) + connection.bytes_received


async def _end_of(connection: AcceptedConnection) -> None:
    await connection.over
