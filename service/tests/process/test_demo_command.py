"""The demo itself: what `make demo` shows, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.process


PATIENCE_S = 240.0


@contextlib.contextmanager
def demo(tmp_path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The running demo; whatever happens, neither it nor a node of it runs afterwards."""
    with subprocess.Popen(
        [sys.executable, "-m", "kvorum", "demo", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
        # A shell that starts the tests in the background has them, and their children, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no lock is taken
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            for pid in nodes_below(tmp_path):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def nodes_below(tmp_path) -> list[int]:
    """Processes whose command line names the directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            if os.fsencode(tmp_path) in line and b"serve" in line:
                found.append(int(entry.name))
    return found


def test_demo_leader_killed_nothing_lost_nothing_left(tmp_path):
    """The demo kills the leader under load, loses nothing, and leaves no process and no file."""
    with demo(tmp_path, "--writes", "3000") as process:
        output, _ = process.communicate(timeout=PATIENCE_S)

        assert process.returncode == 0, output
        assert output.count("3,000 of 3,000 read back") == 3
        assert re.search(r"failover: kill to first new write *│ [\d,]+ ms", output)
        assert re.search(r"state hashes *│ equal", output)
        assert nodes_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_demo_kept_nodes_run_on_until_they_are_told_to_stop(tmp_path):
    """With --keep the cluster stays up and the output says how to end it."""
    with demo(tmp_path, "--writes", "500", "--keep") as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, output
        pids = [int(pid) for pid in re.search(r"Stop: kill ([\d ]+);", output).group(1).split()]
        assert sorted(pids) == sorted(nodes_below(tmp_path))
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        until(lambda: not nodes_below(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_interrupted_cleans_up(tmp_path, number):
    """Ctrl-C or SIGTERM in the middle stops the nodes and removes their files."""
    with demo(tmp_path, "--writes", "1000000") as process:
        until(lambda: len(nodes_below(tmp_path)) >= 3)
        time.sleep(1.0)
        process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE_S)

        assert process.returncode == 130, output
        assert nodes_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
