"""One installation of the chart in a namespace of its own: what a user does to it, and what it says of itself."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cluster.commands import CommandError, Kubectl, NotYetError, not_yet, run, say, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = Path(__file__).resolve().parents[2]
CHART: Final = Path(os.environ.get("KVORUM_E2E_CHART", ROOT / "helm" / "kvorum"))
WORKLOAD: Final = ROOT / "e2e" / "workload.py"

NAME: Final = "kvorum"
"""Release, StatefulSet and client Service: the chart calls them all like the release, if that says kvorum."""
CLIENT_PORT: Final = 9090
SELECTOR: Final = f"app.kubernetes.io/instance={NAME},app.kubernetes.io/component=server"

READY_S: Final = 240.0
STATUS_S: Final = 30.0
KILL: Final = """
import os, sys
for pid in filter(str.isdigit, os.listdir("/proc")):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().split(b"\\0")
    if b"serve" in words and any(b"kvorum" in word for word in words[:3]):
        os.kill(int(pid), int(sys.argv[1]))
        print("signalled", pid)
"""
"""Signals kvorum from inside its pod, whose containers must share one process namespace: then it is not process 1."""

LATER: Final = """
import subprocess, sys
nowhere = subprocess.DEVNULL
command = [sys.executable, "-c", sys.argv[1], "9"]
subprocess.Popen(command, start_new_session=True, stdin=nowhere, stdout=nowhere, stderr=nowhere)
"""
"""Does so after the command that ordered it is over."""


@dataclass(frozen=True, slots=True)
class Member:
    """One seat of the configuration in force."""

    ordinal: int
    voter: bool


@dataclass(frozen=True, slots=True)
class View:
    """The cluster as one of its pods sees it."""

    pod: str
    leader: int | None
    term: int
    role: str
    members: tuple[Member, ...]
    commit_index: int

    @property
    def voters(self) -> list[int]:
        """Ordinals of the voters."""
        return sorted(member.ordinal for member in self.members if member.voter)

    @property
    def learners(self) -> list[int]:
        """Ordinals of the learners."""
        return sorted(member.ordinal for member in self.members if not member.voter)


class Release:
    """
    The chart, installed under the name ``kvorum``.

    Args:
        namespace: Where; it must exist.
        image: ``repository:tag``, already known to the nodes.
    """

    def __init__(self, namespace: str, image: str) -> None:
        self.namespace = namespace
        self.image = image
        self.kubectl = Kubectl(namespace)

    # --- what users do ------------------------------------------------------------------------------------------------

    def install(
        self, values: Mapping[str, object] | None = None, *, chart: Path = CHART, wait: bool = True, replicas: int = 3
    ) -> None:
        """``helm upgrade --install`` with the defaults of the chart, the image and whatever ``values`` changes."""
        self._helm("upgrade", "--install", NAME, str(chart), *self._settings(values, replicas))
        if wait:
            self.ready(replicas)

    def template(self, values: Mapping[str, object]) -> str:
        """``helm template`` of what is for those who watch, where it cannot be installed."""
        shown = "templates/monitoring.yaml"
        return self._helm("template", NAME, str(CHART), "--show-only", shown, *self._settings(values, 3))

    def _settings(self, values: Mapping[str, object] | None, replicas: int) -> list[str]:
        repository, _, tag = self.image.rpartition(":")
        settings: dict[str, object] = {"image.repository": repository, "image.tag": tag, **(values or {})}
        if replicas != 3:
            settings["replicaCount"] = replicas
        flags = []
        for name, value in settings.items():
            how = "--set-string" if isinstance(value, str) else "--set-json"
            flags += [how, f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
        return flags

    def uninstall(self) -> None:
        """``helm uninstall``, until the pods are gone; volumes stay."""
        self._helm("uninstall", NAME, "--ignore-not-found")
        wait_until(self._no_pods, "all pods are gone after helm uninstall", READY_S)

    def _no_pods(self) -> None:
        if pods := self.pods():
            not_yet(" ".join(sorted(pods)))

    def test(self) -> str:
        """``helm test``."""
        return self._helm("test", NAME, "--timeout", "180s", "--logs", timeout_s=200)

    def _helm(self, *arguments: str, timeout_s: float = 120.0) -> str:
        return run(["helm", "--namespace", self.namespace, *arguments], timeout_s=timeout_s)

    def scale(self, replicas: int) -> None:
        """``kubectl scale``; returns at once."""
        say(f"kubectl scale statefulset {NAME} --replicas {replicas}")
        self.kubectl("scale", "statefulset", NAME, f"--replicas={replicas}")

    def delete_pod(self, *pods: str) -> None:
        """``kubectl delete pod``; returns at once."""
        say(f"kubectl delete pod {' '.join(pods)}")
        self.kubectl("delete", "pod", *pods, "--wait=false")

    def restart(self) -> None:
        """``kubectl rollout restart``; returns at once."""
        say("kubectl rollout restart")
        self.kubectl("rollout", "restart", f"statefulset/{NAME}")

    def rolled_out(self, within_s: float = READY_S) -> None:
        """Wait for the end of a rollout."""
        self.kubectl("rollout", "status", f"statefulset/{NAME}", f"--timeout={within_s:.0f}s", timeout_s=within_s + 10)

    def delete_volume(self, ordinal: int) -> None:
        """Delete the volume claim of one pod; it goes once the pod has gone."""
        self.kubectl("delete", "pvc", f"data-{NAME}-{ordinal}", "--wait=false")

    def volume(self, ordinal: int) -> str:
        """Identity of the volume claim of one pod: another one after it was deleted and made again."""
        return str(self.kubectl.get("pvc", f"data-{NAME}-{ordinal}")["metadata"]["uid"])

    def delete_volumes(self) -> None:
        """Delete all volume claims, and wait."""
        self.kubectl("delete", "pvc", "--all", "--wait=true", timeout_s=READY_S)

    def share_processes(self) -> None:
        """Let the containers of a pod share one process namespace, so that a command in it may kill kvorum."""
        patch = {"spec": {"template": {"spec": {"shareProcessNamespace": True}}}}
        self.kubectl("patch", "statefulset", NAME, "--patch", json.dumps(patch))
        self.rolled_out()

    def kill(self, pod: str, *, after_s: float = 0.0) -> None:
        """SIGKILL kvorum inside its container, now or, without needing the API server then, later."""
        if after_s <= 0:
            say(f"SIGKILL in {pod}")
            self.kubectl("exec", pod, "--", "python", "-c", KILL, "9")
            return
        self.kubectl("exec", pod, "--", "python", "-c", LATER, f"import time; time.sleep({after_s})\n{KILL}")

    # --- what it says -------------------------------------------------------------------------------------------------

    def pods(self) -> dict[str, Any]:
        """Pods of the StatefulSet, by name, those on their way out too."""
        return {pod["metadata"]["name"]: pod for pod in self.kubectl.get("pods", "--selector", SELECTOR)["items"]}

    def running(self) -> list[str]:
        """Names of the pods that run and are not about to be deleted."""
        return sorted(
            name
            for name, pod in self.pods().items()
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
        )

    def restarts(self) -> int:
        """How often containers of the pods that are there have been started again."""
        return sum(
            status["restartCount"]
            for pod in self.pods().values()
            for status in pod["status"].get("containerStatuses", [])
        )

    def is_ready(self, replicas: int) -> None:
        """Exactly the wanted pods are there, all of them ready, and they agree on who belongs to the cluster."""
        pods = self.pods()
        wanted = [f"{NAME}-{ordinal}" for ordinal in range(replicas)]
        unready = [name for name, pod in pods.items() if not _pod_is_ready(pod)]
        if sorted(pods) != wanted or unready:
            not_yet(f"pods {sorted(pods)}, not ready {sorted(unready)}")
        views = [self.view(pod) for pod in wanted]
        for view in views:
            if view.voters != list(range(replicas)) or view.learners or view.leader is None:
                not_yet(str(view))
        if len({(view.leader, view.term) for view in views}) != 1:
            not_yet(f"they do not agree on the leader: {views}")

    def ready(self, replicas: int, within_s: float = READY_S) -> None:
        """Wait until `is_ready`."""
        started = time.monotonic()
        wait_until(lambda: self.is_ready(replicas), f"{replicas} pods are ready and the members", within_s)
        say(f"{replicas} pods are ready and the members after {time.monotonic() - started:.0f} s")

    def view(self, pod: str) -> View:
        """What a pod knows of the cluster."""
        command = f"kvorum status --endpoints localhost:{CLIENT_PORT} --output json || true"
        document = json.loads(self.kubectl("exec", pod, "--", "sh", "-c", command, timeout_s=STATUS_S))
        node = document["nodes"][0]
        if not node["reachable"]:
            not_yet(f"{pod} does not answer: {node['error']}")
        members = tuple(Member(member["node_id"], member["voter"]) for member in node["members"])
        return View(pod, node["leader_id"], node["term"], node["role"], members, node["commit_index"])

    def leader(self, within_s: float = 60.0) -> str:
        """Name of the pod that leads and says so itself."""

        def ask() -> str:
            for pod in self.running():
                with contextlib.suppress(CommandError, NotYetError):
                    if self.view(pod).role == "leader":
                        return pod
            return not_yet("no pod says that it leads")

        return wait_until(ask, "some pod leads", within_s)

    def cluster_ids(self) -> set[str]:
        """Cluster ids in the data directories of all pods: one, or two clusters were born."""
        found = set()
        for pod in self.running():
            status = json.loads(self.kubectl("exec", pod, "--", "python", "-c", FETCH, "/status"))
            found.add(str(status["cluster_id"]))
        return found

    @property
    def endpoints(self) -> str:
        """The client Service first, then pods by name."""
        service = f"{NAME}.{self.namespace}.svc:{CLIENT_PORT}"
        pods = [f"{NAME}-{ordinal}.{NAME}-headless.{self.namespace}.svc:{CLIENT_PORT}" for ordinal in range(3)]
        return ",".join([service, *pods])

    def in_pod(self, *arguments: str, pod: str | None = None, timeout_s: float = 120.0) -> str:
        """Run ``e2e/workload.py`` inside a pod of the cluster."""
        where = pod or self.running()[0]
        script = WORKLOAD.read_text(encoding="utf-8")
        return self.kubectl(
            "exec", "--stdin", where, "--", "python", "-", *arguments, "--endpoints", self.endpoints, given=script,
            timeout_s=timeout_s,
        )  # fmt: skip


FETCH: Final = """
import sys, urllib.request
print(urllib.request.urlopen("http://localhost:8090" + sys.argv[1], timeout=5).read().decode())
"""


def _pod_is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return "deletionTimestamp" not in pod["metadata"] and any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions
    )
