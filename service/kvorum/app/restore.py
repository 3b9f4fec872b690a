"""
A new cluster out of a snapshot: fills the empty data directory of its first node (docs/formats/snapshot.md section 4).

The new cluster has an id of its own, so that nothing of the old one can ever talk to it, and all its versions lie above
everything the old one can have given out: a client that still holds an old version is refused, never misled. It begins
with this node as its only member; the others join it empty.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from kvorum.core.cluster import Configuration, Member
from kvorum.core.entries import Entry, EntryKind
from kvorum.core.errors import RemoteError, StartupError, WriteStalledError
from kvorum.core.snapshot import Manifest
from kvorum.statemachine.layout import STATE_KEY, pack_state, unpack_state
from kvorum.statemachine.transfer import Import
from kvorum.storage.data_directory import CLUSTER_ID_BYTES, DataDirectory, sync_directory
from kvorum.storage.rocksdict_engine import RocksdictEngine
from kvorum.storage.wal.segmented_log import SegmentedLog

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from kvorum.core.ids import Index
    from kvorum.core.ports import StorageEngine

INDEX_RAISE: Final = 10**9
"""Added to the index of the snapshot: more writes than the old cluster can have taken behind it."""

_DRAFT: Final = "restoring"
_IDENTITY: Final = "kvorum.json"
_OWN: Final = frozenset({"lost+found"})


def restore(chunks: Iterable[bytes], path: Path, member: Member) -> Manifest:
    """
    Make a snapshot the data directory of a new cluster's first node.

    Args:
        chunks: The snapshot.
        path: The node's data directory: missing or empty.
        member: The node as its configuration file describes it.

    Returns:
        What the new cluster begins with.

    Raises:
        StartupError: The directory is in use; the text says what to do.
        RemoteError: The snapshot is not whole. The directory is then not usable: remove what is in it.
        StorageFailedError: The disk refused.

    Durable:
        All of it. Before that the directory has no identity, so no node starts on it.
    """
    _must_be_empty(path)
    draft = path / _DRAFT
    try:
        directory = DataDirectory.open(draft)
        try:
            manifest = _fill(directory, chunks, member)
        finally:
            directory.close()
        _move_up(draft, path)
    except OSError as error:
        msg = f"cannot restore into {path}: {error}; empty it and try again"
        raise StartupError(msg) from error
    return manifest


def _must_be_empty(path: Path) -> None:
    if not path.exists():
        path.mkdir(parents=True)
        sync_directory(path.parent)
    found = sorted({entry.name for entry in path.iterdir()} - _OWN) if path.is_dir() else [path.name]
    if found:
        msg = (
            f"{path} is not an empty directory (it holds {', '.join(found[:3])}{' ...' if len(found) > 3 else ''}); "
            "a snapshot is restored only into an empty one: move it aside, or set another [database] base_path"
        )
        raise StartupError(msg)


def _fill(directory: DataDirectory, chunks: Iterable[bytes], member: Member) -> Manifest:
    store = directory.new_store_path()
    engine = RocksdictEngine.open(store)
    try:
        incoming = Import(engine)
        for chunk in chunks:
            _exhaust(incoming, incoming.take(chunk), engine)
        source = incoming.check.manifest
        if source is None or not incoming.check.finished:
            msg = "the snapshot ends before its end: it was cut short"
            raise RemoteError(msg)
        index = source.index + INDEX_RAISE
        _raise_index(engine, index)
        engine.flush()
    finally:
        engine.close()
    own = replace(member, voter=True, incarnation=directory.incarnation)
    configuration = Configuration.of([own]).encode()
    entry = Entry.create(index, source.term, EntryKind.CONFIGURATION, source.time_ms, configuration)
    manifest = Manifest(secrets.token_bytes(CLUSTER_ID_BYTES), index, source.term, source.time_ms, entry)
    directory.set_store(store, None)
    directory.remove_other_stores()
    log = SegmentedLog.open(directory.log_path, run_on_loop=lambda _: None, fail=lambda _: None, installed=manifest)
    asyncio.run(log.stop())
    directory.set_cluster_id(manifest.cluster_id)
    return manifest


def _exhaust(incoming: Import, steps: Iterator[None], engine: StorageEngine) -> None:
    while True:
        try:
            for _ in steps:
                pass
        except WriteStalledError:
            engine.flush()
            steps = incoming.rest()
        else:
            return


def _raise_index(engine: StorageEngine, index: Index) -> None:
    """Nothing below the new index can be read or conflicted with any more."""
    row = engine.get(STATE_KEY)
    assert row is not None, "a whole snapshot has a state row"
    state = unpack_state(row)
    batch = engine.batch()
    batch.put(STATE_KEY, pack_state(index, state.last_commit_version, index))
    engine.write(batch)


def _move_up(draft: Path, path: Path) -> None:
    """Everything to its place, the identity last: it is what makes the directory a node's."""
    for entry in sorted(draft.iterdir(), key=lambda entry: entry.name == _IDENTITY):
        sync_directory(path)
        entry.rename(path / entry.name)
    draft.rmdir()
    sync_directory(path)
