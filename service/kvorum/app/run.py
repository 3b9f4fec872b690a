"""
A node's life as a process: logs, uvloop, signals, and one way to die.

Whatever cannot be survived - a failed fsync, a broken invariant, an exception nobody caught - ends the process at once
with a message that says why: the log on disk is whole, and the other nodes carry on.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import structlog
import uvloop

import kvorum
from kvorum.app.space import open_node
from kvorum.core.errors import KvorumError, StartupError
from kvorum.observe.logging import configure_logging, stop_logging

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvorum.config.settings import Settings

EXIT_STARTUP: Final = 1
EXIT_FATAL: Final = 70
"""EX_SOFTWARE of sysexits.h: the node stopped itself."""

SWITCH_INTERVAL_S: Final = 0.0005
"""CPython's 5 ms would let a busy loop keep the log's thread from reporting a finished fsync for that long."""

GC_THRESHOLD: Final = (50_000, 50, 100)
"""The hot path makes few cycles; the default of 700 would look for them hundreds of times a second."""

log = structlog.get_logger("kvorum.app")


def die(error: BaseException) -> None:
    """End this process now, from any thread; never returns."""
    expected = isinstance(error, StartupError)
    if expected:
        print(f"kvorum: {error}", file=sys.stderr)
    elif isinstance(error, KvorumError):
        log.critical("this node stops", reason=str(error))
    else:
        log.critical("this node stops: a defect", error=repr(error), exc_info=error)
    stop_logging()
    sys.stderr.flush()
    os._exit(EXIT_STARTUP if expected else EXIT_FATAL)


def _unhandled(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    die(context.get("exception") or RuntimeError(str(context.get("message"))))


async def _live(settings: Settings, warnings: Sequence[str]) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_unhandled)
    for warning in warnings:
        log.warning("configuration", note=warning)
    log.info(
        "starting",
        version=kvorum.__version__,
        node_id=settings.node_id,
        client_port=settings.client_port,
        peer_port=settings.peer_port,
        http_port=settings.http_port,
        data_directory=str(settings.data_directory),
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    node = await open_node(settings, die, stop)
    if node is None:
        log.info("stopped", node_id=settings.node_id)
        return
    await node.start()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    log.info("started", node_id=settings.node_id)
    await stop.wait()
    log.info("stopping", node_id=settings.node_id)
    await node.stop()
    log.info("stopped", node_id=settings.node_id)


def run(settings: Settings, warnings: Sequence[str] = ()) -> int:
    """
    Run a node until SIGTERM or SIGINT.

    Returns:
        The exit code: 0 after a clean stop, 1 if it could not start (the reason is on stderr).
    """
    if not __debug__:
        print("kvorum: python -O removes assertions that keep data safe; start without it", file=sys.stderr)
        return EXIT_STARTUP
    configure_logging(settings.logging.log_level, settings.log_directory)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        uvloop.run(_live(settings, warnings))
    except KvorumError as error:
        print(f"kvorum: {error}", file=sys.stderr)
        return EXIT_STARTUP
    finally:
        stop_logging()
    return 0
