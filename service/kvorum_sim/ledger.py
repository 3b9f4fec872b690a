"""
The reliability ledger: what the harness has run, on which commit, with what outcome.

Reads the reports that `make sim`, `make teeth` and `make crash` write with their JSON option, appends them to
``docs/reliability/ledger.json`` and writes ``docs/reliability/ledger.md`` anew from it. Nobody edits either by hand.

::

    python -m kvorum_sim.ledger docs/reliability REPORT.json...
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
from pathlib import Path
from typing import Any, Final

HEAD: Final = """# Reliability ledger

Written by `make ledger` from the reports of the harness; every line is one run. Claims elsewhere name a line here.

| date | commit | tool | what | failures | minutes |
|---|---|---|---|---|---|
"""


def described(report: dict[str, Any]) -> str:
    """One report in a few words: the base of every claim."""
    if report["tool"] == "make sim":
        histories, outcomes, faults = report["histories"], report["outcomes"], report["faults"]
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items(), key=lambda item: -item[1]))
        return (
            f"{histories['counted']} histories counted{_edge(report)}, {histories['inconclusive']} inconclusive; "
            f"operations {outcomes['ok']} ok, {outcomes['failed']} failed, {outcomes['unknown']} unknown; "
            f"{sum(faults.values())} faults ({kinds}); {report['checks']} events checked; "
            f"seeds {report['first_seed']} to {report['first_seed'] + report['seeds'] - 1}, "
            f"{report['repeated']} of them twice"
        )
    if report["tool"] == "make crash":
        return _crashes(report)
    return str(report["summary"])


def _edge(report: dict[str, Any]) -> str:
    """How many of them had real clients; reports from before there were any do not say."""
    count = report.get("edge_histories", 0)
    return f" ({count} through kvorum_client and the Thrift edge)" if count else ""


def _crashes(report: dict[str, Any]) -> str:
    store, first, flips = report["store"], report["first_seed"], report["flips"]
    outcomes = ", ".join(f"{outcome} {count}" for outcome, count in sorted(report["flip_outcomes"].items()))
    return (
        f"{report['images']} distinct crash images of the log at {report['places']} system calls of {report['seeds']} "
        f"recorded logs (seeds {first} to {first + report['seeds'] - 1}), {report['again']} more of their recoveries; "
        f"{sum(report['faults'].values())} system calls failed; {sum(flips.values())} bits flipped in {len(flips)} "
        f"fields of log and snapshot ({outcomes}); {store['cycles']} kills of a store that applies, "
        f"{store['killed_flushing']} while it flushed"
    )


def failures(report: dict[str, Any]) -> str:
    """How many failures, with the seeds or names that show them."""
    found = report["failures"]
    named = [str(failure.get("seed", failure.get("name", ""))) if isinstance(failure, dict) else str(failure)
             for failure in found]  # fmt: skip
    return f"{len(found)} ({', '.join(named[:8])})" if found else "0"


def render(ledger: list[dict[str, Any]]) -> str:
    """The ledger as a page, newest run first."""
    rows = [
        f"| {run['date']} | {run['report']['commit']} | `{run['report']['tool']}` | {described(run['report'])} "
        f"| {failures(run['report'])} | {run['report']['minutes']} |"
        for run in reversed(ledger)
    ]
    return HEAD + "\n".join(rows) + "\n"


def main() -> None:
    """Append reports to the ledger and write its page."""
    parser = argparse.ArgumentParser(description="Append reports of the harness to the reliability ledger.")
    parser.add_argument("folder", type=Path, help="where ledger.json and ledger.md lie")
    parser.add_argument("reports", type=Path, nargs="+", help="JSON reports of make sim, make teeth, make crash")
    taken = parser.parse_args()
    taken.folder.mkdir(parents=True, exist_ok=True)
    file = taken.folder / "ledger.json"
    ledger: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    ledger += [{"date": today, "report": json.loads(report.read_text())} for report in taken.reports]
    file.write_text(json.dumps(ledger, indent=1, sort_keys=True) + "\n")
    (taken.folder / "ledger.md").write_text(render(ledger))


if __name__ == "__main__":
    main()
