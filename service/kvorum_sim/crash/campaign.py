"""
``make crash``: crash images of the log, its calls failed one by one, flipped bits, a store that is killed; all cores.

The last line is the summary. The run fails for any image, flip or kill that went wrong, for fewer distinct images than
wanted, and if something that must happen to the log in its recorded lives never happened. Every failure prints the one
command that shows it again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvorum_sim.campaign import commit
from kvorum_sim.crash.faults import FaultReport, count_calls, fail_each_call
from kvorum_sim.crash.flips import FlipReport, flip_log, flip_snapshot, flip_while_reading
from kvorum_sim.crash.images import images_of
from kvorum_sim.crash.judge import judge
from kvorum_sim.crash.lives import live

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvorum.storage.wal.system import SystemCalls
    from kvorum_sim.crash.history import Expectation
    from kvorum_sim.crash.images import Image
    from kvorum_sim.crash.lives import Recording

MODULE: Final = "python -m kvorum_sim.crash.campaign"
IMAGES_OF_SEED: Final = 700
"""Distinct images of one seed that are opened: a fair sample of some 3,000, so that many lives are seen."""
AGAIN_EVERY: Final = 15
"""One image in so many is cut again during its recovery."""
IMAGES_MIN: Final = 5_000
MUST_HAPPEN: Final = (
    "append", "conflict", "configuration", "hard state", "segments dropped", "reset", "disk full", "failed sync",
    "kill", "stop",
)  # fmt: skip
FAILURES_SHOWN: Final = 10
FAULT_SLICES: Final = 8
"""Parts into which the calls to be failed are cut, so that all cores have some."""
PROGRESS_S: Final = 10.0


@dataclass(slots=True)
class SeedReport:
    """What came of one seed's images."""

    seed: int
    digests: set[int] = field(default_factory=set)
    """One per distinct image opened."""
    places: int = 0
    """System calls behind which there was a crash."""
    again: int = 0
    refused: int = 0
    untold: int = 0
    acts: Counter[str] = field(default_factory=Counter)
    problems: list[dict[str, Any]] = field(default_factory=list)


def distinct(recording: Recording) -> Iterator[tuple[int, Image, Expectation]]:
    """Number, image and what is allowed: each image once for each thing it is allowed to say."""
    seen: set[tuple[object, ...]] = set()
    images = images_of(recording.journal, random.Random(f"images {recording.seed}"))
    for number, image in enumerate(images):
        expectation = recording.history.expected(image.calls)
        key = (image.digest, expectation.key)
        if key not in seen:
            seen.add(key)
            yield number, image, expectation


def examine(
    seed: int,
    at_most: int = IMAGES_OF_SEED,
    alter: Callable[[SystemCalls], SystemCalls] = lambda system: system,
) -> SeedReport:
    """
    Play a seed, then open a sample of its images.

    Args:
        seed: Decides everything.
        at_most: How many images are opened.
        alter: See `lives.live`.
    """
    report = SeedReport(seed)
    try:
        recording = live(seed, alter)
    except Exception as error:  # noqa: BLE001 - a log that fails between two lives is a finding like any other
        report.problems.append(_problem(seed, None, f"in its lives: {type(error).__name__}: {error}"))
        return report
    report.acts = recording.acts
    report.places = len(recording.journal)
    images = list(distinct(recording))
    chance = random.Random(f"sample {seed}")
    for number, image, expectation in chance.sample(images, min(at_most, len(images))):
        outcome = judge(image, expectation, recording.segment_bytes, again=number % AGAIN_EVERY == 0)
        report.digests.add(image.digest)
        report.again += outcome.again
        report.refused += outcome.refused
        report.untold += outcome.untold
        if outcome.problem:
            where = f"behind call {image.calls} of {len(recording.journal)}, {image.kind}"
            report.problems.append(_problem(seed, number, f"{where}: {outcome.problem}"))
    return report


def _problem(seed: int, number: int | None, reason: str) -> dict[str, Any]:
    replay = f"PYTHONPATH=service {MODULE} --seed {seed}" + ("" if number is None else f" --image {number}")
    return {"seed": seed, "image": number, "reason": reason, "replay": replay}


def replay(seed: int, number: int | None) -> int:
    """Show one image of a seed again, or examine all of them; 0 if nothing is wrong."""
    if number is None:
        problems = examine(seed, sys.maxsize).problems
    else:
        recording = live(seed)
        _, image, expectation = next(found for found in distinct(recording) if found[0] == number)
        for path, content in sorted(image.contents.items()):
            _say(f"{path.name}: {len(content)} bytes, {len(content.rstrip(bytes(1)))} up to the last that is not zero")
        outcome = judge(image, expectation, recording.segment_bytes, again=True)
        where = f"behind call {image.calls} of {len(recording.journal)}, {image.kind}"
        problems = [_problem(seed, number, f"{where}: {outcome.problem}")] if outcome.problem else []
    for problem in problems:
        _say(f"FAILED: seed {problem['seed']}, image {problem['image']}: {problem['reason']}")
    if not problems:
        _say("nothing is wrong")
    return 1 if problems else 0


def _flip(seed: int) -> FlipReport:
    """Every bit of a small log, of one that is being read, and of a snapshot."""
    report = flip_log(seed, 8)
    report.add(flip_while_reading(seed))
    report.add(flip_snapshot(seed))
    return report


def _kill_stores(cycles: int, seed: int) -> dict[str, Any]:
    """The store's cycles, in a process of their own that forks."""
    with tempfile.TemporaryDirectory(prefix="kvorum-crash-") as directory:
        found = subprocess.run(  # noqa: S603 - this very Python
            [
                sys.executable, "-m", "kvorum_sim.crash.store", str(Path(directory) / "store"),
                "--cycles", str(cycles), "--seed", str(seed),
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    try:
        report: dict[str, Any] = json.loads(found.stdout)
    except ValueError:
        report = {"cycles": 0, "problems": [f"seed {seed}: {found.stderr.strip()[-500:]}"]}
    return report


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class CrashCampaign:
    """
    What has come in so far.

    Args:
        seeds: Recorded lives, from the first seed on.
        first: The first seed.
        cycles: Kills of the store.
    """

    def __init__(self, seeds: int, first: int, cycles: int) -> None:
        self.seeds = seeds
        self.first = first
        self.cycles = cycles
        self.done: list[SeedReport] = []
        self.digests: set[int] = set()
        self.unfinished = 0
        """Parts of the work that the time did not suffice for."""
        self.flips = FlipReport()
        self.faults = FaultReport()
        self.kills: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []
        self.commit = commit()
        """As it was at the beginning: whoever works on meanwhile does not change what was run."""
        self.started = time.monotonic()

    @property
    def minutes(self) -> float:
        """Since the beginning."""
        return (time.monotonic() - self.started) / 60

    def take(self, report: SeedReport) -> None:
        """One seed's images have been opened."""
        self.done.append(report)
        self.digests |= report.digests
        for problem in report.problems:
            self.fail(problem)

    def take_flips(self, seed: int, report: FlipReport) -> None:
        """One seed's bits have been turned over."""
        self.flips.add(report)
        for problem in report.problems:
            self.fail({"seed": seed, "reason": problem, "replay": f"PYTHONPATH=service {MODULE} --flips-of {seed}"})

    def take_faults(self, seed: int, report: FaultReport) -> None:
        """Some calls of one seed have failed."""
        self.faults.faults += report.faults
        for problem in report.problems:
            self.fail({"seed": seed, "reason": problem, "replay": f"PYTHONPATH=service {MODULE} --faults-of {seed}"})

    def take_kills(self, seed: int, report: dict[str, Any]) -> None:
        """One store's kills are over."""
        self.kills.update({name: count for name, count in report.items() if isinstance(count, int)})
        for problem in report["problems"]:
            command = f"PYTHONPATH=service python -m kvorum_sim.crash.store NEW_DIRECTORY --seed {seed}"
            self.fail({"seed": seed, "reason": problem, "replay": command})

    def fail(self, failure: dict[str, Any]) -> None:
        """Something went wrong: keep it, and say it if not too much has been said."""
        self.failures.append(failure)
        if len(self.failures) <= FAILURES_SHOWN:
            _say(f"FAILED: seed {failure['seed']}: {failure['reason']}")
            _say(f"  replay with: {failure['replay']}")

    @property
    def acts(self) -> Counter[str]:
        """What happened in all lives."""
        acts: Counter[str] = Counter()
        for report in self.done:
            acts += report.acts
        return acts

    def problems(self) -> list[str]:
        """Why this run is no proof."""
        found = []
        if self.failures:
            found.append(f"{len(self.failures)} failures")
        if len(self.digests) < IMAGES_MIN:
            found.append(f"only {len(self.digests)} of {IMAGES_MIN} distinct images: give it more seeds")
        if self.unfinished:
            found.append(f"{self.unfinished} parts were not finished in time: give it fewer seeds or more minutes")
        if self.kills["cycles"] < self.cycles:
            found.append(f"only {self.kills['cycles']} of {self.cycles} stores were killed")
        acts = self.acts
        found += [f"never happened: {act}" for act in MUST_HAPPEN if not acts[act]]
        return found

    def summary(self) -> str:
        """The one line."""
        done, flips = self.done, self.flips.flips
        refused = sum(report.refused for report in done)
        return (
            f"crash: {len(self.digests)} distinct images at {sum(report.places for report in done)} system calls of "
            f"{len(done)} recorded logs, {sum(report.again for report in done)} more of their recoveries, {refused} "
            f"lawfully refused; {self.faults.faults.total()} calls failed; {flips.total()} bits flipped in "
            f"{len(flips)} fields; {self.kills['cycles']} kills of a store, "
            f"{self.kills['killed_flushing']} while it flushed; {len(self.failures)} failures; "
            f"{self.minutes:.1f} minutes"
        )

    def progress(self) -> str:
        """How far it is."""
        return (
            f"{len(self.done)} of {self.seeds} logs, {len(self.digests)} images, {self.faults.faults.total()} failed "
            f"calls, {self.flips.flips.total()} flips, {self.kills['cycles']} kills, {self.minutes:.1f} minutes"
        )

    def report(self) -> dict[str, Any]:
        """Everything the ledger wants to know."""
        return {
            "tool": "make crash",
            "commit": self.commit,
            "first_seed": self.first,
            "seeds": self.seeds,
            "images": len(self.digests),
            "places": sum(report.places for report in self.done),
            "again": sum(report.again for report in self.done),
            "untold": sum(report.untold for report in self.done),
            "refused": sum(report.refused for report in self.done),
            "acts": self.acts,
            "faults": self.faults.faults,
            "flips": self.flips.flips,
            "flip_outcomes": self.flips.outcomes,
            "store": self.kills,
            "minutes": round(self.minutes, 2),
            "problems": self.problems(),
            "failures": self.failures,
        }


def run(seeds: int, first: int, flips: int, faults: int, cycles: int, *, jobs: int, minutes: float) -> CrashCampaign:
    """Everything, over so many processes, but no longer than so many minutes."""
    campaign = CrashCampaign(seeds, first, cycles)
    said = campaign.started
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        takers: dict[Any, Callable[[Any], object]] = {}
        share = -(-cycles // jobs)
        for seed, begin in enumerate(range(0, cycles, max(1, share)), first):
            count = min(share, cycles - begin)
            takers[pool.apply_async(_kill_stores, (count, seed))] = partial(campaign.take_kills, seed)
        for seed in range(first, first + faults):
            calls = count_calls(seed)
            for part in range(FAULT_SLICES):
                indexes = range(part, calls, FAULT_SLICES)
                takers[pool.apply_async(fail_each_call, (seed, indexes))] = partial(campaign.take_faults, seed)
        for seed in range(first, first + flips):
            takers[pool.apply_async(_flip, (seed,))] = partial(campaign.take_flips, seed)
        for seed in range(first, first + seeds):
            takers[pool.apply_async(examine, (seed,))] = campaign.take
        while takers and campaign.minutes < minutes:
            ready = [result for result in takers if result.ready()]
            for result in ready:
                takers.pop(result)(result.get())
            if not ready:
                next(iter(takers)).wait(0.2)
            if time.monotonic() - said > PROGRESS_S:
                said = time.monotonic()
                _say(campaign.progress())
        campaign.unfinished = len(takers)
    return campaign


def main(arguments: list[str]) -> int:
    """Run what the arguments say; 0 if it is a proof."""
    parser = argparse.ArgumentParser(prog=MODULE, description="Crash a log and a store in every way, and open them.")
    parser.add_argument("--seeds", type=int, default=20, help="recorded lives of a log")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--flips", type=int, default=1, help="logs and snapshots of which every bit is turned over")
    parser.add_argument("--faults", type=int, default=1, help="logs of which every system call fails once")
    parser.add_argument("--cycles", type=int, default=200, help="kills of a store")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=30.0, help="then it ends in any case")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--seed", type=int, help="only this seed, all its images")
    parser.add_argument("--image", type=int, help="only this image of the seed")
    parser.add_argument("--flips-of", type=int, help="only the flips of this seed")
    parser.add_argument("--faults-of", type=int, help="only the failed calls of this seed")
    taken = parser.parse_args(arguments)
    if taken.seed is not None:
        return replay(taken.seed, taken.image)
    if taken.flips_of is not None or taken.faults_of is not None:
        examined = fail_each_call(taken.faults_of) if taken.flips_of is None else _flip(taken.flips_of)
        problems = examined.problems
        _say("\n".join(problems) or "nothing is wrong")
        return 1 if problems else 0
    campaign = run(
        taken.seeds, taken.first, taken.flips, taken.faults, taken.cycles, jobs=taken.jobs, minutes=taken.minutes
    )
    if taken.json is not None:
        taken.json.write_text(json.dumps(campaign.report(), indent=1) + "\n")
    _say("lives: " + ", ".join(f"{act} {count}" for act, count in campaign.acts.most_common()))
    _say("flips: " + ", ".join(f"{outcome} {count}" for outcome, count in campaign.flips.outcomes.most_common()))
    for problem in campaign.problems():
        _say(f"PROBLEM: {problem}")
    _say(campaign.summary())
    return 1 if campaign.problems() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
