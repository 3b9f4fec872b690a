"""Which directory a node starts on when the cluster had removed the one in its place."""

from __future__ import annotations

import pytest

from kvorum.app.directory import open_directory
from kvorum.config.load import Flags, load_settings
from kvorum.core.errors import StartupError
from kvorum.storage.data_directory import DataDirectory

POD = {"KVORUM_DISCOVERY__METHOD": "kubernetes", "POD_NAME": "kv-4", "POD_NAMESPACE": "shop"}


def removed_directory(tmp_path, environment):
    settings, _ = load_settings(
        config_file=None, environment={**environment, "KVORUM_DATABASE__BASE_PATH": str(tmp_path)}, flags=Flags()
    )
    directory = DataDirectory.open(settings.data_directory)
    directory.set_removed()
    directory.close()
    return settings, directory.incarnation


def test_removed_pod_that_comes_back_starts_empty_and_keeps_the_old_directory(tmp_path):
    """Scaled down and up again on a retained volume: another incarnation, and nothing deleted yet."""
    settings, before = removed_directory(tmp_path, POD)
    directory = open_directory(settings)
    assert directory.incarnation != before
    assert directory.aside.exists()
    directory.close()


def test_removed_node_of_a_file_does_not_start(tmp_path):
    """Whoever runs nodes by hand decides by hand; the directory stays where it is."""
    settings, before = removed_directory(tmp_path, {})
    with pytest.raises(StartupError, match="remove the directory"):
        open_directory(settings)
    directory = DataDirectory.open(settings.data_directory)
    assert directory.incarnation == before
    directory.close()
