"""Health, metrics and status over real sockets."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import aiohttp
import pytest

from kvorum.core.errors import StartupError
from kvorum.observe.http import ObserveServer, status_page
from kvorum.observe.metrics import gauge, render

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Get = Callable[[str], Awaitable[tuple[int, str]]]


class Node:
    """What the server asks, as plain attributes."""

    def __init__(self) -> None:
        self.live = self.started = True
        self.checks = [("leader-contact", True), ("log-writable", True)]
        self.status = {"node_id": 1, "role": "<leader>", "members": [{"node_id": 0, "health": "healthy"}]}

    async def state_hash(self, index: int | None) -> tuple[int, str] | None:
        return (7, "abc") if index in (None, 7) else None

    def server(self, port: int = 0, host: str | None = "127.0.0.1") -> ObserveServer:
        return ObserveServer(
            host,
            port,
            metrics=lambda: render([lambda: [gauge("kvorum_raft_term", "Term.", 7)]]),
            live=lambda: self.live,
            ready=lambda: self.checks,
            status=lambda: self.status,
            started=lambda: self.started,
            state_hash=self.state_hash,
        )


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
async def get(node: Node) -> AsyncIterator[Get]:
    """GET a path from a running server: status and text."""
    server = node.server()
    await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:

        async def fetch(path: str) -> tuple[int, str]:
            async with session.get(path) as response:
                return response.status, await response.text()

        yield fetch
    await server.stop()


async def test_observe_livez_follows_the_loop_only(node: Node, get: Get) -> None:
    """Liveness is 200 while the loop turns, whatever readiness says."""
    node.checks = [("leader-contact", False)]
    assert await get("/livez") == (200, "ok\n")

    node.live = False
    status, _ = await get("/livez")
    assert status == 503


async def test_observe_startupz_says_when_the_node_is_open(node: Node, get: Get) -> None:
    """503 until data and ports are open; readiness does not matter."""
    node.checks = [("leader-contact", False)]
    assert await get("/startupz") == (200, "started\n")
    node.started = False
    assert await get("/startupz") == (503, "starting\n")


async def test_observe_readyz_names_the_checks(node: Node, get: Get) -> None:
    """Readiness is one word when all is well, a list when asked or when something failed."""
    assert await get("/readyz") == (200, "ok\n")
    assert await get("/readyz?verbose") == (200, "[+]leader-contact ok\n[+]log-writable ok\nready\n")

    node.checks[0] = ("leader-contact", False)
    assert await get("/readyz") == (503, "[-]leader-contact failed\n[+]log-writable ok\nnot ready\n")


async def test_observe_metrics_are_prometheus_text(get: Get) -> None:
    """The page is what the sources say."""
    status, text = await get("/metrics")

    assert status == 200
    assert "kvorum_raft_term 7.0" in text


async def test_observe_status_is_json_and_a_page(get: Get) -> None:
    """The same facts for programs and for people; what is shown is escaped."""
    _, text = await get("/status")
    assert '"role": "<leader>"' in text

    _, page = await get("/")
    assert "&lt;leader&gt;" in page
    assert "<leader>" not in page
    assert "<td>healthy</td>" in page


async def test_observe_state_hash_at_an_index(get: Get) -> None:
    """The hash comes with its index; an index the node is not at is a conflict, nonsense a bad request."""
    assert await get("/state-hash") == (200, '{"applied_index": 7, "hash": "abc"}\n')
    assert (await get("/state-hash?at=7"))[0] == 200
    assert (await get("/state-hash?at=6"))[0] == 409
    assert (await get("/state-hash?at=x"))[0] == 400


async def test_observe_taken_port_is_a_clear_error(node: Node) -> None:
    """A second server on the port fails to start, with the port and the way out in the text."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=rf"HTTP port {port} is taken.*--http-port"):
            await node.server(port).start()


async def test_observe_all_interfaces_means_both_families(node: Node) -> None:
    """Without a host, localhost works in both address families."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = node.server(port, host=None)
    await server.start()

    families = ["127.0.0.1", *(["[::1]"] if socket.has_dualstack_ipv6() else [])]
    async with aiohttp.ClientSession() as session:
        for host in families:
            async with session.get(f"http://{host}:{port}/livez") as response:
                assert response.status == 200
    await server.stop()
    await server.stop()


def test_status_page_tells_what_failed() -> None:
    """The verdict on the page names the checks that do not hold."""
    page = status_page({"node_id": 2, "leader_id": None}, [("log-writable", False)])

    assert "not ready: log-writable" in page
    assert "kvorum node 2" in page
