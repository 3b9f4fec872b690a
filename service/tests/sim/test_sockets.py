"""What happens to a simulated connection of a client looks like what TCP would do."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from kvorum_sim.loop import VirtualLoop
from kvorum_sim.network import SimulatedNetwork
from kvorum_sim.probes import Probe
from kvorum_sim.process import ProcessLoop
from kvorum_sim.sockets import DEAD_S, WINDOWS, SimulatedSockets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvorum_sim.sockets import End


class Side(asyncio.Protocol):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ended = False
        self.lost: list[Exception | None] = []
        self.calls: list[str] = []
        self.transport: End

    def connection_made(self, transport: End) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def eof_received(self) -> bool:
        self.ended = True
        return False

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


class Shore:
    """One node that listens, on a loop of its own, and the clients that come."""

    def __init__(self, seed: int) -> None:
        self.loop = VirtualLoop(seed)
        self.probes: Counter[str] = Counter()
        network = SimulatedNetwork(self.loop, seed=seed)
        self.sockets = SimulatedSockets(self.loop, network, seed=seed, probes=self.probes)
        self.accepted: list[Side] = []
        self.listen()

    def listen(self) -> None:
        self.process = ProcessLoop(self.loop)

        def accept() -> Side:
            self.accepted.append(Side())
            return self.accepted[-1]

        self.sockets.listen(0, self.process, accept)

    def connect(self, host: str = "node-0", within_s: float = 2.0) -> Side:
        async def dial() -> Side:
            async with asyncio.timeout(within_s):
                _, protocol = await self.sockets.connect("client", Side, host, 9090)
            return protocol

        return self.loop.run_until_complete(dial())

    def pair(self) -> tuple[Side, Side]:
        client = self.connect()
        return client, self.accepted[-1]

    def wait(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))


@pytest.fixture(params=range(5))
def shore(request: pytest.FixtureRequest) -> Iterator[Shore]:
    """The same under several seeds."""
    made = Shore(request.param)
    asyncio.set_event_loop(made.loop)
    yield made
    asyncio.set_event_loop(None)


def test_sockets_bytes_arrive_in_order_and_in_other_pieces_than_written(shore: Shore) -> None:
    """The stream is kept, the writes are not: some come in pieces, single bytes among them."""
    client, server = shore.pair()
    written = [b"%d," % number * 5 for number in range(200)]
    for data in written:
        client.transport.write(data)
        server.transport.write(data)
    shore.wait(1)
    assert b"".join(written) == client.data == server.data
    assert written != server.pieces
    shore.wait(0)
    assert any(data not in written for data in client.pieces)


def test_sockets_cut_holds_bytes_of_one_direction_back(shore: Shore) -> None:
    """A short cut delays and loses nothing; the other direction does not notice."""
    client, server = shore.pair()
    shore.sockets.cut("client", 0)
    client.transport.write(b"request")
    server.transport.write(b"reply")
    shore.wait(DEAD_S / 2)
    assert (b"", b"reply") == (server.data, client.data)
    shore.sockets.heal("client", 0)
    shore.wait(0.1)
    assert b"request" == server.data
    assert [] == client.lost == server.lost


def test_sockets_long_cut_ends_the_clients_side_only(shore: Shore) -> None:
    """The client gives up, the server does not know; what it writes later is answered with a reset."""
    client, server = shore.pair()
    shore.sockets.cut(0, "client")
    shore.wait(DEAD_S + 0.1)
    assert isinstance(client.lost[0], TimeoutError)
    assert [] == server.lost
    shore.sockets.heal(0, "client")
    server.transport.write(b"anybody there?")
    shore.wait(0.1)
    assert isinstance(server.lost[0], ConnectionResetError)


def test_sockets_nobody_can_be_reached_across_a_cut_or_without_a_listener(shore: Shore) -> None:
    """A dial across a cut hangs; one to a machine whose process is gone is refused; one without power hangs."""
    shore.sockets.cut(0, "client")
    with pytest.raises(TimeoutError):
        shore.connect()
    shore.sockets.heal(0, "client")
    shore.sockets.crash(0, power=True)
    with pytest.raises(ConnectionRefusedError):
        shore.connect()
    shore.listen()
    shore.connect()
    shore.sockets.crash(0, power=False)
    with pytest.raises(TimeoutError):
        shore.connect()


@pytest.mark.parametrize("what", ["process", "machine"])
def test_sockets_crash_of_a_process_is_heard_at_once_and_of_a_machine_late(shore: Shore, what: str) -> None:
    """A killed process's system closes its connections; a machine without power says nothing until it is back."""
    power = what == "process"
    client, server = shore.pair()
    shore.process.alive = False
    shore.sockets.crash(0, power=power)
    shore.wait(1)
    assert power == (client.ended or bool(client.lost))
    if not power:
        client.transport.write(b"still there?")
        shore.wait(1)
        assert [] == client.lost
        shore.listen()
        shore.wait(6)
    assert 1 == len(client.lost)
    assert [] == server.lost
    assert 0 == shore.sockets.open_at("client") == shore.sockets.open_at(0)


def test_sockets_paused_process_is_connected_to_and_hears_all_at_its_end(shore: Shore) -> None:
    """The system accepts and keeps what comes; the process finds it when it goes on, also that all is over."""
    shore.process.paused = True
    client = shore.connect()
    client.transport.write(b"are you ")
    client.transport.write(b"asleep?")
    shore.wait(1)
    assert [] == shore.accepted
    shore.process.resume()
    shore.wait(0.1)
    assert b"are you asleep?" == shore.accepted[0].data
    shore.process.paused = True
    again = shore.connect()
    shore.sockets.break_both(again.transport)
    shore.process.resume()
    shore.wait(0.1)
    assert [1, 1] == [len(again.lost), len(shore.accepted[1].lost)]


def test_sockets_reader_that_pauses_stops_the_writer(shore: Shore) -> None:
    """Beyond the window and the writer's limit the writer is told to pause, and to go on when there is room."""
    client, server = shore.pair()
    server.transport.pause_reading()
    sent = 0
    while not client.calls:
        client.transport.write(bytes(1000))
        sent += 1000
        shore.wait(0.05)
    assert b"" == server.data
    assert sent < max(WINDOWS) + 70_000
    server.transport.resume_reading()
    shore.wait(5)
    assert ["pause", "resume"] == client.calls
    assert sent == len(server.data)


def test_sockets_close_sends_what_waits_and_abort_does_not_read_on(shore: Shore) -> None:
    """A close ends behind the last byte; an abort is heard by the other side, and nothing reaches who aborted."""
    client, server = shore.pair()
    server.transport.write(bytes(300_000))
    server.transport.close()
    shore.wait(5)
    assert 300_000 == len(client.data)
    assert client.ended
    assert [None] == client.lost == server.lost
    client, server = shore.pair()
    client.transport.abort()
    server.transport.write(b"too late")
    shore.wait(1)
    assert b"" == client.data
    assert [None] == client.lost
    assert 1 == len(server.lost)


def test_sockets_trap_tears_a_reply_in_its_middle(shore: Shore) -> None:
    """The client has a beginning of what was written, both sides are told, and the probe counts it."""
    client, server = shore.pair()
    trap = shore.sockets.set_trap(to_client=True)
    assert shore.sockets.set_trap(to_client=True) is None
    client.transport.write(b"request")
    shore.wait(0.1)
    assert not trap.sprung
    assert b"request" == server.data
    server.transport.write(b"a long reply" * 9)
    shore.wait(0.1)
    assert trap.sprung
    assert 0 < len(client.data) < 9 * 12
    assert (b"a long reply" * 9).startswith(client.data)
    assert [1, 1] == [len(client.lost), len(server.lost)]
    assert 1 == shore.probes[Probe.REPLY_TORN]


def test_sockets_name_of_the_service_leads_to_whoever_listens(shore: Shore) -> None:
    """It resolves to some node; with none there is no way."""
    shore.connect("kvorum")
    assert 1 == len(shore.accepted)
    shore.sockets.crash(0, power=True)
    with pytest.raises(OSError, match="no node"):
        shore.connect("kvorum")
