"""The server on real sockets, under both event loops, with thriftpy2's own client and with bare bytes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest
import structlog
import uvloop
from thriftpy2.protocol import TCyBinaryProtocolFactory
from thriftpy2.rpc import make_client
from thriftpy2.thrift import TApplicationException
from thriftpy2.transport import TCyBufferedTransportFactory

import kvorum_idl as idl
from kvorum.core.errors import ErrorCode, StartupError
from kvorum.thrift.metrics import edge_metrics
from kvorum.thrift.protocol.scanner import Malformed
from kvorum.thrift.server import listening_sockets

if TYPE_CHECKING:
    from types import SimpleNamespace
    from typing import Self

PATIENCE_S = 120.0


def eventually(check) -> None:
    """Wait for a condition, bounded."""
    until = time.monotonic() + PATIENCE_S
    while not check():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.005)


class Running:
    """A server on a loop of its own in a thread, so that blocking clients can be used."""

    def __init__(self, make_edge, factory, **settings) -> None:
        self._ready = threading.Event()
        self._make = lambda: make_edge(**settings)
        self._factory = factory
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_) -> None:
        if self._thread.is_alive():
            self.on_loop(self._done.set)
            self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self._factory) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._done = asyncio.Event()
        self.edge = self._make()
        self.edge.server.edge.clock = time.monotonic
        await self.edge.server.start()
        self.server = self.edge.server
        self.port = self.server.port
        self._ready.set()
        await self._done.wait()
        await self.server.stop(0.5)

    def on_loop(self, callback) -> None:
        self.loop.call_soon_threadsafe(callback)

    def connect(self, family: int = socket.AF_INET) -> socket.socket:
        made = socket.socket(family)
        made.settimeout(PATIENCE_S)
        made.connect(("127.0.0.1" if family == socket.AF_INET else "::1", self.port))
        return made

    def client(self):
        return make_client(
            idl.TransactionalKV,
            "127.0.0.1",
            self.port,
            proto_factory=TCyBinaryProtocolFactory(),
            trans_factory=TCyBufferedTransportFactory(),
        )


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def running(request, make_edge):
    """Starts servers with given settings."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(Running(make_edge, request.param, **settings))


FIXED = {2: 1, 3: 1, 4: 8, 6: 2, 8: 4, 10: 8}


def skip(kind: int, data: bytes, at: int) -> int:
    """Where a wire value ends; IndexError or struct.error if it is not complete."""
    if kind in FIXED:
        return at + FIXED[kind]
    if kind == 11:
        return at + 4 + struct.unpack_from(">i", data, at)[0]
    if kind == 15:
        element, count = struct.unpack_from(">Bi", data, at)
        at += 5
        for _ in range(count):
            at = skip(element, data, at)
        return at
    assert kind == 12
    while data[at]:
        at = skip(data[at], data, at + 3)
    return at + 1


def receive(line: socket.socket, wire, count: int) -> list[SimpleNamespace]:
    """Read that many replies."""
    data, replies = b"", []
    while len(replies) < count:
        more = line.recv(1 << 20)
        assert more, "closed too early"
        data += more
        with contextlib.suppress(IndexError, struct.error):
            while data and len(data) >= (end := skip(12, data, 12 + struct.unpack_from(">i", data, 4)[0])):
                replies += wire.replies_in(data[:end])
                data = data[end:]
    assert not data
    return replies


def test_server_answers_every_method_of_an_existing_client(running) -> None:
    """thriftpy2's own client calls all methods over one socket."""
    client = running(faults_enabled=True).client()
    try:
        assert client.setKey(idl.SetRequest(key=b"a", value=b"1")).success
        assert b"1" == client.get(idl.GetRequest(key=b"a")).value
        assert client.deleteKey(idl.DeleteRequest(key=b"zz")).success
        assert 2 == client.getReadVersion(idl.GetReadVersionRequest()).read_version
        commit = idl.AtomicCommitRequest(
            read_version=2,
            operations=[idl.Operation(type="set", key=b"b", value=b"2")],
            read_conflict_keys=[b"b"],
        )
        assert 3 == client.atomicCommit(commit).committed_version
        assert ErrorCode.CONFLICT == client.atomicCommit(commit).error_code
        assert 2 == len(client.getRange(idl.GetRangeRequest()).key_values)
        assert b"1" == client.snapshotRead(idl.SnapshotReadRequest(key=b"a", read_version=1)).value
        assert b"1" == client.snapshotGet(idl.SnapshotGetRequest(key=b"a", read_version=1)).value
        assert 1 == len(client.snapshotGetRange(idl.SnapshotGetRangeRequest(read_version=1)).key_values)
        assert client.setReadVersion(idl.SetReadVersionRequest(version=1)).success
        assert 3 == client.getCommittedVersion(idl.GetCommittedVersionRequest()).version
        conflict = client.addReadConflict(idl.AddReadConflictRequest(key=b"a"))
        assert ErrorCode.UNSUPPORTED == conflict.error_code
        conflict = client.addReadConflictRange(idl.AddReadConflictRangeRequest(start_key=b"a", end_key=b"b"))
        assert ErrorCode.UNSUPPORTED == conflict.error_code
        stamped = client.setVersionstampedKey(idl.SetVersionstampedKeyRequest(key_prefix=bytes(10), value=b""))
        assert 10 == len(stamped.generated_key)
        stamped = client.setVersionstampedValue(idl.SetVersionstampedValueRequest(key=b"k", value_prefix=bytes(12)))
        assert 12 == len(stamped.generated_value)
        assert client.setFaultInjection(idl.FaultInjectionRequest(fault_type="NONE")).success
        assert b"hello" == client.ping(idl.PingRequest(message=b"hello")).message
        assert client.getClusterHealth(idl.GetClusterHealthRequest()).success
        assert client.getDatabaseStats(idl.GetDatabaseStatsRequest()).success
        assert client.getNodeInfo(idl.GetNodeInfoRequest()).success
        assert client.getStatus(idl.GetStatusRequest()).success
    finally:
        client.close()


def test_server_unknown_method_is_an_application_exception(running, wire) -> None:
    """Peer-protocol methods are not served on the client port."""
    with running().connect() as line:
        line.sendall(wire.raw("requestVote", b"\0", 5))
        (reply,) = receive(line, wire, 1)

    assert (5, TApplicationException.UNKNOWN_METHOD) == (reply.seqid, reply.response.type)


def test_server_pipelined_mixture_is_answered_in_order(running, wire) -> None:
    """A thousand mixed requests sent before the first reply is read."""
    node = running()
    chance = random.Random(7)
    data, expected, stored = b"", [], {}
    for seqid in range(1000):
        key = b"k%d" % chance.randrange(5)
        method = chance.choice(["setKey", "get", "deleteKey", "getRange", "ping"])
        fields = {"setKey": {"key": key, "value": b"%d" % seqid}, "get": {"key": key}, "deleteKey": {"key": key}}
        data += wire.message(method, seqid, **fields.get(method, {}))
        if method == "setKey":
            stored[key] = b"%d" % seqid
        elif method == "deleteKey":
            stored.pop(key, None)
        expected.append((seqid, stored.get(key, b"") if method == "get" else None))
    with node.connect() as line:
        line.sendall(data)
        replies = receive(line, wire, 1000)

    assert expected == [(r.seqid, r.response.value if r.name == "get" else None) for r in replies]


def test_server_listens_in_both_families_with_the_right_socket_options(running, wire) -> None:
    """`localhost` works either way; accepted sockets have no delay and keep-alive."""
    node = running()
    for family in (socket.AF_INET, socket.AF_INET6):
        with node.connect(family) as line:
            line.sendall(wire.message("ping", message=b"x"))
            assert b"x" == receive(line, wire, 1)[0].response.message
            (connection,) = list(node.server._connections)
            accepted = connection._transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        eventually(lambda: node.server.connection_count == 0)


def test_server_port_taken_is_a_clear_error(running) -> None:
    """A second server on the port fails to start and says how to choose another."""
    node = running()

    with pytest.raises(StartupError, match=f"port {node.port} .*--port"):
        listening_sockets(node.port)


def test_server_port_is_free_at_once_after_stop(running) -> None:
    """Connections in TIME_WAIT do not keep a restarted node from its port."""
    node = running()
    with node.connect():
        eventually(lambda: node.server.connection_count == 1)
        node.__exit__()
        for made in listening_sockets(node.port):
            made.close()


def test_server_probes_do_no_harm(running, wire) -> None:
    """Connect and close, with a FIN or with a reset, is quiet."""
    node = running()
    for number in range(50):
        probe = node.connect()
        if number % 2:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        probe.close()
    with node.connect() as line:
        line.sendall(wire.message("ping"))
        receive(line, wire, 1)
    eventually(lambda: node.server.connection_count == 0)

    assert 0 == sum(node.server.malformed_counts.values())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", Malformed.START),
        (b"\x16\x03\x01\x02\x00", Malformed.START),
        (b"\x80\x01\x00\x01\x00\x00\x00\x03get\0\0\0\0\x0c\0\x01\x0b\0\x01\x7f\xff\xff\xff", Malformed.LENGTH),
    ],
)
def test_server_malformed_input_ends_that_connection_alone(running, wire, data: bytes, reason: str) -> None:
    """Garbage closes its connection without a reply; others are served."""
    node = running()
    with node.connect() as good, node.connect() as bad, structlog.testing.capture_logs() as logs:
        bad.sendall(wire.message("ping", 1) + data)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while more := bad.recv(4096):
                received += more
        assert [1] == [reply.seqid for reply in wire.replies_in(received)]
        good.sendall(wire.message("ping", 2))
        assert 2 == receive(good, wire, 1)[0].seqid

    assert 1 == node.server.malformed_counts[reason]
    assert [reason] == [entry["reason"] for entry in logs if "malformed" in entry["event"]]


def test_server_client_that_does_not_read_holds_up_nobody(running, wire) -> None:
    """Replies to a client that never reads stay bounded, and others are served; then it gets them all."""
    node = running()
    value = bytes(1 << 20)
    with node.connect() as lazy, node.connect() as busy:
        busy.sendall(wire.message("setKey", key=b"k", value=value))
        receive(busy, wire, 1)
        lazy.sendall(b"".join(wire.message("get", n, key=b"k") for n in range(100)))
        eventually(lambda: node.server.edge.methods["get"].started > 0)
        busy.sendall(wire.message("ping"))
        receive(busy, wire, 1)
        assert node.server.edge.methods["get"].ok < 30
        assert list(range(100)) == [reply.seqid for reply in receive(lazy, wire, 100)]


def test_server_full_table_makes_room_only_for_long_idle_ones(running, wire) -> None:
    """Busy or recently used connections stay; the longest idle one of the greediest address goes."""
    node = running(connections_max=2)
    node.server.edge.clock = lambda: node.edge.now
    with node.connect() as first, node.connect() as second:
        eventually(lambda: node.server.connection_count == 2)
        with node.connect() as third, contextlib.suppress(ConnectionResetError):
            assert b"" == third.recv(1)
        assert 1 == node.server.connections_refused
        node.edge.now += 700
        second.sendall(wire.message("ping"))
        receive(second, wire, 1)
        with node.connect() as fourth:
            fourth.sendall(wire.message("ping"))
            receive(fourth, wire, 1)
            with contextlib.suppress(ConnectionResetError):
                assert b"" == first.recv(1)
            second.sendall(wire.message("ping"))
            receive(second, wire, 1)

    assert (1, 1) == (node.server.connections_displaced, node.server.connections_refused)


def test_server_stop_answers_what_is_in_flight(running, wire) -> None:
    """A write under way when the server stops is answered; new connections are not taken."""
    node = running()
    node.edge.routing.hold_writes = True
    with node.connect() as line:
        line.sendall(wire.message("setKey", 1, key=b"k", value=b"v"))
        eventually(lambda: node.edge.routing.writes)
        node.on_loop(node._done.set)
        eventually(lambda: not node.server._listeners)
        with socket.socket() as late:
            assert late.connect_ex(("127.0.0.1", node.port)) in (errno.ECONNREFUSED, errno.ECONNRESET)
        node.on_loop(node.edge.routing.release_writes)

        assert receive(line, wire, 1)[0].response.success
        assert b"" == line.recv(1)


def test_server_stop_is_bounded(running, wire) -> None:
    """What is not decided within the grace is cut off."""
    node = running()
    node.edge.routing.hold_writes = True
    with node.connect() as line:
        line.sendall(wire.message("setKey", 1, key=b"k", value=b"v"))
        eventually(lambda: node.edge.routing.writes)
        node.__exit__()
        with contextlib.suppress(ConnectionResetError):
            assert b"" == line.recv(1)


def test_server_half_closed_client_gets_its_replies(running, wire) -> None:
    """A client may end its side after the last request."""
    node = running()
    with node.connect() as line:
        line.sendall(b"".join(wire.message("setKey", n, key=b"k", value=b"v") for n in range(10)))
        line.shutdown(socket.SHUT_WR)
        assert 10 == len(receive(line, wire, 10))
        assert b"" == line.recv(1)


def test_server_connection_idle_between_requests_goes_on(running, wire) -> None:
    """Nothing closes a quiet connection."""
    node = running()
    with node.connect() as line:
        for seqid in range(3):
            line.sendall(wire.message("ping", seqid))
            assert seqid == receive(line, wire, 1)[0].seqid
            time.sleep(0.1)


def test_server_large_value_in_many_segments(running, wire) -> None:
    """Four megabytes are stored and read back, whatever the segments."""
    node = running()
    value = random.Random(3).randbytes(4 * 1024 * 1024)
    with node.connect() as line:
        line.sendall(wire.message("setKey", 1, key=b"k", value=value) + wire.message("get", 2, key=b"k"))

        assert value == receive(line, wire, 2)[1].response.value


def test_server_metrics_count_calls_by_method_and_code(running, wire) -> None:
    """What was answered is counted under its code, unknown methods under one name."""
    node = running()
    with node.connect() as line:
        line.sendall(wire.message("get", key=b"a") + wire.message("get", key=b"") + wire.raw("nonsense", b"\0"))
        receive(line, wire, 3)
        metrics = {metric.name: metric for metric in edge_metrics(node.server)}
    requests = {tuple(labels.values()): value for labels, value in metrics["kvorum_rpc_requests_total"].samples}

    assert (1, 1) == (requests["get", "OK"], requests["get", ErrorCode.INVALID_KEY])
    assert 1 == requests["unknown", "UNKNOWN_METHOD"]
    (duration,) = [v for labels, v in metrics["kvorum_rpc_duration_seconds"].samples if labels["method"] == "get"]
    assert 2 == duration.count
    assert [({}, 1)] == metrics["kvorum_client_connections"].samples
