"""An edge under test: a real state machine in memory, a routing whose answers the test decides, and a line to it."""

from __future__ import annotations

import asyncio
import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from thriftpy2.protocol.cybin import TCyBinaryProtocol
from thriftpy2.thrift import TApplicationException
from thriftpy2.transport import TCyMemoryBuffer

import kvorum_idl
from kvorum.core.codec import TAG
from kvorum.core.entries import Entry, EntryKind
from kvorum.core.errors import ErrorCode, Refusal
from kvorum.core.ports import EngineStatistics
from kvorum.core.status import Health, MemberStatus, NodeReport
from kvorum.statemachine.executor import KvStoreExecutor
from kvorum.storage.memory_engine import MemoryEngine
from kvorum.thrift.connection import Connection
from kvorum.thrift.server import ThriftServer
from kvorum.thrift.settings import ThriftSettings

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE = kvorum_idl.load().TransactionalKV


def request_of(method: str):
    """The request struct of a method."""
    return getattr(SERVICE, f"{method}_args").thrift_spec[1][2]


def message(method: str, seqid: int = 0, **fields) -> bytes:
    """A call as existing clients send it."""
    buffer = TCyMemoryBuffer()
    protocol = TCyBinaryProtocol(buffer)
    protocol.write_message_begin(method, 1, seqid)
    arguments = getattr(SERVICE, f"{method}_args")()
    arguments.request = request_of(method)(**fields)
    protocol.write_struct(arguments)
    return buffer.getvalue()


def raw_message(method: str, body: bytes, seqid: int = 0) -> bytes:
    """A call around an argument struct made by hand."""
    name = method.encode()
    return b"\x80\x01\x00\x01" + struct.pack(">I", len(name)) + name + struct.pack(">i", seqid) + body


def replies_in(data: bytes) -> list[SimpleNamespace]:
    """Every reply in a stream: name, kind, seqid and the response or the exception."""
    buffer = TCyMemoryBuffer(data)
    protocol = TCyBinaryProtocol(buffer)
    replies = []
    while buffer.getvalue():
        name, kind, seqid = protocol.read_message_begin()
        if kind == 3:
            response = TApplicationException()
            protocol.read_struct(response)
        else:
            result = getattr(SERVICE, f"{name}_result")()
            protocol.read_struct(result)
            response = result.success
        replies.append(SimpleNamespace(name=name, kind=kind, seqid=seqid, response=response))
    return replies


class DecidedRouting:
    """Routing as the test wants it: at once, or held back until `release`."""

    def __init__(self, executor: KvStoreExecutor) -> None:
        self.executor = executor
        self.default_level = "read_index"
        self.hold_writes = False
        self.hold_reads = False
        self.refusal: Refusal | None = None
        self.writes: list = []
        self.reads: list = []
        self.levels: list[str] = []
        self.deadlines: list[float] = []
        self.proposed: list[bytes] = []
        self.nodes = NodeReport(
            node_id=0,
            role="leader",
            term=3,
            leader_id=0,
            leader_endpoint="10.0.0.1:9090",
            commit_index=9,
            applied_index=9,
            low_watermark=0,
            uptime_s=120.0,
            members=(MemberStatus(0, "10.0.0.1:9090", "10.0.0.1:7090", True, Health.HEALTHY, True, 3, 0.0, 120.0),),
        )

    def write(self, body: bytes, pending, received: float, deadline: float) -> None:
        self.proposed.append(body)
        self.deadlines.append(deadline)
        if self.refusal is not None:
            pending.decided(0, self.refusal)
        elif self.hold_writes:
            self.writes.append((body, pending))
        else:
            pending.decided(*self.apply(body))

    def apply(self, body: bytes):
        index = self.executor.applied_index + 1
        entry = Entry.create(index, 1, EntryKind.COMMAND, 1, TAG.pack(1, 1, index) + body)
        return index, self.executor.apply_group([entry])[0]

    def release_writes(self) -> None:
        held, self.writes = self.writes, []
        for body, pending in held:
            pending.decided(*self.apply(body))

    def read(self, level: str, pending, received: float, deadline: float) -> bool:
        self.levels.append(level)
        self.deadlines.append(deadline)
        return self._read(pending)

    def read_at(self, version: int, pending, received: float, deadline: float) -> bool:
        self.deadlines.append(deadline)
        refusal = self.executor.check_readable(version)
        if refusal is None and version > self.executor.applied_index:
            refusal = Refusal(ErrorCode.FUTURE_VERSION, "not applied here")
        if refusal is not None:
            pending.refused(refusal)
            return False
        return self._read(pending)

    def _read(self, pending) -> bool:
        if self.refusal is not None:
            pending.refused(self.refusal)
            return False
        if self.hold_reads:
            self.reads.append(pending)
            return False
        return True

    def release_reads(self) -> None:
        held, self.reads = self.reads, []
        for pending in held:
            pending.serve()

    def report(self) -> NodeReport:
        return self.nodes


class RecordingTransport:
    """What a connection needs of a transport, remembered instead of sent."""

    def __init__(self) -> None:
        self.sent = b""
        self.write_count = 0
        self.reading = True
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after close"
        self.sent += data
        self.write_count += 1

    def set_write_buffer_limits(self, *, high: int) -> None:
        assert high > 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def get_extra_info(self, name: str):
        return ("192.0.2.1", 4242) if name == "peername" else None


class Line:
    """One connection without a socket."""

    def __init__(self, edge: EdgeUnderTest) -> None:
        self.transport = RecordingTransport()
        self.connection = Connection(edge.server)
        self.connection.connection_made(self.transport)

    def send(self, data: bytes) -> None:
        self.connection.data_received(data)

    async def replies(self, count: int | None = None) -> list[SimpleNamespace]:
        """Everything answered so far; with a count, after that many (bounded) turns of the loop brought them."""
        for _ in range(2000):
            found = replies_in(self.transport.sent)
            if (count is None and _ >= 5) or (count is not None and len(found) >= count):
                break
            await asyncio.sleep(0)
        self.transport.sent = b""
        if count is not None:
            assert len(found) == count
        return found

    async def call(self, method: str, **fields):
        """Send one call and give its response."""
        self.send(message(method, **fields))
        (reply,) = await self.replies(1)
        assert reply.name == method
        return reply.response


class EdgeUnderTest:
    """Server, routing and state behind lines; time stands still unless moved."""

    def __init__(self, **settings) -> None:
        self.now = 1000.0
        self.drawn = 0.0
        self.engine = MemoryEngine()
        self.executor = KvStoreExecutor(self.engine)
        self.routing = DecidedRouting(self.executor)
        self.defects: list[BaseException] = []
        self.statistics = EngineStatistics(3, 4096, 97, 12)
        self.server = ThriftServer(
            self.routing,
            self.executor,
            ThriftSettings(port=0, **settings),
            clock=lambda: self.now,
            wall=lambda: 1_700_000_000.25,
            draw=lambda: self.drawn,
            engine_statistics=lambda: self.statistics,
            on_defect=self.defects.append,
        )
        self.server.attach(asyncio.get_running_loop())
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.server.edge.later = self._later

    def _later(self, delay_s: float, callback: Callable[[], None]) -> None:
        if delay_s:
            self.later.append((delay_s, callback))
        else:
            asyncio.get_running_loop().call_soon(callback)

    def line(self) -> Line:
        return Line(self)


@pytest.fixture
async def edge() -> EdgeUnderTest:
    """An edge with the default limits and faults enabled."""
    return EdgeUnderTest(faults_enabled=True)


@pytest.fixture
async def line(edge: EdgeUnderTest) -> Line:
    """One connection to it."""
    return edge.line()


@pytest.fixture
def make_edge():
    """Makes an edge with other settings; call it inside the test's loop."""
    return EdgeUnderTest


@pytest.fixture(scope="session")
def wire():
    """The helpers above, for tests that speak bytes."""
    return SimpleNamespace(message=message, raw=raw_message, replies_in=replies_in, request_of=request_of)
