"""What a cluster lives on falls away: nodes are drained, names cannot be resolved, the API server is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster.commands import CommandError, Kubectl, NotYetError, hold, not_yet, wait_until
from cluster.nodes import node_of, place_pods

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.faults import Faults
    from cluster.release import Release
    from cluster.writers import Writers

pytestmark = pytest.mark.cluster

PATIENT_S = 60.0
OUTAGE_S = 60.0
KILL_AFTER_S = 25.0
SILENCE_MAX_S = 45
MARK = "kvorum-e2e"
"""Label of the pods that a drain may touch, so that it leaves everybody else's alone."""


def test_surroundings_drain_honours_the_disruption_budget(release: Release, writers: Callable[..., Writers]) -> None:
    """While a drained pod is away a second node cannot be drained; the cluster serves all the time."""
    release.install({f"podLabels.{MARK}": release.namespace})
    running = writers(timeout_s=PATIENT_S)
    pods = release.running()
    nodes = {pod: node_of(release, pod) for pod in pods}
    if len(set(nodes.values())) < len(nodes):
        pytest.skip(f"pods share nodes, so one drain takes two of them: {nodes}")
    first, second = pods[0], pods[1]

    def drain(node: str, seconds: int) -> None:
        mine = f"--pod-selector={MARK}={release.namespace}"
        flags = ("--ignore-daemonsets", "--delete-emptydir-data", mine, f"--timeout={seconds}s")
        Kubectl()("drain", node, *flags, timeout_s=seconds + 30)

    try:
        drain(nodes[first], 120)
        running.go_on()
        if "nodeName" in release.pods().get(first, {"spec": {}})["spec"]:
            pytest.skip("the drained pod's volume followed it to another node: nothing keeps it away")
        with pytest.raises(CommandError, match="disruption budget"):
            drain(nodes[second], 15)
        assert second in release.running()
        running.go_on()
    finally:
        for node in (nodes[first], nodes[second]):
            Kubectl()("uncordon", node)

    release.ready(3)
    running.finish()


def test_surroundings_no_names_at_the_start(release: Release, faults: Faults) -> None:
    """Without DNS for a minute nothing is born; with DNS exactly one cluster is."""
    with faults.no_dns():
        release.install(wait=False)

        def all_run() -> None:
            if len(running := release.running()) < 3:
                not_yet(f"only {running} run")

        wait_until(all_run, "all pods run", 120)
        hold(OUTAGE_S, "there is no DNS")
        with pytest.raises((NotYetError, CommandError)):
            release.is_ready(3)

    release.ready(3)
    assert release.restarts() == 0
    assert len(release.cluster_ids()) == 1
    release.test()


def test_surroundings_no_names_while_a_pod_comes_back(
    release: Release, writers: Callable[..., Writers], faults: Faults
) -> None:
    """Nobody finds the pod that was deleted, and nobody minds: the others serve, and with DNS it is back."""
    release.install()
    running = writers(timeout_s=PATIENT_S)
    leader = release.leader()
    follower = next(pod for pod in release.running() if pod != leader)

    with faults.no_dns():
        release.delete_pod(follower)
        hold(OUTAGE_S, "there is no DNS")
        running.go_on()

    release.ready(3)
    assert release.restarts() == 0
    running.finish()


@pytest.mark.timeout(1200)
def test_surroundings_no_api_server(release: Release, writers: Callable[..., Writers], faults: Faults) -> None:
    """A pod deleted just before and a container killed during it: the data are served, and nobody leaves."""
    faults.needed()
    release.install()
    release.share_processes()
    release.ready(3)
    running = writers(timeout_s=PATIENT_S)
    before = release.cluster_ids()
    leader = release.leader()
    deleted, killed = (pod for pod in release.running() if pod != leader)

    release.kill(killed, after_s=KILL_AFTER_S)
    release.delete_pod(deleted)
    with faults.no_api():
        hold(OUTAGE_S, "there is no API server")

    running.go_on(within_s=180)
    assert release.view(release.leader()).voters == [0, 1, 2], "nobody leaves"
    place_pods(release, 3)
    release.ready(3)
    seen = running.finish()
    assert seen.longest_silence_s <= SILENCE_MAX_S
    assert before == release.cluster_ids()
