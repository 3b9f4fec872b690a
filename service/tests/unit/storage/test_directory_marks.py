"""Marks in the identity of a data directory: joining and removed."""

from __future__ import annotations

import json

import pytest

from kvorum.core.errors import StartupError
from kvorum.storage.data_directory import DataDirectory


def test_marks_set_and_taken_away_survive_a_restart(tmp_path):
    """Each mark is durable, independent of the other and of the cluster id."""
    directory = DataDirectory.open(tmp_path / "d")
    assert (False, False) == (directory.joining, directory.removed)
    directory.set_joining(True)
    directory.set_cluster_id(b"c" * 16)
    directory.close()
    directory = DataDirectory.open(tmp_path / "d")
    assert (True, False, b"c" * 16) == (directory.joining, directory.removed, directory.cluster_id)
    directory.set_joining(False)
    directory.set_removed()
    directory.close()
    directory = DataDirectory.open(tmp_path / "d")
    assert (False, True, b"c" * 16) == (directory.joining, directory.removed, directory.cluster_id)
    directory.close()


def test_identity_without_marks_is_written_as_ever(tmp_path):
    """A directory that never joined nor left stays readable by the release before."""
    directory = DataDirectory.open(tmp_path / "d")
    directory.set_joining(True)
    directory.set_joining(False)
    directory.close()
    identity = json.loads((tmp_path / "d" / "kvorum.json").read_bytes())
    assert {"format", "incarnation", "cluster_id", "crc32"} == set(identity)


def test_mark_edited_by_hand_is_noticed(tmp_path):
    """Taking the tombstone out of the file does not bring a removed node back."""
    directory = DataDirectory.open(tmp_path / "d")
    directory.set_removed()
    directory.close()
    file = tmp_path / "d" / "kvorum.json"
    identity = json.loads(file.read_bytes())
    del identity["removed"]
    file.write_text(json.dumps(identity))
    with pytest.raises(StartupError, match="checksum"):
        DataDirectory.open(tmp_path / "d")


def test_removed_directory_set_aside_makes_room_for_another(tmp_path):
    """The new one has another incarnation; one directory is kept aside, and only until it is not needed any more."""
    incarnations = []
    for _ in range(2):
        directory = DataDirectory.open(tmp_path / "d")
        incarnations.append(directory.incarnation)
        directory.set_removed()
        aside = directory.set_aside()
    assert aside == tmp_path / "d.removed"
    directory = DataDirectory.open(tmp_path / "d")
    assert not directory.removed
    assert directory.incarnation not in incarnations
    kept = DataDirectory.open(aside)
    assert (kept.incarnation, kept.removed) == (incarnations[1], True)
    kept.close()
    assert directory.remove_aside()
    assert not directory.remove_aside()
    assert ["d"] == [entry.name for entry in tmp_path.iterdir()]
    directory.close()
