"""
``make sim``: many seeds over all cores, one summary line, and a report for the ledger.

Seeds run in processes of their own. One in a hundred runs a second time in another process, and its trace must be the
same to the last step. The run ends when enough histories are counted or the time is up, and says which; it fails for
any failed history, any trace that differs, too many inconclusive ones, and rare states that were never reached.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvorum_sim.probes import missing
from kvorum_sim.scenario import Verdict, examine, totals

if TYPE_CHECKING:
    from collections.abc import Iterator

TWICE_EVERY: Final = 100
"""One seed in so many runs twice."""
INCONCLUSIVE_MAX: Final = 0.05
PROBES_FROM: Final = 1_000
"""From so many histories on, every probe must have been reached."""
PROGRESS_S: Final = 10.0
FAILURES_SHOWN: Final = 10


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Campaign:
    """
    What has come in so far.

    Args:
        wanted: Histories to be counted.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.verdicts: list[Verdict] = []
        self.twice: dict[int, str] = {}
        self.differing: list[Verdict] = []
        self.repeated = 0
        self.started = time.monotonic()

    @property
    def counted(self) -> int:
        """Histories that count."""
        return sum(verdict.verdict == "counted" for verdict in self.verdicts)

    @property
    def minutes(self) -> float:
        """Since the beginning."""
        return (time.monotonic() - self.started) / 60

    def take(self, verdict: Verdict) -> None:
        """One history has come in."""
        known = self.twice.get(verdict.seed)
        if known is not None:
            self.repeated += 1
            if known != verdict.trace:
                self.differing.append(verdict)
                _say(f"NOT REPEATABLE: seed {verdict.seed} gave trace {known}, then {verdict.trace}: {verdict.replay}")
            return
        self.verdicts.append(verdict)
        if verdict.seed % TWICE_EVERY == 0:
            self.twice[verdict.seed] = verdict.trace
        failures = sum(verdict.verdict == "failed" for verdict in self.verdicts)
        if verdict.verdict == "failed" and failures <= FAILURES_SHOWN:
            _say(f"FAILED: seed {verdict.seed}, {verdict.composition}, {verdict.nodes} nodes: {verdict.reason}")
            _say(f"  replay with: {verdict.replay}")

    def problems(self) -> list[str]:
        """Why this run is no proof."""
        histories = Counter(verdict.verdict for verdict in self.verdicts)
        found = []
        if histories["failed"]:
            found.append(f"{histories['failed']} histories failed")
        if self.differing:
            found.append(f"{len(self.differing)} seeds were not repeatable")
        if self.counted < self.wanted:
            found.append(f"only {self.counted} of {self.wanted} histories were counted")
        if histories["inconclusive"] > INCONCLUSIVE_MAX * max(1, len(self.verdicts)):
            found.append(f"{histories['inconclusive']} histories were inconclusive")
        if self.counted >= PROBES_FROM:
            found += [f"never reached: {probe}" for probe in missing(totals(self.verdicts)["probes"])]
        return found

    def report(self, first_seed: int) -> dict[str, Any]:
        """Everything the ledger wants to know."""
        return {
            "tool": "make sim",
            "commit": commit(),
            "first_seed": first_seed,
            "seeds": len(self.verdicts),
            "repeated": self.repeated,
            "not_repeatable": [verdict.seed for verdict in self.differing],
            "minutes": round(self.minutes, 2),
            "problems": self.problems(),
            "failures": [verdict.as_dict() for verdict in self.verdicts if verdict.verdict == "failed"],
            "inconclusive": [
                {"seed": verdict.seed, "reason": verdict.reason}
                for verdict in self.verdicts
                if verdict.verdict == "inconclusive"
            ],
            **totals(self.verdicts),
        }

    def print_summary(self) -> None:
        """Tables, then the one line."""
        sums = totals(self.verdicts)
        _say("faults: " + ", ".join(f"{kind} {count}" for kind, count in sums["faults"].most_common()))
        _say("probes: " + ", ".join(f"{probe} {count}" for probe, count in sums["probes"].most_common()))
        kinds = len(sums["compositions"])
        for problem in self.problems():
            _say(f"PROBLEM: {problem}")
        histories, outcomes = sums["histories"], sums["outcomes"]
        unreached = len(missing(sums["probes"]))
        _say(
            f"sim: {histories['counted']} histories counted ({sums['edge_histories']} through kvorum_client), "
            f"{histories['inconclusive']} inconclusive, {histories['failed']} failed; "
            f"operations {outcomes['ok']} ok, {outcomes['failed']} failed, "
            f"{outcomes['unknown']} unknown; {sum(sums['faults'].values())} faults of {len(sums['faults'])} kinds in "
            f"{kinds} compositions; {sums['checks']} events checked; {self.repeated} seeds run twice, "
            f"{len(self.differing)} differ; {unreached} probes not reached; {self.minutes:.1f} minutes"
        )


def commit() -> str:
    """The commit that this tree was checked out from."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607 - whichever git the user has
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _seeds(first: int, campaign: Campaign, end: float) -> Iterator[int]:
    """Fresh seeds, some again a while later, until enough histories are counted or the time is up."""
    seed = first
    waiting: list[int] = []
    while time.monotonic() < end and campaign.counted < campaign.wanted:
        if seed % TWICE_EVERY == TWICE_EVERY // 2 and waiting:
            yield waiting.pop(0)
        yield seed
        if seed % TWICE_EVERY == 0:
            waiting.append(seed)
        seed += 1


def run(seeds: int, minutes: float, first: int, jobs: int) -> Campaign:
    """Play seeds until ``seeds`` histories count or ``minutes`` are over."""
    campaign = Campaign(seeds)
    end = campaign.started + minutes * 60
    said = campaign.started
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, maxtasksperchild=200) as pool:
        under_way: list[Any] = []
        fresh = _seeds(first, campaign, end)
        exhausted = False
        while under_way or not exhausted:
            while not exhausted and len(under_way) < 3 * jobs:
                seed = next(fresh, None)
                if seed is None:
                    exhausted = True
                else:
                    under_way.append(pool.apply_async(examine, (seed,)))
            ready = [result for result in under_way if result.ready()]
            under_way = [result for result in under_way if result not in ready]
            for result in ready:
                campaign.take(result.get())
            if not ready and under_way:
                under_way[0].wait(0.2)
            if time.monotonic() - said > PROGRESS_S:
                said = time.monotonic()
                _say(f"{campaign.counted} of {seeds} histories, {campaign.minutes:.1f} of {minutes:g} minutes")
    return campaign


def main(arguments: list[str]) -> int:
    """Run what the arguments say; 0 if it is a proof."""
    parser = argparse.ArgumentParser(prog="python -m kvorum_sim.campaign", description="Play many seeds.")
    parser.add_argument("--seeds", type=int, default=2_000, help="histories that must count")
    parser.add_argument("--minutes", type=float, default=20.0, help="then it ends in any case")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write the report here")
    taken = parser.parse_args(arguments)
    campaign = run(taken.seeds, taken.minutes, taken.first, taken.jobs)
    if taken.json is not None:
        taken.json.write_text(json.dumps(campaign.report(taken.first), indent=1) + "\n")
    campaign.print_summary()
    return 1 if campaign.problems() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
