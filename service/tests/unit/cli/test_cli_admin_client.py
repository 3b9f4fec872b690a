"""Operators' commands ask the first node that answers, once, and pass its words on."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from kvorum.cli.admin_client import AdminClient, AdminError, http_endpoints

if TYPE_CHECKING:
    from collections.abc import Iterator


class Node:
    """A server that answers every request as told and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.status = 200
        self.body = b'{"text": "done"}'
        node = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                node.asked.append((self.command, self.path, json.loads(self.rfile.read(size) or b"null")))
                self.send_response(node.status)
                self.send_header("Content-Length", str(len(node.body)))
                self.end_headers()
                self.wfile.write(node.body)

            do_GET = do_POST = _answer  # noqa: N815 - names of the base class

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.server.shutdown()
    made.server.server_close()
    made.thread.join()


@pytest.fixture
def nobody() -> Iterator[str]:
    """An endpoint where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def test_admin_client_skips_nodes_that_are_down(node: Node, nobody: str) -> None:
    """A refused connection certainly changed nothing, so the next node is asked."""
    client = AdminClient([nobody, node.endpoint], 5)

    assert client.post("/admin/leader/move", {"node_id": 1}) == {"text": "done"}
    assert client.get("/admin/members") == {"text": "done"}
    assert [("POST", "/admin/leader/move", {"node_id": 1}), ("GET", "/admin/members", None)] == node.asked


def test_admin_client_without_any_node_names_each_and_the_way_out(nobody: str) -> None:
    """The error tells which endpoints were tried and which option to give."""
    with pytest.raises(AdminError, match=rf"{nobody}.*--http-endpoints"):
        AdminClient([nobody], 5).get("/admin/members")


def test_admin_client_passes_a_refusal_on_and_asks_nobody_else(node: Node) -> None:
    """The node's words and code are what the operator sees; a change is sent once."""
    node.status, node.body = 409, b'{"code": "CONFLICT", "error": "node 7 is no member"}'
    with pytest.raises(AdminError, match="node 7 is no member") as caught:
        AdminClient([node.endpoint, node.endpoint], 5).post("/admin/members/remove", {"node_id": 7})
    assert caught.value.code == "CONFLICT"
    assert len(node.asked) == 1


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [(404, b"404: Not Found", "older release"), (500, b"<html>", "answered 500"), (200, b"[]", "no JSON object")],
)
def test_admin_client_strange_answers_become_one_line(node: Node, status: int, body: bytes, said: str) -> None:
    """Whatever listens there, the operator gets a sentence."""
    node.status, node.body = status, body
    with pytest.raises(AdminError, match=said):
        AdminClient([node.endpoint], 5).get("/admin/members")


def test_admin_client_finds_http_ports_beside_client_ports() -> None:
    """By default an HTTP port is the client port less 1000; given ones win."""
    assert http_endpoints("a:9090, b:9091", None) == ["a:8090", "b:8091"]
    assert http_endpoints("a:9090", "c:80") == ["c:80"]
    with pytest.raises(SystemExit):
        http_endpoints("a:1000", None)
