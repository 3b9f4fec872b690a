"""
``make teeth``: every seeded bug, one after the other, against every layer that can show it; then raftos.

Each bug runs in a process of its own, so that nothing of it is left over. A bug is caught by the first layer that
notices it; with ``--all-layers`` the others go on, to show how much of the harness would have to be blind. In the end
the very pieces of work that noticed something are done without any bug and must be clean: else they notice the weather.

::

    python -m kvorum_sim.teeth.campaign [--only NAME...] [--all-layers] [--no-raftos] [--json FILE] [--page FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvorum_sim.campaign import commit
from kvorum_sim.teeth import raftos
from kvorum_sim.teeth.bugs import BUGS
from kvorum_sim.teeth.layers import ROOT, Catch, Work, look, plan, search
from kvorum_sim.teeth.page import render

if TYPE_CHECKING:
    from collections.abc import Iterable
    from multiprocessing.connection import Connection

    from kvorum_sim.teeth.mutation import Bug

LAYER_S: Final = {"transcripts": 5.0, "cores": 6.0, "stories": 60.0, "tests": 60.0}
"""Processor seconds of one bug in each layer; a piece of work that was begun is finished."""

ALSO_S: Final = {"transcripts": 5.0, "cores": 3.0, "stories": 4.0, "tests": 0.0}
"""The same once a cheaper layer has caught it."""

BUG_WALL_S: Final = 600.0
"""A process that is still not done after this is ended; layers end by processor seconds, long before."""

WANTED: Final = 0.95


@dataclass(slots=True)
class Result:
    """What became of one bug."""

    name: str
    number: int
    text: str
    catches: list[Catch] = field(default_factory=list)
    tried: dict[str, int] = field(default_factory=dict)
    """By layer: pieces of work done."""
    reason: str = ""
    """Why nothing noticed, where that is known."""
    error: str = ""
    seconds: float = 0.0
    """Of a processor."""

    @property
    def caught(self) -> bool:
        """Whether any layer noticed."""
        return bool(self.catches)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "number": self.number,
            "text": self.text,
            "catches": [catch.as_dict() for catch in self.catches],
            "tried": self.tried,
            "reason": self.reason,
            "error": self.error,
            "seconds": round(self.seconds, 1),
        }


def hunt(bug: Bug, *, all_layers: bool = False) -> Result:
    """Look for a bug in this process, layer by layer; the process should end afterwards."""
    result = Result(bug.name, bug.number, bug.text, reason=bug.reason)
    started = time.process_time()
    with bug.seeded():
        for layer, works in plan(bug):
            budget_s = (ALSO_S if result.caught else LAYER_S)[layer]
            if not budget_s or (result.caught and not all_layers):
                continue
            catch, result.tried[layer] = search(works, budget_s)
            if catch is not None:
                result.catches.append(catch)
    result.seconds = time.process_time() - started
    return result


def _hunt_and_tell(bug: Bug, answer: Connection, *, all_layers: bool) -> None:
    """Body of a child process."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    answer.send(hunt(bug, all_layers=all_layers))


def _look_and_tell(works: list[Work], answer: Connection) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    answer.send([catch for work in works if (catch := look(work)) is not None])


def hunt_all(bugs: Iterable[Bug], jobs: int, *, all_layers: bool = False) -> list[Result]:
    """Look for every bug, each in a process of its own, so many at a time."""
    context = multiprocessing.get_context("fork")
    waiting = list(bugs)
    names = [bug.name for bug in waiting]
    running: list[tuple[Bug, Any, Connection, float]] = []
    results: dict[str, Result] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            bug = waiting.pop(0)
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=_hunt_and_tell, args=(bug, theirs), kwargs={"all_layers": all_layers})
            child.start()
            theirs.close()
            running.append((bug, child, ours, time.monotonic()))
        for entry in list(running):
            bug, child, ours, started = entry
            if ours.poll(0.05 / len(running)) or not child.is_alive() or time.monotonic() - started > BUG_WALL_S:
                running.remove(entry)
                results[bug.name] = _take(bug, child, ours)
                _say_result(results[bug.name], len(results), len(names))
    return [results[name] for name in names]


def _take(bug: Bug, child: Any, answer: Connection) -> Result:
    result = Result(bug.name, bug.number, bug.text, reason=bug.reason)
    try:
        if answer.poll():
            result = answer.recv()
        else:
            result.error = f"no answer after {BUG_WALL_S:g} s"
    except EOFError:
        result.error = "its process ended without an answer"
    child.join(timeout=0 if result.error else 5)
    if child.is_alive():
        child.kill()
        child.join()
    answer.close()
    return result


def control(works: list[Work], jobs: int) -> list[Catch]:
    """Do the same work without any bug; whatever is noticed now is a false alarm."""
    context = multiprocessing.get_context("fork")
    children = []
    for share in (works[start::jobs] for start in range(jobs)):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_look_and_tell, args=(share, theirs))
        child.start()
        theirs.close()
        children.append((child, ours))
    alarms: list[Catch] = []
    for child, ours in children:
        alarms += ours.recv()
        child.join()
    return alarms


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _number(number: int) -> str:
    return f"#{number:<3}" if number else "    "


def _say_result(result: Result, done: int, count: int) -> None:
    if result.catches:
        first = result.catches[0]
        also = ", ".join(catch.work.layer for catch in result.catches[1:])
        seed = f" seed {first.work.seed}" if first.work.layer in {"cores", "stories"} else f" {first.work.what}"
        what = f"caught by {first.work.layer}{seed}{f' (also {also})' if also else ''}: {first.text[:90]}"
    else:
        what = f"SURVIVED {result.tried} {result.error}"
    _say(f"{done:3}/{count} {result.seconds:5.1f} s  {_number(result.number)} {result.name}: {what}")


def processor_minutes() -> float:
    """Used up to now, by this process and by its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used) / 60


def report(results: list[Result], alarms: list[Catch], checked: int, trial: raftos.Trial | None) -> dict[str, Any]:
    """Everything a page or a ledger wants to know."""
    caught = sum(result.caught for result in results)
    survivors = [result for result in results if not result.caught]
    summary = (
        f"teeth: {len(results)} bugs, {caught} caught ({100 * caught / max(1, len(results)):.1f} %), "
        f"survivors: {', '.join(result.name for result in survivors) or 'none'}; "
        f"{checked} controls without a bug, {len(alarms)} false alarms"
    )
    if trial is not None:
        summary += f"; {trial.summary}"
    return {
        "tool": "make teeth",
        "commit": commit(),
        "summary": summary,
        "failures": [
            *(f"survived: {result.name}" for result in survivors),
            *(f"false alarm: {alarm.work}" for alarm in alarms),
            *(trial.problems if trial else ()),
        ],
        "bugs": [result.as_dict() for result in results],
        "control": {"checked": checked, "alarms": [alarm.as_dict() for alarm in alarms]},
        "raftos": trial.as_dict() if trial else None,
    }


def main(arguments: list[str]) -> int:
    """Hunt; 0 if enough was caught, nothing without a bug, and raftos was convicted."""
    parser = argparse.ArgumentParser(prog="python -m kvorum_sim.teeth.campaign", description="Hunt seeded bugs.")
    parser.add_argument("--only", action="append", help="only bugs whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--all-layers", action="store_true", help="go on after the first layer that notices")
    parser.add_argument("--no-raftos", action="store_true", help="leave raftos alone")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--page", type=Path, help="write the report as a page here")
    taken = parser.parse_args(arguments)
    started = time.monotonic()
    bugs = [bug for bug in BUGS if not taken.only or any(part in bug.name for part in taken.only)]
    if not bugs:
        parser.error(f"no bug's name contains {' or '.join(taken.only)}")
    stale = [bug.stale for bug in bugs if bug.stale]
    if stale:
        parser.error("the product has changed where bugs belong; edit them:\n  " + "\n  ".join(stale))
    results = hunt_all(bugs, taken.jobs, all_layers=taken.all_layers)
    works = list(dict.fromkeys(catch.work for result in results for catch in result.catches))
    alarms = control(works, taken.jobs)
    trial = None if taken.no_raftos else raftos.tried(ROOT / ".venv/raftos")
    found = report(results, alarms, len(works), trial)
    found["minutes"] = round((time.monotonic() - started) / 60, 2)
    found["processor_minutes"] = round(processor_minutes(), 2)
    if taken.json is not None:
        taken.json.write_text(json.dumps(found, indent=1) + "\n")
    if taken.page is not None:
        taken.page.parent.mkdir(parents=True, exist_ok=True)
        taken.page.write_text(render(found))
    for result in results:
        if not result.caught:
            _say(f"SURVIVED: {_number(result.number)} {result.name}: {result.reason or 'for no known reason'}")
    for alarm in alarms:
        _say(f"FALSE ALARM without any bug: {alarm.work.layer} {alarm.work.what} {alarm.work.seed}: {alarm.text}")
    for line in trial.lines if trial else ():
        _say(line)
    for problem in trial.problems if trial else ():
        _say(f"PROBLEM: {problem}")
    _say(f"{found['minutes']:.1f} minutes, {found['processor_minutes']:.1f} of a processor")
    _say(found["summary"])
    enough = len(results) - sum(result.caught for result in results) <= (1 - WANTED) * len(results)
    return 0 if enough and not alarms and not (trial and trial.problems) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
