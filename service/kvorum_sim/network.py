"""
Links without sockets: `core.ports.PeerLinks` over a simulated network on virtual time.

A link behaves like the TCP connection it stands for: frames keep their order and are not lost one by one; what is lost
is the connection, with everything in flight. A cut holds frames back, as retransmission does, until it is healed or
both ends give up. `SimulatedNetwork` is what a nemesis plays with; nodes see `SimulatedLinks` only.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from kvorum.core.errors import LocalError, RemoteError
from kvorum.core.limits import PEER_FRAME_BYTES_MAX, PEER_QUEUE_BYTES_MAX
from kvorum_sim.streams import SimulatedStream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence

    from kvorum.core.ids import Incarnation, NodeId
    from kvorum.core.ports import Greeting, PeerHandler

FIRST_FOREIGN_KIND: Final = 16
DEAD_S: Final = 5.0
"""A cut as long as this ends the connections across it: the real links' pings."""
CONNECT_TIMEOUT_S: Final = 3.0
BACKOFF_S_MIN: Final = 0.05
BACKOFF_S_MAX: Final = 1.0
IN_FLIGHT_BYTES: Final = 512 * 1024
"""Beyond this, bulk frames wait in the sender's queue and urgent ones pass them."""
FRAME_OVERHEAD_BYTES: Final = 256
STREAMS_MAX: Final = 4
"""Streams one process makes at once, as `peers.limits.STREAMS_MAX`."""


class _Frame(NamedTuple):
    due: float
    kind: int
    payload: bytes


class SimulatedNetwork:
    """
    All links of a simulated world.

    Args:
        loop: Where time comes from.
        seed: Draws delays and the jitter of dials.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, seed: int) -> None:
        self.loop = loop
        self.chance = random.Random(f"network {seed}")
        self.delay_s_min = 0.0001
        self.delay_s_max = 0.0010
        self.bytes_per_s = 500e6
        self._nodes: dict[NodeId, SimulatedLinks] = {}
        self._streams: list[SimulatedStream] = []
        self._cuts: dict[tuple[NodeId, NodeId], float] = {}
        """One-way cuts, with the time of each."""
        self.frames_delivered = 0
        self.frames_lost = 0
        self.links_broken = 0

    def links(self, node_id: NodeId, peers: Iterable[NodeId]) -> SimulatedLinks:
        """The links of one process; a restarted node gets new ones."""
        return SimulatedLinks(self, node_id, [peer for peer in peers if peer != node_id])

    # --- for a nemesis ---

    def cut(self, sender: NodeId, receiver: NodeId) -> None:
        """From now on nothing passes in this one direction."""
        if (sender, receiver) in self._cuts:
            return
        now = self.loop.time()
        self._cuts[sender, receiver] = now
        self.loop.call_later(DEAD_S, self._give_up, sender, receiver, now)

    def heal(self, sender: NodeId, receiver: NodeId) -> None:
        """The direction is open again; connections that still stand deliver what was held back."""
        if self._cuts.pop((sender, receiver), None) is not None:
            for channel in self._between(sender, receiver):
                channel.go_on(self.delay())

    def partition(self, *sides: Iterable[NodeId]) -> None:
        """Cut every pair of nodes that stand on different sides, both ways."""
        groups = [list(side) for side in sides]
        for one in groups:
            for other in groups:
                if one is not other:
                    for a in one:
                        for b in other:
                            self.cut(a, b)

    def heal_all(self) -> None:
        """Open every direction."""
        for sender, receiver in list(self._cuts):
            self.heal(sender, receiver)

    def break_link(self, sender: NodeId, receiver: NodeId) -> None:
        """Reset the connection a node dialled to another; what is in flight is lost."""
        for channel in self._between(sender, receiver):
            channel.reset("connection reset")
        for stream in self._streams_between(sender, receiver):
            stream.break_off("connection reset")

    def crash(self, node_id: NodeId) -> None:
        """The process of this node is gone: it hears nothing more, its connections are reset."""
        links = self._nodes.pop(node_id, None)
        if links is not None:
            links.vanish("connection reset by the peer")

    # --- for links ---

    def passes(self, one: NodeId, other: NodeId) -> bool:
        """Whether two nodes can talk both ways."""
        return (one, other) not in self._cuts and (other, one) not in self._cuts

    def delay(self) -> float:
        """Time of one passage."""
        return self.chance.uniform(self.delay_s_min, self.delay_s_max)

    def node(self, node_id: NodeId) -> SimulatedLinks | None:
        """Who listens there now."""
        return self._nodes.get(node_id)

    def add(self, links: SimulatedLinks) -> None:
        """A process listens."""
        assert links.node_id not in self._nodes, f"node {links.node_id} listens already"
        self._nodes[links.node_id] = links

    def remove(self, links: SimulatedLinks) -> None:
        """A process listens no more."""
        if self._nodes.get(links.node_id) is links:
            del self._nodes[links.node_id]

    def is_cut(self, sender: NodeId, receiver: NodeId) -> bool:
        """Whether nothing passes in this direction."""
        return (sender, receiver) in self._cuts

    @contextlib.contextmanager
    def stream(self, taker: SimulatedLinks, maker: SimulatedLinks) -> Iterator[SimulatedStream]:
        """A connection for one stream, as long as it is wanted."""
        stream = SimulatedStream(self, taker, maker)
        self._streams.append(stream)
        try:
            yield stream
        finally:
            self._streams.remove(stream)

    def break_streams(self, links: SimulatedLinks, reason: str) -> None:
        """A process is gone, and with it the streams it made and took."""
        for stream in list(self._streams):
            if stream.taker is links or stream.maker is links:
                stream.break_off(reason)

    def streams_served(self, maker: SimulatedLinks) -> int:
        """Streams that a process makes now."""
        return sum(stream.maker is maker for stream in self._streams)

    def into(self, node_id: NodeId) -> list[_Channel]:
        """Standing connections that others dialled to a node."""
        return [
            channel
            for links in self._nodes.values()
            for channel in links.channels()
            if channel.receiver.node_id == node_id
        ]

    def _between(self, sender: NodeId, receiver: NodeId) -> list[_Channel]:
        return [channel for channel in self.into(receiver) if channel.sender.node_id == sender]

    def _give_up(self, sender: NodeId, receiver: NodeId, since: float) -> None:
        if self._cuts.get((sender, receiver)) == since:
            for channel in self._between(sender, receiver) + self._between(receiver, sender):
                channel.end(f"no answer to pings for {DEAD_S:.0f} s")

    def _streams_between(self, taker: NodeId, maker: NodeId) -> list[SimulatedStream]:
        return [one for one in self._streams if (one.taker.node_id, one.maker.node_id) == (taker, maker)]


class _Channel:
    """One standing connection, from the node that dialled it to the node that accepted it."""

    def __init__(self, network: SimulatedNetwork, sender: SimulatedLinks, receiver: SimulatedLinks) -> None:
        self.sender = sender
        self.receiver = receiver
        self._network = network
        self._incarnation: Incarnation = sender.handler.greet().incarnation
        self._open = True
        self._flight: deque[_Frame] = deque()
        self._flight_bytes = 0
        self._last_due = 0.0
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._waiting_bytes = 0
        self._armed = False

    @property
    def waiting_bytes(self) -> int:
        """Bytes that have not left."""
        return self._waiting_bytes

    def send(self, kind: int, payload: bytes, *, urgent: bool) -> bool:
        """Queue a frame; False if too much waits already: the link then ends."""
        if not self._open:
            # Reset, but the sender does not know yet: the frame leaves and is lost.
            self._network.frames_lost += 1
            return True
        busy = self._flight_bytes >= IN_FLIGHT_BYTES
        size = len(payload) + FRAME_OVERHEAD_BYTES
        if busy and self._flight_bytes + self._waiting_bytes + size > PEER_QUEUE_BYTES_MAX:
            self.end("more waits for it than it may fall behind")
            return False
        if busy and not urgent:
            self._waiting.append((kind, payload))
            self._waiting_bytes += size
        else:
            self._launch(kind, payload)
        return True

    def _launch(self, kind: int, payload: bytes) -> None:
        network = self._network
        due = network.loop.time() + network.delay() + len(payload) / network.bytes_per_s
        self._last_due = max(self._last_due, due)
        self._flight.append(_Frame(self._last_due, kind, payload))
        self._flight_bytes += len(payload) + FRAME_OVERHEAD_BYTES
        if not self._armed:
            self._armed = True
            network.loop.call_at(self._last_due, self._arrive)

    def go_on(self, delay: float) -> None:
        """Deliver what a cut held back."""
        if self._flight and not self._armed:
            self._armed = True
            self._network.loop.call_later(delay, self._arrive)

    def _arrive(self) -> None:
        self._armed = False
        network, sender, receiver = self._network, self.sender.node_id, self.receiver
        if network.is_cut(sender, receiver.node_id):
            return
        now = network.loop.time()
        while self._open and self._flight and self._flight[0].due <= now:
            _, kind, payload = self._flight.popleft()
            self._flight_bytes -= len(payload) + FRAME_OVERHEAD_BYTES
            network.frames_delivered += 1
            receiver.handler.frame_received(sender, self._incarnation, kind, payload)
        if not self._open:
            return
        while self._waiting and self._flight_bytes < IN_FLIGHT_BYTES:
            kind, payload = self._waiting.popleft()
            self._waiting_bytes -= len(payload) + FRAME_OVERHEAD_BYTES
            self._launch(kind, payload)
        if self._flight and not self._armed:
            self._armed = True
            network.loop.call_at(self._flight[0].due, self._arrive)

    def reset(self, reason: str) -> None:
        """The far end, or the network, broke the connection; the near end learns it later."""
        if self._open:
            self._lose()
            network = self._network
            reachable = not network.is_cut(self.receiver.node_id, self.sender.node_id)
            network.loop.call_later(network.delay() if reachable else DEAD_S, self.sender.lost, self, reason)

    def end(self, reason: str) -> None:
        """The near end gives the connection up; its owner hears of it from the loop."""
        if self._open:
            self._lose()
            self.sender.forget(self)
            self._network.loop.call_soon(self.sender.lost, self, reason)

    def vanish(self) -> None:
        """The near end is gone, or wants it no more; nobody is told."""
        if self._open:
            self._lose()

    def _lose(self) -> None:
        self._open = False
        self._network.links_broken += 1
        self._network.frames_lost += len(self._flight) + len(self._waiting)
        self._flight.clear()
        self._waiting.clear()
        self._flight_bytes = self._waiting_bytes = 0


class _Dialler:
    """What one process knows about its link to one peer."""

    __slots__ = ("backoff_s", "channel", "counts", "pausing", "reported")

    def __init__(self) -> None:
        self.channel: _Channel | None = None
        self.reported: _Channel | None = None
        """The channel of which the handler was told that it is up."""
        self.backoff_s = BACKOFF_S_MIN
        self.pausing: asyncio.TimerHandle | None = None
        self.counts = dict.fromkeys(
            ("bytes_sent", "frames_sent", "frames_refused", "dials", "dials_failed", "links_lost"), 0
        )


class SimulatedLinks:
    """`core.ports.PeerLinks` of one simulated process."""

    handler: PeerHandler

    def __init__(self, network: SimulatedNetwork, node_id: NodeId, peers: Sequence[NodeId]) -> None:
        self.node_id = node_id
        self._network = network
        self._dials = {peer: _Dialler() for peer in peers}
        self._alive = False

    # --- core.ports.PeerLinks ---

    def start(self, handler: PeerHandler) -> None:
        """Listen and dial."""
        self.handler = handler
        self._alive = True
        self._network.add(self)
        for peer, dial in self._dials.items():
            self._network.loop.call_soon(self._dial, peer, dial)

    def set_peers(self, endpoints: Mapping[NodeId, str]) -> None:
        """See `core.ports.PeerLinks.set_peers`; endpoints mean nothing here, a node is where its id is."""
        wanted = [peer for peer in endpoints if peer != self.node_id]
        for peer in [peer for peer in self._dials if peer not in wanted]:
            dial = self._dials.pop(peer)
            if dial.pausing is not None:
                dial.pausing.cancel()
            if dial.channel is not None:
                dial.channel.vanish()
            if self._alive:
                if dial.reported is not None:
                    self._network.loop.call_soon(self._parted, peer)
                for channel in self._network.into(self.node_id):
                    if channel.sender.node_id == peer:
                        channel.reset("it is no member of the cluster any more")
        for peer in wanted:
            if peer not in self._dials:
                dial = self._dials[peer] = _Dialler()
                if self._alive:
                    self._network.loop.call_soon(self._dial, peer, dial)

    def dismiss(self, peer: NodeId, reason: str) -> None:
        """See `core.ports.PeerLinks.dismiss`."""
        for channel in self._network.into(self.node_id):
            if channel.sender.node_id == peer:
                self._network.loop.call_soon(channel.reset, reason)

    def _parted(self, peer: NodeId) -> None:
        """Report the link of a peer that is none any more, from the loop and before another one can come up."""
        if self._alive:
            self.handler.link_down(peer, "it is no member of the cluster any more")

    def fetch(self, peer: NodeId, request: bytes) -> AsyncIterator[bytes]:
        """See `core.ports.PeerLinks.fetch`."""
        return self._fetch(peer, request)

    async def _fetch(self, peer: NodeId, request: bytes) -> AsyncGenerator[bytes, None]:
        network = self._network
        refused = ""
        if peer not in self._dials or not self._alive:
            refused = "it is no peer of this node, or this node stops"
        else:
            await asyncio.sleep(network.delay())
            there = network.node(peer)
            if not network.passes(self.node_id, peer) or there is None:
                await asyncio.sleep(CONNECT_TIMEOUT_S if there is not None else network.delay())
                refused = "no connection"
            elif network.streams_served(there) >= STREAMS_MAX:
                refused = f"refused: node {peer} serves {STREAMS_MAX} streams already; ask again later"
            else:
                mine, theirs = self.handler.greet(), there.handler.greet()
                refused = there.handler.admit(mine) or self.handler.admit(theirs) or ""
        if refused:
            msg = f"stream from node {peer}: {refused}"
            raise RemoteError(msg)
        assert there is not None
        with network.stream(self, there) as stream:
            async with contextlib.aclosing(stream.items(mine.incarnation, request)) as items:
                async for item in items:
                    yield item

    def send(self, peer: NodeId, kind: int, parts: Sequence[bytes], *, urgent: bool = False) -> bool:
        """See `core.ports.PeerLinks.send`."""
        dial = self._dials.get(peer)
        if dial is None or dial.channel is None or not self._alive:
            if dial is not None:
                dial.counts["frames_refused"] += 1
            return False
        payload = b"".join(parts)
        if len(payload) > PEER_FRAME_BYTES_MAX or kind < FIRST_FOREIGN_KIND:
            msg = (
                f"frame of kind {kind} and {len(payload)} bytes must not be sent; the largest is {PEER_FRAME_BYTES_MAX}"
            )
            raise LocalError(msg)
        if not dial.channel.send(kind, payload, urgent=urgent):
            dial.counts["frames_refused"] += 1
            return False
        dial.counts["frames_sent"] += 1
        dial.counts["bytes_sent"] += len(payload)
        return True

    async def stop(self) -> None:
        """Close everything."""
        self.vanish("connection closed by the peer")

    def statistics(self) -> dict[NodeId, dict[str, float]]:
        """Per peer, the figures of the real links as far as they mean something here."""
        return {
            peer: dial.counts
            | {
                "up": float(dial.channel is not None),
                "bytes_waiting": dial.channel.waiting_bytes if dial.channel is not None else 0,
            }
            for peer, dial in self._dials.items()
        }

    # --- for the network ---

    def channels(self) -> list[_Channel]:
        """Standing connections dialled here."""
        return [dial.channel for dial in self._dials.values() if dial.channel is not None]

    def vanish(self, reason: str) -> None:
        """This process is gone; peers' connections to it break."""
        if not self._alive:
            return
        self._alive = False
        for channel in self._network.into(self.node_id):
            channel.reset(reason)
        self._network.break_streams(self, reason)
        for dial in self._dials.values():
            if dial.channel is not None:
                dial.channel.vanish()
                dial.channel = None
            if dial.pausing is not None:
                dial.pausing.cancel()
        self._network.remove(self)

    def forget(self, channel: _Channel) -> None:
        """Take no more frames for this connection."""
        dial = self._dials.get(channel.receiver.node_id)
        if dial is not None and dial.channel is channel:
            dial.channel = None

    def lost(self, channel: _Channel, reason: str) -> None:
        """Tell the owner, then dial again."""
        peer = channel.receiver.node_id
        dial = self._dials.get(peer)
        if not self._alive or dial is None or dial.reported is not channel:
            return
        self.forget(channel)
        dial.reported = None
        dial.counts["links_lost"] += 1
        self.handler.link_down(peer, reason)
        self._pause(peer, dial)

    # --- dialling ---

    def _wants(self, peer: NodeId, dial: _Dialler) -> bool:
        """Whether this is still how the peer is dialled: it may have left, or left and come back."""
        return self._alive and self._dials.get(peer) is dial

    def _dial(self, peer: NodeId, dial: _Dialler) -> None:
        if not self._wants(peer, dial):
            return
        dial.pausing = None
        dial.counts["dials"] += 1
        network = self._network
        if not network.passes(self.node_id, peer):
            network.loop.call_later(CONNECT_TIMEOUT_S, self._failed, peer, dial)
        else:
            network.loop.call_later(network.delay(), self._knock, peer, dial)

    def _failed(self, peer: NodeId, dial: _Dialler) -> None:
        if self._wants(peer, dial):
            dial.counts["dials_failed"] += 1
            self._pause(peer, dial)

    def _pause(self, peer: NodeId, dial: _Dialler) -> None:
        pause = dial.backoff_s * self._network.chance.uniform(0.5, 1.0)
        dial.backoff_s = min(2 * dial.backoff_s, BACKOFF_S_MAX)
        dial.pausing = self._network.loop.call_later(pause, self._dial, peer, dial)

    def _knock(self, peer: NodeId, dial: _Dialler) -> None:
        """The greeting arrives at the peer, which judges it."""
        if not self._wants(peer, dial):
            return
        network = self._network
        there = network.node(peer)
        if there is None or not network.passes(self.node_id, peer):
            self._failed(peer, dial)
            return
        refused = there.handler.admit(self.handler.greet())
        if refused is not None:
            network.loop.call_later(network.delay(), self._refused, peer, dial, refused)
            return
        network.loop.call_later(network.delay(), self._answered, there, dial, there.handler.greet())
        there.hurry(self.node_id)

    def _refused(self, peer: NodeId, dial: _Dialler, reason: str) -> None:
        if self._wants(peer, dial):
            self._failed(peer, dial)
            self.handler.turned_away(peer, reason)

    def hurry(self, peer: NodeId) -> None:
        """The peer is certainly there: dial it now."""
        dial = self._dials.get(peer)
        if dial is not None and dial.pausing is not None:
            dial.pausing.cancel()
            dial.pausing = self._network.loop.call_later(BACKOFF_S_MIN / 2, self._dial, peer, dial)

    def _answered(self, there: SimulatedLinks, dial: _Dialler, greeting: Greeting) -> None:
        """The peer's answer arrives; we judge it as well."""
        peer = there.node_id
        if not self._wants(peer, dial):
            return
        network = self._network
        if network.node(peer) is not there or not network.passes(self.node_id, peer):
            self._failed(peer, dial)
            return
        if self.handler.admit(greeting) is not None:
            self._failed(peer, dial)
            return
        dial.backoff_s = BACKOFF_S_MIN
        dial.channel = dial.reported = _Channel(network, self, there)
        self.handler.link_up(peer, greeting)
