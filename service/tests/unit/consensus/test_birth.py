"""The birth rule as a table (architecture section 3)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvorum.consensus.birth import judge
from kvorum.consensus.frames import Report
from kvorum.core.cluster import Configuration, Member

THREE = Configuration.of(Member(i, f"n{i}:9090", f"n{i}:7090") for i in range(3))
ONE = Configuration.of([Member(0, "n0:9090", "n0:7090")])
EMPTY = Report(
    has_data=False,
    role="follower",
    may_serve=False,
    term=0,
    leader=None,
    commit_index=0,
    applied_index=0,
    uptime_ms=1,
    recorded_incarnation=0,
)
BORN = replace(EMPTY, has_data=True, term=2)
CONFIRMED = replace(BORN, role="leader", leader=1, may_serve=True)
MINE = 0xABC


@pytest.mark.parametrize(
    ("configuration", "reports", "born", "refused"),
    [
        (ONE, {}, True, False),
        (THREE, {}, False, False),
        (THREE, {1: EMPTY}, True, False),
        (THREE, {1: EMPTY, 2: EMPTY}, True, False),
        (THREE, {9: EMPTY}, False, False),
        (THREE, {1: BORN}, False, False),
        (THREE, {1: BORN, 2: EMPTY}, False, False),
        (THREE, {1: CONFIRMED}, True, False),
        (THREE, {1: replace(CONFIRMED, recorded_incarnation=MINE)}, True, False),
        (THREE, {1: replace(BORN, recorded_incarnation=MINE)}, False, False),
        (THREE, {1: replace(BORN, recorded_incarnation=0xDEF)}, False, True),
        (THREE, {1: replace(CONFIRMED, recorded_incarnation=0xDEF)}, False, True),
        (THREE, {1: CONFIRMED, 2: replace(BORN, recorded_incarnation=0xDEF)}, False, True),
    ],
)
def test_judge_reports_of_peers_decide(configuration, reports, born, refused):
    """Birth needs a majority of empty directories, or a confirmed leader that never saw another one in this seat."""
    verdict = judge(0, MINE, configuration, reports)

    assert born is verdict.born
    assert refused is (verdict.refuse is not None)


def test_judge_wiped_disk_names_the_peer_that_knows_better():
    """The refusal says which node knows the seat, where, and with which data."""
    verdict = judge(0, MINE, THREE, {2: replace(BORN, recorded_incarnation=0xDEF)})

    assert verdict.refuse is not None
    assert "node 2 at n2:9090" in verdict.refuse
    assert "0000000000000def" in verdict.refuse
