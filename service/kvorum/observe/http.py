"""
Metrics, health and status over HTTP, on a port of its own so that neither TLS nor a busy edge hides them.

``/livez``: the event loop turns; nothing else, for a restart cures nothing else. ``/readyz``: every named check holds;
``?verbose`` lists them. ``/metrics``: Prometheus. ``/status``: JSON. ``/``: the same for people. ``/state-hash``: the
logical content at an applied index, so that replicas can be compared. ``/admin/...`` and ``/snapshot``: `admin`.
"""

from __future__ import annotations

import errno
import html
import json
from typing import TYPE_CHECKING, Any

from kvorum.core.errors import StartupError
from kvorum.observe.admin import AdminRoutes
from kvorum.observe.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from aiohttp import web

    from kvorum.observe.admin import AdminOperations

_STOP_SECONDS = 1.0
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class ObserveServer:
    """
    The HTTP server of one node; it asks callables and knows nothing of what they look at.

    aiohttp is imported by `start`, so that a node without this port does not pay for it.
    """

    def __init__(
        self,
        host: str | None,
        port: int,
        *,
        metrics: Callable[[], bytes],
        live: Callable[[], bool],
        ready: Callable[[], Sequence[tuple[str, bool]]],
        status: Callable[[], Mapping[str, Any]],
        started: Callable[[], bool] = lambda: True,
        state_hash: Callable[[int | None], Awaitable[tuple[int, str] | None]] | None = None,
        admin: AdminOperations | None = None,
    ) -> None:
        """
        Remember whom to ask.

        Args:
            host: None or empty for all interfaces, IPv4 and IPv6.
            port: 0 for any free one, see `port` afterwards.
            metrics: Prometheus text.
            live: False answers 503 on ``/livez``.
            ready: Named checks; all must hold.
            status: Plain values, and lists of dictionaries for tables.
            started: False answers 503 on ``/startupz``.
            state_hash: Index and hash of the state at that applied index (None: at the present one), or None if the
                node is not there.
            admin: Carries out what operators ask; None if administration is switched off.
        """
        self.port = port
        self._host = host or None
        self._metrics = metrics
        self._live = live
        self._ready = ready
        self._status = status
        self._started = started
        self._state_hash = state_hash
        self._admin = AdminRoutes(admin)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """
        Listen.

        Raises:
            StartupError: The port cannot be opened, most often because somebody else has it.
        """
        from aiohttp import web  # noqa: PLC0415  # see the class

        application = web.Application()
        for path, answer in (
            ("/metrics", self._answer_metrics),
            ("/livez", self._answer_live),
            ("/readyz", self._answer_ready),
            ("/startupz", self._answer_started),
            ("/status", self._answer_status),
            ("/", self._answer_page),
        ):
            application.router.add_get(path, answer)
        if self._state_hash is not None:
            application.router.add_get("/state-hash", self._answer_state_hash)
        self._admin.add_to(application)
        runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=_STOP_SECONDS)
        await runner.setup()
        try:
            await self._listen(web, runner)
        except OSError as error:
            await runner.cleanup()
            reason = "is taken by another process" if error.errno == errno.EADDRINUSE else f"cannot be opened: {error}"
            msg = f"HTTP port {self.port} {reason}; give another one with --http-port or [http] port"
            raise StartupError(msg) from error
        self._runner = runner
        self.port = runner.addresses[0][1]

    async def _listen(self, web: Any, runner: web.AppRunner) -> None:
        try:
            await web.TCPSite(runner, self._host, self.port).start()
        except OSError as error:
            if self._host is not None or error.errno not in _NO_IPV6:
                raise
            await web.TCPSite(runner, "0.0.0.0", self.port).start()

    async def stop(self) -> None:
        """Close the port; requests in progress get a second."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _answer_metrics(self, _request: web.Request) -> web.Response:
        return _response(self._metrics(), 200, CONTENT_TYPE)

    async def _answer_live(self, _request: web.Request) -> web.Response:
        return _text("ok\n", 200) if self._live() else _text("the event loop does not turn\n", 503)

    async def _answer_started(self, _request: web.Request) -> web.Response:
        return _text("started\n", 200) if self._started() else _text("starting\n", 503)

    async def _answer_ready(self, request: web.Request) -> web.Response:
        checks = list(self._ready())
        held = all(ok for _, ok in checks)
        if held and "verbose" not in request.query:
            return _text("ok\n", 200)
        lines = [f"[{'+' if ok else '-'}]{name} {'ok' if ok else 'failed'}\n" for name, ok in checks]
        lines.append("ready\n" if held else "not ready\n")
        return _text("".join(lines), 200 if held else 503)

    async def _answer_status(self, _request: web.Request) -> web.Response:
        body = json.dumps(self._status(), default=str, indent=2) + "\n"
        return _response(body.encode(), 200, "application/json; charset=utf-8")

    async def _answer_state_hash(self, request: web.Request) -> web.Response:
        assert self._state_hash is not None
        asked = request.query.get("at")
        if asked is not None and not (asked.isascii() and asked.isdigit()):
            return _text("at must be a whole number\n", 400)
        found = await self._state_hash(None if asked is None else int(asked))
        if found is None:
            return _text(f"this node is not at index {asked}; ask for a later one\n", 409)
        body = json.dumps({"applied_index": found[0], "hash": found[1]}) + "\n"
        return _response(body.encode(), 200, "application/json; charset=utf-8")

    async def _answer_page(self, _request: web.Request) -> web.Response:
        return _response(status_page(self._status(), list(self._ready())).encode(), 200, "text/html; charset=utf-8")


def _response(body: bytes, status: int, content_type: str) -> web.Response:
    from aiohttp import web  # noqa: PLC0415  # already loaded by `start`

    headers = {"Content-Type": content_type, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return web.Response(body=body, status=status, headers=headers)


def _text(body: str, status: int) -> web.Response:
    return _response(body.encode(), status, "text/plain; charset=utf-8")


_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2330 }}
table {{ border-collapse: collapse; margin: 0 0 1.5rem }}
td, th {{ text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid #dde2ea; vertical-align: top }}
</style></head><body><h1>{title}</h1>
<p><b>{verdict}</b> &middot; <a href="/readyz?verbose">checks</a> &middot; <a href="/metrics">metrics</a>
&middot; <a href="/status">status as JSON</a></p>
{tables}</body></html>
"""


def status_page(status: Mapping[str, Any], checks: Sequence[tuple[str, bool]]) -> str:
    """The status for people: plain values first, then one table for each list of members and the like."""
    failed = [name for name, ok in checks if not ok]
    plain = {key: value for key, value in status.items() if not _is_rows(value) and not isinstance(value, dict)}
    tables = [_table([("", "")], [[key, value] for key, value in plain.items()])] if plain else []
    for key, rows in status.items():
        if _is_rows(rows):
            columns = list(dict.fromkeys(column for row in rows for column in row))
            heads = [(column, column) for column in columns]
            tables.append(f"<h2>{_cell(key)}</h2>")
            tables.append(_table(heads, [[row.get(column) for column in columns] for row in rows]))
    title = f"kvorum node {_cell(status['node_id'])}" if "node_id" in status else "kvorum"
    verdict = "ready" if not failed else f"not ready: {_cell(', '.join(failed))}"
    return _PAGE.format(title=title, verdict=verdict, tables="\n".join(tables))


def _is_rows(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(row, dict) for row in value)


def _cell(value: object) -> str:
    return html.escape("–" if value is None else str(value))


def _table(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{_cell(name)}</th>" for name, _ in heads if name)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"
