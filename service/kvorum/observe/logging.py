"""
Log set-up: structured lines to standard error and to a file, written by threads of their own.

The event loop only renders a line and puts it into a bounded queue. When a reader of standard error stops or a disk
hangs, lines are dropped and counted, and heartbeats go on (etcd once lost leaders to a slow log sink).
Rooms call ``structlog.get_logger()``; only `configure_logging` decides where that goes.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
import time
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

import structlog

from kvorum.core.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from structlog.typing import EventDict, Processor

LINES_MAX: Final = 10_000
"""Lines one sink may be behind: some megabytes, and more than a healthy node writes in an hour."""

FILE_BYTES_MAX: Final = 64 * 1024 * 1024
"""A log file this long is set aside as ``NAME.1.log``; with its predecessor a node never uses more than twice that."""

_CLOSE_SECONDS: Final = 1.0
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


_current: Final[list[LogSinks]] = []
"""The sinks of this process, at most one set."""


class Stream(Protocol):
    """What a sink writes to."""

    def write(self, text: str, /) -> object:
        """Take some lines."""
        ...

    def flush(self) -> object:
        """Pass them on."""
        ...

    def close(self) -> object:
        """Give the stream back."""
        ...


class RotatingFile:
    """Appends to a file, and sets it aside when it has become too long."""

    def __init__(self, path: Path, bytes_max: int = FILE_BYTES_MAX) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._file: IO[str] = path.open("a", encoding="utf-8", errors="backslashreplace")
        self._bytes = path.stat().st_size

    def write(self, text: str, /) -> None:
        """Append, after setting a full file aside."""
        if self._bytes >= self._bytes_max:
            self._file.close()
            self._path.replace(self._path.with_suffix(f".1{self._path.suffix}"))
            self._file = self._path.open("a", encoding="utf-8", errors="backslashreplace")
            self._bytes = 0
        self._file.write(text)
        self._bytes += len(text)

    def flush(self) -> None:
        """Hand everything to the kernel."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class LineWriter:
    """A bounded queue in front of a stream, emptied by a thread. Putting never blocks."""

    def __init__(
        self,
        stream: Stream,
        render: Callable[[EventDict], str],
        lines_max: int = LINES_MAX,
        *,
        owned: bool = False,
    ) -> None:
        """An owned stream is closed when the thread ends."""
        self.dropped = 0
        self._owned = owned
        self._reported = 0
        self._stream = stream
        self._render = render
        self._queue: queue.Queue[str | threading.Event | None] = queue.Queue(lines_max)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, event: EventDict) -> None:
        """Render a line and leave it to the thread; drop it if the thread is too far behind."""
        try:
            self._queue.put_nowait(self._render(event))
        except queue.Full:
            self.dropped += 1

    def flush(self, timeout_s: float = _CLOSE_SECONDS) -> bool:
        """Wait until everything put before is written, or the time is up; the last words of a process need this."""
        done = threading.Event()
        try:
            self._queue.put(done, timeout=timeout_s)
        except queue.Full:
            return False
        return done.wait(timeout_s)

    def close(self, timeout_s: float = _CLOSE_SECONDS) -> None:
        """Write what is queued and end the thread; give up on a stream that does not take it in time."""
        end = time.monotonic() + timeout_s
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(max(0.0, end - time.monotonic()))

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            if isinstance(line, threading.Event):
                line.set()
                continue
            missing = self.dropped - self._reported
            if missing:
                self._reported += missing
                line += self._render(
                    {"timestamp": _now(), "level": "warning", "event": "log lines dropped", "lines": missing}
                )
            try:
                self._stream.write(line)
                if self._queue.empty():
                    self._stream.flush()
            except (OSError, ValueError):  # a closed pipe or a full disk must not end logging for ever
                self.dropped += 1
        if self._owned:
            with contextlib.suppress(OSError):
                self._stream.close()


class LogSinks:
    """Where the log of this process goes; `dropped` is a metric."""

    def __init__(self, writers: list[LineWriter]) -> None:
        self._writers = writers

    @property
    def dropped(self) -> int:
        """Lines that no sink could take in time."""
        return sum(writer.dropped for writer in self._writers)

    def put(self, event: EventDict) -> None:
        """Give one line to every sink."""
        for writer in self._writers:
            writer.put(event)

    def flush(self, timeout_s: float = _CLOSE_SECONDS) -> None:
        """Wait, for a bounded time, until everything said so far is written."""
        for writer in self._writers:
            writer.flush(timeout_s)

    def close(self) -> None:
        """Write what is queued and end the threads."""
        for writer in self._writers:
            writer.close()


def configure_logging(
    level: str,
    log_dir: Path | None,
    *,
    json: bool | None = None,
    name: str = "kvorum",
    fields: Mapping[str, object] | None = None,
) -> LogSinks:
    """
    Send the log of this process to standard error, and to ``NAME.log`` in a directory if one is given.

    Args:
        level: debug, info, warning or error.
        log_dir: Created if missing; None for no file. The file holds JSON lines whatever standard error holds.
        json: Form on standard error; None means JSON unless it is a terminal.
        name: First part of the file's name.
        fields: Added to every line, for example the node id.

    Raises:
        StartupError: The directory or the file cannot be made.
    """
    as_json = not sys.stderr.isatty() if json is None else json
    writers = [LineWriter(sys.stderr, _json_line if as_json else _console_line())]
    if log_dir is not None:
        path = log_dir / f"{name}.log"
        try:
            log_dir.mkdir(parents=True, exist_ok=True)
            writers.append(LineWriter(RotatingFile(path), _json_line, owned=True))
        except OSError as error:
            msg = f"cannot write the log file {path}: {error.strerror}; give another directory with --log-dir"
            raise StartupError(msg) from error
    stop_logging()
    sinks = LogSinks(writers)
    _current.append(sinks)
    number = _LEVELS[level]
    constant = dict(fields or {})

    def hand_over(_logger: object, _method: str, event: EventDict) -> EventDict:
        sinks.put({**event, **constant})
        raise structlog.DropEvent

    processors: list[Processor] = [
        _add_timestamp,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        hand_over,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=True,
    )
    _adopt_standard_logging(number)
    return sinks


def stop_logging() -> None:
    """Write what was said so far, for a bounded time, and end the threads; the last thing a process does."""
    while _current:
        _current.pop().close()


def _now() -> str:
    seconds = time.time()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def _add_timestamp(_logger: object, _method: str, event: EventDict) -> EventDict:
    event["timestamp"] = _now()
    return event


_to_json: Final = structlog.processors.JSONRenderer(default=repr)


def _json_line(event: EventDict) -> str:
    head = {"timestamp": event["timestamp"], "level": event["level"], "event": event["event"]}
    return f"{_to_json(None, '', {**head, **event})!s}\n"


def _console_line() -> Callable[[EventDict], str]:
    renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())

    def line(event: EventDict) -> str:
        return f"{renderer(None, '', dict(event))}\n"

    return line


class _StandardHandler(logging.Handler):
    """Lines of libraries (asyncio, aiohttp) in the same form as ours."""

    def emit(self, record: logging.LogRecord) -> None:
        details: dict[str, Any] = {"logger": record.name}
        if record.exc_info:
            details["exc_info"] = record.exc_info
        log = structlog.get_logger()
        method = log.error if record.levelno >= logging.ERROR else log.warning
        (method if record.levelno >= logging.WARNING else log.debug)(record.getMessage(), **details)


def _adopt_standard_logging(level: int) -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _StandardHandler):
            root.removeHandler(handler)
    root.addHandler(_StandardHandler())
    root.setLevel(max(level, logging.WARNING))
