"""Histories drawn from seeds: mixes of faults, judged; and the judges' own teeth."""

from __future__ import annotations

import random

import pytest

from kvorum_sim import nemesis
from kvorum_sim.campaign import Campaign
from kvorum_sim.disk import LogDisk, Shadow
from kvorum_sim.filesystem import SimulatedFiles
from kvorum_sim.process import _WatchedExecutor
from kvorum_sim.scenario import DECIDED_MIN, Scenario, Verdict, examine

PROBLEM_FREE = ("counted", "inconclusive")


@pytest.mark.parametrize("seed", range(10_000, 10_020))
def test_scenario_of_a_seed_breaks_no_invariant(seed: int) -> None:
    """The seed's own mix of faults costs no promise; see the verdict for the replay command."""
    verdict = examine(seed)
    assert verdict.verdict in PROBLEM_FREE, f"{verdict.reason}\nreplay with: {verdict.replay}"


@pytest.mark.parametrize("kind", sorted(nemesis.KINDS))
def test_every_kind_of_fault_takes_effect_and_breaks_nothing(kind: str) -> None:
    """Each kind alone, as often as planned: the history counts, so the fault was really there."""
    verdict = examine(77, (kind,))
    assert "counted" == verdict.verdict, f"{verdict.reason}\nreplay with: {verdict.replay}"
    assert Scenario.drawn(77, (kind,)).faults == verdict.faults[kind]
    assert verdict.outcomes["ok"] + verdict.outcomes.get("failed", 0) >= DECIDED_MIN
    assert verdict.checks > 1_000


def test_scenario_same_seed_twice_gives_the_identical_run() -> None:
    """Equal seeds give equal traces to the last step; another seed gives another."""
    first, again, other = (examine(seed) for seed in (4, 4, 5))
    assert first.trace == again.trace
    assert first.outcomes == again.outcomes
    assert first.trace != other.trace


# --- the judges have teeth -----------------------------------------------------------------------------------------


def convictions(seeds: range, kinds: tuple[str, ...]) -> list[str]:
    """Why each failed seed failed."""
    return [verdict.reason for seed in seeds if (verdict := examine(seed, kinds)).verdict == "failed"]


def test_disk_that_lies_is_convicted_by_what_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that relies on what is not synced yet is seen when it leaves, before any power cut."""
    drawn = LogDisk.drawn

    def lying(chance: random.Random) -> LogDisk:
        disk = drawn(chance)
        disk.lying = True
        return disk

    monkeypatch.setattr(LogDisk, "drawn", lying)
    assert any("before its ticket is durable" in reason for reason in convictions(range(3), ("crash",)))


def test_executor_that_forgets_a_key_is_convicted_by_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state machine that is wrong on all nodes alike is seen, because the reference replays the log itself."""
    get = _WatchedExecutor.get
    monkeypatch.setattr(
        _WatchedExecutor,
        "get",
        lambda self, family, key: None if key.endswith(b"7") else get(self, family, key),
    )
    assert convictions(range(3), ("clock jump",))


def test_log_that_loses_a_synced_group_is_convicted_at_the_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a restart finds is compared with what had been durable."""
    cut_power = SimulatedFiles.cut_power

    def forgetful(self: SimulatedFiles) -> None:
        cut_power(self)
        for file in self._live.values():
            end = len(bytes(file.live).rstrip(b"\0"))
            file.live[end - 3 :] = bytes(len(file.live) - end + 3)

    monkeypatch.setattr(SimulatedFiles, "cut_power", forgetful)
    assert any("forgot" in reason for reason in convictions(range(4), ("power cut",)))


def test_shadow_restart_without_a_durable_entry_is_refused() -> None:
    """The shadow says what is missing."""
    disk = LogDisk.drawn(random.Random(1))
    assert Shadow().term_at(1) == -1
    assert 0 == disk.shadow.last_index


# --- the campaign ----------------------------------------------------------------------------------------------------


def test_campaign_run_with_failures_is_no_proof() -> None:
    """A failed history, a trace that differs and too few counted ones are each named."""
    campaign = Campaign(2)
    campaign.take(Verdict(100, "crash", 3, trace="a"))
    assert ["only 1 of 2 histories were counted"] == campaign.problems()
    campaign.take(Verdict(101, "crash", 3, trace="b"))
    assert [] == campaign.problems()
    campaign.take(Verdict(100, "crash", 3, trace="c"))
    campaign.take(Verdict(102, "crash", 3, "failed"))
    assert ["1 histories failed", "1 seeds were not repeatable"] == campaign.problems()
    report = campaign.report(100)
    assert [102] == [failure["seed"] for failure in report["failures"]]
    assert 2 == report["histories"]["counted"]
