"""
Faults that need the machine, through one command of the user's: ``KVORUM_E2E_FAULTS``.

It is called like ``FAULTS pod cut NAMESPACE POD [--in|--out]``, ``FAULTS pod heal NAMESPACE POD``,
``FAULTS node cut NODE``, ``FAULTS node heal NODE``, ``FAULTS api stop`` and ``FAULTS api start``. DNS needs no such
command: CoreDNS is scaled to nothing and back.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from typing import TYPE_CHECKING, Final

import pytest

from cluster.commands import Kubectl, not_yet, run, say, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE: Final = "KVORUM_E2E_FAULTS"
DNS_LABEL: Final = "k8s-app=kube-dns"
API_S: Final = 120.0


class Faults:
    """What can be broken besides pods. Each is a context manager: at its end everything is whole again."""

    def __init__(self) -> None:
        self._command = shlex.split(os.environ.get(VARIABLE, ""))

    def needed(self) -> None:
        """Skip the test if the machine's faults cannot be had."""
        if not self._command:
            pytest.skip(f"{VARIABLE} is not set: no command that can cut pods and nodes or stop the API server")

    def _call(self, *arguments: str) -> None:
        self.needed()
        say(" ".join(arguments))
        run([*self._command, *arguments], timeout_s=120)

    @contextlib.contextmanager
    def pod_cut(self, namespace: str, pod: str, *way: str) -> Iterator[None]:
        """Drop a pod's packets: all, or with ``--in`` or ``--out`` those of one direction."""
        self._call("pod", "cut", namespace, pod, *way)
        try:
            yield
        finally:
            self._call("pod", "heal", namespace, pod)

    @contextlib.contextmanager
    def node_cut(self, node: str) -> Iterator[None]:
        """Cut a node off the network."""
        self._call("node", "cut", node)
        try:
            yield
        finally:
            self._call("node", "heal", node)

    @contextlib.contextmanager
    def no_api(self) -> Iterator[None]:
        """Stop the API server; pods go on."""
        self._call("api", "stop")
        try:
            yield
        finally:
            self._call("api", "start")
            wait_until(lambda: Kubectl()("get", "--raw", "/readyz"), "the API server answers again", API_S)

    @contextlib.contextmanager
    def no_dns(self) -> Iterator[None]:
        """Take away CoreDNS."""
        kubectl = Kubectl("kube-system")
        deployments = kubectl.get("deployments", "--selector", DNS_LABEL)["items"]
        if not deployments:
            pytest.skip(f"no Deployment in kube-system has the label {DNS_LABEL}: DNS cannot be stopped")
        name, replicas = deployments[0]["metadata"]["name"], deployments[0]["spec"]["replicas"]

        def none_left() -> None:
            if pods := kubectl.get("pods", "--selector", DNS_LABEL)["items"]:
                not_yet(f"{len(pods)} pods")

        say("scaling CoreDNS to 0")
        kubectl("scale", "deployment", name, "--replicas=0")
        try:
            wait_until(none_left, "CoreDNS is gone", 60)
            yield
        finally:
            say("scaling CoreDNS back")
            kubectl("scale", "deployment", name, f"--replicas={replicas}")
            kubectl("rollout", "status", f"deployment/{name}", "--timeout=120s", timeout_s=130)
