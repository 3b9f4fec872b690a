"""
Minutes of overwrites at half of peak with a short retention: nothing may grow, and the rate must be steady.

Starts three fresh nodes with `[mvcc] retention_seconds` as given and default settings otherwise, writes every key once,
measures the peak put rate at the leader for a few seconds, then paces overwrites of the same keys at half of it. Each
sample is one window of the generator: its rate and p99, and of every node the memory, the bytes of the log folder and
the bytes of everything else in the data folder, as allocated on disk. Exit status: 0 if every criterion holds, 1 if
one does not, 2 if the run could not be carried out.

A slow machine makes a low peak; the criteria then say less. Stop other load first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from clusters import NODES, ClusterError, Kvorum
from generator import BenchError, Generator
from verdicts import MIB, Series, Verdict, below, bounded, steady, window_rates

if TYPE_CHECKING:
    from collections.abc import Sequence

LOG_FOLDER = "log"
RATE_WINDOW_S = 30.0
LOG_BOUND_MIB = 256 + 3 * 64
"""`[wal] retain_bytes` and three segments: one being written, one made ready, one that a flush must free."""
RESIDENT_LIMIT_MIB = 1024
ROW_OVERHEAD_BYTES = 64
"""Key, version, heads, and the record of the change."""
RETENTION_LATE_S = 10
"""How much later than retention says a version may be let go."""
STATE_ROOM = 3
"""Times what must be kept: the sweep waits until it is worth a pass, and compaction has to follow it."""


class Endurance:
    """One run: cluster, generator, and what was seen."""

    def __init__(self, cluster: Kvorum, generator: Generator, options: argparse.Namespace) -> None:
        """Nothing is measured before `run`."""
        self._cluster = cluster
        self._generator = generator
        self._options = options
        self._logs = [Series(f"log of node {number}") for number in range(NODES)]
        self._states = [Series(f"state of node {number}") for number in range(NODES)]
        self._memories = [Series(f"memory of node {number}") for number in range(NODES)]
        self._windows: list[dict[str, float]] = []
        self._target = 0.0
        self._cpu_seen_s = 0.0

    def run(self) -> None:
        """Preload, find the peak, then hold half of it and sample."""
        options = self._options
        load = (
            "--work", "put", "--connections", str(options.connections),
            "--space", str(options.space), "--value-bytes", str(options.value_bytes), "--random-values",
        )  # fmt: skip
        endpoints = [self._cluster.leader]
        self._generator.run(self._cluster, endpoints, *load, "--preload", seconds=1)
        peak = self._generator.run(self._cluster, endpoints, *load, "--warmup", "2", seconds=options.peak_seconds)
        self._target = options.rate or peak["rate_per_s"] * options.share
        seconds = options.minutes * 60
        print(
            f"peak {peak['rate_per_s']:,.0f} puts/s at {options.connections} connections; "
            f"{seconds:.0f} s at {self._target:,.0f}/s over {options.space:,} keys of {options.value_bytes} bytes",
            flush=True,
        )
        paced = (*load, "--seed", "7", "--warmup", "0", "--rate", f"{self._target:.1f}")
        self._cpu_seen_s = sum(self._cluster.cpu_seconds())
        began = shown = time.monotonic()
        samples = self._generator.windows(
            self._cluster, endpoints, *paced, seconds=seconds, window=options.sample_seconds
        )
        for figures in samples:
            if figures["seconds"] == options.sample_seconds and len(self._windows) < seconds // options.sample_seconds:
                self._sample(figures)
            if time.monotonic() - shown >= options.progress_seconds:
                shown = time.monotonic()
                print(self._progress(shown - began), flush=True)

    def _sample(self, figures: dict[str, float]) -> None:
        self._cluster.check()
        cpu_s = sum(self._cluster.cpu_seconds())
        figures["cpu_us_per_request"] = (cpu_s - self._cpu_seen_s) * 1e6 / max(1, figures["requests"])
        self._cpu_seen_s = cpu_s
        self._windows.append(figures)
        for number, resident in enumerate(self._cluster.resident_mib()):
            log, state = allocated_bytes(self._cluster.data_directory(number))
            self._logs[number].samples.append(log)
            self._states[number].samples.append(state)
            self._memories[number].samples.append(resident * MIB)

    def _progress(self, elapsed_s: float) -> str:
        last = self._windows[-1]
        groups = (("log", self._logs), ("state", self._states), ("memory", self._memories))
        sizes = "   ".join(
            f"{name} {' '.join(f'{series.samples[-1] / MIB:,.0f}' for series in group)}" for name, group in groups
        )
        cpu = f"   CPU {last['cpu_us_per_request']:,.0f} us per write"
        return f"{elapsed_s:6.0f} s  {last['rate_per_s']:8,.0f}/s  p99 {last['p99_ms']:8.2f} ms   MiB: {sizes}{cpu}"

    def verdicts(self) -> list[Verdict]:
        """Every criterion."""
        options = self._options
        if not self._windows:
            msg = f"{options.minutes * 60:.0f} s are less than one sample of {options.sample_seconds:g} s"
            raise BenchError(msg)
        return [
            *(below(series, options.resident_mib) for series in self._memories),
            *(bounded(series, options.log_mib) for series in self._logs),
            *(bounded(series, self._state_bound_mib()) for series in self._states),
            steady(self._rates(), self._target),
        ]

    def _state_bound_mib(self) -> float:
        """As given, or a few times what must be kept: each key's newest value, twice, and what retention keeps."""
        options = self._options
        if options.state_mib is not None:
            return float(options.state_mib)
        rows = 2 * options.space + self._target * (options.retention + RETENTION_LATE_S)
        return STATE_ROOM * float(rows) * (options.value_bytes + ROW_OVERHEAD_BYTES) / MIB

    def _rates(self) -> list[float]:
        requests = [window["requests"] for window in self._windows]
        return window_rates(requests, self._options.sample_seconds, RATE_WINDOW_S)

    def table(self) -> str:
        """Maxima, slopes and growth of each figure, and the rates."""
        per_minute = 60 / self._options.sample_seconds / MIB
        lines = [f"{'last half of the run':20} {'max MiB':>10} {'MiB/minute':>11} {'growth':>8}"]
        lines += [
            f"{series.title:20} {max(series.last_half) / MIB:10,.1f} {series.slope_per_sample() * per_minute:11,.2f} "
            f"{100 * series.growth():+7.1f}%"
            for series in (*self._memories, *self._logs, *self._states)
        ]
        rates, p99 = self._rates(), [window["p99_ms"] for window in self._windows]
        slowest = max(window["max_ms"] for window in self._windows)
        spread = f"min {min(rates):,.0f}  median {statistics.median(rates):,.0f}  max {max(rates):,.0f} per s"
        lines.append(f"rate of {len(rates)} windows: {spread}; target {self._target:,.0f}")
        spread = f"median {statistics.median(p99):.2f} ms  max {max(p99):.2f} ms"
        lines.append(f"p99 of {len(p99)} samples: {spread}; slowest write {slowest:.0f} ms")
        cpu = [window["cpu_us_per_request"] for window in self._windows]
        halves = [statistics.median(half) for half in (cpu[: len(cpu) // 2] or cpu, cpu[len(cpu) // 2 :])]
        lines.append(
            f"CPU of all nodes per write: median of the first half {halves[0]:,.0f} us, last {halves[1]:,.0f} us"
        )
        return "\n".join(lines)

    def report(self, verdicts: Sequence[Verdict]) -> dict[str, object]:
        """Everything that was seen, for a file."""
        figures = {series.title: series.samples for series in (*self._memories, *self._logs, *self._states)}
        judged = [{"criterion": one.criterion, "ok": one.ok, "reason": one.reason} for one in verdicts]
        return {"target_per_s": self._target, "windows": self._windows, "bytes": figures, "verdicts": judged}


def allocated_bytes(folder: Path) -> tuple[int, int]:
    """Bytes on disk of the log, and of everything else in a data directory; files may vanish meanwhile."""
    log = rest = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            allocated = path.stat().st_blocks * 512
            if path.relative_to(folder).parts[0] == LOG_FOLDER:
                log += allocated
            else:
                rest += allocated
    return log, rest


def main() -> int:
    """Run and judge."""
    options = parse_options()
    settings = f"[mvcc]\nretention_seconds = {options.retention}\n"
    try:
        with (
            tempfile.TemporaryDirectory(prefix="kvorum-endurance-", dir=options.dir) as folder,
            Kvorum(Path(folder), settings) as cluster,
        ):
            endurance = Endurance(cluster, Generator(Path(folder)), options)
            endurance.run()
            verdicts = endurance.verdicts()
    except (BenchError, ClusterError, OSError) as error:
        print(f"endurance: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"\n{endurance.table()}\n")
    for verdict in verdicts:
        print(verdict.line())
    if options.json:
        options.json.write_text(json.dumps(endurance.report(verdicts), indent=1) + "\n")
    return 0 if all(verdict.ok for verdict in verdicts) else 1


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the paced part (default %(default)s)")
    parser.add_argument("--retention", type=int, default=30, metavar="S", help="[mvcc] retention_seconds")
    parser.add_argument("--share", type=float, default=0.5, help="of the peak, to write at (default %(default)s)")
    parser.add_argument("--rate", type=float, help="writes per second, instead of a share of the peak")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--space", type=int, default=100_000, help="number of keys (default %(default)s)")
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--peak-seconds", type=float, default=8.0, help="how long the peak is measured")
    parser.add_argument("--sample-seconds", type=float, default=5.0)
    parser.add_argument("--progress-seconds", type=float, default=30.0)
    parser.add_argument("--resident-mib", type=float, default=RESIDENT_LIMIT_MIB, help="most memory of each node")
    parser.add_argument("--log-mib", type=float, default=LOG_BOUND_MIB, help="a log below this may grow")
    parser.add_argument("--state-mib", type=float, help="a state below this may grow (default: from rate and keys)")
    parser.add_argument("--dir", type=Path, help="parent of the data folders (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every sample")
    options = parser.parse_args()
    if min(options.minutes, options.sample_seconds, options.share, options.peak_seconds) <= 0 or options.retention < 1:
        parser.error("--minutes, --retention, --share, --peak-seconds and --sample-seconds must be positive")
    return options


if __name__ == "__main__":
    sys.exit(main())
