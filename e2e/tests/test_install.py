"""Installing, proving, removing and installing again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster.commands import CommandError

if TYPE_CHECKING:
    from cluster.release import Release

pytestmark = pytest.mark.cluster


@pytest.mark.smoke
def test_install_with_defaults_gives_three_ready_pods_one_leader_and_a_green_helm_test(release: Release) -> None:
    """Three pods become ready, all three name the same leader, and `helm test` passes."""
    release.install()

    release.test()
    assert len(release.cluster_ids()) == 1


@pytest.mark.parametrize("profile", ["unlabelled"])
def test_install_in_a_namespace_without_a_pod_security_standard(release: Release, profile: str) -> None:
    """All other scenarios run under the restricted standard; without any it installs as well."""
    release.install()

    release.test()


@pytest.mark.parametrize("level", ["local", "leader", "read_index"])
def test_install_with_each_read_level(release: Release, level: str) -> None:
    """Pods become ready and `helm test` passes whatever the default level of reads."""
    release.install({"reads.consistencyLevel": level})

    release.test()


@pytest.mark.parametrize("replicas", [1, 5])
def test_install_with_other_sizes(release: Release, replicas: int) -> None:
    """One pod alone and five pods form one cluster with as many voters."""
    release.install(replicas=replicas)

    release.test()
    assert len(release.cluster_ids()) == 1


def test_install_after_uninstall_with_volumes_kept_brings_the_data_back(release: Release) -> None:
    """What was written is there again, in the same cluster."""
    release.install()
    release.in_pod("load")
    before = release.cluster_ids()

    release.uninstall()
    release.install()

    release.in_pod("verify")
    assert before == release.cluster_ids()
    release.test()


def test_install_after_uninstall_and_deleted_volumes_starts_anew(release: Release) -> None:
    """A new cluster is born without a manual step, and the old data are not in it."""
    release.install()
    release.in_pod("load")
    before = release.cluster_ids()

    release.uninstall()
    release.delete_volumes()
    release.install()

    assert before.isdisjoint(release.cluster_ids())
    with pytest.raises(CommandError, match='"verified":0'):
        release.in_pod("verify")
    release.test()
