"""A cluster to break: whether there is one, the image on it, and a namespace of its own for every scenario."""

from __future__ import annotations

import os
import shlex
import shutil
import uuid
from functools import cache
from typing import TYPE_CHECKING

import pytest

from cluster.commands import CommandError, Kubectl, run, say
from cluster.diagnostics import collect
from cluster.faults import Faults
from cluster.release import ROOT, Release
from cluster.writers import Writers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

IMAGE = "kvorum:e2e"
BUILD = "docker build --tag {image} ."
LOAD = "kind load docker-image {image}"
SCENARIO_S = 900
"""Time limit of a scenario that names none."""

PROFILES = {"restricted": {"pod-security.kubernetes.io/enforce": "restricted"}, "unlabelled": {}}


@cache
def why_not() -> str | None:
    """Why scenarios cannot run, or None."""
    if os.environ.get("KVORUM_E2E") != "1":
        return "scenarios break things on a cluster, so they run only when asked for: make e2e"
    for program in ("kubectl", "helm"):
        if shutil.which(program) is None:
            return f"{program} is not on PATH"
    try:
        Kubectl()("get", "--raw", "/readyz", "--request-timeout", "5s", timeout_s=10)
    except CommandError as problem:
        return f"no Kubernetes cluster answers (KUBECONFIG says which one is asked): {problem}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip every scenario for one reason, or give each its time limit."""
    scenarios = [item for item in items if item.get_closest_marker("cluster")]
    if not scenarios:
        return
    reason = why_not()
    for item in scenarios:
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SCENARIO_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Leave a mark on a scenario that failed, for the fixture that collects what may explain it."""
    report = yield
    if report.failed and report.when in ("setup", "call"):
        item.stash[FAILED] = True
    return report


FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def image() -> str:
    """The image under test, known to the nodes: KVORUM_E2E_IMAGE, or built and loaded by commands."""
    if there := os.environ.get("KVORUM_E2E_IMAGE"):
        return there
    for name, default, seconds in (("KVORUM_E2E_BUILD", BUILD, 1200), ("KVORUM_E2E_LOAD", LOAD, 300)):
        command = os.environ.get(name, default).format(image=IMAGE)
        say(command)
        run(shlex.split(command), timeout_s=seconds, directory=ROOT)
    return IMAGE


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Where outputs of one scenario are kept: below KVORUM_E2E_ARTIFACTS, or where pytest keeps its last three runs."""
    return tmp_path


@pytest.fixture
def profile() -> str:
    """Which Pod Security standard the namespace enforces; scenarios may parametrise it."""
    return "restricted"


@pytest.fixture
def namespace(request: pytest.FixtureRequest, artifacts: Path, profile: str) -> Iterator[str]:
    """A namespace of its own, deleted with everything in it; after a failure its story is kept first."""
    name = f"kvorum-e2e-{uuid.uuid4().hex[:8]}"
    labels = {"app.kubernetes.io/part-of": "kvorum-e2e", **PROFILES[profile]}
    Kubectl().apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    say(f"namespace {name}")
    yield name
    if request.node.stash.get(FAILED, False):
        kept = os.environ.get("KVORUM_E2E_ARTIFACTS")
        collect(Kubectl(name), (ROOT / kept / request.node.name) if kept else artifacts / "cluster")
    Kubectl()("delete", "namespace", name, "--wait=true", "--timeout=170s", timeout_s=180)


@pytest.fixture
def release(namespace: str, image: str) -> Release:
    """The chart, not installed yet."""
    return Release(namespace, image)


@pytest.fixture
def writers(release: Release, artifacts: Path) -> Callable[..., Writers]:
    """Start writers: ``writers(timeout_s=..., node=...)``."""

    def start(**options: object) -> Writers:
        begun = Writers(release, artifacts, **options)
        begun.start()
        return begun

    return start


@pytest.fixture
def faults() -> Faults:
    """Faults beyond what kubectl can do."""
    return Faults()
