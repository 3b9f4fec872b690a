"""The load generator believes nothing: every reply that is not the promised success ends the run."""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).resolve().parents[1] / "closedloop.c"
VALUE_BYTES = 64

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")


def _binary(number: int, value: bytes) -> bytes:
    return struct.pack(">bhi", 11, number, len(value)) + value


def _bool(number: int, *, value: bool) -> bytes:
    return struct.pack(">bhb", 2, number, value)


@dataclass
class FakeServer:
    """A dictionary behind setKey and get in exactly the shapes the generator sends; `twist` may spoil replies."""

    twist: Callable[[bytes], bytes] = lambda reply: reply
    chunk: int = 1 << 20
    store: dict[bytes, bytes] = field(default_factory=dict)
    requests: int = 0
    identities: list[tuple[bytes, int]] = field(default_factory=list)
    """Client id and request id of every request that had them."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readexactly(8)
                name = await reader.readexactly(struct.unpack(">4xi", head)[0])
                sequence = await reader.readexactly(4)
                assert await reader.readexactly(3) == b"\x0c\x00\x01"
                fields = await self._fields(reader)
                assert await reader.readexactly(1) == b"\0"
                self.requests += 1
                reply = self.twist(self._reply(name, sequence, fields))
                for at in range(0, len(reply), self.chunk):
                    writer.write(reply[at : at + self.chunk])
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _fields(self, reader: asyncio.StreamReader) -> dict[int, bytes]:
        fields = {}
        while (kind := await reader.readexactly(1)) != b"\0":
            if kind == b"\x0b":
                number, length = struct.unpack(">hi", await reader.readexactly(6))
                fields[number] = await reader.readexactly(length)
            else:
                assert (b"\x0a", 23) == (kind, *struct.unpack(">h", await reader.readexactly(2)))
                (request_id,) = struct.unpack(">q", await reader.readexactly(8))
                self.identities.append((fields[22], request_id))
        return fields

    def _reply(self, name: bytes, sequence: bytes, fields: dict[int, bytes]) -> bytes:
        head = struct.pack(">Ii", 0x80010002, len(name)) + name + sequence + b"\x0c\0\0"
        if name == b"setKey":
            self.store[fields[1]] = fields[2]
            return head + _bool(1, value=True) + b"\0\0"
        value = self.store.get(fields[1])
        return head + _binary(1, value or b"") + _bool(2, value=value is not None) + b"\0\0"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("closedloop") / "closedloop"
    subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", target, SOURCE], check=True)
    return target


async def _run(program: Path, server: FakeServer, *options: str) -> tuple[int, str, str]:
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    common = ("--protocol", "thrift", "--endpoints", f"127.0.0.1:{port}", "--value-bytes", str(VALUE_BYTES))
    process = await asyncio.create_subprocess_exec(
        program, *common, *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, error = await asyncio.wait_for(process.communicate(), 120)
    finally:
        listener.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


async def test_preload_with_many_connections_writes_each_key_exactly_once(program: Path) -> None:
    """Preloading 500 keys over 7 connections sends 500 requests for 500 different keys."""
    server = FakeServer()

    status, out, _ = await _run(program, server, "--work", "put", "--preload", "--space", "500", "--connections", "7")

    assert status == 0
    assert server.requests == json.loads(out)["requests"] == 500
    assert set(server.store) == {b"key-%012d" % number for number in range(500)}
    assert all(value.startswith(key) and len(value) == VALUE_BYTES for key, value in server.store.items())


@pytest.mark.parametrize(("connections", "shared", "clients"), [(3, 1, 3), (3, 16, 1), (17, 16, 2), (5, 2, 3)])
async def test_put_once_gives_so_many_connections_an_id_and_numbers_their_writes(
    program: Path, connections: int, shared: int, clients: int
) -> None:
    """One each, or several as with kvorum_client, and each write has a number of its own."""
    server = FakeServer()
    load = ["--work", "put-once", "--preload", "--space", "200", "--connections", str(connections)]
    if shared > 1:
        load += ["--connections-per-id", str(shared)]

    status, _, _ = await _run(program, server, *load)

    assert status == 0
    assert len(set(server.identities)) == 200
    found = {client for client, _ in server.identities}
    assert {16} == {len(client) for client in found}
    assert len(found) == clients
    for client in found:
        numbers = sorted(number for owner, number in server.identities if owner == client)
        assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
async def test_replies_in_pieces_are_read_to_their_end(program: Path, chunk: int) -> None:
    """However a reply is cut into segments, each request counts once and latencies are ordered."""
    server = FakeServer(chunk=chunk)
    await _run(program, server, "--work", "put", "--preload", "--space", "20")

    status, out, _ = await _run(
        program, server, "--work", "get", "--space", "20", "--connections", "3", "--seconds", "0.3", "--warmup", "0.1"
    )

    figures = json.loads(out)
    assert status == 0
    assert 0 < figures["requests"] <= server.requests
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"] * 1.02


@pytest.mark.parametrize(
    ("twist", "said"),
    [
        (lambda reply: reply.replace(b"\x02\x00\x02\x01", b"\x02\x00\x02\x00"), "not found"),
        (lambda reply: reply.replace(b"key-0", b"kEy-0"), "another key"),
        (lambda reply: reply.replace(b"\x80\x01\x00\x02", b"\x80\x01\x00\x03"), "not a strict binary REPLY"),
        (lambda reply: reply[:11] + b"\x7f\x7f\x7f\x7f" + reply[15:], "sequence id"),
        (lambda reply: reply[:-2] + _binary(3, b"no leader") + b"\0\0", "no leader"),
        (lambda reply: reply + b"x", "bytes behind"),
        (lambda _: b"", "closed a connection"),
    ],
)
async def test_a_spoilt_reply_ends_the_run_with_its_reason(
    program: Path, twist: Callable[[bytes], bytes], said: str
) -> None:
    """A reply that is not the promised success gives a non-zero status and a text that says why."""
    server = FakeServer(store={b"key-%012d" % number: b"key-%012d" % number + b"v" * 48 for number in range(5)})
    server.twist = twist
    if not twist(b"x"):
        server.serve = _hang_up  # type: ignore[method-assign]

    status, _, error = await _run(program, server, "--work", "get", "--space", "5", "--seconds", "5")

    assert status != 0
    assert said in error


async def _hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def test_a_rate_is_kept_and_reported_window_by_window(program: Path) -> None:
    """Two windows' lines and the whole run's; at 200 per second the second and a half see 300, no more."""
    server = FakeServer()

    status, out, _ = await _run(
        program, server, "--work", "put", "--space", "50", "--connections", "4",
        "--rate", "200", "--warmup", "0.5", "--seconds", "1", "--window", "0.5",
    )  # fmt: skip

    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [0.5, 0.5, 1.0] == [line["seconds"] for line in lines]
    assert sum(line["requests"] for line in lines[:2]) == lines[2]["requests"]
    assert server.requests <= 300
    # The fake server and a busy machine may be late at the very end, but what is late is made up for.
    assert lines[2]["rate_per_s"] == pytest.approx(200, rel=0.25)


async def test_with_a_rate_the_latency_counts_from_when_a_request_was_due(program: Path) -> None:
    """A server that stands still for a moment delays all that were due in it, though one connection sends only one."""
    server = FakeServer()

    def stand_still_once(reply: bytes) -> bytes:
        if server.requests == 20:
            time.sleep(0.5)
        return reply

    server.twist = stand_still_once

    status, out, _ = await _run(
        program, server, "--work", "put", "--space", "50", "--rate", "100", "--warmup", "0", "--seconds", "1.5"
    )

    figures = json.loads(out)
    assert status == 0
    # Of 150 requests about 50 were due while it stood still; without the rule, one would have been slow.
    assert figures["p90_ms"] > 200


async def test_random_values_are_whole_and_differ(program: Path) -> None:
    """Each begins with its key and no two go on alike."""
    server = FakeServer()

    status, _, _ = await _run(
        program, server, "--work", "put", "--preload", "--space", "200", "--connections", "3", "--random-values"
    )

    assert status == 0
    assert all(value.startswith(key) and len(value) == VALUE_BYTES for key, value in server.store.items())
    assert len({value[-8:] for value in server.store.values()}) == 200
