"""`kubectl scale`, and nothing else: the membership follows, both ways, by any jump, under load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster.commands import not_yet, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.release import Release
    from cluster.writers import Writers

pytestmark = pytest.mark.cluster

PATIENT_S = 60.0


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((3, 5, 3), marks=pytest.mark.smoke, id="3-5-3"),
        pytest.param((5, 1, 3), id="5-1-3"),
        pytest.param((3, 5, 3, 5), id="3-5-3-5 onto the kept volumes of removed members"),
    ],
)
def test_scale_under_load(release: Release, writers: Callable[..., Writers], sizes: tuple[int, ...]) -> None:
    """After each step there are as many voters as replicas, and no write is lost."""
    release.install(replicas=sizes[0])
    running = writers(timeout_s=PATIENT_S)

    for replicas in sizes[1:]:
        release.scale(replicas)
        release.ready(replicas)
        running.go_on()

    assert len(release.cluster_ids()) == 1
    running.finish()


def test_scale_to_nothing_and_back_under_load(release: Release, writers: Callable[..., Writers]) -> None:
    """Without any pod the cluster sleeps; it comes back with its members and its data."""
    release.install()
    running = writers(timeout_s=180)
    before = release.cluster_ids()

    def none_left() -> None:
        if pods := release.pods():
            not_yet(" ".join(pods))

    release.scale(0)
    wait_until(none_left, "no pod is left", 180)
    release.scale(3)
    release.ready(3)
    running.go_on()

    assert before == release.cluster_ids()
    running.finish()


def test_scale_down_undone_within_its_window(release: Release, writers: Callable[..., Writers]) -> None:
    """Five to three and at once back to five: five voters in the end, whoever had begun to leave."""
    release.install(replicas=5)
    running = writers(timeout_s=PATIENT_S)

    def leaving() -> None:
        if not any("deletionTimestamp" in pod["metadata"] for pod in release.pods().values()):
            not_yet("no pod was told to end")

    release.scale(3)
    wait_until(leaving, "a pod is told to end", 60, pause_s=0.1)
    release.scale(5)
    release.ready(5)

    running.go_on()
    running.finish()


def test_scale_pod_zero_whose_volume_was_wiped_joins_its_old_cluster(
    release: Release, writers: Callable[..., Writers]
) -> None:
    """An empty ordinal 0 forms no second cluster: it becomes a member again, and everybody has the same id."""
    release.install()
    running = writers(timeout_s=PATIENT_S)
    before, volume = release.cluster_ids(), release.volume(0)

    release.delete_volume(0)
    release.delete_pod("kvorum-0")
    running.go_on()
    release.ready(3)

    assert volume != release.volume(0), "the old volume is still there: nothing was tested"
    assert before == release.cluster_ids()
    running.go_on()
    running.finish()
