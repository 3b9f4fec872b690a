"""
Drive three nodes of kvorum and three of etcd with the same closed-loop load, in alternation, and print the ratios.

Both clusters are started fresh on loopback and stay up together; each cell of the table is measured in turn on one and
on the other, `--rounds` times, and the medians are shown. The generator (`closedloop.c`, compiled on the spot) keeps
one request in flight per connection, checks every reply, and ends the run at the first bad one. Keys are written once
on both sides before anything is measured. etcd takes part if a binary is found: `--etcd`, `KVORUM_BENCH_ETCD`, `PATH`.

Absolute figures differ between machines and hours; ratios hardly do. Stop other load first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clusters import Cluster, ClusterError, Etcd, Kvorum
from generator import BenchError, Generator

if TYPE_CHECKING:
    from collections.abc import Sequence

FIGURES = ("rate_per_s", "p50_ms", "p99_ms")
SUSTAINED_CONNECTIONS = 256
SUSTAINED_S = 30.0
IDS_SHARED_MAX = 16
"""Connections that may share a client id, as the generator has it."""


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of load."""

    operation: str
    """What the generator does: put, put-once (etcd: put), get (linearizable) or get-local (etcd: serializable)."""
    target: str
    """leader, all (connections are dealt to the nodes in turn) or follower."""
    title: str


WORKS = {
    "put": Work("put", "leader", "put, at the leader"),
    "put-once": Work("put-once", "leader", "put with an identity, at the leader"),
    "put-all": Work("put", "all", "put, over all nodes"),
    "put-follower": Work("put", "follower", "put, through a follower"),
    "get": Work("get", "leader", "linearizable get, at the leader"),
    "get-all": Work("get", "all", "linearizable get, over all nodes"),
    "get-local": Work("get-local", "leader", "local get, one node"),
}
SINGLE_CONNECTION_ONLY = {"put-follower"}
"""Measured for its latency: what forwarding costs one client."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the things that are measured in alternation."""

    name: str
    cluster: Cluster
    work: Work


class Bench:
    """Clusters, generator and parameters of one bench."""

    def __init__(self, generator: Generator, clusters: list[Cluster], options: argparse.Namespace) -> None:
        """Keep the parts; the first cluster is kvorum."""
        self._generator = generator
        self._clusters = clusters
        self._options = options

    def preload(self) -> None:
        """Write each key once on every side."""
        for cluster in self._clusters:
            began = time.monotonic()
            self._drive(cluster, WORKS["put"], 64, 1, "--preload")
            print(
                f"preloaded {self._options.space:,} keys into {cluster.name} in {time.monotonic() - began:.1f} s",
                flush=True,
            )

    def cell(self, name: str, connections: int) -> dict[str, object]:
        """Measure one cell in alternation; medians of its figures, and kvorum over etcd as ratios."""
        sides = [Side(cluster.name, cluster, WORKS[name]) for cluster in self._clusters]
        return {"work": name, "connections": connections, **self._alternate(sides, connections)}

    def versus(self, names: tuple[str, str], connections: int) -> dict[str, object]:
        """Measure two kinds of work on kvorum in alternation; medians, and the first over the second as ratios."""
        sides = [Side(name, self._clusters[0], WORKS[name]) for name in names]
        return {"versus": list(names), "connections": connections, **self._alternate(sides, connections)}

    def _alternate(self, sides: list[Side], connections: int) -> dict[str, object]:
        """Each side once per round; which one begins changes, so that neither has always the better moment."""
        rounds: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
        for number in range(self._options.rounds):
            options = ("--seed", str(1000 * number + 1), "--warmup", str(self._options.warmup))
            for side in sides if number % 2 == 0 else reversed(sides):
                rounds[side.name].append(self._measured(side.cluster, side.work, connections, *options))
        row: dict[str, object] = {}
        for name, runs in rounds.items():
            row[name] = {figure: statistics.median(run[figure] for run in runs) for figure in runs[0]}
            row[f"{name}_runs"] = runs
        if len(sides) > 1:
            first, second = rounds.values()
            pairs = [{figure: a[figure] / b[figure] for figure in FIGURES} for a, b in zip(first, second, strict=True)]
            row["pairs"] = pairs
            row["ratios"] = {figure: statistics.median(pair[figure] for pair in pairs) for figure in FIGURES}
        return row

    def sustained(self) -> dict[str, object]:
        """Full put speed: a warm-up and two runs of 30 s each; the second must not be much slower."""
        kvorum, connections = self._clusters[0], SUSTAINED_CONNECTIONS
        seconds = self._options.sustained_seconds
        print(
            f"\nsustained put, {connections} connections: {seconds:.0f} s warm-up, then twice {seconds:.0f} s",
            flush=True,
        )
        self._drive(kvorum, WORKS["put"], connections, seconds, "--warmup", "0")
        runs = [self._measured(kvorum, WORKS["put"], connections, "--warmup", "0", seconds=seconds) for _ in range(2)]
        ratio = runs[1]["rate_per_s"] / runs[0]["rate_per_s"]
        memory = kvorum.resident_mib()
        for number, run in enumerate(runs, 1):
            print(
                f"  run {number}: {run['rate_per_s']:9,.0f}/s  p50 {run['p50_ms']:7.2f} ms  p99 {run['p99_ms']:7.2f} ms"
            )
        print(f"  second / first: {ratio:.2f}    resident MiB per node: {_mib(memory)}")
        return {"runs": runs, "ratio": ratio, "resident_mib": memory}

    def _measured(
        self, cluster: Cluster, work: Work, connections: int, *options: str, seconds: float | None = None
    ) -> dict[str, float]:
        """One run, and the CPU time of all nodes per request in it."""
        seconds = self._options.seconds if seconds is None else seconds
        before = cluster.cpu_seconds()
        figures = self._drive(cluster, work, connections, seconds, *options)
        # The warm-up costs CPU too but its requests are not counted: scale by the time that is.
        warmup = float(options[options.index("--warmup") + 1]) if "--warmup" in options else 0.0
        spent = sum(cluster.cpu_seconds()) - sum(before)
        figures["cpu_us_per_request"] = spent * seconds / (seconds + warmup) / figures["requests"] * 1e6
        return figures

    def _drive(self, cluster: Cluster, work: Work, connections: int, seconds: float, *options: str) -> dict[str, float]:
        if work.target == "all":
            endpoints = cluster.endpoints
        else:
            endpoints = [cluster.leader] if work.target == "leader" else cluster.followers[:1]
        return self._generator.run(
            cluster, endpoints, "--work", work.operation, "--connections", str(connections),
            "--space", str(self._options.space), "--value-bytes", str(self._options.value_bytes),
            "--connections-per-id", str(self._options.connections_per_id), *options, seconds=seconds,
        )  # fmt: skip


def main() -> int:
    """Run the bench; 1 if it could not be carried out."""
    options = parse_options()
    try:
        run(options)
    except (BenchError, ClusterError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run(options: argparse.Namespace) -> None:
    """Start everything, measure every cell, print, and leave nothing running."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvorum-bench-", dir=options.dir)))
        generator = Generator(folder)
        clusters: list[Cluster] = [stack.enter_context(Kvorum(folder))]
        header: dict[str, object] = {"machine": machine(folder)}
        if options.etcd:
            etcd = stack.enter_context(Etcd(folder, options.etcd))
            clusters.append(etcd)
            header["etcd"] = etcd.version()
        print(describe(header, options), flush=True)
        bench = Bench(generator, clusters, options)
        bench.preload()
        rows = []
        if options.only:
            print("\n" + table_head(both=len(clusters) > 1), flush=True)
        for name in options.only:
            for connections in [1] if name in SINGLE_CONNECTION_ONLY else options.connections:
                rows.append(bench.cell(name, connections))
                print(table_row(rows[-1]), flush=True)
                if options.pairs and "pairs" in rows[-1]:
                    print(pair_lines(rows[-1], ("kvorum", "etcd")), flush=True)
        if options.versus:
            print(f"\n{options.versus[0]} / {options.versus[1]}, both on kvorum", flush=True)
            for connections in options.connections:
                rows.append(bench.versus(options.versus, connections))
                print(pair_lines(rows[-1], options.versus), flush=True)
        memory = {cluster.name: cluster.resident_mib() for cluster in clusters}
        print()
        for side, figures in memory.items():
            print(f"resident MiB per node, {side}: {_mib(figures)}")
        report: dict[str, object] = {**header, "cells": rows, "resident_mib": memory}
        if options.sustained:
            report["sustained"] = bench.sustained()
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def machine(folder: Path) -> dict[str, object]:
    """What the figures depend on: cores, and how long a small synchronous write takes in the data folder."""
    times = []
    with (folder / "probe").open("wb", buffering=0) as probe:
        for _ in range(100):
            probe.write(b"\0" * 4096)
            began = time.perf_counter()
            os.fdatasync(probe.fileno())
            times.append(time.perf_counter() - began)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "fdatasync_ms": statistics.median(times) * 1e3,
    }


def describe(header: dict[str, object], options: argparse.Namespace) -> str:
    """What is measured and where."""
    facts = header["machine"]
    assert isinstance(facts, dict)
    other = header.get("etcd", "no etcd here (PATH, --etcd, KVORUM_BENCH_ETCD): kvorum alone")
    host = f"{facts['cores']} cores, fdatasync {facts['fdatasync_ms']:.2f} ms"
    runs = f"medians of {options.rounds} rounds of {options.seconds:g} s"
    return (
        f"kvorum on Python {facts['python']}; {other}; {host}\n"
        f"three nodes each, {options.value_bytes}-byte values, {runs}"
    )


def table_head(*, both: bool) -> str:
    """Two lines: column titles and a rule."""
    one_side = f"{'per s':>9} {'p50 ms':>8} {'p99 ms':>8} {'CPU us':>7}"
    head = f"{'work':33} {'conn':>4} | {one_side}"
    if both:
        head += f" | {one_side} | {'rate':>5} {'p50':>5} {'p99':>5}"
        title = f"{'':38} | {'kvorum':^35} | {'etcd':^35} | kvorum / etcd"
        return f"{title}\n{head}\n{'-' * len(head)}"
    return f"{head}\n{'-' * len(head)}"


def table_row(row: dict[str, object]) -> str:
    """One line per cell. `CPU us` is the CPU time of all three nodes per request."""
    line = f"{WORKS[str(row['work'])].title:33} {row['connections']:>4}"
    for side in ("kvorum", "etcd"):
        figures = row.get(side)
        if isinstance(figures, dict):
            line += f" | {figures['rate_per_s']:>9,.0f} {figures['p50_ms']:>8.3f} {figures['p99_ms']:>8.3f}"
            line += f" {figures['cpu_us_per_request']:>7.0f}"
    ratios = row.get("ratios")
    if isinstance(ratios, dict):
        line += f" | {ratios['rate_per_s']:>5.2f} {ratios['p50_ms']:>5.2f} {ratios['p99_ms']:>5.2f}"
    return line


def pair_lines(row: dict[str, object], names: tuple[str, str]) -> str:
    """A line for each alternation, and one with the medians; rates, 99th percentiles, and the ratios of both."""
    pairs, ratios = row["pairs"], row["ratios"]
    sides = [(row[name], row[f"{name}_runs"]) for name in names]
    assert isinstance(pairs, list)

    def line(title: str, runs: list[dict[str, float]], ratio: dict[str, float]) -> str:
        shown = "   ".join(
            f"{name} {run['rate_per_s']:>8,.0f}/s p99 {run['p99_ms']:>7.2f} ms"
            for name, run in zip(names, runs, strict=True)
        )
        return f"  {title:>9}: {shown}   rate x {ratio['rate_per_s']:.2f}   p99 x {ratio['p99_ms']:.2f}"

    lines = [
        line(f"pair {number + 1}", [runs[number] for _, runs in sides], pair)  # type: ignore[index]
        for number, pair in enumerate(pairs)
    ]
    lines.append(line("medians", [median for median, _ in sides], ratios))  # type: ignore[misc, arg-type]
    return f"  {row['connections']} connections\n" + "\n".join(lines)


def _mib(figures: Sequence[float]) -> str:
    return "  ".join(f"{figure:.0f}" for figure in figures)


def parse_options() -> argparse.Namespace:
    """The command line; `--quick` only changes defaults."""
    quick = "--quick" in sys.argv[1:]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round at 64 connections: is it in order?")
    parser.add_argument(
        "--connections", default="64" if quick else "1,64,256", help="comma-separated (default %(default)s)"
    )
    parser.add_argument(
        "--connections-per-id", type=int, default=1, help="put-once: how many share a client id, at most 16 (default 1)"
    )
    parser.add_argument("--only", help=f"comma-separated kinds of work (default {','.join(WORKS)}; none with --versus)")
    parser.add_argument("--rounds", type=int, default=1 if quick else 3)
    parser.add_argument("--seconds", type=float, default=2.0 if quick else 6.0, help="measured time of one run")
    parser.add_argument("--warmup", type=float, default=0.5 if quick else 1.0, help="unmeasured time before it")
    parser.add_argument("--space", type=int, default=10_000 if quick else 100_000, help="number of keys")
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--etcd", default=os.environ.get("KVORUM_BENCH_ETCD") or shutil.which("etcd"), metavar="PATH")
    parser.add_argument("--no-etcd", action="store_const", const=None, dest="etcd", help="kvorum alone")
    parser.add_argument("--pairs", action="store_true", help="also print each alternation, not only the medians")
    parser.add_argument(
        "--versus", metavar="A,B", help="also two kinds of work on kvorum in alternation, such as put-once,put"
    )
    parser.add_argument("--sustained", action="store_true", help="also the sustained put run")
    parser.add_argument("--sustained-seconds", type=float, default=SUSTAINED_S, help=argparse.SUPPRESS)
    parser.add_argument("--dir", type=Path, help="parent of the data folders (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every run's figures")
    options = parser.parse_args()
    try:
        options.connections = [int(text) for text in options.connections.split(",")]
    except ValueError:
        parser.error("--connections takes numbers such as 1,64,256")
    if not 1 <= options.connections_per_id <= IDS_SHARED_MAX:
        parser.error(f"--connections-per-id takes 1 to {IDS_SHARED_MAX}")
    if options.only is None:
        options.only = "" if options.versus else ",".join(WORKS)
    options.only = [name for name in options.only.split(",") if name]
    options.versus = tuple(options.versus.split(",")) if options.versus else ()
    if options.versus and len(set(options.versus)) != len(("A", "B")):
        parser.error("--versus takes two different kinds of work, such as put-once,put")
    for option, names in (("only", options.only), ("versus", options.versus)):
        unknown = set(names) - set(WORKS)
        if unknown:
            parser.error(f"--{option} {','.join(sorted(unknown))}: not one of {', '.join(WORKS)}")
    if options.etcd and not os.access(options.etcd, os.X_OK):
        parser.error(f"--etcd {options.etcd}: no such program")
    return options


if __name__ == "__main__":
    sys.exit(main())
