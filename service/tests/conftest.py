"""Coverage is measured where it is cheap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from coverage import Coverage

if TYPE_CHECKING:
    from collections.abc import Iterator

SEEDED = ("tests/sim/", "tests/crash/", "tests/unit/raft/test_raft_simulation.py")
"""Tests that run the same story with one seed after the other; measuring makes them take more than twice as long."""


def is_measured(item: pytest.Item) -> bool:
    """Of seeded tests the first case only: the others, and bugs put in on purpose, reach hardly a line more."""
    if not any(part in item.path.as_posix() for part in SEEDED):
        return True
    case = getattr(item, "callspec", None)
    return case is not None and not any(case.indices.values())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """Let coverage look away where it would cost most and tell least; without coverage nothing happens here."""
    coverage = Coverage.current()
    if coverage is None or is_measured(item):
        return (yield)
    coverage.stop()
    try:
        return (yield)
    finally:
        coverage.start()
