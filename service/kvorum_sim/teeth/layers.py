"""
The ways in which the harness can notice a bug, cheapest first.

Each layer runs in a process that has the bug, until something is noticed or its share of time is over. What is noticed
comes back with the one piece of work that noticed it, so that the very same can be done without the bug and must then
be clean.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import signal
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvorum_sim.scenario import examine, replay_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvorum_sim.teeth.mutation import Bug

ROOT: Final = Path(__file__).resolve().parents[3]
"""Of the repository: transcripts and test files are found from there."""

CORE_SEEDS: Final = 240
STORY_SEEDS: Final = 24
FOCUSED_SEEDS: Final = 16
"""Stories of the kinds of fault that a bug names, before those of any kind."""

HANG_S: Final = 30.0
"""Processor seconds after which one piece of work, which takes some seconds at most, counts as one that never ends."""

TEXT_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of work of a layer; ``what`` names it there."""

    layer: str
    what: str
    seed: int = 0
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Catch:
    """What was noticed, where, and how to see it again."""

    work: Work
    text: str
    replay: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class HangError(BaseException):
    """A piece of work does not end; no rescue inside the product may catch this."""


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raise `HangError` inside the block after so many processor seconds."""

    def ring(*_: object) -> None:
        msg = f"does not end within {seconds:g} processor seconds"
        raise HangError(msg)

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def plan(bug: Bug) -> list[tuple[str, list[Work]]]:
    """The layers that can show a bug, cheapest first, each with its work."""
    layers: list[tuple[str, list[Work]]] = []
    if bug.pure:
        layers.append(("transcripts", transcripts()))
        cores = [
            Work("cores", f"voters={voters}, churn={churn}", seed)
            for seed in range(CORE_SEEDS // 4)
            for voters in (3, 5)
            for churn in (True, False)
        ]
        layers.append(("cores", cores))
    focused = [Work("stories", "", seed, bug.kinds) for seed in range(FOCUSED_SEEDS)] if bug.kinds else []
    layers.append(("stories", focused + [Work("stories", "", seed) for seed in range(STORY_SEEDS)]))
    if bug.tests:
        tests = ("tests", [Work("tests", path) for path in bug.tests])
        # Whoever names no kind of fault for its bug expects the stories to find nothing.
        layers.insert(len(layers) - (not bug.kinds), tests)
    return layers


def transcripts() -> list[Work]:
    """Every transcript."""
    folder = ROOT / "service/tests/scripts/raft"
    return [Work("transcripts", path.name) for path in sorted(folder.glob("*.txt"))]


def look(work: Work) -> Catch | None:
    """Do one piece of work; what it noticed, if anything."""
    try:
        with bounded(HANG_S if work.layer != "tests" else 10 * HANG_S):
            return _LOOKS[work.layer](work)
    except HangError as error:
        return Catch(work, str(error), _replay(work))


def search(works: list[Work], budget_s: float) -> tuple[Catch | None, int]:
    """Work until something is noticed or so many processor seconds are over; also says how much was done."""
    end = time.process_time() + budget_s
    for done, work in enumerate(works, 1):
        catch = look(work)
        if catch is not None:
            return catch, done
        if time.process_time() > end:
            return None, done
    return None, len(works)


def _replay(work: Work) -> str:
    if work.layer == "stories":
        return replay_command(work.seed, work.kinds)
    if work.layer == "cores":
        return f"Nemesis({work.seed}, {work.what}).run() of service/tests/unit/raft/test_raft_simulation.py"
    if work.layer == "transcripts":
        return f"service/tests/scripts/raft/{work.what}"
    return f"pytest service/tests/{work.what}"


def without_places(text: str) -> str:
    """A text that is the same on every machine: no folder of the repository, no temporary one."""
    text = text.replace(f"{ROOT}/", "")
    return re.sub(r"/[\w./-]*pytest-of-[\w./-]*|/tmp/[\w./-]*", "<folder>", text)


def said(error: BaseException) -> str:
    """The last line of an error, with where it was raised."""
    lines = [line for line in "".join(traceback.format_exception_only(error)).splitlines() if line.strip()]
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return without_places(f"{lines[0] if lines else type(error).__name__} ({where})")[:TEXT_MAX]


def _transcript(work: Work) -> Catch | None:
    module = importlib.import_module("tests.scripts.transcript")
    path = ROOT / "service/tests/scripts/raft" / work.what
    try:
        written, happened = module.run(path)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the catch
        return Catch(work, said(error), _replay(work))
    if written == happened:
        return None
    pairs = zip(written.splitlines(), happened.splitlines(), strict=False)
    line, (wrote, got) = next(
        ((at, pair) for at, pair in enumerate(pairs, 1) if pair[0] != pair[1]), (0, ("the end", "more"))
    )
    return Catch(work, f"line {line} says {wrote.strip()!r}, it was {got.strip()!r}"[:TEXT_MAX], _replay(work))


def _core(work: Work) -> Catch | None:
    module = importlib.import_module("tests.unit.raft.test_raft_simulation")
    voters, churn = (field.partition("=")[2] for field in work.what.split(", "))
    try:
        module.Nemesis(work.seed, int(voters), churn=churn == "True").run()
    except HangError:
        raise
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return Catch(work, said(error), _replay(work))
    return None


def _story(work: Work) -> Catch | None:
    # Faults of clients bring clients with them; otherwise stories of nodes alone say more in the same time.
    verdict = examine(work.seed, work.kinds or None, edge=None if work.kinds else False)
    if verdict.verdict != "failed":
        return None
    text = " ".join(verdict.reason.partition("\n")[0].split())
    return Catch(work, without_places(text)[:TEXT_MAX], verdict.replay)


def _tests(work: Work) -> Catch | None:
    """Test functions, in this very process, which has the bug."""
    pytest = importlib.import_module("pytest")

    class Listener:
        """Takes the first failure."""

        failed = ""
        text = ""

        def pytest_runtest_logreport(self, report: Any) -> None:
            """One phase of one test is over."""
            if report.failed and not self.failed:
                crash = getattr(report.longrepr, "reprcrash", None)
                self.failed = report.nodeid.rpartition("/")[2]
                self.text = " ".join(str(crash.message if crash else report.longrepr).split())

    listener = Listener()
    options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:randomly", "--hypothesis-seed=0"]
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            status = pytest.main([*options, f"service/tests/{work.what}"], plugins=[listener])
    finally:
        os.chdir(before)
    if not status:
        return None
    found = Work("tests", work.what)
    text = without_places(f"{listener.failed}: {listener.text}")[:TEXT_MAX]
    return Catch(found, text, _replay(work))


_LOOKS: Final = {"transcripts": _transcript, "cores": _core, "stories": _story, "tests": _tests}
