"""What an operator asks over HTTP arrives as asked, refusals keep their words, and downloads keep their bounds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from kvorum.core.errors import ErrorCode, Refusal, RemoteError
from kvorum.observe.admin import ACTIONS, BODY_BYTES_MAX
from kvorum.observe.http import ObserveServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

CHUNK = b"c" * 100_000
JSON = {"Content-Type": "application/json"}


class Operations:
    """Writes down what it is asked and answers as told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.answer: Mapping[str, Any] | Refusal = {"done": True}
        self.chunks = 3
        self.fails_at: int | None = None
        self.made = 0
        self.closed = 0

    def members(self) -> Mapping[str, Any]:
        return {"members": [{"node_id": 0}]}

    async def perform(self, action: str, arguments: Mapping[str, Any]) -> Mapping[str, Any] | Refusal:
        self.asked.append((action, arguments))
        return self.answer

    async def snapshot(self) -> AsyncIterator[bytes]:
        try:
            for number in range(self.chunks):
                if number == self.fails_at:
                    msg = "busy with 2 other snapshots"
                    raise RemoteError(msg)
                self.made += 1
                yield CHUNK
                await asyncio.sleep(0)
        finally:
            self.closed += 1


def server_of(operations: Operations | None) -> ObserveServer:
    return ObserveServer(
        "127.0.0.1",
        0,
        metrics=lambda: b"",
        live=lambda: True,
        ready=list,
        status=dict,
        admin=operations,
    )


@pytest.fixture
def operations() -> Operations:
    return Operations()


@pytest.fixture
async def session(operations: Operations) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a running server."""
    server = server_of(operations)
    await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as made:
        yield made
    await server.stop()


async def test_admin_every_action_reaches_the_operations_with_its_arguments(operations, session) -> None:
    """Each POST path is one action; its JSON object arrives as it was sent, none as an empty one."""
    for number, (path, action) in enumerate(ACTIONS.items()):
        async with session.post(path, json={"node_id": number}) as response:
            assert (response.status, await response.json()) == (200, {"done": True})
        assert operations.asked[-1] == (action, {"node_id": number})
    async with session.post("/admin/leader/move", headers=JSON) as response:
        assert response.status == 200
    assert operations.asked[-1] == ("leader-move", {})
    async with session.get("/admin/members") as response:
        assert (await response.json())["members"] == [{"node_id": 0}]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ErrorCode.INVALID_ARGUMENT, 400),
        (ErrorCode.CONFLICT, 409),
        (ErrorCode.UNAVAILABLE, 503),
        (ErrorCode.TIMEOUT, 504),
        (ErrorCode.INTERNAL, 500),
    ],
)
async def test_admin_refusal_keeps_code_and_words(operations, session, code: str, status: int) -> None:
    """A refusal is an HTTP error whose body says which and why, with the leader where one is known."""
    operations.answer = Refusal(code, "node 3 is no member", 1, "node-1:9090")
    async with session.post("/admin/members/remove", json={"node_id": 3}) as response:
        assert response.status == status
        assert await response.json() == {
            "code": code,
            "error": "node 3 is no member",
            "leader_id": 1,
            "leader_endpoint": "node-1:9090",
        }


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"{", JSON, 400, "no JSON"),
        (b"[" * 60_000, JSON, 400, "no JSON"),
        (b"[1]", JSON, 400, "must be a JSON object"),
        (b'{"node_id": 1}', {"Content-Type": "text/plain"}, 400, "Content-Type: application/json"),
        (b" " * (BODY_BYTES_MAX + 1), JSON, 413, "larger than"),
    ],
)
async def test_admin_body_that_is_no_json_object_is_refused(
    operations, session, body: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    """Nothing is asked of the operations; a page of another origin cannot post plain forms either."""
    async with session.post("/admin/members/remove", data=body, headers=headers) as response:
        assert response.status == status
        assert said in (await response.json())["error"]
    assert operations.asked == []


async def test_admin_switched_off_is_forbidden_and_says_so() -> None:
    """With `[http] admin = false` every administrative path answers 403 with the reason."""
    server = server_of(None)
    await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        for method, path in [("GET", "/admin/members"), ("GET", "/snapshot"), *(("POST", path) for path in ACTIONS)]:
            async with session.request(method, path) as response:
                assert response.status == 403
                assert "[http] admin = false" in (await response.json())["error"]
    await server.stop()


async def test_admin_snapshot_streams_every_chunk(operations, session) -> None:
    """The body is the chunks, one after the other."""
    async with session.get("/snapshot") as response:
        assert response.status == 200
        assert await response.read() == CHUNK * 3
    assert operations.closed == 1


async def test_admin_snapshot_that_cannot_begin_is_unavailable(operations, session) -> None:
    """What is known before the first byte has a status and a text."""
    operations.fails_at = 0
    async with session.get("/snapshot") as response:
        assert response.status == 503
        assert await response.json() == {"code": "UNAVAILABLE", "error": "busy with 2 other snapshots"}


async def test_admin_snapshot_that_breaks_off_is_not_a_whole_body(operations, session) -> None:
    """An error in the middle breaks the transfer, so that nobody takes a part for the whole."""
    operations.fails_at = 2
    async with session.get("/snapshot") as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_admin_snapshot_is_made_only_as_fast_as_it_is_taken(operations, session) -> None:
    """A taker that stops reading holds the making up, and its leaving ends it."""
    operations.chunks = 10_000
    async with session.get("/snapshot") as response:
        await response.content.readexactly(1000)
        made = -1
        while made != operations.made:
            made = operations.made
            await asyncio.sleep(0.1)
        # A gigabyte is to be made; sockets hold some mebibytes.
        assert made < 500
        response.close()
    while not operations.closed:
        await asyncio.sleep(0.01)
    assert operations.made < 1000
