"""
The client contract by hand: strict binary Thrift in a few dozen lines, and one pipelining connection.

It shares no code with the server or with kvorum_client, so that a mistake in their common codec cannot hide here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

BOOL, DOUBLE, I32, I64, BINARY, STRUCT, LIST = 2, 4, 8, 10, 11, 12, 15
CALL_S_MAX = 30.0
"""No call may take longer than its deadline of 10 s; whatever waits this long is a defect of the server."""

Fields = dict[int, "Value"]
Value = bool | int | float | bytes | Fields | list["Value"]


@dataclass(frozen=True, slots=True)
class Call:
    """A request that is ready but for its sequence id."""

    method: str
    body: bytes


# --- requests ------------------------------------------------------------------------------------------------------


def _field(kind: int, number: int, payload: bytes) -> bytes:
    return struct.pack(">bh", kind, number) + payload


def _binary(number: int, value: bytes) -> bytes:
    return _field(BINARY, number, struct.pack(">i", len(value)) + value)


def _i64(number: int, value: int) -> bytes:
    return _field(I64, number, struct.pack(">q", value))


def _call(method: str, *fields: bytes) -> Call:
    return Call(method, struct.pack(">bh", STRUCT, 1) + b"".join(fields) + b"\0\0")


def set_key(key: bytes, value: bytes, *, deadline_ms: int | None = None) -> Call:
    """Replicated put."""
    fields = [_binary(1, key), _binary(2, value)]
    return _call("setKey", *fields, *([] if deadline_ms is None else [_i64(20, deadline_ms)]))


def delete_key(key: bytes) -> Call:
    """Replicated delete."""
    return _call("deleteKey", _binary(1, key))


def get(key: bytes, consistency: str = "read_index") -> Call:
    """Read of one key at a consistency level."""
    return _call("get", _binary(1, key), _binary(21, consistency.encode()))


def get_range(begin: bytes, end: bytes, *, limit: int = 0, consistency: str = "read_index") -> Call:
    """Read of begin <= key < end."""
    fields = [_binary(1, begin), _binary(2, end), _field(I32, 7, struct.pack(">i", limit))]
    return _call("getRange", *fields, _binary(21, consistency.encode()))


def get_read_version(consistency: str = "read_index") -> Call:
    """Applied index at the consistency point."""
    return _call("getReadVersion", _binary(21, consistency.encode()))


def snapshot_get(key: bytes, version: int) -> Call:
    """Read of one key as it was at a version."""
    return _call("snapshotGet", _binary(1, key), _i64(2, version))


def atomic_set(pairs: Sequence[tuple[bytes, bytes]], *, read_version: int = 0, read: Sequence[bytes] = ()) -> Call:
    """One transaction that sets keys, conflicting on those it has read."""
    operations = b"".join(_binary(1, b"set") + _binary(2, key) + _binary(3, value) + b"\0" for key, value in pairs)
    keys = b"".join(struct.pack(">i", len(key)) + key for key in read)
    return _call(
        "atomicCommit",
        _i64(1, read_version),
        _field(LIST, 2, struct.pack(">bi", STRUCT, len(pairs)) + operations),
        _field(LIST, 3, struct.pack(">bi", BINARY, len(read)) + keys),
    )


def ping(message: bytes) -> Call:
    """Echo."""
    return _call("ping", _binary(1, message))


def get_status() -> Call:
    """The node about itself."""
    return _call("getStatus")


def get_cluster_health() -> Call:
    """The node about all nodes."""
    return _call("getClusterHealth")


def encode(call: Call, sequence: int) -> bytes:
    """Bytes of a request."""
    name = call.method.encode()
    return struct.pack(">Ii", 0x80010001, len(name)) + name + struct.pack(">i", sequence) + call.body


# --- replies -------------------------------------------------------------------------------------------------------


class _Incomplete(Exception):  # noqa: N818 - not an error, only too early
    pass


class Reader:
    """Reads Thrift values from the front of a buffer."""

    def __init__(self, data: bytes | bytearray, at: int = 0) -> None:
        self.data = data
        self.at = at

    def take(self, layout: str) -> tuple[int, ...]:
        size = struct.calcsize(layout)
        if len(self.data) - self.at < size:
            raise _Incomplete
        self.at += size
        return struct.unpack_from(layout, self.data, self.at - size)

    def bytes(self) -> bytes:
        (length,) = self.take(">i")
        if len(self.data) - self.at < length:
            raise _Incomplete
        self.at += length
        return bytes(self.data[self.at - length : self.at])

    def struct(self) -> Fields:
        fields: Fields = {}
        while (kind := self.take(">b")[0]) != 0:
            (number,) = self.take(">h")
            fields[number] = self.value(kind)
        return fields

    def value(self, kind: int) -> Value:
        if kind == BOOL:
            return bool(self.take(">b")[0])
        if kind in (DOUBLE, I32, I64):
            return self.take({DOUBLE: ">d", I32: ">i", I64: ">q"}[kind])[0]
        if kind == BINARY:
            return self.bytes()
        if kind == STRUCT:
            return self.struct()
        assert kind == LIST, f"Thrift type {kind} in a reply"
        element, count = self.take(">bi")
        return [self.value(element) for _ in range(count)]


class ConnectionLost(Exception):  # noqa: N818 - an outcome that tests expect, not a mistake
    """The connection ended before the reply: the outcome is unknown."""


class Reply:
    """Fields of a result by the contract's numbers, and what every test asks of them."""

    __slots__ = ("_code_field", "_error_field", "_flag_field", "fields", "method")

    _SHAPES = {  # noqa: RUF012 - a table; method -> (success or found, error, error_code)
        "setKey": (1, 2, 3),
        "deleteKey": (1, 2, 3),
        "atomicCommit": (1, 2, 3),
        "get": (2, 3, 20),
        "snapshotGet": (2, 3, 20),
        "getRange": (2, 3, 20),
        "getReadVersion": (2, 3, 20),
        "getStatus": (1, 2, 3),
        "getClusterHealth": (1, 3, 20),
        "ping": (0, 0, 20),
    }

    def __init__(self, method: str, fields: Fields) -> None:
        self.method = method
        self.fields = fields
        self._flag_field, self._error_field, self._code_field = self._SHAPES[method]

    @property
    def ok(self) -> bool:
        """Whether the call did what it says: success, or found."""
        return self.fields.get(self._flag_field) is True

    @property
    def code(self) -> str | None:
        """Error code, or None."""
        code = self.fields.get(self._code_field)
        assert code is None or isinstance(code, bytes)
        return None if code is None else code.decode()

    @property
    def error(self) -> str | None:
        """Error text, or None."""
        error = self.fields.get(self._error_field)
        assert error is None or isinstance(error, bytes)
        return None if error is None else error.decode()

    @property
    def value(self) -> bytes | None:
        """Value of a get; None if there is no such key. A failed get raises, or an outage would look like a loss."""
        assert self.code is None, f"{self.method} failed: {self}"
        value = self.fields[1]
        assert isinstance(value, bytes)
        return value if self.ok else None

    @property
    def pairs(self) -> list[tuple[bytes, bytes]]:
        """Keys and values of a range."""
        assert self.ok, f"{self.method} failed: {self}"
        found = self.fields[1]
        assert isinstance(found, list)
        return [(pair[1], pair[2]) for pair in found if isinstance(pair, dict)]  # type: ignore[misc]

    def number(self, field: int) -> int:
        """An integer field that must be there."""
        value = self.fields[field]
        assert isinstance(value, int)
        return value

    def text(self, field: int) -> str:
        """A string field that must be there."""
        value = self.fields[field]
        assert isinstance(value, bytes)
        return value.decode()

    def __repr__(self) -> str:
        return f"{self.method} ok={self.ok} code={self.code} error={self.error!r}"


@contextlib.asynccontextmanager
async def raw_connection(
    port: int, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A plain TCP connection that is cut off at the end, whatever still waits in it."""
    reader, writer = await asyncio.open_connection(host, port, limit=1024)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


class Connection:
    """One client connection that may have any number of requests out; replies must come in request order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._sequences = itertools.count(1)
        self._waiting: dict[int, tuple[Call, asyncio.Future[Reply]]] = {}
        self._lost: Exception | None = None
        self._task = asyncio.create_task(self._receive())

    @classmethod
    async def open(cls, endpoint: str) -> Self:
        """Connect once."""
        host, _, port = endpoint.rpartition(":")
        return cls(*await asyncio.wait_for(asyncio.open_connection(host, int(port)), CALL_S_MAX))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def lost(self) -> bool:
        """Whether the server has ended the connection."""
        return self._lost is not None

    def submit(self, call: Call) -> asyncio.Future[Reply]:
        """Send a request; the future is its reply, or raises ConnectionLost."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if self._lost is not None:
            future.set_exception(self._lost)
            return future
        sequence = next(self._sequences)
        self._waiting[sequence] = (call, future)
        self.writer.write(encode(call, sequence))
        return future

    async def call(self, call: Call, seconds: float = CALL_S_MAX) -> Reply:
        """Send a request and wait for its reply."""
        return await asyncio.wait_for(self.submit(call), seconds)

    async def close(self) -> None:
        """Hang up."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._fail(ConnectionLost("closed by the test"))
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def _receive(self) -> None:
        buffer = bytearray()
        reason: Exception = ConnectionLost("end of stream")
        try:
            while data := await self._reader.read(1 << 16):
                buffer += data
                self._dispatch(buffer)
        except OSError as error:
            reason = ConnectionLost(str(error))
        except (AssertionError, KeyError) as error:
            reason = error
        self._fail(reason)

    def _dispatch(self, buffer: bytearray) -> None:
        done = 0
        while True:
            reader = Reader(buffer, done)
            try:
                (head,) = reader.take(">I")
                method = reader.bytes().decode()
                (sequence,) = reader.take(">i")
                result = reader.struct()
            except _Incomplete:
                break
            done = reader.at
            expected = next(iter(self._waiting), None)
            assert sequence == expected, f"reply {sequence} of {method}, but request {expected} is the oldest"
            call, future = self._waiting.pop(sequence)
            assert head & 0xFFFFFF00 == 0x80010000, f"no strict binary header: {head:#x}"
            assert head & 0xFF == 2, f"{method}: message type {head & 0xFF}, {result}"
            assert method == call.method
            fields = result[0]
            assert isinstance(fields, dict)
            if not future.done():
                future.set_result(Reply(method, fields))
        del buffer[:done]

    def _fail(self, reason: Exception) -> None:
        self._lost = self._lost or reason
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(self._lost)
                future.exception()  # seen: nobody need wait for it
        self._waiting.clear()
