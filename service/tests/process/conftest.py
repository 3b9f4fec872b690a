"""Clusters that end with their test, and whose outputs are shown if it fails."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.process.harness import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from _pytest.nodes import Node as Item

FAILED = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder starts processes."""
    for item in items:
        if "tests/process/" in item.path.as_posix():
            item.add_marker(pytest.mark.process)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Item) -> Iterator[None]:
    """Remember for the fixture below whether the test failed."""
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


@pytest.fixture
def make_cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Cluster]]:
    """
    Make clusters, not started, in folders of their own.

    At the end nothing of them runs. If the test failed their outputs are printed; if not, none of them may hold a
    traceback: whatever happens to a node from outside, it is no reason for an unhandled exception.
    """
    made: list[Cluster] = []

    def make(nodes: int = 3, settings: str = "") -> Cluster:
        folder = tmp_path / f"cluster{len(made)}"
        folder.mkdir()
        made.append(Cluster(folder, nodes, settings))
        return made[-1]

    yield make

    for cluster in made:
        cluster.end()
    failed = request.node.stash.get(FAILED, True)
    for cluster in made:
        if failed:
            sys.stdout.write(cluster.describe())
        else:
            for node in cluster.nodes:
                assert "Traceback (most recent call last)" not in node.text, f"{node} printed a traceback"
