"""The pod that runs ``e2e/workload.py`` while the scenarios break things."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, Final

from cluster import history
from cluster.commands import not_yet, say, wait_until
from cluster.release import WORKLOAD

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.history import History
    from cluster.release import Release

START_S: Final = 120.0
FINISH_S: Final = 260.0
SECONDS_MAX: Final = 3600


class Writers:
    """
    Ten writers in one pod, each on its own connection and all on one clock.

    Args:
        release: What they write to.
        artifacts: Where their output is kept.
        timeout_s: What one call of theirs gets; None is the client's default.
        node: Node to run on, if it must be a certain one.
    """

    def __init__(
        self, release: Release, artifacts: Path, *, timeout_s: float | None = None, node: str | None = None
    ) -> None:
        self.name = f"writers-{uuid.uuid4().hex[:6]}"
        self._release = release
        self._kubectl = release.kubectl
        self._artifacts = artifacts
        self._arguments = [] if timeout_s is None else ["--timeout", str(timeout_s)]
        self._node = node

    def start(self) -> None:
        """Create the pod and wait until it has opened its accounts."""
        source = WORKLOAD.read_text(encoding="utf-8")
        self._kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": self.name},
                "data": {"workload.py": source},
            },
            self._pod(),
        )
        wait_until(self._has_begun, "the writers have begun", START_S)
        say(f"{self.name} write to {self._release.endpoints.split(',')[0]}")

    def _pod(self) -> dict[str, object]:
        command = ["python", "/workload/workload.py", "run", "--endpoints", self._release.endpoints]
        command += ["--prefix", f"{self.name}/", "--seconds-max", str(SECONDS_MAX), *self._arguments]
        spec: dict[str, object] = {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 5,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "writers",
                    "image": self._release.image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": command,
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        {"name": "workload", "mountPath": "/workload", "readOnly": True},
                        {"name": "tmp", "mountPath": "/tmp"},
                    ],
                }
            ],
            "volumes": [{"name": "workload", "configMap": {"name": self.name}}, {"name": "tmp", "emptyDir": {}}],
        }
        if self._node is not None:
            spec["nodeSelector"] = {"kubernetes.io/hostname": self._node}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name}, "spec": spec}

    def _has_begun(self) -> None:
        lines = self._tail(5)
        if not any("batch" in line or "ready" in line for line in lines):
            not_yet(json.dumps(lines) if lines else self._phase())

    def _phase(self) -> str:
        return str(self._kubectl.get("pod", self.name)["status"]["phase"])

    def _tail(self, count: int) -> list[dict[str, Any]]:
        lines = self._kubectl("logs", self.name, f"--tail={count}", "--request-timeout", "10s").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    @property
    def node(self) -> str:
        """Node the pod runs on."""
        return str(self._kubectl.get("pod", self.name)["spec"]["nodeName"])

    def succeeded(self) -> int:
        """Calls that have succeeded so far."""
        batches = [line for line in self._tail(3) if "batch" in line]
        if not batches:
            not_yet(self._phase())
        return int(batches[-1]["succeeded"])

    def go_on(self, calls: int = 50, within_s: float = 90.0) -> None:
        """Wait until so many more calls have succeeded: the cluster serves."""
        start = wait_until(self.succeeded, "the writers say how far they are", within_s)

        def ask() -> None:
            now = self.succeeded()
            if now - start < calls:
                not_yet(f"{now - start} calls succeeded")

        wait_until(ask, f"{calls} more calls succeed", within_s)

    def finish(self) -> History:
        """Stop them, let them read everything back, and judge what they saw."""
        self._kubectl("exec", self.name, "--", "touch", "/tmp/stop")
        wait_until(self._has_ended, "the writers have read everything back", FINISH_S, pause_s=1.0)
        output = self._kubectl("logs", self.name)
        (self._artifacts / f"{self.name}.jsonl").write_text(output, encoding="utf-8")
        seen = history.read(output.splitlines())
        say(seen.summary)
        for line in (*seen.final.get("errors", [])[:10], *seen.final.get("slow", [])[:5]):
            say(f"  {line}")
        seen.judge()
        return seen

    def _has_ended(self) -> None:
        phase = self._phase()
        assert phase != "Failed", f"the writers broke: {self._kubectl('logs', self.name, '--tail=30')}"
        if phase != "Succeeded":
            not_yet(str(self._tail(1))[:300])
