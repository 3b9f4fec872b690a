"""
What an operator may ask a node to do, over its HTTP port: members, leader, log, and a snapshot as a download.

Every answer is JSON; a refusal is ``{"code", "error"}`` with a status of 4xx or 5xx. Requests must say that they are
JSON, which a web page of another origin cannot do without being asked first: a browser changes nothing by accident.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final, Protocol

from kvorum.core.errors import ErrorCode, Refusal, RemoteError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from aiohttp import web

BODY_BYTES_MAX: Final = 64 * 1024
"""An administrative request is a name and a few numbers."""

DOWNLOAD_STALL_S: Final = 60.0
"""Who takes nothing of a snapshot for this long is cut off: it pins the state it was made of."""

ACTIONS: Final = {
    "/admin/members/add": "member-add",
    "/admin/members/promote": "member-promote",
    "/admin/members/remove": "member-remove",
    "/admin/members/replace": "member-replace",
    "/admin/leader/move": "leader-move",
    "/admin/log/compact": "log-compact",
}
"""POST paths, and what `AdminOperations.perform` is asked for each."""

_STATUS: Final = {
    ErrorCode.BAD_REQUEST: 400,
    ErrorCode.INVALID_ARGUMENT: 400,
    ErrorCode.INVALID_OPERATION: 409,
    ErrorCode.CONFLICT: 409,
    ErrorCode.NOT_LEADER: 409,
    ErrorCode.PERMISSION_DENIED: 403,
    ErrorCode.UNAUTHENTICATED: 401,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.UNSUPPORTED: 501,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.OVERLOADED: 503,
    ErrorCode.TIMEOUT: 504,
}
_SERVER_ERROR: Final = 500
_FORBIDDEN: Final = Refusal(
    ErrorCode.PERMISSION_DENIED,
    "administration over HTTP is switched off on this node ([http] admin = false); ask a node where it is on",
)


class AdminOperations(Protocol):
    """Who carries out what is asked; any node takes every request."""

    def members(self) -> Mapping[str, Any]:
        """The configuration in force and what is known of each member, as plain values."""
        ...

    async def perform(self, action: str, arguments: Mapping[str, Any]) -> Mapping[str, Any] | Refusal:
        """Do one of `ACTIONS` and say what came of it, or why not."""
        ...

    def snapshot(self) -> AsyncIterator[bytes]:
        """
        The state applied here as the chunks of a snapshot.

        Raises:
            RemoteError: Not now; the text says why.
        """
        ...


class AdminRoutes:
    """The administrative paths of one node's HTTP server; without operations every one of them says that it is off."""

    def __init__(self, operations: AdminOperations | None) -> None:
        self._operations = operations

    def add_to(self, application: web.Application) -> None:
        """Register the paths."""
        application.router.add_get("/admin/members", self._answer_members)
        application.router.add_get("/snapshot", self._answer_snapshot)
        for path in ACTIONS:
            application.router.add_post(path, self._answer_action)

    async def _answer_members(self, _request: web.Request) -> web.Response:
        if self._operations is None:
            return _refused(_FORBIDDEN)
        return _json(self._operations.members(), 200)

    async def _answer_action(self, request: web.Request) -> web.Response:
        if self._operations is None:
            return _refused(_FORBIDDEN)
        arguments = await _arguments(request)
        if isinstance(arguments, Refusal):
            return _refused(arguments)
        outcome = await self._operations.perform(ACTIONS[request.path], arguments)
        return _refused(outcome) if isinstance(outcome, Refusal) else _json(outcome, 200)

    async def _answer_snapshot(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web  # noqa: PLC0415  # already loaded by the server

        if self._operations is None:
            return _refused(_FORBIDDEN)
        chunks = self._operations.snapshot()
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream", "Cache-Control": "no-store"})
        try:
            try:
                first = await anext(chunks)
            except RemoteError as error:
                return _refused(Refusal(ErrorCode.UNAVAILABLE, str(error)))
            await response.prepare(request)
            await _write(response, first)
            async for chunk in chunks:
                await _write(response, chunk)
            await response.write_eof()
        except (RemoteError, OSError):
            # Too late for a status: a body that breaks off is what the taker can see. TimeoutError is an OSError.
            if request.transport is not None:
                request.transport.close()
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()
        return response


async def _write(response: web.StreamResponse, chunk: bytes) -> None:
    """Hand over one chunk and wait until the taker has room for another."""
    async with asyncio.timeout(DOWNLOAD_STALL_S):
        await response.write(chunk)


async def _arguments(request: web.Request) -> dict[str, Any] | Refusal:
    """The JSON object of a request; no body is an empty one."""
    parts: list[bytes] = []
    size = 0
    async for part in request.content.iter_any():
        size += len(part)
        if size > BODY_BYTES_MAX:
            return Refusal(ErrorCode.TOO_LARGE, f"the request is larger than {BODY_BYTES_MAX} bytes")
        parts.append(part)
    if request.content_type != "application/json":
        text = f"the request says it is {request.content_type}; send JSON with Content-Type: application/json"
        return Refusal(ErrorCode.BAD_REQUEST, text)
    try:
        document = json.loads(b"".join(parts) or b"{}")
    except (ValueError, RecursionError) as error:
        return Refusal(ErrorCode.BAD_REQUEST, f"the request is no JSON: {error}")
    if not isinstance(document, dict):
        return Refusal(ErrorCode.BAD_REQUEST, "the request must be a JSON object, for example {}")
    return document


def _json(value: Mapping[str, Any], status: int) -> web.Response:
    from aiohttp import web  # noqa: PLC0415  # already loaded by the server

    headers = {"Content-Type": "application/json; charset=utf-8", "Cache-Control": "no-store"}
    return web.Response(body=(json.dumps(value, default=str) + "\n").encode(), status=status, headers=headers)


def _refused(refusal: Refusal) -> web.Response:
    document: dict[str, Any] = {"code": refusal.code, "error": refusal.text}
    if refusal.leader_id is not None:
        document |= {"leader_id": refusal.leader_id, "leader_endpoint": refusal.leader_endpoint}
    return _json(document, _STATUS.get(refusal.code, _SERVER_ERROR))
