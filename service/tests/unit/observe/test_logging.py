"""Log lines reach their sinks, and never hold up the one who logs."""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import TYPE_CHECKING

import pytest
import structlog

from kvorum.core.errors import StartupError
from kvorum.observe.logging import LineWriter, RotatingFile, configure_logging, stop_logging

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    stop_logging()
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


class HeldStream:
    """A stream whose reader has stopped until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.released = threading.Event()
        self.text = ""

    def write(self, text: str, /) -> None:
        self.entered.set()
        assert self.released.wait(120)
        self.text += text

    def flush(self) -> None:
        pass


def test_configure_logging_writes_json_lines_to_the_file(tmp_path: Path) -> None:
    """A line in the file is JSON with time, level, event and the bound fields; the directory is made."""
    sinks = configure_logging("info", tmp_path / "deep" / "logs", json=True, name="node", fields={"node_id": 3})

    structlog.get_logger().info("leader elected", term=7, key=b"k")
    structlog.get_logger().debug("not this")
    stop_logging()

    (line,) = (tmp_path / "deep" / "logs" / "node.log").read_text().splitlines()
    record = json.loads(line)
    assert list(record)[:3] == ["timestamp", "level", "event"]
    assert record["timestamp"].endswith("Z")
    assert (record["level"], record["event"], record["term"], record["node_id"]) == ("info", "leader elected", 7, 3)
    assert sinks.dropped == 0


def test_configure_logging_writes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard error gets JSON, or the console form when asked."""
    configure_logging("info", None, json=True)
    structlog.get_logger().warning("slow disk", ms=12)
    configure_logging("info", None, json=False)
    structlog.get_logger().warning("slow disk", ms=13)
    stop_logging()

    first, second = capsys.readouterr().err.splitlines()
    assert json.loads(first)["ms"] == 12
    assert "slow disk" in second
    assert not second.startswith("{")


def test_configure_logging_adopts_lines_of_libraries(tmp_path: Path) -> None:
    """Warnings and tracebacks of libraries come in the same form; their chatter does not come at all."""
    configure_logging("debug", tmp_path, json=True)

    try:
        msg = "boom"
        raise RuntimeError(msg)
    except RuntimeError:
        logging.getLogger("asyncio").exception("task failed")
    logging.getLogger("asyncio").info("chatter")
    stop_logging()

    (line,) = (tmp_path / "kvorum.log").read_text().splitlines()
    record = json.loads(line)
    assert (record["level"], record["logger"], record["event"]) == ("error", "asyncio", "task failed")
    assert "RuntimeError: boom" in record["exception"]


def test_configure_logging_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file where the directory should be is one clear error."""
    (tmp_path / "logs").write_text("")

    with pytest.raises(StartupError, match="logs.*--log-dir"):
        configure_logging("info", tmp_path / "logs")


def test_line_writer_bug_076_stopped_reader_drops_and_counts() -> None:
    """A reader that has stopped costs lines, counted and reported later, and never blocks the one who logs."""
    stream = HeldStream()
    writer = LineWriter(stream, lambda event: f"{event['event']} {event.get('lines', '')}\n", lines_max=5)
    writer.put({"event": "first"})
    assert stream.entered.wait(120)

    for number in range(100):
        writer.put({"event": str(number)})

    assert writer.dropped == 95
    assert not writer.flush(0.01)
    stream.released.set()
    assert writer.flush(10)
    assert "log lines dropped 95" in stream.text
    assert stream.text.startswith("first")
    writer.close()


class Pipe:
    """The writing end of a pipe, without a buffer."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, text: str, /) -> None:
        os.write(self._descriptor, text.encode())

    def flush(self) -> None:
        pass

    def close(self) -> None:
        os.close(self._descriptor)


def test_line_writer_survives_a_closed_pipe() -> None:
    """A stream that breaks costs its lines, not the thread."""
    read_end, write_end = os.pipe()
    writer = LineWriter(Pipe(write_end), lambda event: f"{event['event']}\n", owned=True)
    writer.put({"event": "read"})
    assert writer.flush(10)
    assert os.read(read_end, 100) == b"read\n"
    os.close(read_end)

    for _ in range(2):
        writer.put({"event": "lost"})
        assert writer.flush(10)

    assert writer.dropped == 2
    writer.close()


def test_rotating_file_sets_a_full_file_aside(tmp_path: Path) -> None:
    """A log never takes more than twice its bound."""
    path = tmp_path / "kvorum.log"
    file = RotatingFile(path, bytes_max=100)

    for number in range(50):
        file.write(f"line {number:03}\n")
    file.flush()

    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["kvorum.1.log", "kvorum.log"]
    assert path.stat().st_size <= 109
    assert path.read_text().endswith("line 049\n")
    file.close()


def test_rotating_file_goes_on_with_an_old_file(tmp_path: Path) -> None:
    """A restart appends, and counts what was there."""
    path = tmp_path / "kvorum.log"
    path.write_text("x" * 100)
    file = RotatingFile(path, bytes_max=100)

    file.write("new\n")
    file.flush()

    assert path.read_text() == "new\n"
    file.close()
