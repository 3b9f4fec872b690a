"""Pods, containers, nodes and links die or fall silent while writers write; nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

import pytest

from cluster.commands import hold, say
from cluster.nodes import node_to_cut

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.faults import Faults
    from cluster.release import Release
    from cluster.writers import Writers

pytestmark = pytest.mark.cluster

PATIENT_S = 60.0
"""What one call gets where a quorum may be away for a while: then its outcome is known in the end."""

CHAOS_S = float(os.environ.get("KVORUM_E2E_CHAOS_S", "60"))
EVERY_S = 10.0
CUT_S = 15.0
NODE_CUT_S = 25.0


@pytest.mark.parametrize("times", [pytest.param(2, marks=pytest.mark.smoke), 5])
def test_chaos_leader_pod_deleted_again_and_again(
    release: Release, writers: Callable[..., Writers], times: int
) -> None:
    """Each time another pod takes over, the old one comes back, and the history is legal."""
    release.install()
    running = writers(timeout_s=PATIENT_S)

    for _ in range(times):
        release.delete_pod(release.leader())
        running.go_on()
        release.ready(3)

    running.finish()


def test_chaos_random_pods_deleted(release: Release, writers: Callable[..., Writers]) -> None:
    """A random pod every ten seconds, whatever state the others are in; KVORUM_E2E_CHAOS_S seconds long."""
    release.install()
    running = writers(timeout_s=PATIENT_S)
    seed = random.randrange(1_000_000)
    chance = random.Random(seed)
    say(f"random pods, seed {seed}")

    end = time.monotonic() + CHAOS_S
    while time.monotonic() < end:
        if pods := release.running():
            release.delete_pod(chance.choice(pods))
        hold(EVERY_S, "a pod comes back")

    release.ready(3)
    running.go_on()
    running.finish()


def test_chaos_all_pods_deleted_at_once(release: Release, writers: Callable[..., Writers]) -> None:
    """Every address changes at the same time, and the same cluster goes on."""
    release.install()
    running = writers(timeout_s=PATIENT_S)
    before = release.cluster_ids()

    release.delete_pod(*release.running())
    running.go_on(within_s=180)
    release.ready(3)

    assert before == release.cluster_ids()
    running.finish()


def test_chaos_containers_killed(release: Release, writers: Callable[..., Writers]) -> None:
    """SIGKILL to the leader's process, to a follower's, and to all three."""
    release.install()
    release.share_processes()
    release.ready(3)
    running = writers(timeout_s=PATIENT_S)

    leader = release.leader()
    follower = next(pod for pod in release.running() if pod != leader)
    for victims in ([leader], [follower], release.running()):
        for pod in victims:
            release.kill(pod)
        running.go_on(within_s=180)
        release.ready(3)

    running.finish()


@pytest.mark.parametrize("way", [(), ("--in",), ("--out",)], ids=["both ways", "in", "out"])
def test_chaos_leader_pod_cut_off(
    release: Release, writers: Callable[..., Writers], faults: Faults, way: tuple[str, ...]
) -> None:
    """A leader that reaches nobody, hears nobody, or is heard by nobody is replaced, and comes back."""
    faults.needed()
    release.install()
    running = writers(timeout_s=PATIENT_S)
    leader = release.leader()

    with faults.pod_cut(release.namespace, leader, *way):
        running.go_on()
        hold(CUT_S, f"{leader} stays cut off")
        running.go_on()

    release.ready(3)
    running.finish()


def test_chaos_node_cut_off(release: Release, writers: Callable[..., Writers], faults: Faults) -> None:
    """A node with a pod falls silent, even to Kubernetes; the two other pods go on, and it comes back."""
    faults.needed()
    release.install()
    running = writers(timeout_s=PATIENT_S)
    node = node_to_cut(release, running.node)

    with faults.node_cut(node):
        running.go_on()
        hold(NODE_CUT_S, f"{node} stays cut off")
        running.go_on()

    release.ready(3)
    running.finish()
