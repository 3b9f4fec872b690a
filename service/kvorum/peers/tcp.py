"""The real `PeerLinks`: one listener for callers, one dialled connection per peer, all on the running loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import socket
from typing import TYPE_CHECKING, Any

from kvorum.core.errors import RemoteError, StartupError
from kvorum.peers.connection import AcceptedConnection
from kvorum.peers.limits import GREETING_CONNECTIONS_MAX, STOP_FLUSH_S, STREAMS_MAX, TICK_S
from kvorum.peers.link import OutgoingLink
from kvorum.peers.quiet_log import QuietLog
from kvorum.peers.streams import StreamReader, serve_items

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence

    from kvorum.core.ids import Incarnation, NodeId
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
        self._dialling: dict[NodeId, asyncio.Task[None]] = {}
        """Task of each link; one that leaves stays here until it has ended or another of the same peer waits for it."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._served: set[AcceptedConnection] = set()
        """Connections that carry a stream from here, or are about to."""
        self._taken: set[StreamReader] = set()
        """Streams that are being fetched."""
        self._strangers: set[AcceptedConnection] = set()
        """Connections that have not greeted yet, or were refused and are closing."""
        self._callers: dict[NodeId, AcceptedConnection] = {}
        self._frames_received: dict[NodeId, int] = {}
        self._bytes_received: dict[NodeId, int] = {}
        self._refused = 0
        self._server: asyncio.Server | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._started = False
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
        assert not self._started, "links start once"
        self._started = True
        self._loop = asyncio.get_running_loop()
        self._handler = handler
        self._log = QuietLog(self._node_id, self._loop.time)
        self._listener = _listen(self._listen_port)
        self.port = self._listener.getsockname()[1]
        self._begin(self._serve(), "peers-listen")
        for peer in self._endpoints:
            self._add(peer)
        self._tick = self._loop.call_later(TICK_S, self._ticked)

    def set_peers(self, endpoints: Mapping[NodeId, str]) -> None:
        """See `core.ports.PeerLinks.set_peers`; a peer with another endpoint than before is dialled there."""
        before, self._endpoints = self._endpoints, dict(endpoints)
        if self._stopping or not self._started:
            return
        for peer in [peer for peer in self._links if peer not in endpoints]:
            self._links.pop(peer).leave(self._dialling[peer])
        for peer in before:
            caller = self._callers.get(peer)
            if caller is not None and peer not in endpoints:
                caller.finish("it is no member of the cluster any more")
        for peer in endpoints:
            link = self._links.get(peer)
            if link is not None:
                link.moved(self._endpoints)
            else:
                self._add(peer)

    def dismiss(self, peer: NodeId, reason: str) -> None:
        """See `core.ports.PeerLinks.dismiss`."""
        caller = self._callers.get(peer)
        if caller is not None:
            caller.finish(reason)

    def _add(self, peer: NodeId) -> None:
        """Dial a peer from now on."""
        if peer == self._node_id:
            return
        link = OutgoingLink(peer, self._endpoints, self._handler, self._chance, self._log)
        self._links[peer] = link
        before = self._dialling.get(peer)
        self._dialling[peer] = self._begin(_run_after(before, link), f"peers-dial-{peer}")

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._loop.create_task(work, name=name)
        task.add_done_callback(self._task_ended)
        self._tasks.add(task)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A task that failed must not fail in silence: its link would stay dead for ever (catalogue bug 79)."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._loop.call_exception_handler(
                {"message": f"{task.get_name()} failed", "exception": error, "task": task}
            )

    def send(self, peer: NodeId, kind: int, parts: Sequence[bytes], *, urgent: bool = False) -> bool:
        """See `core.ports.PeerLinks.send`; False for a node that is no peer, too."""
        link = self._links.get(peer)
        return link is not None and link.send(kind, parts, urgent=urgent)

    def fetch(self, peer: NodeId, request: bytes) -> AsyncIterator[bytes]:
        """See `core.ports.PeerLinks.fetch`; ending the iterator early (``aclose``) closes the connection."""
        return self._fetch(peer, request)

    async def _fetch(self, peer: NodeId, request: bytes) -> AsyncGenerator[bytes, None]:
        endpoint = self._endpoints.get(peer)
        if endpoint is None or peer == self._node_id or self._stopping:
            msg = f"node {peer} cannot be asked for a stream: it is no peer of this node, or this node stops"
            raise RemoteError(msg)
        reader = StreamReader(peer, endpoint, self._handler)
        self._taken.add(reader)
        try:
            async with contextlib.aclosing(reader.items(request)) as items:
                async for item in items:
                    yield item
        finally:
            self._taken.discard(reader)

    async def stop(self) -> None:
        """Let written frames leave for a moment, then close everything; no callback comes any more."""
        self._stopping = True
        if self._tick is not None:
            self._tick.cancel()
        for reader in self._taken:
            reader.cut("this node stops")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        self._listener.close()
        callers = [*self._strangers, *self._callers.values(), *self._served]
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

    def dns_failures(self) -> dict[NodeId, dict[str, int]]:
        """Dials that failed because a peer's name was not found, by reason."""
        return {peer: link.dns_failures for peer, link in self._links.items()}

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
        if connection in self._served:
            self._served.discard(connection)
            return
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

    # --- streams to peers ---

    def stream_refused(self) -> str | None:
        """A handful of streams at once is all a node serves."""
        if self._stopping:
            return "this node stops"
        if len(self._served) >= STREAMS_MAX:
            return f"this node serves {STREAMS_MAX} streams already; ask again later"
        return None

    def stream_admitted(self, connection: AcceptedConnection) -> None:
        """Count it; its request has as long to come as a handshake."""
        self._strangers.discard(connection)
        self._served.add(connection)

    def stream_asked(
        self, connection: AcceptedConnection, peer: NodeId, incarnation: Incarnation, request: bytes
    ) -> None:
        """Serve it, in a task of its own."""
        serve = functools.partial(self._handler.serve_stream, peer, incarnation, request)
        self._begin(serve_items(connection, serve), f"peers-stream-{peer}")

    def _count(self, peer: NodeId, connection: AcceptedConnection) -> None:
        self._frames_received[peer] = self._frames_received.get(peer, 0) + connection.frames_received
        self._bytes_received[peer] = self._bytes_received.get(peer, 0) + connection.bytes_received


async def _run_after(before: asyncio.Task[None] | None, link: OutgoingLink) -> None:
    """A link of a peer that left and came back begins when the former one is gone, so that ups and downs alternate."""
    if before is not None:
        await asyncio.wait([before])
    await link.run()


async def _end_of(connection: AcceptedConnection) -> None:
    await connection.over
