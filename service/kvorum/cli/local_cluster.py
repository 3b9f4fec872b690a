"""
Real nodes as child processes on this machine: write their configuration, start, kill, restart, stop.

Used by the demo and by tests. Synchronous on purpose: a signal goes out when it is ordered, not when a loop has time.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

PEER_PORT_DISTANCE: Final = 2000
HTTP_PORT_DISTANCE: Final = 1000

_PORTS: Final = range(14_000, 32_000)
"""Client ports: above the well-known ones even after both distances, below what the system gives to outgoing links."""

_STOP_S: Final = 10.0
_TAIL_BYTES: Final = 4000


class LocalNode:
    """One node: its ports, files and, while it runs, its process."""

    def __init__(self, node_id: int, port: int, directory: Path, config: Path) -> None:
        self.node_id = node_id
        self.port = port
        self.endpoint = f"127.0.0.1:{port}"
        self.http_endpoint = f"127.0.0.1:{port - HTTP_PORT_DISTANCE}"
        self.data_directory = directory / f"node_{node_id}"
        self.log_directory = directory / "logs" / f"node_{node_id}"
        self.output = directory / "logs" / f"node_{node_id}.out"
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        """The process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process and return at once."""
        assert not self.running, "started twice"
        self.log_directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "kvorum", "serve", "--config", str(self._config)]
        command += ["--node-id", str(self.node_id), "--db-path", str(self.data_directory)]
        command += ["--log-dir", str(self.log_directory)]
        # The caller's own settings for a node must not reach this one.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("KVORUM_", "THRIFT_PORT"))
        }
        with self.output.open("ab") as output:
            # A session of its own: Ctrl-C reaches the caller alone, which then stops its nodes in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: the node hangs with its connections open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.running:
            self._process.send_signal(number)

    def stop(self, timeout_s: float = _STOP_S) -> int | None:
        """SIGTERM, SIGKILL if that does not end it in time; returns the exit code."""
        if self._process is None:
            return None
        self.resume()
        self.terminate()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.returncode

    def tail(self) -> str:
        """The end of what the process printed."""
        with contextlib.suppress(OSError):
            return self.output.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        return ""


class LocalCluster:
    """Nodes of one cluster below one directory. As a context manager it stops what still runs."""

    def __init__(self, directory: Path, *, size: int = 3, settings: str = "") -> None:
        """
        Choose ports and write the configuration file; nothing is started.

        Args:
            directory: Where everything goes; created if missing.
            size: Number of nodes.
            settings: More TOML, appended to the file.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.config = directory / "kvorum.toml"
        ports = find_free_ports(size)
        endpoints = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
        self.config.write_text(
            f'[deployment]\nreplica_endpoints = [{endpoints}]\n\n[database]\nbase_path = "{directory}"\n\n{settings}',
            encoding="utf-8",
        )
        self.nodes = [LocalNode(node_id, port, directory, self.config) for node_id, port in enumerate(ports)]

    @property
    def endpoints(self) -> list[str]:
        """Client endpoints in node-id order."""
        return [node.endpoint for node in self.nodes]

    def start(self) -> None:
        """Start every node that does not run."""
        for node in self.nodes:
            if not node.running:
                node.start()

    def stop(self) -> None:
        """Stop every node, all at the same time."""
        for node in self.nodes:
            node.resume()
            node.terminate()
        deadline = time.monotonic() + _STOP_S
        for node in self.nodes:
            node.stop(max(0.1, deadline - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def find_free_ports(count: int) -> list[int]:
    """
    Client ports whose peer and HTTP ports are free as well.

    Raises:
        OSError: There are none.
    """
    found: list[int] = []
    taken: set[int] = set()
    for port in random.SystemRandom().sample(_PORTS, 1000):
        trio = {port, port - HTTP_PORT_DISTANCE, port - PEER_PORT_DISTANCE}
        if not trio & taken and all(map(_is_free, trio)):
            found.append(port)
            taken |= trio
            if len(found) == count:
                return found
    message = f"no {count} free ports with their neighbours between {_PORTS.start} and {_PORTS.stop}"
    raise OSError(message)


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
