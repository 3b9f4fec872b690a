"""What operators' commands ask of nodes over HTTP, and how the HTTP ports are found."""

from __future__ import annotations

import json
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any, Final

from kvorum.cli.output import read_endpoints, usage_error
from kvorum_client import split_endpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HTTP_PORT_DISTANCE: Final = 1000
"""A node's HTTP port is its client port less this, unless it was configured otherwise."""

CONNECT_TIMEOUT_S: Final = 3.0
_OK: Final = 200


class AdminError(Exception):
    """A node refused, or none could be asked; the text is for people."""

    def __init__(self, text: str, code: str = "UNAVAILABLE") -> None:
        super().__init__(text)
        self.code = code


def http_endpoint(endpoint: str) -> str:
    """Where a node with this client endpoint serves HTTP by default."""
    host, port = split_endpoint(endpoint)
    if port <= HTTP_PORT_DISTANCE:
        usage_error(f"{endpoint} has no HTTP port by default; name it with --http-endpoints")
    return f"{host}:{port - HTTP_PORT_DISTANCE}"


def http_endpoints(endpoints: str, given: str | None) -> list[str]:
    """The HTTP endpoints to ask: those given, else those that belong to the client endpoints."""
    if given is not None:
        return read_endpoints(given)
    return [http_endpoint(endpoint) for endpoint in read_endpoints(endpoints)]


class AdminClient:
    """Asks the first of several nodes that answers; every node takes every request."""

    def __init__(self, https: Sequence[str], timeout_s: float) -> None:
        self._https = https
        self._timeout_s = timeout_s

    def get(self, path: str) -> dict[str, Any]:
        """
        JSON document at a path.

        Raises:
            AdminError: No node answers, or the node refused.
        """
        with self.open("GET", path) as response:
            return _document(response)

    def post(self, path: str, arguments: Mapping[str, object]) -> dict[str, Any]:
        """
        Ask for a change; it is sent to one node only, once.

        Raises:
            AdminError: As `get`. With the code TIMEOUT the change may have happened.
        """
        with self.open("POST", path, json.dumps(arguments).encode()) as response:
            return _document(response)

    def open(self, method: str, path: str, body: bytes | None = None) -> HTTPResponse:
        """
        A response whose body has not been read; close it.

        Raises:
            AdminError: As `get`.
        """
        problems = []
        for http in self._https:
            try:
                connection = self._connect(http)
            except OSError as problem:
                problems.append(f"{http}: {problem.strerror or problem}")
                continue
            return self._ask(http, connection, method, path, body)
        text = "no node answers over HTTP (" + "; ".join(problems) + "); are the nodes running, and is this their "
        raise AdminError(text + "HTTP port? Name others with --http-endpoints")

    def _connect(self, http: str) -> HTTPConnection:
        host, port = split_endpoint(http)
        connection = HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_S)
        connection.connect()
        assert connection.sock is not None
        connection.sock.settimeout(self._timeout_s)
        return connection

    def _ask(self, http: str, connection: HTTPConnection, method: str, path: str, body: bytes | None) -> HTTPResponse:
        headers = {"Connection": "close"} | ({"Content-Type": "application/json"} if body is not None else {})
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            if response.status == _OK:
                return response
            text = response.read(1 << 16)
        except TimeoutError as problem:
            message = f"{http} did not answer within {self._timeout_s:g} s; look with kvorum member list"
            raise AdminError(message, "TIMEOUT") from problem
        except (OSError, HTTPException) as problem:
            message = f"{http} broke off: {str(problem) or type(problem).__name__}; look with kvorum member list"
            raise AdminError(message, "TIMEOUT") from problem
        raise _refusal(http, response.status, text)


def _refusal(http: str, status: int, body: bytes) -> AdminError:
    try:
        document = json.loads(body)
        return AdminError(f"{document['error']} ({http}: {document['code']})", str(document["code"]))
    except (ValueError, KeyError, TypeError):
        if status == 404:
            return AdminError(f"{http} does not know this request; it runs an older release, or is no kvorum node")
        return AdminError(f"{http} answered {status}: {body[:200].decode(errors='replace')}")


def _document(response: HTTPResponse) -> dict[str, Any]:
    try:
        document = json.loads(response.read())
    except (OSError, HTTPException, ValueError) as problem:
        message = f"the answer cannot be read: {problem}"
        raise AdminError(message) from problem
    if not isinstance(document, dict):
        message = "the answer is no JSON object"
        raise AdminError(message)
    return document
