"""Which node may be taken away so that only what is tested suffers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from cluster.commands import Kubectl
from cluster.faults import DNS_LABEL

if TYPE_CHECKING:
    from cluster.release import Release

CONTROL_PLANE: Final = "node-role.kubernetes.io/control-plane"


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
