"""The birth rule as a table (architecture section 3)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvorum.consensus.birth import Verdict, judge
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
        (THREE, {1: replace(BORN, recorded_incarnation=0xDEF)}, False, False),
        (THREE, {1: replace(CONFIRMED, recorded_incarnation=0xDEF)}, False, False),
        (THREE, {1: CONFIRMED, 2: replace(BORN, recorded_incarnation=0xDEF)}, False, False),
    ],
)
def test_judge_reports_of_peers_decide(configuration, reports, born, refused):
    """Birth needs a majority of empty directories, or a confirmed leader that never saw another one in this seat."""
    verdict = judge(0, MINE, configuration, reports)

    assert born is verdict.born
    assert refused is (verdict.refuse is not None)


def test_judge_wiped_disk_waits_until_its_seat_is_given_to_it():
    """A seat that is recorded with other data is waited for, never taken; the text says what is awaited."""
    verdict = judge(0, MINE, THREE, {2: replace(BORN, recorded_incarnation=0xDEF)})

    assert Verdict() == verdict._replace(waiting_for="")
    assert "seat of node 0" in verdict.waiting_for
    assert "0000000000000def" in verdict.waiting_for


def test_judge_majority_gives_a_missing_peer_a_moment_before_birth():
    """Two empty directories of three wait while the third may still be reached; all three need no patience."""
    alone = judge(0, MINE, THREE, {1: EMPTY}, patient=True)
    together = judge(0, MINE, THREE, {1: EMPTY, 2: EMPTY}, patient=True)

    assert not alone.born
    assert "node 2" in alone.waiting_for
    assert together.born


OWN, OTHER = THREE.birth_id(), b"another cluster!"


@pytest.mark.parametrize(
    ("clusters", "learned", "reports", "verdict"),
    [
        # Born otherwise than by this file: never beside it, whoever else is empty.
        ({1: OTHER}, None, {1: EMPTY, 2: EMPTY}, "waits"),
        ({1: OTHER}, None, {1: CONFIRMED}, "waits"),
        ({1: OTHER, 2: None}, None, {2: EMPTY}, "waits"),
        # Two clusters at once: somebody has mixed up the file.
        ({1: OTHER, 2: OWN}, None, {}, "refuses"),
        # A committed configuration names this directory, or another one, or nobody yet, or no such node.
        ({1: OTHER}, THREE.with_incarnation(0, MINE), {}, "joins"),
        ({1: OWN}, THREE.with_incarnation(0, MINE), {1: CONFIRMED}, "joins"),
        ({1: OTHER}, THREE.with_incarnation(0, 0xDEF), {}, "waits"),
        ({1: OTHER}, THREE, {1: CONFIRMED}, "waits"),
        ({1: OWN}, THREE, {1: CONFIRMED}, "is born"),
        ({1: OWN}, Configuration(THREE.members[1:]), {1: CONFIRMED}, "waits"),
        # A cluster of the same birth that does not talk to this node has taken its seat away.
        ({1: OWN}, None, {2: EMPTY}, "waits"),
        ({1: OWN}, None, {1: EMPTY, 2: EMPTY}, "is born"),
    ],
)
def test_judge_clusters_and_members_told_by_peers_decide(clusters, learned, reports, verdict):
    """An empty directory joins the cluster that names it, and is never born beside one."""
    found = judge(0, MINE, THREE, reports, clusters=clusters, learned=learned)

    said = [
        name for name, is_so in (("is born", found.born), ("joins", found.joins), ("refuses", found.refuse)) if is_so
    ]
    assert [verdict] == (said or ["waits"])
    assert bool(found.waiting_for) is (not said)
