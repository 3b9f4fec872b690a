"""What a nemesis does to the simulated network looks like what TCP would do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kvorum.core.errors import RemoteError
from kvorum.core.ports import Greeting
from kvorum_sim.loop import VirtualLoop
from kvorum_sim.network import DEAD_S, SimulatedNetwork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kvorum_sim.network import SimulatedLinks


class Owner:
    """Keeps what it hears, with the time."""

    def __init__(self, loop: VirtualLoop, node_id: int) -> None:
        self.loop = loop
        self.node_id = node_id
        self.up = 0
        self.down: list[float] = []
        self.frames: list[bytes] = []

    def greet(self) -> Greeting:
        return Greeting(b"c" * 16, b"b" * 16, self.node_id, 1, "", "")

    def admit(self, greeting: Greeting) -> str | None:
        assert greeting.node_id != self.node_id

    def turned_away(self, _peer: int, _reason: str) -> None:
        return

    def link_up(self, peer: int, greeting: Greeting) -> None:
        assert peer == greeting.node_id
        self.up += 1

    def link_down(self, peer: int, reason: str) -> None:
        assert reason
        assert peer != self.node_id
        self.down.append(self.loop.time())

    def frame_received(self, peer: int, incarnation: int, kind: int, payload: bytes) -> None:
        assert (1, 16) == (incarnation, kind)
        assert peer != self.node_id
        self.frames.append(payload)

    async def serve_stream(self, peer: int, incarnation: int, request: bytes) -> AsyncIterator[bytes]:
        assert peer != self.node_id
        assert incarnation == 1
        for number in range(int(request)):
            yield b"%d" % number
            await asyncio.sleep(0.1)


class Pair:
    """Nodes 0 and 1, linked."""

    def __init__(self) -> None:
        self.loop = VirtualLoop(4)
        self.network = SimulatedNetwork(self.loop, seed=4)
        self.owners = [Owner(self.loop, i) for i in range(2)]
        self.links: list[SimulatedLinks] = [self.network.links(i, range(2)) for i in range(2)]
        for links, owner in zip(self.links, self.owners, strict=True):
            links.start(owner)
        self.wait(0.5)
        assert [1, 1] == [owner.up for owner in self.owners]

    def wait(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def send(self, payload: bytes) -> bool:
        return self.links[0].send(1, 16, (payload,))


@pytest.fixture
def pair() -> Pair:
    """Two linked nodes."""
    return Pair()


def test_network_short_cut_holds_frames_back_and_loses_none(pair: Pair) -> None:
    """Like retransmission: what was sent during the cut arrives after it, in order, over the same link."""
    pair.network.cut(0, 1)
    assert all(pair.send(bytes([i])) for i in range(10))
    pair.wait(DEAD_S - 0.1)
    assert [] == pair.owners[1].frames
    pair.network.heal(0, 1)
    pair.send(b"last")
    pair.wait(0.1)
    assert [*(bytes([i]) for i in range(10)), b"last"] == pair.owners[1].frames
    assert [] == pair.owners[0].down
    assert 0 == pair.network.frames_lost


def test_network_cut_works_one_way(pair: Pair) -> None:
    """The other direction still delivers."""
    pair.network.cut(0, 1)
    pair.links[1].send(0, 16, (b"passes",))
    pair.wait(0.1)
    assert [b"passes"] == pair.owners[0].frames


def test_network_long_cut_ends_both_links_and_they_come_back(pair: Pair) -> None:
    """After the pings' patience both ends hear of it, frames in flight are lost, and healing brings new links."""
    pair.network.partition([0], [1])
    assert pair.send(b"lost")
    began = pair.loop.time()
    pair.wait(DEAD_S + 3)
    assert [[began + DEAD_S], [began + DEAD_S]] == [owner.down for owner in pair.owners]
    assert pair.send(b"refused") is False
    pair.network.heal_all()
    pair.wait(5)
    assert [2, 2] == [owner.up for owner in pair.owners]
    assert pair.send(b"new")
    pair.wait(0.1)
    assert [b"new"] == pair.owners[1].frames
    assert 1 == pair.network.frames_lost


def test_network_broken_link_loses_what_is_in_flight_and_nothing_else(pair: Pair) -> None:
    """A reset ends one direction's link only; the sender learns of it and has a new one at once."""
    pair.send(b"in flight")
    pair.network.break_link(0, 1)
    assert pair.send(b"does not know yet") is True
    pair.wait(0.2)
    assert 1 == len(pair.owners[0].down)
    assert [] == pair.owners[1].down
    assert pair.send(b"again")
    pair.wait(0.1)
    assert [b"again"] == pair.owners[1].frames


def test_network_crashed_node_hears_nothing_and_its_peers_do(pair: Pair) -> None:
    """After a crash no callback reaches the dead, and the living lose their link."""
    pair.links[1].send(0, 16, (b"in flight",))
    pair.network.crash(1)
    pair.send(b"into the void")
    pair.wait(10)
    assert 1 == len(pair.owners[0].down)
    assert ([], [], []) == (pair.owners[0].frames, pair.owners[1].frames, pair.owners[1].down)
    assert pair.links[1].send(0, 16, (b"from the dead",)) is False


@pytest.mark.parametrize("fault", ["crash", "reset", "cut"])
def test_network_fault_in_the_middle_of_a_stream_ends_it_with_an_error(pair: Pair, fault: str) -> None:
    """A crash or reset is heard at once; a cut holds items back until the taker's patience is over."""
    taken = []

    async def take() -> None:
        async for item in pair.links[0].fetch(1, b"1000"):
            taken.append(item)

    fetching = pair.loop.create_task(take())
    pair.wait(1)
    began = pair.loop.time()
    if fault == "crash":
        pair.network.crash(1)
    elif fault == "reset":
        pair.network.break_link(0, 1)
    else:
        pair.network.cut(1, 0)
    with pytest.raises(RemoteError, match="node 1"):
        pair.loop.run_until_complete(fetching)
    ended = pair.loop.time()
    assert 5 < len(taken) < 15
    assert (14 < ended - began < 16) if fault == "cut" else ended - began < 0.2


def test_network_short_cut_delays_a_stream_and_loses_nothing(pair: Pair) -> None:
    """What was held back arrives after the cut is healed, in order."""

    async def take() -> list[bytes]:
        return [item async for item in pair.links[0].fetch(1, b"30")]

    fetching = pair.loop.create_task(take())
    pair.wait(1)
    pair.network.cut(1, 0)
    pair.wait(4)
    pair.network.heal(1, 0)
    assert [b"%d" % number for number in range(30)] == pair.loop.run_until_complete(fetching)
