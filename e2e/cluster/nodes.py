"""Which node may be taken away so that only what is tested suffers, and pods placed where no scheduler is left."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from cluster.commands import Kubectl, not_yet, say, wait_until
from cluster.faults import DNS_LABEL

if TYPE_CHECKING:
    from cluster.release import Release

CONTROL_PLANE: Final = "node-role.kubernetes.io/control-plane"
SCHEDULER_S: Final = 60.0
PLACED_S: Final = 240.0
"""Controllers take their time too to notice that the API server is back."""


def node_of(release: Release, pod: str) -> str:
    """Node a pod runs on."""
    return str(release.pods()[pod]["spec"]["nodeName"])


def node_to_cut(release: Release, writers_node: str) -> str:
    """A worker with a pod of the release, and without the writers or CoreDNS; skips the test if there is none."""
    nodes = Kubectl().get("nodes")["items"]
    workers = {node["metadata"]["name"] for node in nodes if CONTROL_PLANE not in node["metadata"]["labels"]}
    dns = {pod["spec"].get("nodeName") for pod in Kubectl("kube-system").get("pods", "--selector", DNS_LABEL)["items"]}
    candidates = [node_of(release, pod) for pod in release.running()]
    fit = [
        node for node in candidates if node in workers - dns and node != writers_node and candidates.count(node) == 1
    ]
    if not fit:
        pytest.skip(f"no worker has exactly one kvorum pod and neither the writers nor CoreDNS: pods on {candidates}")
    return fit[0]


def place_pods(release: Release, replicas: int) -> None:
    """
    Wait until every pod exists and has a node, and give it one where no scheduler does.

    A kube-scheduler may end with the API server it was connected to, and not every cluster starts it again. A pod it
    has looked at has the condition PodScheduled; for one that has none after a minute this stands in for the scheduler:
    it binds the pod to the node its volume is on. What the pod does from there on is kvorum's again.
    """
    since: dict[str, float] = {}

    def placed() -> None:
        pods = release.pods()
        if len(pods) < replicas:
            not_yet(f"only {sorted(pods)} exist")
        for name, pod in pods.items():
            waited = time.monotonic() - since.setdefault(pod["metadata"]["uid"], time.monotonic())
            if "nodeName" not in pod["spec"]:
                if waited > SCHEDULER_S and not _was_looked_at(pod):
                    _bind(release, name, pod)
                not_yet(f"{name} has no node for {waited:.0f} s")

    wait_until(placed, "every pod has a node", PLACED_S)


def _was_looked_at(pod: dict[str, Any]) -> bool:
    return any(condition["type"] == "PodScheduled" for condition in pod["status"].get("conditions", []))


def _bind(release: Release, name: str, pod: dict[str, Any]) -> None:
    nodes = Kubectl().get("nodes")["items"]
    fit = [node["metadata"]["name"] for node in nodes if _takes_pods(node) and _may_hold(release, pod, node)]
    assert fit, f"no node that is ready may hold {name}"
    say(f"NO SCHEDULER looked at {name} for {SCHEDULER_S:.0f} s: bound by hand to {fit[0]}")
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name, "namespace": release.namespace},
        "target": {"apiVersion": "v1", "kind": "Node", "name": fit[0]},
    }
    path = f"/api/v1/namespaces/{release.namespace}/pods/{name}/binding"
    release.kubectl("create", "--raw", path, "--filename", "-", given=json.dumps(binding))


def _takes_pods(node: dict[str, Any]) -> bool:
    ready = any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in node["status"]["conditions"]
    )
    effects = {taint["effect"] for taint in node["spec"].get("taints", [])}
    return ready and not node["spec"].get("unschedulable") and effects.isdisjoint({"NoSchedule", "NoExecute"})


def _may_hold(release: Release, pod: dict[str, Any], node: dict[str, Any]) -> bool:
    """Whether the volumes of a pod can be had on a node: those on a node's own disk name it by a label."""
    for volume in pod["spec"]["volumes"]:
        if "persistentVolumeClaim" not in volume:
            continue
        claim = release.kubectl.get("pvc", volume["persistentVolumeClaim"]["claimName"])
        stored = Kubectl().get("pv", claim["spec"]["volumeName"])
        terms = stored["spec"].get("nodeAffinity", {}).get("required", {}).get("nodeSelectorTerms", [])
        if terms and not any(_fits(term, node["metadata"]["labels"]) for term in terms):
            return False
    return True


def _fits(term: dict[str, Any], labels: dict[str, str]) -> bool:
    rules = term.get("matchExpressions", [])
    return all(rule["operator"] == "In" and labels.get(rule["key"]) in rule["values"] for rule in rules)
