"""A scripted node: speaks the contract over a real socket and answers what the test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from typing import Any

import pytest
from thriftpy2.protocol.cybin import TCyBinaryProtocol
from thriftpy2.thrift import TMessageType
from thriftpy2.transport.memory import TCyMemoryBuffer

import kvorum_idl
from kvorum_client.wire import MessageScanner


class DropConnection(Exception):  # noqa: N818 - an order to the fake
    """Raised by a script: close the connection without a reply."""


class ScriptedNode:
    """Serves one port; `on(method, script)` decides the replies, `calls` records the requests in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.scripts: dict[str, Any] = {}
        self.endpoint = ""
        self.connections: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self.segment_bytes = 0

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        port = self._server.sockets[0].getsockname()[1]
        self.endpoint = f"127.0.0.1:{port}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    def on(self, method: str, script: Any) -> None:
        """`script`: a dict of reply fields, a list of such used up one by one, or a function of the request."""
        self.scripts[method] = script

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def count(self, method: str) -> int:
        return self.names().count(method)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        self._serving.add(asyncio.current_task())
        scanner, buffer = MessageScanner(), bytearray()
        try:
            while data := await reader.read(65536):
                buffer += data
                while end := scanner.find_end(buffer, 0):
                    message = bytes(buffer[:end])
                    del buffer[:end]
                    await self._answer(message, writer)
        except (ConnectionError, DropConnection):
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self.connections.discard(writer)
            self._serving.discard(asyncio.current_task())
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, message: bytes, writer: asyncio.StreamWriter) -> None:
        protocol = TCyBinaryProtocol(TCyMemoryBuffer(message, len(message)))
        name, _, sequence = protocol.read_message_begin()
        service = kvorum_idl.TransactionalKV
        arguments = getattr(service, name + "_args")()
        protocol.read_struct(arguments)
        self.calls.append((name, arguments.request))
        script = self.scripts.get(name, {"success": True})
        if isinstance(script, list):
            script = script.pop(0) if len(script) > 1 else script[0]
        if callable(script):
            script = script(arguments.request)
            if inspect.isawaitable(script):
                script = await script
        if isinstance(script, Exception):
            raise script
        result = getattr(service, name + "_result")()
        reply_type = type(result).thrift_spec[0][2]
        result.success = reply_type(**script)
        out = TCyMemoryBuffer(b"", 65536)
        answer = TCyBinaryProtocol(out)
        answer.write_message_begin(name, TMessageType.REPLY, sequence)
        answer.write_struct(result)
        payload = out.getvalue()
        if self.segment_bytes:
            for start in range(0, len(payload), self.segment_bytes):
                writer.write(payload[start : start + self.segment_bytes])
                await asyncio.sleep(0)
        else:
            writer.write(payload)


def leader_status(node_id: int, endpoint: str, *, role: str = "leader", term: int = 1) -> dict[str, Any]:
    return {
        "success": True,
        "node_id": node_id,
        "role": role,
        "term": term,
        "leader_id": 0,
        "leader_endpoint": endpoint,
        "members": [],
        "server_version": "test",
    }


@pytest.fixture
async def nodes():
    """Three scripted nodes; the first says it leads, the others say so too."""
    made = [ScriptedNode() for _ in range(3)]
    for node in made:
        await node.start()
    for number, node in enumerate(made):
        role = "leader" if number == 0 else "follower"
        node.on("getStatus", leader_status(number, made[0].endpoint, role=role))
    yield made
    for node in made:
        await node.stop()


@pytest.fixture
def drop() -> type[Exception]:
    """The order to drop the connection."""
    return DropConnection


@pytest.fixture
def status_of():
    """Build a getStatus reply."""
    return leader_status


@pytest.fixture
def make_node() -> type[ScriptedNode]:
    """For tests that bring their own loop."""
    return ScriptedNode
