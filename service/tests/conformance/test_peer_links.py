"""What every implementation of `core.ports.PeerLinks` promises: the real one over TCP and the simulated one."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest
import uvloop

from kvorum.core.errors import LocalError, RemoteError
from kvorum.core.limits import PEER_FRAME_BYTES_MAX, PEER_QUEUE_BYTES_MAX
from kvorum.core.ports import Greeting, PeerLinks
from kvorum.peers.tcp import TcpPeerLinks
from kvorum_sim.loop import VirtualLoop
from kvorum_sim.network import SimulatedNetwork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

T = TypeVar("T")
KIND = 16
MIB = 1024 * 1024


class Recorder:
    """A handler that writes down what it hears and answers as told."""

    def __init__(self, node_id: int, incarnation: int) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.refusal: str | None = None
        self.up: list[tuple[int, Greeting]] = []
        self.down: list[int] = []
        self.away: list[tuple[int, str]] = []
        self.order: list[str] = []
        self.frames: list[tuple[int, int, int, bytes]] = []
        self.on_frame: Callable[[int, int, bytes], None] | None = None
        self.sending = False
        self.made = 0
        self.closed = 0
        self.asked: list[tuple[int, int, bytes]] = []

    def greet(self) -> Greeting:
        return Greeting(b"c" * 16, b"b" * 16, self.node_id, self.incarnation, f"node-{self.node_id}:9090", "0.1.0")

    def admit(self, greeting: Greeting) -> str | None:
        assert greeting.node_id != self.node_id
        return self.refusal

    def turned_away(self, peer: int, reason: str) -> None:
        assert not self.sending
        self.away.append((peer, reason))

    def link_up(self, peer: int, greeting: Greeting) -> None:
        assert not self.sending
        self.up.append((peer, greeting))
        self.order.append("up")

    def link_down(self, peer: int, reason: str) -> None:
        assert not self.sending
        assert reason
        self.down.append(peer)
        self.order.append("down")

    def frame_received(self, peer: int, incarnation: int, kind: int, payload: bytes) -> None:
        assert not self.sending
        assert type(payload) is bytes
        self.frames.append((peer, incarnation, kind, payload))
        if self.on_frame is not None:
            self.on_frame(peer, kind, payload)

    def serve_stream(self, peer: int, incarnation: int, request: bytes) -> AsyncIterator[bytes]:
        """``n size``: so many items; a third word ends the stream with that text."""
        self.asked.append((peer, incarnation, request))
        return self._make(request)

    async def _make(self, request: bytes) -> AsyncIterator[bytes]:
        count, size, *rest = request.split()
        try:
            for number in range(int(count)):
                self.made += 1
                yield item_of(number, int(size))
            if rest:
                raise RemoteError(rest[0].decode())
        finally:
            self.closed += 1


def item_of(number: int, size: int) -> bytes:
    """A recognisable item of a stream."""
    return random.Random(number).randbytes(size)


class World(Protocol):
    """Where links live: makes them and runs a story to its end."""

    def links(self, node_id: int) -> PeerLinks: ...

    def started(self, node_id: int, links: PeerLinks) -> None: ...

    def endpoints(self, *node_ids: int) -> dict[int, str]: ...

    def run(self, story: Coroutine[Any, Any, T]) -> T: ...


class TcpWorld:
    """Real sockets on the loop-back interface, with ports chosen by the system."""

    def __init__(self, runner: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._endpoints = dict.fromkeys(range(3), "127.0.0.1:1")
        self._ports: dict[int, int] = {}
        self._runner = runner

    def links(self, node_id: int) -> PeerLinks:
        return TcpPeerLinks(node_id, self._ports.get(node_id, 0), self._endpoints, chance=random.Random(node_id))

    def started(self, node_id: int, links: PeerLinks) -> None:
        assert isinstance(links, TcpPeerLinks)
        self._ports[node_id] = links.port
        self._endpoints[node_id] = f"localhost:{links.port}"

    def endpoints(self, *node_ids: int) -> dict[int, str]:
        return {node_id: self._endpoints[node_id] for node_id in node_ids}

    def run(self, story: Coroutine[Any, Any, T]) -> T:
        return self._runner(asyncio.wait_for(story, 120))  # type: ignore[no-any-return]


class SimulatedWorld:
    """The simulator's network on virtual time."""

    def __init__(self) -> None:
        self._loop = VirtualLoop(seed=7)
        self._network = SimulatedNetwork(self._loop, seed=7)

    def links(self, node_id: int) -> PeerLinks:
        return self._network.links(node_id, range(3))

    def started(self, node_id: int, links: PeerLinks) -> None:
        pass

    def endpoints(self, *node_ids: int) -> dict[int, str]:
        return {node_id: f"node-{node_id}:7090" for node_id in node_ids}

    def run(self, story: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(asyncio.wait_for(story, 20))


@pytest.fixture(params=["tcp-uvloop", "tcp-asyncio", "simulated"])
def world(request: pytest.FixtureRequest) -> World:
    """One world of each kind."""
    if request.param == "simulated":
        return SimulatedWorld()
    return TcpWorld(uvloop.run if request.param == "tcp-uvloop" else asyncio.run)


class Node:
    """Links and what they told their owner."""

    def __init__(self, world: World, node_id: int, incarnation: int | None = None) -> None:
        self.node_id = node_id
        self.heard = Recorder(node_id, node_id + 100 if incarnation is None else incarnation)
        self.links = world.links(node_id)
        self._world = world

    def start(self) -> Node:
        self.links.start(self.heard)
        self._world.started(self.node_id, self.links)
        return self

    def send(self, peer: int, payload: bytes, *, kind: int = KIND, urgent: bool = False) -> bool:
        self.heard.sending = True
        try:
            return self.links.send(peer, kind, (payload[:3], payload[3:]), urgent=urgent)
        finally:
            self.heard.sending = False

    def is_up(self, peer: int) -> bool:
        return self.links.statistics()[peer]["up"] == 1


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; the story as a whole has a time limit."""
    while not condition():
        await asyncio.sleep(0.002)


async def pair(world: World) -> tuple[Node, Node]:
    """Two nodes with links both ways."""
    a, b = Node(world, 0).start(), Node(world, 1).start()
    await until(lambda: a.is_up(1) and b.is_up(0))
    return a, b


def test_links_between_two_started_nodes_come_up_with_greetings(world: World) -> None:
    """Each side hears once of its outgoing link, with what the other said of itself."""

    async def story() -> None:
        a, b = await pair(world)
        assert [(1, b.heard.greet())] == a.heard.up
        assert [(0, a.heard.greet())] == b.heard.up
        assert [] == a.heard.down
        await a.links.stop()
        await b.links.stop()

    world.run(story())


def test_frames_of_all_sizes_arrive_in_order_and_intact(world: World) -> None:
    """Payloads from nothing to several mebibytes arrive whole, in order, with kind and sender."""

    async def story() -> None:
        a, b = await pair(world)
        draw = random.Random(1)
        sizes = [0, 1, 2, 3, 10, 255 * 1024, 256 * 1024 - 10, 256 * 1024 - 9, 256 * 1024, MIB, 5 * MIB, 7, 0, 20_000]
        sizes += [draw.randrange(300_000) for _ in range(40)]
        payloads = [draw.randbytes(size) for size in sizes]
        assert all(a.send(1, payload, kind=16 + i) for i, payload in enumerate(payloads))
        await until(lambda: len(b.heard.frames) == len(payloads))
        assert [(0, 100, 16 + i, payload) for i, payload in enumerate(payloads)] == b.heard.frames
        figures = a.links.statistics()[1]
        assert len(payloads) == figures["frames_sent"]
        assert sum(sizes) <= figures["bytes_sent"]
        await a.links.stop()
        await b.links.stop()

    world.run(story())


def test_handler_that_answers_from_within_frame_received_is_served(world: World) -> None:
    """Sending inside `frame_received` works, both ways, a thousand times over."""

    async def story() -> None:
        a, b = await pair(world)
        a.heard.on_frame = lambda peer, kind, payload: a.links.send(peer, kind, (payload, b"x")) and None
        b.heard.on_frame = lambda peer, kind, payload: b.links.send(peer, kind, (payload, b"y")) and None
        a.send(1, b"")
        await until(lambda: len(a.heard.frames) >= 500)
        assert b"yxyxyxy" == a.heard.frames[3][3]
        await a.links.stop()
        await b.links.stop()

    world.run(story())


def test_send_without_a_link_returns_false(world: World) -> None:
    """A frame for a peer that is away, or that is no peer, certainly does not leave."""

    async def story() -> None:
        a = Node(world, 0).start()
        assert a.send(1, b"hello") is False
        assert a.send(9, b"hello") is False
        await a.links.stop()

    world.run(story())


def test_caller_that_is_refused_gets_no_link_until_it_is_admitted(world: World) -> None:
    """The refusal keeps the link down on both sides, the dialler hears why, dials on and succeeds once admitted."""

    async def story() -> None:
        a, b = Node(world, 0), Node(world, 1)
        b.heard.refusal = "member 100 is not the data directory that holds seat 0"
        a.start()
        b.start()
        await until(lambda: a.links.statistics()[1]["dials_failed"] >= 2)
        assert a.send(1, b"hello") is False
        assert [] == a.heard.up == b.heard.up
        assert (1, b.heard.refusal) in a.heard.away
        b.heard.refusal = None
        await until(lambda: a.is_up(1) and b.is_up(0))
        assert a.send(1, b"hello") is True
        await until(lambda: len(b.heard.frames) == 1)
        assert [] == a.heard.down == b.heard.down
        await a.links.stop()
        await b.links.stop()

    world.run(story())


def test_peer_that_restarts_is_reported_down_and_up_with_its_new_greeting(world: World) -> None:
    """After a restart the link comes back by itself and carries the new incarnation."""

    async def story() -> None:
        a, b = await pair(world)
        await b.links.stop()
        await until(lambda: a.heard.down == [1])
        assert a.send(1, b"lost") is False
        b = Node(world, 1, incarnation=777).start()
        await until(lambda: a.is_up(1) and b.is_up(0))
        assert 777 == a.heard.up[-1][1].incarnation
        assert b.send(0, b"back") is True
        await until(lambda: len(a.heard.frames) == 1)
        assert (1, 777, KIND, b"back") == a.heard.frames[0]
        await a.links.stop()
        await b.links.stop()

    world.run(story())


def test_urgent_frame_passes_waiting_bulk_and_bulk_keeps_its_order(world: World) -> None:
    """A heartbeat behind 16 MiB of bulk arrives long before the end of it."""

    async def story() -> None:
        a, b = await pair(world)
        payloads = [bytes([i]) * MIB for i in range(16)]
        assert all(a.send(1, payload) for payload in payloads)
        assert a.send(1, b"heartbeat", kind=17, urgent=True) is True
        await until(lambda: len(b.heard.frames) == 17)
        kinds = [kind for _, _, kind, _ in b.heard.frames]
        assert kinds.index(17) < 12
        assert payloads == [payload for _, _, kind, payload in b.heard.frames if kind == KIND]
        await a.links.stop()
        await b.links.stop()

    world.run(story())


def test_peer_that_falls_behind_the_bound_loses_its_link_and_gets_a_new_one(world: World) -> None:
    """Frames beyond the bound are refused, the link breaks once, from the loop, and comes back."""

    async def story() -> None:
        a, b = await pair(world)
        payload = bytes(4 * MIB)
        taken = 0
        while a.send(1, payload):
            taken += 1
            assert taken * len(payload) <= PEER_QUEUE_BYTES_MAX + 16 * MIB
        assert a.send(1, b"after") is False
        assert [] == a.heard.down
        await until(lambda: a.heard.down == [1] and len(a.heard.up) == 2)
        assert a.send(1, b"again") is True
        await until(lambda: bool(b.heard.frames) and b.heard.frames[-1][3] == b"again")
        assert len(b.heard.frames) <= taken + 1
        await a.links.stop()
        await b.links.stop()

    world.run(story())


def test_frame_that_must_not_be_sent_is_a_defect_of_the_caller(world: World) -> None:
    """Kinds of the links themselves and frames above the limit are refused loudly."""

    async def story() -> None:
        a, b = await pair(world)
        with pytest.raises(LocalError, match="kind 1 "):
            a.links.send(1, 1, (b"ping",))
        with pytest.raises(LocalError, match="largest"):
            a.links.send(1, KIND, (bytes(PEER_FRAME_BYTES_MAX), b"x"))
        assert a.send(1, b"fine") is True
        await until(lambda: len(b.heard.frames) == 1)
        await a.links.stop()
        await b.links.stop()

    world.run(story())


def test_stopped_links_call_nobody(world: World) -> None:
    """After `stop` no callback comes, whatever peers do, and nothing can be sent."""

    async def story() -> None:
        a, b = await pair(world)
        await a.links.stop()
        heard = (list(a.heard.up), list(a.heard.down), list(a.heard.frames))
        b.send(0, b"late")
        await asyncio.sleep(0.2)
        assert a.send(1, b"hello") is False
        assert heard == (a.heard.up, a.heard.down, a.heard.frames)
        await b.links.stop()

    world.run(story())


def test_three_nodes_have_six_links(world: World) -> None:
    """Every ordered pair has a link of its own."""

    async def story() -> None:
        nodes = [Node(world, i).start() for i in range(3)]
        await until(lambda: all(node.is_up(p) for node in nodes for p in range(3) if p != node.node_id))
        for node in nodes:
            for peer in range(3):
                if peer != node.node_id:
                    assert node.send(peer, bytes([node.node_id])) is True
        await until(lambda: all(len(node.heard.frames) == 2 for node in nodes))
        for node in nodes:
            senders = sorted(frame[0] for frame in node.heard.frames)
            assert [peer for peer in range(3) if peer != node.node_id] == senders
        for node in nodes:
            await node.links.stop()

    world.run(story())


# --- who the peers are ---


def test_peer_that_is_set_later_gets_links_both_ways_and_one_that_leaves_is_reported_down(world: World) -> None:
    """`set_peers` dials new peers, closes links to others, and frames to those are refused."""

    async def story() -> None:
        a, b = await pair(world)
        a.links.set_peers(world.endpoints(0))
        assert a.send(1, b"to nobody") is False
        assert [] == a.heard.down
        await until(lambda: a.heard.down == [1])
        assert 1 not in a.links.statistics()
        # The former peer's own link is cut as well; whether it may come back is the handler's decision.
        await until(lambda: b.heard.down[:1] == [0])
        c = Node(world, 2).start()
        a.links.set_peers(world.endpoints(0, 1, 2))
        await until(lambda: a.is_up(1) and a.is_up(2) and b.is_up(0) and c.is_up(0))
        assert a.send(1, b"hello again") is True
        await until(lambda: len(b.heard.frames) == 1)
        assert [1, 1, 2] == sorted(peer for peer, _ in a.heard.up)
        for node in (a, b, c):
            await node.links.stop()

    world.run(story())


def test_caller_that_is_dismissed_dials_again_and_is_judged_anew(world: World) -> None:
    """Only its own link ends; ours to it stands. To dismiss who has not called does nothing."""

    async def story() -> None:
        a, b = await pair(world)
        a.links.dismiss(7, "nobody")
        a.links.dismiss(1, "no seat")
        await until(lambda: b.heard.down == [0])
        await until(lambda: b.is_up(0))
        assert a.heard.down == []
        assert b.send(0, b"here again") is True
        await until(lambda: len(a.heard.frames) == 1)
        for node in (a, b):
            await node.links.stop()

    world.run(story())


def test_peer_that_leaves_and_returns_at_once_is_reported_down_before_it_is_up(world: World) -> None:
    """Ups and downs of one peer alternate however fast the peers change, with equal calls changing nothing."""

    async def story() -> None:
        a, b = await pair(world)
        for _ in range(3):
            a.links.set_peers(world.endpoints(0))
            a.links.set_peers(world.endpoints(0, 1))
            a.links.set_peers(world.endpoints(0, 1))
        await until(lambda: a.is_up(1) and b.is_up(0) and len(a.heard.order) >= 3)
        assert ["up", "down"] * (len(a.heard.order) // 2) + ["up"] == a.heard.order
        assert a.send(1, b"hello") is True
        await until(lambda: len(b.heard.frames) == 1)
        await a.links.stop()
        await b.links.stop()

    world.run(story())


# --- streams ---


async def take(items: AsyncIterator[bytes], into: list[bytes] | None = None) -> list[bytes]:
    """Everything a stream brings; ``into`` keeps what came before an error."""
    taken = [] if into is None else into
    async for item in items:
        taken.append(item)
    return taken


def test_stream_of_many_items_arrives_whole_and_in_order_beside_frames(world: World) -> None:
    """Items from empty to larger than every buffer come as they were made; frames pass meanwhile."""

    async def story() -> None:
        a, b = await pair(world)
        for size in (0, 1, 200_000, 5 * MIB):
            count = 5 if size > MIB else 40
            fetching = asyncio.ensure_future(take(a.links.fetch(1, b"%d %d" % (count, size))))
            await asyncio.sleep(0.001)
            assert a.send(1, b"beside") is True
            assert [item_of(number, size) for number in range(count)] == await fetching
        assert (0, 100, b"40 0") == b.heard.asked[0]
        assert 4 == b.heard.closed
        await until(lambda: len(b.heard.frames) == 4)
        assert [] == a.heard.down == b.heard.down
        await a.links.stop()
        await b.links.stop()

    world.run(story())


def test_stream_that_is_taken_slowly_is_made_slowly(world: World) -> None:
    """The maker stays a bounded number of bytes ahead of the taker, and stops when the taker closes."""

    async def story() -> None:
        a, b = await pair(world)
        items = a.links.fetch(1, b"1000 262144")
        for _ in range(3):
            await anext(items)
        await asyncio.sleep(0.3)
        # Socket buffers of both ends hold some mebibytes at most; the stream as a whole has 250.
        assert 3 <= b.heard.made < 100
        await items.aclose()  # type: ignore[attr-defined]
        await until(lambda: b.heard.closed == 1)
        assert b.heard.made < 100
        await a.links.stop()
        await b.links.stop()

    world.run(story())


def test_stream_the_maker_refuses_or_ends_early_raises_its_text(world: World) -> None:
    """A `RemoteError` of the maker travels to the taker, after the items that were made."""

    async def story() -> None:
        a, b = await pair(world)
        taken: list[bytes] = []
        with pytest.raises(RemoteError, match="too-old"):
            await take(a.links.fetch(1, b"3 10 too-old"), taken)
        assert [item_of(number, 10) for number in range(3)] == taken
        b.heard.refusal = "a stranger"
        with pytest.raises(RemoteError, match="a stranger"):
            await take(a.links.fetch(1, b"3 10"))
        assert 1 == len(b.heard.asked)
        with pytest.raises(RemoteError, match="node 9"):
            await take(a.links.fetch(9, b"3 10"))
        await a.links.stop()
        await b.links.stop()

    world.run(story())


def test_stream_from_a_peer_that_goes_away_or_is_away_raises(world: World) -> None:
    """A stream whose maker stops in the middle breaks; one from a peer that is not there does not begin."""

    async def story() -> None:
        a, b = await pair(world)
        items = a.links.fetch(1, b"1000 262144")
        await anext(items)
        stopping = asyncio.ensure_future(b.links.stop())
        with pytest.raises(RemoteError, match="node 1"):
            await take(items)
        await stopping
        await until(lambda: b.heard.closed == 1)
        with pytest.raises(RemoteError, match="node 1"):
            await take(a.links.fetch(1, b"1 1"))
        await a.links.stop()

    world.run(story())


def test_stream_of_a_node_that_stops_ends_with_an_error_there(world: World) -> None:
    """`stop` does not wait for a stream that is being taken; who takes it hears so."""

    async def story() -> None:
        a, b = await pair(world)
        items = a.links.fetch(1, b"1000 262144")
        await anext(items)
        await a.links.stop()
        with pytest.raises(RemoteError, match="node 1"):
            await take(items)
        with pytest.raises(RemoteError, match="node 1"):
            await take(a.links.fetch(1, b"1 1"))
        await until(lambda: b.heard.closed == 1)
        await b.links.stop()

    world.run(story())


def test_more_streams_than_a_node_serves_at_once_are_refused_until_one_ends(world: World) -> None:
    """A fifth stream is refused by name; a place that becomes free is given away again."""

    async def story() -> None:
        a, b = await pair(world)
        async with contextlib.AsyncExitStack() as held:
            for _ in range(4):
                items = await held.enter_async_context(contextlib.aclosing(a.links.fetch(1, b"1000 262144")))  # type: ignore[type-var]
                await anext(items)
            with pytest.raises(RemoteError, match="serves 4 streams already"):
                await take(a.links.fetch(1, b"1 1"))
        await until(lambda: b.heard.closed == 4)
        await asyncio.sleep(0.05)
        assert [item_of(0, 1)] == await take(a.links.fetch(1, b"1 1"))
        await a.links.stop()
        await b.links.stop()

    world.run(story())
