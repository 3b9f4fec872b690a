"""
A node and the space on its disk: it steps aside before the end, and waits for space where it cannot even start.

Log and store survive the very end of the disk too (`storage.wal.segmented_log`, `consensus.applier`). The reserve is
there so that they rarely meet it: a flush or a compaction that has begun can then end.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import structlog

import kvorum
from kvorum.app.node import Node
from kvorum.core.errors import ErrorCode, OutOfSpaceError, Refusal, RemoteError
from kvorum.observe.metrics import Metric, gauge, render
from kvorum.storage.free_space import FreeSpace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from kvorum.config.settings import Settings
    from kvorum.observe.http import ObserveServer

WAIT_S: Final = 1.0
"""Pause between two attempts to start on a full disk."""

log = structlog.get_logger("kvorum.app")


async def open_node(settings: Settings, fail: Callable[[BaseException], None], stop: asyncio.Event) -> Node | None:
    """
    Open a node; while its disk is full, wait, alive but not ready, and say so over HTTP.

    Returns:
        The node, not started; None if it was told to stop before there was space.

    Raises:
        StartupError: As `Node`; or the HTTP port is taken.
        StorageFailedError: As `Node`, a full disk excepted.
    """
    loop = asyncio.get_running_loop()
    try:
        return Node(settings, loop, fail)
    except OutOfSpaceError as error:
        waiting = _Waiting(settings, error)
    await waiting.start()
    try:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), WAIT_S)
                break
            if waiting.space.look():
                try:
                    node = Node(settings, loop, fail)
                except OutOfSpaceError as error:
                    waiting.reason = str(error)
                else:
                    log.info("disk has space again: starting", node_id=settings.node_id)
                    return node
        return None
    finally:
        await waiting.stop()


class _Waiting:
    """What can be seen of a node that waits for space: HTTP only, and no operation is done."""

    def __init__(self, settings: Settings, error: OutOfSpaceError) -> None:
        self.reason = str(error)
        self.space = FreeSpace(settings.data_directory, settings.database.reserve_bytes)
        self._settings = settings
        self._http: ObserveServer | None = None

    async def start(self) -> None:
        """Say what is the matter."""
        self.space.look()
        log.error(
            "disk full: this node waits until there is space, and starts by itself then",
            node_id=self._settings.node_id,
            free_bytes=self.space.free_bytes,
            reason=self.reason,
        )
        if self._settings.http_port is None:
            return
        from kvorum.observe.http import ObserveServer  # noqa: PLC0415  # a node without HTTP must not pay for it

        self._http = ObserveServer(
            "",
            self._settings.http_port,
            metrics=lambda: render([self._metrics]),
            live=lambda: True,
            ready=lambda: [("disk_space", False)],
            status=self._status,
            admin=self if self._settings.http.admin else None,
        )
        await self._http.start()

    async def stop(self) -> None:
        """Make room on the HTTP port."""
        if self._http is not None:
            await self._http.stop()

    def _status(self) -> dict[str, object]:
        return {
            "node_id": self._settings.node_id,
            "version": kvorum.__version__,
            "state": "waiting for disk space",
            "reason": self.reason,
            "free_bytes": self.space.free_bytes,
            "checks": {"disk_space": False},
        }

    def _metrics(self) -> Iterable[Metric]:
        yield Metric("kvorum_alarm_active", "gauge", "1 while the condition lasts.", [({"type": "nospace"}, 1.0)])
        yield gauge("kvorum_volume_free_bytes", "Bytes the node may still use.", self.space.free_bytes)

    # --- observe.admin.AdminOperations ---

    def members(self) -> Mapping[str, Any]:
        """Nobody is known here yet."""
        return {"error": self.reason}

    async def perform(self, action: str, arguments: Mapping[str, Any]) -> Refusal:  # noqa: ARG002 - the port's shape
        """Nothing can be done here yet."""
        return Refusal(ErrorCode.UNAVAILABLE, f"this node waits for disk space: {self.reason}; ask another node")

    async def snapshot(self) -> AsyncIterator[bytes]:
        """Nothing is open here yet."""
        chunks: tuple[bytes, ...] = ()
        for chunk in chunks:
            yield chunk
        msg = f"this node waits for disk space: {self.reason}; ask another node"
        raise RemoteError(msg)
