"""What is kept when a scenario fails: objects, events, logs, and what each pod says of the cluster."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cluster.commands import CommandError, say
from cluster.release import FETCH

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.commands import Kubectl


def collect(kubectl: Kubectl, folder: Path) -> None:
    """Write everything that may explain a failure into a folder, as far as it can be had."""
    folder.mkdir(parents=True, exist_ok=True)
    _keep(folder / "objects.yaml", kubectl, "get", "statefulsets,pods,pvc,services,configmaps,pdb", "--output", "yaml")
    _keep(folder / "pods.txt", kubectl, "get", "pods", "--output", "wide")
    _keep(folder / "describe.txt", kubectl, "describe", "statefulsets,pods")
    _keep(folder / "events.txt", kubectl, "get", "events", "--sort-by", ".lastTimestamp")
    _keep(folder / "nodes.txt", kubectl, "describe", "nodes")
    with contextlib.suppress(CommandError):
        for pod in kubectl("get", "pods", "--output", "name").split():
            name = pod.removeprefix("pod/")
            _keep(folder / f"{name}.log", kubectl, "logs", pod, "--all-containers")
            _keep(folder / f"{name}.previous.log", kubectl, "logs", pod, "--all-containers", "--previous")
            _keep(folder / f"{name}.status.json", kubectl, "exec", pod, "--", "python", "-c", FETCH, "/status")
            _keep(folder / f"{name}.members.json", kubectl, "exec", pod, "--", "python", "-c", FETCH, "/admin/members")
    say(f"what was found is in {folder}")


def _keep(file: Path, kubectl: Kubectl, *arguments: str) -> None:
    try:
        text = kubectl(*arguments, timeout_s=20)
    except CommandError as problem:
        text = f"{problem}\n"
    file.write_text(text, encoding="utf-8")
