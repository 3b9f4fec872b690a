"""A real Prometheus watches the pods: every panel of the dashboard shows something, and alerts see what happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster import monitoring
from cluster.commands import not_yet, say, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cluster.prometheus import Prometheus
    from cluster.release import Release
    from cluster.writers import Writers

pytestmark = pytest.mark.cluster

PATIENT_S = 60.0
ALERT = "KvorumHighLeaderChanges"
DELETIONS_MAX = 10
"""Four leaders within a quarter of an hour are too many; a pod that was deleted has not seen those before it."""

OF_KUBERNETES = ("kvorum_k8s_desired_replicas", "kvorum_k8s_api_errors_total", "kvorum_scale_state")
"""What only a node on Kubernetes says."""


def expression_of(prometheus: Prometheus, alert: str) -> str:
    """What the Prometheus that runs evaluates for an alert."""
    (found,) = (rule["query"] for rule in prometheus.rules() if rule["name"] == alert)
    return str(found)


def test_monitoring_prometheus_fills_every_panel_and_sees_leaders_deleted(
    release: Release, writers: Callable[..., Writers], artifacts: Path
) -> None:
    """All rules of the chart load, no panel of its dashboard is empty, and the alert on leader changes sees them."""
    monitoring.needed()
    given = monitoring.install(release)
    running = writers(timeout_s=PATIENT_S)
    variables = {"$namespace": release.namespace, "$job": "kvorum", "$pod": ".+", "$__rate_interval": "20s"}

    with monitoring.watch(release, given, artifacts) as prometheus:

        def all_up() -> None:
            up = prometheus.query(f'up{{namespace="{release.namespace}", job="kvorum"}}')
            if up != [1.0, 1.0, 1.0]:
                not_yet(f"up is {up}")

        wait_until(all_up, "Prometheus scrapes three pods", 60)
        changes = expression_of(prometheus, ALERT)
        assert prometheus.query(changes) == []

        deletions = 0
        while not (values := prometheus.query(changes)):
            assert deletions < DELETIONS_MAX, f"{deletions} leaders were deleted, and {ALERT} sees nothing"
            release.delete_pod(release.leader())
            deletions += 1
            running.go_on()
            release.ready(3)
            wait_until(all_up, "Prometheus scrapes three pods", 60)
        say(f"{changes} gives {values} after {deletions} leaders were deleted")

        def fires() -> None:
            if (alerts := prometheus.alerts()).get(ALERT) != "firing":
                not_yet(str(alerts))

        wait_until(fires, f"{ALERT} fires", 30)

        for name in OF_KUBERNETES:
            assert prometheus.query(name), f"{name} is not there"

        def nothing_empty() -> None:
            if empty := prometheus.empty_panels(given.dashboard, variables):
                not_yet("; ".join(empty))

        wait_until(nothing_empty, "every panel shows something", 90)

        def all_evaluated() -> None:
            if unhealthy := [rule for rule in prometheus.rules() if rule["health"] != "ok"]:
                not_yet(str([(rule["name"], rule["health"], rule.get("lastError")) for rule in unhealthy]))

        wait_until(all_evaluated, "every rule was evaluated without an error", 60)
        wanted = [rule["alert"] for group in given.rules["groups"] for rule in group["rules"]]
        assert sorted(rule["name"] for rule in prometheus.rules()) == sorted(wanted)
        say(f"{len(wanted)} rules are evaluated")

    running.finish()
