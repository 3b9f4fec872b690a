"""Three fresh nodes of kvorum, or of etcd, on loopback, and what can be seen of their processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kvorum.cli.local_cluster import HTTP_PORT_DISTANCE, find_free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

NODES = 3
START_S_MAX = 30.0
STOP_S_MAX = 20.0
CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
HTTP_OK = 200
THRIFT_STRING = 11


class ClusterError(Exception):
    """A cluster did not start, has no leader, or lost a node."""


class Cluster:
    """Processes that were started for one bench and end with it."""

    name = "cluster"
    protocol = ""

    def __init__(self, folder: Path) -> None:
        """Nothing runs before `start`."""
        self.folder = folder / self.name
        self.folder.mkdir(parents=True)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.endpoints: list[str] = []

    def __enter__(self) -> Self:
        """Start, and stop again if that fails."""
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Start all nodes and wait until one of them leads."""
        raise NotImplementedError

    def find_leader(self) -> str | None:
        """Endpoint of the node that leads, or None."""
        raise NotImplementedError

    @property
    def leader(self) -> str:
        """Endpoint of the node that leads."""
        self.check()
        return self._wait(self.find_leader, "a leader")

    @property
    def followers(self) -> list[str]:
        """Endpoints of the others."""
        leader = self.leader
        return [endpoint for endpoint in self.endpoints if endpoint != leader]

    def check(self, ended_ok: int | None = None) -> None:
        """Raise if a node has ended, but for one that was made to."""
        for number, process in enumerate(self.processes):
            if number != ended_ok and process.poll() is not None:
                msg = f"{self.name} node {number} ended with status {process.returncode}:\n{self._tail(number)}"
                raise ClusterError(msg)

    def stop(self) -> None:
        """End every node, by force if need be."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S_MAX
        for process in self.processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def resident_mib(self) -> list[float]:
        """Resident memory of each node now."""
        return [_resident_kib(process.pid) / 1024 for process in self.processes]

    def cpu_seconds(self) -> list[float]:
        """CPU time of each node since its start."""
        return [_cpu_seconds(process.pid) for process in self.processes]

    def _spawn(self, number: int, command: list[str], environment: dict[str, str] | None = None) -> None:
        self.processes.append(self._popen(number, command, environment))

    def _popen(
        self, number: int, command: list[str], environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with self._log_path(number).open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder, env=environment
            )

    def _wait(
        self,
        look: Callable[[], str | None],
        what: str,
        timeout_s: float = START_S_MAX,
        *,
        pause_s: float = 0.1,
        ended_ok: int | None = None,
    ) -> str:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.check(ended_ok)
            with contextlib.suppress(OSError, ValueError, KeyError, http.client.HTTPException):
                found = look()
                if found is not None:
                    return found
            time.sleep(pause_s)
        logs = "\n".join(self._tail(number) for number in range(len(self.processes)))
        msg = f"{self.name}: no sign of {what} after {timeout_s:.0f} s\n{logs}"
        raise ClusterError(msg)

    def _log_path(self, number: int) -> Path:
        return self.folder / f"node{number}.out"

    def _tail(self, number: int, lines: int = 15) -> str:
        path = self._log_path(number)
        text = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
        return "\n".join([f"--- {path}", *text])


class Kvorum(Cluster):
    """Three `kvorum serve` processes of this interpreter, with the default settings but for what is given as TOML."""

    name = "kvorum"
    protocol = "thrift"

    def __init__(self, folder: Path, settings: str = "") -> None:
        """Nothing runs before `start`."""
        super().__init__(folder)
        self._settings = settings

    def start(self) -> None:
        """Write one configuration file, start the nodes from it, wait for the leader."""
        ports = find_free_ports(NODES)
        self.endpoints = [f"127.0.0.1:{port}" for port in ports]
        self._config.write_text(
            f"[deployment]\nreplica_endpoints = {json.dumps(self.endpoints)}\n\n"
            f"[database]\nbase_path = {json.dumps(str(self.folder / 'data'))}\n\n{self._settings}"
        )
        for number in range(NODES):
            self._spawn(number, *self._serve(number))
        self._wait(self.find_leader, "a leader")

    def data_directory(self, number: int) -> Path:
        """Where a node keeps log and state."""
        return self.folder / "data" / f"node_{number}"

    def end(self, number: int, how: signal.Signals) -> None:
        """Send a node a signal and wait until its process is gone."""
        process = self.processes[number]
        process.send_signal(how)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired as error:
            msg = f"{self.name} node {number} goes on {STOP_S_MAX:.0f} s after {how.name}:\n{self._tail(number)}"
            raise ClusterError(msg) from error

    def wait_for_leader_but(self, number: int) -> str:
        """Endpoint of the leader among the others, as soon as there is one; this node has ended."""
        dead = self.endpoints[number]

        def look() -> str | None:
            found = self.find_leader()
            return found if found != dead else None

        return self._wait(look, "a leader among the others", ended_ok=number, pause_s=0.01)

    def restart(self, number: int, timeout_s: float) -> float:
        """Start a node that has ended; returns the seconds until its `/readyz` says 200."""
        began = time.monotonic()
        self.processes[number] = self._popen(number, *self._serve(number))
        self._wait(lambda: "ready" if self.ready(number) else None, f"a ready node {number}", timeout_s, pause_s=0.01)
        return time.monotonic() - began

    def ready(self, number: int) -> bool:
        """Whether `/readyz` of a node says 200."""
        return self._http(number, "/readyz")[0] == HTTP_OK

    def metrics(self, number: int) -> dict[str, float]:
        """Figures of a node's `/metrics`, labels being part of the name."""
        _, text = self._http(number, "/metrics")
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    @property
    def _config(self) -> Path:
        return self.folder / "kvorum.toml"

    def _serve(self, number: int) -> tuple[list[str], dict[str, str]]:
        """Command and environment of a node; the caller's own settings for a node must not reach it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("KVORUM_", "THRIFT_"))}
        command = [sys.executable, "-m", "kvorum", "serve", "--config", str(self._config), "--node-id", str(number)]
        return [*command, "--log-dir", str(self.folder / f"logs{number}")], environment

    def _http(self, number: int, path: str) -> tuple[int, str]:
        host, _, port = self.endpoints[number].rpartition(":")
        connection = http.client.HTTPConnection(host, int(port) - HTTP_PORT_DISTANCE, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def find_leader(self) -> str | None:
        """Ask each node's getStatus whether it leads."""
        for endpoint in self.endpoints:
            with contextlib.suppress(OSError):
                if _thrift_status(endpoint).get(5) == b"leader":
                    return endpoint
        return None


class Etcd(Cluster):
    """Three etcd processes with their default settings."""

    name = "etcd"
    protocol = "grpc"

    def __init__(self, folder: Path, binary: str) -> None:
        """Nothing runs before `start`."""
        super().__init__(folder)
        self.binary = binary

    def version(self) -> str:
        """First line of `etcd --version`."""
        output = subprocess.run([self.binary, "--version"], capture_output=True, text=True, check=True)
        return output.stdout.splitlines()[0]

    def start(self) -> None:
        """Start a new static cluster and wait for its leader."""
        ports = find_free_ports(2 * NODES)
        pairs = list(zip(ports[:NODES], ports[NODES:], strict=True))
        self.endpoints = [f"127.0.0.1:{client}" for client, _ in pairs]
        members = ",".join(f"n{number}=http://127.0.0.1:{peer}" for number, (_, peer) in enumerate(pairs))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        for number, (client, peer) in enumerate(pairs):
            options = {
                "name": f"n{number}",
                "data-dir": str(self.folder / f"data{number}"),
                "log-level": "error",
                "listen-client-urls": f"http://127.0.0.1:{client}",
                "advertise-client-urls": f"http://127.0.0.1:{client}",
                "listen-peer-urls": f"http://127.0.0.1:{peer}",
                "initial-advertise-peer-urls": f"http://127.0.0.1:{peer}",
                "initial-cluster": members,
                "initial-cluster-state": "new",
            }
            self._spawn(number, [self.binary, *(f"--{key}={value}" for key, value in options.items())], environment)
        self._wait(self.find_leader, "a leader")

    def find_leader(self) -> str | None:
        """Ask each node's status through the JSON gateway of its client port; it needs no etcdctl."""
        for endpoint in self.endpoints:
            connection = http.client.HTTPConnection(endpoint, timeout=2)
            try:
                connection.request("POST", "/v3/maintenance/status", body="{}")
                response = connection.getresponse()
                status = json.loads(response.read()) if response.status == HTTP_OK else {}
            finally:
                connection.close()
            if status and status["leader"] == status["header"]["member_id"]:
                return endpoint
        return None


def _resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS_PER_S


# --- just enough Thrift to ask a node for its role ---------------------------------------------------------------


def _thrift_status(endpoint: str) -> dict[int, bytes | int]:
    """Flat fields of a getStatus reply by field id."""
    host, _, port = endpoint.rpartition(":")
    name = b"getStatus"
    call = struct.pack(">Ii", 0x80010001, len(name)) + name + struct.pack(">ibhbb", 1, 12, 1, 0, 0)
    with socket.create_connection((host, int(port)), timeout=2) as connection:
        connection.sendall(call)
        stream = connection.makefile("rb")
        (length,) = struct.unpack(">4xi", _exactly(stream.read, 8))
        _exactly(stream.read, length + 4)
        if struct.unpack(">bh", _exactly(stream.read, 3)) != (12, 0):
            msg = "getStatus has no result"
            raise ValueError(msg)
        return dict(_flat_fields(stream.read))


def _exactly(read: Callable[[int], bytes], count: int) -> bytes:
    data = read(count)
    if len(data) != count:
        msg = "the connection ended inside a reply"
        raise OSError(msg)
    return data


def _flat_fields(read: Callable[[int], bytes]) -> Iterator[tuple[int, bytes | int]]:
    """Fields up to the first that is not flat; the role comes before the members."""
    sizes = {2: 1, 3: 1, 4: 8, 6: 2, 8: 4, 10: 8}
    while (kind := _exactly(read, 1)[0]) != 0:
        (field,) = struct.unpack(">h", _exactly(read, 2))
        if kind == THRIFT_STRING:
            (length,) = struct.unpack(">i", _exactly(read, 4))
            yield field, _exactly(read, length)
        elif kind in sizes:
            yield field, int.from_bytes(_exactly(read, sizes[kind]), "big")
        else:
            return
