"""The data directory: identity, lock, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kvorum.core.errors import LocalError, OutOfSpaceError, StartupError, StorageFailedError
from kvorum.storage import data_directory
from kvorum.storage.data_directory import DataDirectory

if TYPE_CHECKING:
    from pathlib import Path

CLUSTER = bytes(range(16))


def test_data_directory_missing_is_created_with_an_incarnation(tmp_path: Path) -> None:
    """A fresh directory gets an incarnation of its own and belongs to no cluster."""
    first = DataDirectory.open(tmp_path / "deep" / "a")
    second = DataDirectory.open(tmp_path / "b")

    assert first.incarnation != second.incarnation
    assert 0 < first.incarnation < 2**64
    assert first.cluster_id is None
    assert first.log_path == tmp_path / "deep" / "a" / "log"
    assert first.log_path.is_dir()
    assert first.state_path.is_dir()

    first.close()
    second.close()


def test_data_directory_opened_again_is_the_same(tmp_path: Path) -> None:
    """Incarnation and cluster id survive."""
    directory = DataDirectory.open(tmp_path)
    directory.set_cluster_id(CLUSTER)
    directory.set_cluster_id(CLUSTER)
    directory.close()
    again = DataDirectory.open(tmp_path)

    assert again.incarnation == directory.incarnation
    assert again.cluster_id == CLUSTER

    again.close()


def test_data_directory_of_one_cluster_is_never_given_to_another(tmp_path: Path) -> None:
    """The cluster id is written once and for ever."""
    directory = DataDirectory.open(tmp_path)
    directory.set_cluster_id(CLUSTER)

    with pytest.raises(LocalError, match="belongs to cluster"):
        directory.set_cluster_id(CLUSTER[::-1])

    assert directory.cluster_id == CLUSTER

    directory.close()


OPEN_AND_WAIT = """
import sys
from pathlib import Path
from kvorum.storage.data_directory import DataDirectory
DataDirectory.open(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_data_directory_in_use_names_the_process(tmp_path: Path) -> None:
    """Two processes never share a directory; the second is told who has it, and its lock dies with its holder."""
    command = [sys.executable, "-c", OPEN_AND_WAIT, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"open\n"

            with pytest.raises(StartupError, match=f"in use by process {holder.pid}"):
                DataDirectory.open(tmp_path)
        finally:
            holder.kill()
    DataDirectory.open(tmp_path).close()


def test_data_directory_foreign_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A directory with somebody else's files is not touched, not even by a lock file."""
    (tmp_path / "thesis.tex").write_text("do not lose")

    with pytest.raises(StartupError, match=r"not made by kvorum .*thesis\.tex.*base_path"):
        DataDirectory.open(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_data_directory_that_lost_its_identity_is_refused(tmp_path: Path) -> None:
    """A log without an identity file is not taken for an empty directory."""
    DataDirectory.open(tmp_path).close()
    (tmp_path / "kvorum.json").unlink()

    with pytest.raises(StartupError, match="not made by kvorum"):
        DataDirectory.open(tmp_path)


def test_data_directory_fresh_volume_is_accepted(tmp_path: Path) -> None:
    """An ext4 volume is never quite empty."""
    (tmp_path / "lost+found").mkdir()

    DataDirectory.open(tmp_path).close()


CREATE_AND_DIE = """
import os, sys
from pathlib import Path
deadly, calls = int(sys.argv[2]), 0
def guarded(real):
    def call(*arguments, **keywords):
        global calls
        calls += 1
        if calls == deadly:
            os._exit(9)
        return real(*arguments, **keywords)
    return call
import fcntl
from kvorum.storage.data_directory import DataDirectory
os.open, os.fsync, Path.rename, Path.mkdir, fcntl.flock, os.ftruncate, os.pwrite = map(
    guarded, (os.open, os.fsync, Path.rename, Path.mkdir, fcntl.flock, os.ftruncate, os.pwrite))
DataDirectory.open(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_data_directory_creation_interrupted_anywhere_is_completed(tmp_path: Path) -> None:
    """Whatever step a crash interrupts, the next start makes a whole directory of the half-made one."""
    for deadly in range(1, 50):
        path = tmp_path / str(deadly)
        died = subprocess.run([sys.executable, "-c", CREATE_AND_DIE, str(path), str(deadly)], check=False).returncode
        directory = DataDirectory.open(path)
        directory.close()
        again = DataDirectory.open(path)
        again.close()

        assert again.incarnation == directory.incarnation

        if not died:
            break
    else:
        pytest.fail("the creation never ran to its end")

    assert deadly > 8


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda _: "", "is damaged"),
        (lambda text: text.replace('"incarnation": "', '"incarnation": "f', 1), "checksum"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "has format 2; this release reads 1"),
        (lambda _: json.dumps({"format": 1}), "is damaged"),
        (lambda _: "[]", "is damaged"),
    ],
)
def test_data_directory_with_damaged_identity_is_refused(tmp_path: Path, damage, message: str) -> None:
    """A directory that does not know who it is never guesses."""
    DataDirectory.open(tmp_path).close()
    identity = tmp_path / "kvorum.json"
    identity.write_text(damage(identity.read_text()))

    with pytest.raises(StartupError, match=message):
        DataDirectory.open(tmp_path)


def test_data_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """A wrong path says so."""
    (tmp_path / "file").touch()

    with pytest.raises(StartupError, match="is not a directory"):
        DataDirectory.open(tmp_path / "file")


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (28, OutOfSpaceError, "disk is full.*free space"),
        (122, OutOfSpaceError, "disk is full.*free space"),
        (13, StartupError, "cannot be written by user"),
        (5, StartupError, "cannot be used"),
    ],
)
def test_data_directory_on_a_refusing_disk_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], message: str
) -> None:
    """Full, read-only and broken disks give one clear sentence each; only a full one is worth another attempt."""

    def refuse(_: Path) -> None:
        raise OSError(number, os.strerror(number))

    directory = DataDirectory.open(tmp_path / "old")
    with monkeypatch.context() as patch:
        patch.setattr(data_directory, "sync_directory", refuse)

        with pytest.raises(kind, match=message):
            DataDirectory.open(tmp_path / "new")
        with pytest.raises(StorageFailedError, match=message) as caught:
            directory.set_cluster_id(CLUSTER)
        assert isinstance(caught.value, OutOfSpaceError) is (kind is OutOfSpaceError)

    assert directory.cluster_id is None

    directory.close()
    DataDirectory.open(tmp_path / "new").close()
