"""A data directory made from a snapshot: a cluster of its own, above every old version, whole or not there at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvorum.app.restore import INDEX_RAISE, restore
from kvorum.core.cluster import Configuration, Member
from kvorum.core.codec import TAG_BYTES, encode_operation
from kvorum.core.entries import Entry, EntryKind
from kvorum.core.errors import RemoteError, StartupError
from kvorum.core.operations import Mutation, MutationKind
from kvorum.core.snapshot import Manifest
from kvorum.statemachine.executor import KvStoreExecutor
from kvorum.statemachine.transfer import Export
from kvorum.storage.data_directory import DataDirectory
from kvorum.storage.memory_engine import MemoryEngine
from kvorum.storage.rocksdict_engine import RocksdictEngine
from kvorum.storage.wal.recovery import recover

if TYPE_CHECKING:
    from pathlib import Path

OLD = Configuration.of(Member(node, f"old{node}:1", f"oldpeer{node}:1", incarnation=7) for node in range(3))
OWN = Member(1, "new1:1", "newpeer1:1")
OLD_CLUSTER = b"o" * 16


def snapshot(keys: int = 2000) -> list[bytes]:
    """Chunks of a store with some keys, index 2 to ``keys + 1``."""
    executor = KvStoreExecutor(MemoryEngine())
    configured = Entry.create(1, 1, EntryKind.CONFIGURATION, 0, OLD.encode())
    executor.apply_group([configured])
    for number in range(keys):
        mutation = Mutation(MutationKind.SET, b"", b"key%d" % number, bytes(400))
        payload = bytes(TAG_BYTES) + encode_operation(mutation)
        executor.apply_group([Entry.create(number + 2, 3, EntryKind.COMMAND, 5, payload)])
    manifest = Manifest(OLD_CLUSTER, executor.applied_index, 3, 5, configured)
    return [chunk for chunk in Export(executor.view(), manifest).chunks() if chunk is not None]


@pytest.mark.parametrize("exists", [False, True])
def test_restore_makes_the_first_node_of_a_new_cluster(tmp_path: Path, exists: bool) -> None:  # noqa: FBT001
    """Every key is there, the old versions are not readable, and the node is the only member, with its own id."""
    path = tmp_path / "data"
    if exists:
        path.mkdir()
    manifest = restore(snapshot(), path, OWN)

    directory = DataDirectory.open(path)
    assert directory.cluster_id == manifest.cluster_id != OLD_CLUSTER
    recovered = recover(directory.log_path).state.recovered(0, ())
    index = 2001 + INDEX_RAISE
    assert (recovered.base_index, recovered.base_term, recovered.last_index) == (index, 3, index)
    assert recovered.hard_state.term == 3
    [(_, configuration)] = recovered.configurations
    assert [member.node_id for member in configuration.members] == [1]
    assert configuration.members[0].incarnation == directory.incarnation
    engine = RocksdictEngine.open(directory.state_path)
    executor = KvStoreExecutor(engine)
    assert executor.applied_index == executor.low_watermark == index
    assert executor.check_readable(2001) is not None
    assert executor.get(b"", b"key77") == bytes(400)
    engine.close()
    directory.close()
    assert not (path / "restoring").exists()


def test_restore_into_a_directory_that_holds_something_is_refused(tmp_path: Path) -> None:
    """Nothing is ever overwritten."""
    (tmp_path / "kvorum.json").write_text("{}")
    with pytest.raises(StartupError, match="not an empty directory"):
        restore(snapshot(5), tmp_path, OWN)
    assert (tmp_path / "kvorum.json").read_text() == "{}"


def test_restore_of_half_a_snapshot_leaves_nothing_that_starts(tmp_path: Path) -> None:
    """A snapshot that was cut short, or damaged, makes no data directory."""
    chunks = snapshot()
    for broken in (chunks[:-1], [*chunks[:-2], chunks[-1]], chunks[:1]):
        path = tmp_path / f"data{len(broken)}-{id(broken)}"
        with pytest.raises(RemoteError):
            restore(broken, path, OWN)
        with pytest.raises(StartupError, match="not made by kvorum"):
            DataDirectory.open(path)
