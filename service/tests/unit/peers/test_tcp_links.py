"""What only the real links can show: damaged bytes, strangers, ports, names, silence, reassembly."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from typing import TYPE_CHECKING, cast

import pytest
from structlog.testing import capture_logs

from kvorum.core.errors import StartupError
from kvorum.core.limits import PEER_FRAME_BYTES_MAX
from kvorum.core.ports import Greeting
from kvorum.peers import frames
from kvorum.peers.connection import AcceptedConnection, DialledConnection
from kvorum.peers.limits import PING_TICKS_MAX, QUIET_TICKS_MAX
from kvorum.peers.link import split_endpoint
from kvorum.peers.quiet_log import QuietLog
from kvorum.peers.tcp import TcpPeerLinks

if TYPE_CHECKING:
    from collections.abc import Callable


def greeting_of(node_id: int) -> Greeting:
    return Greeting(b"c" * 16, b"b" * 16, node_id, node_id + 100, f"node-{node_id}:9090", "0.1.0")


class Owner:
    """A handler that admits everybody and keeps what it hears; also the owner of bare connections."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        self.frames: list[tuple[int, bytes]] = []
        self.up: list[int] = []
        self.down: list[str] = []

    def greet(self) -> Greeting:
        return greeting_of(self.node_id)

    def admit(self, greeting: Greeting) -> str | None:
        return None if greeting.node_id < 8 else f"node id {greeting.node_id} is no member"

    def turned_away(self, _peer: int, _reason: str) -> None:
        return

    def link_up(self, peer: int, greeting: Greeting) -> None:
        assert peer == greeting.node_id
        self.up.append(peer)

    def link_down(self, peer: int, reason: str) -> None:
        assert peer in self.up
        self.down.append(reason)

    def frame_received(self, peer: int, incarnation: int, kind: int, payload: bytes) -> None:
        assert incarnation == peer + 100
        self.frames.append((kind, payload))

    def caller_came(self, connection: AcceptedConnection) -> None:
        """Not needed here."""

    caller_admitted = caller_left = established = lambda *_: None
    broken = writing_paused = writing_resumed = lambda _: None

    def answered(self, sent_at: float) -> None:
        self.frames.append((0, b"%f" % sent_at))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.002)


def links(node_id: int, port: int = 0, peers: dict[int, str] | None = None) -> TcpPeerLinks:
    return TcpPeerLinks(node_id, port, peers or {}, chance=random.Random(1))


def hello(greeting: Greeting, version: int = 1) -> bytes:
    return frames.encode_handshake(frames.HandshakeKind.HELLO, frames.encode_greeting(greeting), version)


def frame(kind: int, payload: bytes) -> bytes:
    return frames.frame_header(kind, (payload,)) + payload


DAMAGE = {
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", "does not speak kvorum's peer protocol"),
    "flipped bit": (hello(greeting_of(1)) + frame(16, b"fine") + frame(16, b"x" * 50)[:-1] + b"y", ""),
    "absurd length": (
        hello(greeting_of(1)) + frame(16, b"fine") + frames.FRAME_HEADER.pack(PEER_FRAME_BYTES_MAX + 1, 16, 0, 0),
        "",
    ),
    "flags of a later version": (hello(greeting_of(1)) + frames.FRAME_HEADER.pack(0, 16, 1, 0), ""),
    "unknown kind of the links": (hello(greeting_of(1)) + frame(9, b""), ""),
    "an answer where a hello belongs": (frames.encode_handshake(frames.HandshakeKind.ACCEPTED, b""), "hello belongs"),
    "a stranger": (hello(greeting_of(9)), "node id 9 is no member"),
    "this node itself": (hello(greeting_of(0)), "two nodes have one node id"),
    "a later protocol": (hello(greeting_of(1), version=2), "version 2 of the peer protocol"),
}


@pytest.mark.parametrize("name", DAMAGE)
async def test_links_bad_bytes_close_that_connection_only_and_say_why(name: str) -> None:
    """Whatever a caller sends, its connection ends with a log line and another caller is served as before."""
    sent, said = DAMAGE[name]
    owner = Owner(0)
    listening = links(0)
    with capture_logs() as logs:
        listening.start(owner)
        await asyncio.sleep(0)
        good, good_writer = await asyncio.open_connection("localhost", listening.port)
        good_writer.write(hello(greeting_of(2)))
        await good.readexactly(frames.HANDSHAKE_HEADER_BYTES)
        reader, writer = await asyncio.open_connection("localhost", listening.port)
        writer.write(sent)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            answer = await asyncio.wait_for(reader.read(), 120)
        writer.close()
        good_writer.write(frame(20, b"still here"))
        await until(lambda: (20, b"still here") in owner.frames)
        await until(lambda: any(said in str(line.get("reason")) for line in logs))
        if "stranger" in name or "itself" in name or "later protocol" in name:
            taken = frames.decode_handshake(answer)
            assert taken is not None
            assert frames.HandshakeKind.REFUSED == taken[0].kind
            assert said in taken[0].body.decode()
        good_writer.close()
        await listening.stop()
    assert all(payload in {b"fine", b"still here"} for _, payload in owner.frames)


async def test_links_port_taken_is_a_startup_error_that_names_port_and_key() -> None:
    """The message says which port, and where to change it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartupError, match=rf"TCP port {port}: another process listens.*\[consensus\] endpoints"):
            links(0, port).start(Owner(0))


async def test_links_listen_on_both_address_families() -> None:
    """A peer may come over IPv4 or, where the machine has it, IPv6."""
    listening = links(0)
    listening.start(Owner(0))
    await asyncio.sleep(0)
    for host in ("127.0.0.1", "::1") if socket.has_dualstack_ipv6() else ("127.0.0.1",):
        reader, writer = await asyncio.open_connection(host, listening.port)
        writer.write(hello(greeting_of(1)))
        assert await reader.readexactly(8) == frames.MAGIC
        writer.close()
    await listening.stop()


async def test_links_endpoint_is_looked_up_again_at_every_dial() -> None:
    """A peer that moved is found under its new endpoint, without a restart of the caller."""
    endpoints = {1: "localhost:1"}
    caller, there = Owner(0), Owner(1)
    dialling, listening = links(0, peers=endpoints), links(1)
    dialling.start(caller)
    listening.start(there)
    await until(lambda: dialling.statistics()[1]["dials_failed"] >= 1)
    endpoints[1] = "no-such-host.invalid:1"
    await until(lambda: dialling.statistics()[1]["dials_failed"] >= 2)
    endpoints[1] = f"localhost:{listening.port}"
    await until(lambda: caller.up == [1])
    await dialling.stop()
    await listening.stop()


async def test_links_to_a_node_of_another_id_are_not_used() -> None:
    """Endpoints in the wrong order are noticed by the dialler, which names both ids."""
    with capture_logs() as logs:
        listening = links(2)
        listening.start(Owner(2))
        caller = Owner(0)
        dialling = links(0, peers={1: f"localhost:{listening.port}"})
        dialling.start(caller)
        await until(lambda: any("says it is node 2, not 1" in str(line.get("reason")) for line in logs))
        await dialling.stop()
        await listening.stop()
    assert [] == caller.up


async def test_links_caller_that_dials_anew_replaces_its_older_connection() -> None:
    """Of two connections of one peer the newer counts; the older is closed."""
    owner = Owner(0)
    listening = links(0)
    listening.start(owner)
    await asyncio.sleep(0)
    older, older_writer = await asyncio.open_connection("localhost", listening.port)
    older_writer.write(hello(greeting_of(1)))
    await older.readexactly(8)
    newer, newer_writer = await asyncio.open_connection("localhost", listening.port)
    newer_writer.write(hello(greeting_of(1)) + frame(16, b"new"))
    await newer.readexactly(8)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await older.readexactly(1000)
    await until(lambda: owner.frames == [(16, b"new")])
    older_writer.close()
    newer_writer.close()
    await listening.stop()


# --- one connection, byte by byte ----------------------------------------------------------------------------------


class Pipe(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing to limit."""

    def abort(self) -> None:
        self.aborted = True

    close = abort


def feed(connection: AcceptedConnection | DialledConnection, data: bytes, chance: random.Random, most: int) -> None:
    """Hand bytes over in pieces of random size, as a socket would."""
    at = 0
    while at < len(data):
        room = connection.get_buffer(-1)
        count = min(len(room), len(data) - at, chance.randint(1, most))
        room[:count] = data[at : at + count]
        connection.buffer_updated(count)
        at += count


@pytest.mark.parametrize("most", [1, 7, 1000, 300_000])
async def test_connection_bytes_in_any_pieces_give_the_same_frames(most: int) -> None:
    """Frames are put together whatever the pieces, also those larger than the receive buffer."""
    chance = random.Random(most)
    sizes = [0, 1, 50, 3000] if most < 10 else [0, 1, 262_134, 262_135, 600_000, 5, 262_144, 0, 1_048_576, 9]
    sent = [(16 + i % 100, chance.randbytes(size)) for i, size in enumerate(sizes)]
    owner = Owner(0)
    connection = AcceptedConnection(0, owner, owner)
    connection.connection_made(Pipe())
    feed(connection, hello(greeting_of(1)) + b"".join(frame(*one) for one in sent), chance, most)
    assert sent == owner.frames
    connection.connection_lost(None)


async def test_dialled_connection_without_pongs_is_cut_after_the_last_tick() -> None:
    """Silence of a peer is noticed by counting ticks; one pong in between starts the count again."""
    owner, pipe = Owner(0), Pipe()
    connection = DialledConnection(1, owner, owner)
    connection.connection_made(pipe)
    answer = frames.encode_handshake(frames.HandshakeKind.ACCEPTED, frames.encode_greeting(greeting_of(1)))
    feed(connection, answer, random.Random(1), 100)
    for _ in range(PING_TICKS_MAX):
        connection.tick(5.0)
    feed(connection, frames.encode_ping(frames.FrameKind.PONG, 5.0), random.Random(1), 100)
    assert [(0, b"5.000000")] == owner.frames
    for _ in range(PING_TICKS_MAX):
        connection.tick(6.0)
        assert not pipe.aborted
    connection.tick(7.0)
    assert pipe.aborted
    connection.connection_lost(None)
    assert "no answer to pings" in await connection.over


async def test_accepted_connection_without_a_byte_is_cut_after_the_last_tick() -> None:
    """A caller that vanished without a word does not hold its connection for ever."""
    owner, pipe = Owner(0), Pipe()
    connection = AcceptedConnection(0, owner, owner)
    connection.connection_made(pipe)
    feed(connection, hello(greeting_of(1)), random.Random(1), 100)
    for _ in range(QUIET_TICKS_MAX):
        assert not pipe.aborted
        connection.tick()
    connection.tick()
    assert pipe.aborted
    connection.connection_lost(None)


# --- small parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [("kv-0.kv:7090", ("kv-0.kv", 7090)), ("10.0.0.1:1", ("10.0.0.1", 1)), ("[::1]:65535", ("::1", 65535))],
)
def test_split_endpoint_takes_names_and_addresses(endpoint: str, expected: tuple[str, int]) -> None:
    """The last colon divides; brackets around an IPv6 address go away."""
    assert expected == split_endpoint(endpoint)


@pytest.mark.parametrize("endpoint", ["", "host", ":1", "host:", "host:0", "host:65536", "host:x"])
def test_split_endpoint_refuses_what_is_none(endpoint: str) -> None:
    """An endpoint without host or usable port is named in the error."""
    with pytest.raises(ValueError, match="is not host:port"):
        split_endpoint(endpoint)


def test_quiet_log_same_reason_is_said_once_in_a_while() -> None:
    """A repeated complaint is kept quiet, counted, and said again later; another reason is news."""
    now = 0.0
    with capture_logs() as logs:
        log = QuietLog(0, lambda: now)
        for _ in range(100):
            log.warning("link down", subject="1", reason="refused")
        log.warning("link down", subject="1", reason="timeout")
        log.warning("link down", subject="2", reason="refused")
        log.warning("link down", subject="1", reason="timeout")
        now = 31.0
        log.warning("link down", subject="1", reason="timeout")
        log.forget("1")
        log.warning("link down", subject="1", reason="timeout")
    assert ["refused", "timeout", "refused", "timeout", "timeout"] == [line["reason"] for line in logs]
    assert 1 == cast("int", logs[3]["repeated"])


async def test_links_peer_that_moved_is_dialled_at_its_new_endpoint() -> None:
    """A changed endpoint ends the present link, once, and the next dial goes to the new one at once."""
    here, old, new = Owner(0), Owner(1), Owner(1)
    before, after, dialling = links(1), links(1), links(0)
    before.start(old)
    after.start(new)
    await asyncio.sleep(0)
    dialling.set_peers({0: "ignored:1", 1: f"localhost:{before.port}"})
    dialling.start(here)
    await until(lambda: here.up == [1])
    dialling.set_peers({1: f"localhost:{before.port}"})
    assert dialling.send(1, 16, (b"to the old one",)) is True
    dialling.set_peers({1: f"localhost:{after.port}"})
    await until(lambda: here.up == [1, 1])
    assert dialling.send(1, 16, (b"to the new one",)) is True
    await until(lambda: len(new.frames) == 1)
    assert [(16, b"to the old one")] == old.frames
    assert ["the peer moved"] == [reason[:14] for reason in here.down]
    for each in (dialling, before, after):
        await each.stop()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (frame(16, b"no request"), "where one request for a stream belongs"),
        (frame(frames.FrameKind.STREAM_REQUEST, bytes(70_000)), "where one request for a stream belongs"),
        (b"", "asks for a stream and not for which"),
    ],
)
async def test_links_caller_of_a_stream_that_asks_wrongly_is_cut(sent: bytes, said: str) -> None:
    """Anything but one request of a bounded size, in time, ends the connection and nothing else."""
    heard: list[str] = []
    listening = links(0)
    left = listening.caller_left
    listening.caller_left = lambda caller, reason: (heard.append(reason), left(caller, reason))[1]  # type: ignore[method-assign]
    listening.start(Owner(0))
    await asyncio.sleep(0)
    reader, writer = await asyncio.open_connection("localhost", listening.port)
    body = frames.encode_greeting(greeting_of(1))
    writer.write(frames.encode_handshake(frames.HandshakeKind.STREAM, body) + sent)
    with contextlib.suppress(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 120)
    await until(lambda: bool(heard))
    assert said in heard[-1]
    writer.close()
    await listening.stop()


async def test_links_name_nobody_knows_is_counted_as_such() -> None:
    """A dial that fails because the peer's name is not found is counted apart from a peer that does not listen."""
    dialling = links(0, peers={1: "nobody.invalid:9", 2: "127.0.0.1:1"})
    dialling.start(Owner(0))
    await until(lambda: min(figures["dials_failed"] for figures in dialling.statistics().values()) >= 1)
    failures = dialling.dns_failures()
    await dialling.stop()

    assert sum(failures[1].values()) >= 1
    assert sum(failures[2].values()) == 0
