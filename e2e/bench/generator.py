"""The closed-loop generator, compiled on the spot, and its runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from clusters import Cluster

SOURCE = Path(__file__).resolve().parent / "closedloop.c"
PATIENCE_S = 600
"""Beyond the time of a run; the generator itself gives up after 30 s without an answer."""


class BenchError(Exception):
    """The bench cannot go on; the text says why."""


class Generator:
    """The compiled closed-loop generator."""

    def __init__(self, folder: Path) -> None:
        """Compile it."""
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            msg = "no C compiler: the load generator is compiled on the spot; install gcc or set CC"
            raise BenchError(msg)
        self._program = folder / "closedloop"
        command = [compiler, "-O2", "-o", str(self._program), str(SOURCE)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            msg = f"{' '.join(command)} failed:\n{built.stderr}"
            raise BenchError(msg)

    def run(self, cluster: Cluster, endpoints: Sequence[str], *options: str, seconds: float) -> dict[str, float]:
        """One run; raises on the first bad reply or lost connection."""
        command = self._command(cluster, endpoints, *options, seconds=seconds)
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            msg = f"{cluster.name}: the generator did not end: {' '.join(command)}"
            raise BenchError(msg) from error
        if done.returncode:
            raise _failed(cluster, command, done.stderr)
        figures: dict[str, float] = json.loads(done.stdout)
        return figures

    def windows(
        self, cluster: Cluster, endpoints: Sequence[str], *options: str, seconds: float, window: float
    ) -> Iterator[dict[str, float]]:
        """The figures of each window of one run as soon as it is over; those of the whole run come last."""
        command = self._command(cluster, endpoints, *options, "--window", str(window), seconds=seconds)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                for line in process.stdout:
                    yield json.loads(line)
                error = process.stderr.read()
                if process.wait():
                    raise _failed(cluster, command, error)
            finally:
                process.kill()

    def _command(self, cluster: Cluster, endpoints: Sequence[str], *options: str, seconds: float) -> list[str]:
        command = [str(self._program), "--protocol", cluster.protocol, "--endpoints", ",".join(endpoints), *options]
        return [*command, "--seconds", str(seconds)]


def _failed(cluster: Cluster, command: Sequence[str], said: str) -> BenchError:
    """What to raise when the generator failed; a node that has ended is the better explanation and raised at once."""
    cluster.check()
    return BenchError(f"{cluster.name}: {said.strip() or 'no answer'} ({' '.join(command)})")
