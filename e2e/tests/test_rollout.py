"""New pods one by one under load, without an error that a client sees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.release import Release

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.writers import Writers

pytestmark = pytest.mark.cluster

MOVES_MAX = 3
"""Leadership moves at most once per pod."""


@pytest.mark.smoke
def test_rollout_restart_costs_no_call(release: Release, writers: Callable[..., Writers]) -> None:
    """With the client's default time budget no call fails or stays unknown; leadership moves at most once per pod."""
    release.install()
    running = writers()
    before = release.view(release.leader())

    release.restart()
    release.rolled_out()
    release.ready(3)
    running.go_on()
    after = release.view(release.leader())

    seen = running.finish()
    assert (seen.final["failed"], seen.final["unknown"]) == (0, 0), seen.final["errors"]
    assert after.term - before.term <= MOVES_MAX


def test_rollout_from_an_earlier_version_costs_no_data(
    release: Release, image: str, writers: Callable[..., Writers]
) -> None:
    """From KVORUM_E2E_FROM_IMAGE, installed with the chart KVORUM_E2E_FROM_CHART, to today's image and chart."""
    earlier, chart = os.environ.get("KVORUM_E2E_FROM_IMAGE"), os.environ.get("KVORUM_E2E_FROM_CHART")
    if not earlier or not chart:
        pytest.skip("KVORUM_E2E_FROM_IMAGE and KVORUM_E2E_FROM_CHART are not set: no earlier version to roll from")
    Release(release.namespace, earlier).install(chart=Path(chart))
    running = writers()

    release.install(wait=False)
    release.rolled_out()
    release.ready(3)

    running.go_on()
    seen = running.finish()
    assert (seen.final["failed"], seen.final["unknown"]) == (0, 0), seen.final["errors"]
