"""The birth rule as a table (architecture section 3)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvorum.consensus.birth import Verdict, judge, judge_pod
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


def pod(node_id=0, reports=None, *, founder=0, wanted=3, clusters=None, learned=None, patient=False):
    """The verdict on an empty pod of a StatefulSet."""
    return judge_pod(
        node_id,
        MINE,
        THREE,
        reports or {},
        founder=founder,
        wanted=wanted,
        clusters=clusters or {},
        learned=learned,
        patient=patient,
    )


SEATED = Configuration.of([Member(0, "n0:9090", "n0:7090", incarnation=MINE)])
TAKEN = Configuration.of([Member(0, "n0:9090", "n0:7090", incarnation=0xDEF)])


@pytest.mark.parametrize(
    ("verdict", "born", "waits_for"),
    [
        (pod(), False, "1 more empty pod(s) of 3"),
        (pod(reports={1: EMPTY}), True, ""),
        (pod(reports={1: EMPTY}, patient=True), False, "node 2 to be reached"),
        (pod(reports={1: EMPTY, 2: EMPTY}, patient=True), True, ""),
        (pod(reports={9: EMPTY}), False, "1 more empty pod(s)"),
        (pod(wanted=5, reports={1: EMPTY}), False, "1 more empty pod(s) of 5"),
        (pod(wanted=1), True, ""),
        (pod(wanted=None, reports={1: EMPTY, 2: EMPTY}), False, "how many pods"),
        (pod(founder=None, reports={1: EMPTY, 2: EMPTY}), False, "how many pods"),
        (pod(1, reports={0: EMPTY, 2: EMPTY}), False, "node 0 to form the cluster"),
        (pod(0, founder=3, reports={1: EMPTY, 2: EMPTY}), False, "node 3 to form the cluster"),
        (pod(reports={1: EMPTY, 2: EMPTY}, clusters={2: OTHER}), False, f"cluster {OTHER.hex()} to take this pod in"),
        (pod(reports={1: BORN, 2: EMPTY}), False, "to take this pod in"),
        (pod(clusters={1: OWN, 2: OTHER}), False, "one cluster to be left"),
        (pod(reports={1: EMPTY}, learned=TAKEN), False, "recorded with other data"),
        (pod(clusters={1: OTHER, 2: None}, reports={2: EMPTY}), False, "to take this pod in"),
    ],
)
def test_judge_pod_forms_a_cluster_only_as_the_first_of_an_empty_majority(verdict, born, waits_for):
    """Everybody else waits to be taken in, with a text that says for what; nothing ever ends the process."""
    assert verdict.refuse is None
    assert not verdict.joins
    assert verdict.born is born
    assert waits_for in verdict.waiting_for


def test_judge_pod_joins_once_a_committed_configuration_names_its_directory():
    """A seat recorded with this very incarnation, whatever else the peers say."""
    assert pod(clusters={1: OTHER}, learned=SEATED).joins
