"""Seeded bugs: every one can still be put in and taken out, and what notices them does so, and is silent without."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvorum.core.cluster import Configuration, Member
from kvorum.raft.state import RaftState
from kvorum_sim.teeth import layers, raftos
from kvorum_sim.teeth.bugs import BUGS
from kvorum_sim.teeth.campaign import Result, hunt, hunt_all, report
from kvorum_sim.teeth.layers import Work, look, without_places
from kvorum_sim.teeth.mutation import Bug, StaleBugError, edit
from kvorum_sim.teeth.page import render

ROOT = Path(__file__).resolve().parents[3]
BY_NAME = {bug.name: bug for bug in BUGS}
CHEAP = (
    "vote not persisted",
    "vote cleared on step-down",
    "repeated grants counted",
    "quorum of half",
    "figure 8",
    "truncation on every append",
    "leader counts itself too early",
    "configuration not rolled back",
    "older snapshot installed",
)
"""Bugs of the pure core that a transcript shows in a moment."""


def test_every_bug_still_fits_the_product() -> None:
    """An edit whose text has changed in the product is named here, not in the middle of `make teeth`."""
    assert [bug.stale for bug in BUGS if bug.stale] == []


def test_bugs_cover_the_catalogue_and_name_tests_that_exist() -> None:
    """There are enough of them, from every section of the catalogue, and the files that should notice them exist."""
    sections = ((1, 17), (18, 32), (33, 40), (41, 50), (51, 58), (59, 65), (66, 73), (74, 80))
    files = {test.split("::")[0] for bug in BUGS for test in bug.tests}
    missing = sorted(name for name in files if not (ROOT / "service/tests" / name).is_file())

    assert len(BUGS) >= 60
    assert [section for section in sections if not any(section[0] <= bug.number <= section[1] for bug in BUGS)] == []
    assert missing == []


def test_bug_is_in_the_product_inside_its_block_only() -> None:
    """The very function that everybody holds changes, and changes back."""
    four = Configuration.of([Member(node_id, f"node{node_id}:1", f"node{node_id}:2") for node_id in range(4)])
    with BY_NAME["quorum of half"].seeded():
        during = four.quorum

    assert (during, four.quorum) == (2, 3)


def test_bug_is_taken_out_also_after_an_error() -> None:
    """What the harness raises inside the block leaves nothing behind."""
    before = RaftState.persist.__code__
    during = before
    with contextlib.suppress(ZeroDivisionError), BY_NAME["vote not persisted"].seeded():
        during = RaftState.persist.__code__
        raise ZeroDivisionError

    assert during is not before
    assert RaftState.persist.__code__ is before


@pytest.mark.parametrize(
    ("target", "old", "said"),
    [
        ("raft.state:RaftState.persist", "text that is not there", "holds 0 times"),
        ("raft.state:RaftState.persist", "self", "not once"),
        ("raft.state:RaftState.no_such_function", "self", "no_such_function"),
        ("raft.state:RaftState", "self", "is no function"),
    ],
)
def test_edit_that_does_not_fit_is_named(target: str, old: str, said: str) -> None:
    """A stale edit fails loudly, with the place and the reason; it is never skipped."""
    stale = Bug("stale", 1, "", (edit(target, (old, "pass")),))

    assert said in stale.stale
    with pytest.raises((StaleBugError, AttributeError)), stale.seeded():
        pass


@pytest.mark.parametrize("name", CHEAP)
def test_bug_of_the_core_is_caught_by_a_transcript(name: str) -> None:
    """The first layer notices it, and the same transcript says nothing once the bug is out."""
    result = hunt(BY_NAME[name])

    assert [catch.work.layer for catch in result.catches] == ["transcripts"]
    assert look(result.catches[0].work) is None


def test_bug_is_caught_by_a_story_in_a_process_of_its_own() -> None:
    """A whole cluster in virtual time shows it; this process stays clean, and so does the same story."""
    (result,) = hunt_all([BY_NAME["acknowledged before fsync"]], 1)
    (catch,) = result.catches

    assert catch.work.layer == "stories"
    assert look(catch.work) is None


def test_summary_and_page_name_survivors_with_their_reason() -> None:
    """Whoever survives is named in the last line and explained in the page; texts hold no folders of this machine."""
    survivor = Result("some bug", 7, "It is wrong.", tried={"stories": 3}, reason="nobody looks there")
    found = report([survivor], [], 0, raftos.Trial(error="no network"))
    page = render({**found, "minutes": 1, "processor_minutes": 1})

    assert "1 bugs, 0 caught (0.0 %), survivors: some bug" in found["summary"]
    assert found["failures"] == ["survived: some bug", "raftos was not tried: no network"]
    assert "- some bug (number 7): nobody looks there" in page
    assert without_places(f"{ROOT}/service/x.py") == "service/x.py"


def test_raftos_that_cannot_be_installed_is_said_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a package index there is no trial: the reason is printed, and it counts as a problem."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    trial = raftos.tried(tmp_path / "environment")

    assert trial.summary == f"raftos {raftos.RELEASE} not tried"
    assert "raftos" in trial.error
    assert trial.problems


def test_raftos_that_is_not_convicted_is_a_problem() -> None:
    """The three charges must be seen; a history without faults that raises an alarm discredits the trial."""
    trial = raftos.Trial(
        convictions=[{"name": "double vote", "seed": 1, "nodes": 3, "text": "seen"}], false_alarms=["x"]
    )

    assert trial.problems == [
        "raftos was not convicted of: wrong majority",
        "raftos was not convicted of: committed entry erased",
        "raftos without faults: x",
    ]


def test_campaign_refuses_a_name_that_no_bug_has() -> None:
    """A campaign over nothing must not look like success."""
    command = [sys.executable, "-m", "kvorum_sim.teeth.campaign", "--only", "no such bug"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "service")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert done.returncode != 0
    assert "no bug's name contains no such bug" in done.stderr


def test_work_that_never_ends_is_a_catch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that makes a loop endless is noticed by processor time."""

    def forever(_: Work) -> None:
        while True:
            pass

    monkeypatch.setattr(layers, "HANG_S", 0.2)
    monkeypatch.setitem(layers._LOOKS, "transcripts", forever)
    catch = layers.look(Work("transcripts", "x"))

    assert catch is not None
    assert "does not end" in catch.text
