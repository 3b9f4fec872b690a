"""
How long a node with a million applied entries takes to be ready again, after a crash and after an orderly end.

Starts three fresh nodes with default settings and writes `--entries` different keys. Then, one after the other: SIGKILL
of a follower, SIGKILL of the leader, SIGTERM of a follower, SIGTERM of the leader. Before each, `--tail` more writes,
so that there is something that only the log holds. The time runs from the start of the process to the first `200` of
its `/readyz`, and from there on until the node has applied what the leader had when the process started, for a follower
is ready while it still lacks what may be under way. Exit status: 0 if each was ready in time, 1 if one was not, 2 if
the run could not be carried out.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from clusters import ClusterError, Kvorum
from generator import BenchError, Generator

READY_S_MAX = 10.0
PATIENCE_S = 120.0
"""A node that is not ready after so long, or six times the limit, ends the run."""
CASES = (
    (signal.SIGKILL, "follower"),
    (signal.SIGKILL, "leader"),
    (signal.SIGTERM, "follower"),
    (signal.SIGTERM, "leader"),
)
APPLIED = "kvorum_raft_applied_index"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One restart."""

    how: str
    role: str
    ended_s: float
    """From the signal to the end of the process."""
    leader_s: float
    """From the end of the process until one of the others is seen to lead."""
    ready_s: float
    level_s: float
    """From the start of the process until it has applied what the leader had then."""
    applied: int
    """Entries it has then applied."""


def main() -> int:
    """Run and judge."""
    options = parse_options()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="kvorum-restart-", dir=options.dir) as folder,
            Kvorum(Path(folder)) as cluster,
        ):
            outcomes = run(cluster, Generator(Path(folder)), options)
    except (BenchError, ClusterError, OSError) as error:
        print(f"restart: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    slow = [outcome for outcome in outcomes if outcome.ready_s > options.limit]
    print(
        f"\n{'NOT ok' if slow else 'ok'}: ready after at most {max(outcome.ready_s for outcome in outcomes):.2f} s; "
        f"the limit is {options.limit:g} s"
    )
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    return 1 if slow else 0


def run(cluster: Kvorum, generator: Generator, options: argparse.Namespace) -> list[Outcome]:
    """Fill, then restart one node after the other."""
    load = (
        "--work", "put", "--connections", str(options.connections), "--value-bytes", str(options.value_bytes),
        "--preload",
    )  # fmt: skip
    began = time.monotonic()
    generator.run(cluster, [cluster.leader], *load, "--space", str(options.entries), seconds=options.fill_seconds)
    print(f"{options.entries:,} entries written in {time.monotonic() - began:.0f} s\n", flush=True)
    print(
        f"{'signal':8} {'of a':9} {'ended s':>8} {'leader s':>9} {'ready s':>8} {'level s':>8} {'entries applied':>16}",
        flush=True,
    )
    outcomes = []
    for how, role in CASES:
        generator.run(cluster, [cluster.leader], *load, "--space", str(options.tail), seconds=options.fill_seconds)
        outcome = _restart(cluster, how, role, options.limit)
        outcomes.append(outcome)
        print(
            f"{outcome.how:8} {outcome.role:9} {outcome.ended_s:8.2f} {outcome.leader_s:9.2f} {outcome.ready_s:8.2f} "
            f"{outcome.level_s:8.2f} {outcome.applied:16,}",
            flush=True,
        )
    return outcomes


def _restart(cluster: Kvorum, how: signal.Signals, role: str, limit_s: float) -> Outcome:
    endpoint = cluster.leader if role == "leader" else cluster.followers[0]
    number = cluster.endpoints.index(endpoint)
    began = time.monotonic()
    cluster.end(number, how)
    ended = time.monotonic()
    # The others lead again first: what is measured is this node, not an election.
    leader = cluster.endpoints.index(cluster.wait_for_leader_but(number))
    led = time.monotonic()
    wanted = cluster.metrics(leader)[APPLIED]
    started = time.monotonic()
    ready_s = cluster.restart(number, max(PATIENCE_S, 6 * limit_s))
    while (applied := cluster.metrics(number)[APPLIED]) < wanted:
        if time.monotonic() - started > max(PATIENCE_S, 6 * limit_s):
            msg = f"node {number} is ready but has applied {applied:,.0f} of {wanted:,.0f} entries"
            raise ClusterError(msg)
        time.sleep(0.01)
    level_s = time.monotonic() - started
    return Outcome(how.name, role, ended - began, led - ended, ready_s, level_s, int(applied))


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000, help="log entries before the first restart")
    parser.add_argument("--tail", type=int, default=20_000, help="more entries before each restart")
    parser.add_argument("--limit", type=float, default=READY_S_MAX, help="seconds to be ready in (default %(default)s)")
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--fill-seconds", type=float, default=3600.0, help="most time for one fill")
    parser.add_argument("--dir", type=Path, help="parent of the data folders (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    options = parser.parse_args()
    if min(options.entries, options.tail, options.connections, options.limit) <= 0:
        parser.error("--entries, --tail, --connections and --limit must be positive")
    return options


if __name__ == "__main__":
    sys.exit(main())
