"""
A node's data directory: whose it is, that nobody else uses it, and where the rest lies in it.

::

    kvorum.lock    locked (flock) while a process uses the directory; holds its process id
    kvorum.json    identity: format, incarnation, cluster id (docs/formats/log.md)
    store.json     which directory is the store, once a snapshot was installed; without it, ``state``
    log/           consensus log
    state/         storage engine; ``state.1`` and so on after snapshots were installed

Not what lies below ``log/`` and ``state*/``: their rooms open them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import zlib
from typing import TYPE_CHECKING, Final

from kvorum.core.errors import KvorumError, LocalError, OutOfSpaceError, StartupError, StorageFailedError
from kvorum.core.snapshot import Manifest

if TYPE_CHECKING:
    from pathlib import Path

    from kvorum.core.ids import Incarnation

FORMAT: Final = 1
CLUSTER_ID_BYTES: Final = 16
_IDENTITY: Final = "kvorum.json"
_IDENTITY_DRAFT: Final = "kvorum.json.new"
_LOCK: Final = "kvorum.lock"
_STORE: Final = "store.json"
_STORE_DRAFT: Final = "store.json.new"
_LOG: Final = "log"
_STATE: Final = "state"
_JOINING: Final = "joining"
_REMOVED: Final = "removed"
_STORE_NAME: Final = re.compile(r"state(?:\.([1-9][0-9]*))?")
_HALF_MADE: Final = frozenset({_IDENTITY_DRAFT, _LOCK, "lost+found"})
"""What an interrupted creation, or mkfs, may have left in a directory that is still nobody's."""
_WAY_OUT: Final = (
    "remove the whole directory and start the node again: it then comes back as a learner, filled by its peers"
)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DataDirectory:
    """An opened and locked data directory; `open` is the only way to get one."""

    def __init__(
        self,
        path: Path,
        lock: int,
        incarnation: Incarnation,
        cluster_id: bytes | None,
        marks: frozenset[str] = frozenset(),
    ) -> None:
        self.path = path
        self.log_path = path / _LOG
        self._store, self.installed = _read_store(path)
        """The second: the snapshot that the store was installed from, as long as the log may not follow it yet."""
        self.incarnation = incarnation
        self._cluster_id = cluster_id
        self._marks = marks
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> DataDirectory:
        """
        Lock a data directory, creating it first if it is missing or empty.

        Raises:
            OutOfSpaceError: The disk is full; try again when there is space.
            StartupError: It is in use, foreign, of another format, damaged, or the disk refuses; says what to do.

        Durable:
            The incarnation, which is drawn once and never changes.
        """
        try:
            return cls._open(path)
        except OSError as error:
            kind = OutOfSpaceError if _is_full(error) else StartupError
            raise kind(_explain(path, error)) from error

    @classmethod
    def _open(cls, path: Path) -> DataDirectory:
        if not path.exists():
            path.mkdir(parents=True)
            sync_directory(path.parent)
        if not path.is_dir():
            msg = f"data directory {path} is not a directory; set [database] base_path to one"
            raise StartupError(msg)
        if not (path / _IDENTITY).exists():
            _refuse_foreign(path)
        lock = _locked(path)
        try:
            if not (path / _IDENTITY).exists():
                # Nonzero: an incarnation of 0 means "not known yet" everywhere else.
                _write_identity(path, secrets.randbelow(2**64 - 1) + 1, None)
            directory = cls(path, lock, *_read_identity(path))
            for name in (_LOG, directory._store):
                (path / name).mkdir(exist_ok=True)
            # What an interrupted install staged, or the store of before one that was finished.
            directory.remove_other_stores()
            sync_directory(path)
        except BaseException:
            os.close(lock)
            raise
        return directory

    @property
    def state_path(self) -> Path:
        """Directory of the store."""
        return self.path / self._store

    def new_store_path(self) -> Path:
        """A directory for the next store, which does not exist yet."""
        numbers = (_STORE_NAME.fullmatch(entry.name) for entry in self.path.iterdir())
        used = [int(found.group(1) or 0) for found in numbers if found]
        return self.path / f"{_STATE}.{max(used, default=0) + 1}"

    def set_store(self, path: Path, installed: Manifest | None) -> None:
        """
        Make another directory the store: the one atomic step of an install.

        Args:
            path: From `new_store_path`; its contents are durable.
            installed: What the log has to follow, see `installed`; None once it does.

        Raises:
            StorageFailedError: It could not be made durable; which store the next start finds is open, both are whole.
        """
        assert path.parent == self.path
        try:
            sync_directory(path)
            _write_store(self.path, path.name, installed)
        except OSError as error:
            raise _failure(self.path, error) from error
        self._store = path.name
        self.installed = installed

    def remove_other_stores(self) -> None:
        """Delete every store directory but the present one."""
        for entry in list(self.path.iterdir()):
            if entry.name != self._store and _STORE_NAME.fullmatch(entry.name):
                shutil.rmtree(entry)

    @property
    def cluster_id(self) -> bytes | None:
        """Id of the cluster this directory belongs to; None until it was born or joined."""
        return self._cluster_id

    def set_cluster_id(self, cluster_id: bytes) -> None:
        """
        Record which cluster this directory belongs to, once and for ever.

        Raises:
            LocalError: It already belongs to another one.
            StorageFailedError: It could not be made durable.
        """
        assert len(cluster_id) == CLUSTER_ID_BYTES
        if self._cluster_id == cluster_id:
            return
        if self._cluster_id is not None:
            msg = f"{self.path} belongs to cluster {self._cluster_id.hex()} and cannot be given to {cluster_id.hex()}"
            raise LocalError(msg)
        self._keep(cluster_id, self._marks)

    def _keep(self, cluster_id: bytes | None, marks: frozenset[str]) -> None:
        try:
            _write_identity(self.path, self.incarnation, cluster_id, marks)
        except OSError as error:
            raise _failure(self.path, error) from error
        self._cluster_id = cluster_id
        self._marks = marks

    @property
    def joining(self) -> bool:
        """It came to a cluster that was there, and has not shown its own seat yet: its log may still be empty."""
        return _JOINING in self._marks

    def set_joining(self, joining: bool) -> None:  # noqa: FBT001 - a fact about the directory
        """
        Note durably that this directory joins a cluster, or that it has arrived.

        Raises:
            StorageFailedError: It could not be made durable.
        """
        if joining is not self.joining:
            self._keep(self._cluster_id, self._marks ^ {_JOINING})

    @property
    def removed(self) -> bool:
        """The cluster has removed it for good: it may hold no seat again."""
        return _REMOVED in self._marks

    def set_removed(self) -> None:
        """
        Note durably that the cluster removed this directory.

        Raises:
            StorageFailedError: It could not be made durable.
        """
        if not self.removed:
            self._keep(self._cluster_id, self._marks | {_REMOVED})

    @property
    def aside(self) -> Path:
        """Where `set_aside` puts a directory."""
        return self.path.with_name(f"{self.path.name}.removed")

    def set_aside(self) -> Path:
        """
        Make room for a new directory in this place, and let go of this one; the object must not be used afterwards.

        One directory is kept aside; an older one is deleted.

        Raises:
            StartupError: The disk refuses.
        """
        aside = self.aside
        try:
            if aside.exists():
                shutil.rmtree(aside)
            self.path.rename(aside)
            sync_directory(aside.parent)
        except OSError as error:
            raise StartupError(_explain(self.path, error)) from error
        finally:
            self.close()
        return aside

    def remove_aside(self) -> bool:
        """Delete what `set_aside` has kept; whether there was anything."""
        if not self.aside.exists():
            return False
        shutil.rmtree(self.aside)
        return True

    def close(self) -> None:
        """Let go of the lock; the object must not be used afterwards."""
        os.close(self._lock)


def _is_full(error: OSError) -> bool:
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def _failure(path: Path, error: OSError) -> StorageFailedError:
    return (OutOfSpaceError if _is_full(error) else StorageFailedError)(_explain(path, error))


def _explain(path: Path, error: OSError) -> str:
    if _is_full(error):
        return f"data directory {path}: the disk is full ({error}); free space or enlarge the volume"
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return (
            f"data directory {path} cannot be written by user {os.getuid()} ({error}); "
            "change its owner or mount it writable"
        )
    return f"data directory {path} cannot be used: {error}"


def _refuse_foreign(path: Path) -> None:
    foreign = sorted({entry.name for entry in path.iterdir()} - _HALF_MADE)
    if foreign:
        msg = (
            f"data directory {path} is not empty and was not made by kvorum (no {_IDENTITY}; it holds "
            f"{', '.join(foreign[:3])}{' ...' if len(foreign) > 3 else ''}); "
            "set [database] base_path to an empty directory, or restore its identity file"
        )
        raise StartupError(msg)


def _locked(path: Path) -> int:
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        msg = (
            f"data directory {path} is in use by process {holder}; stop that node first, "
            "or give this one a [database] base_path of its own"
        )
        raise StartupError(msg) from error
    except OSError:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _checksum(incarnation: str, cluster_id: str | None, marks: frozenset[str]) -> int:
    """Without marks as it has always been, so that files without them stay readable in both directions."""
    return zlib.crc32(" ".join([str(FORMAT), incarnation, str(cluster_id), *sorted(marks)]).encode())


def _write_identity(
    path: Path, incarnation: Incarnation, cluster_id: bytes | None, marks: frozenset[str] = frozenset()
) -> None:
    """Replace the identity file; a crash leaves the old one or the new one, whole."""
    spelt, cluster = f"{incarnation:016x}", cluster_id.hex() if cluster_id else None
    identity = {
        "format": FORMAT,
        "incarnation": spelt,
        "cluster_id": cluster,
        **dict.fromkeys(sorted(marks), True),
        "crc32": _checksum(spelt, cluster, marks),
    }
    draft = path / _IDENTITY_DRAFT
    with draft.open("w", encoding="ascii") as file:
        file.write(json.dumps(identity, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path / _IDENTITY)
    sync_directory(path)


def _read_identity(path: Path) -> tuple[Incarnation, bytes | None, frozenset[str]]:
    file = path / _IDENTITY
    try:
        identity = json.loads(file.read_bytes())
        version = identity["format"]
        if version != FORMAT:
            msg = f"{file} has format {version}; this release reads {FORMAT}: start the release that wrote it"
            raise StartupError(msg)
        incarnation, cluster_id = identity["incarnation"], identity["cluster_id"]
        marks = frozenset(mark for mark in (_JOINING, _REMOVED) if identity.get(mark) is True)
        if identity["crc32"] != _checksum(incarnation, cluster_id, marks):
            msg = "checksum does not match"
            raise ValueError(msg)
        return int(incarnation, 16), bytes.fromhex(cluster_id) if cluster_id is not None else None, marks
    except (ValueError, KeyError, TypeError) as error:
        msg = f"identity file {file} is damaged ({error}); {_WAY_OUT}"
        raise StartupError(msg) from error


def _store_checksum(name: str, installed: str | None) -> int:
    return zlib.crc32(f"{FORMAT} {name} {installed}".encode())


def _write_store(path: Path, name: str, installed: Manifest | None) -> None:
    """Replace the file that names the store; a crash leaves the old one or the new one, whole."""
    spelt = installed.encode().hex() if installed else None
    pointer = {"format": FORMAT, "directory": name, "installed": spelt, "crc32": _store_checksum(name, spelt)}
    draft = path / _STORE_DRAFT
    with draft.open("w", encoding="ascii") as file:
        file.write(json.dumps(pointer, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path / _STORE)
    sync_directory(path)


def _read_store(path: Path) -> tuple[str, Manifest | None]:
    file = path / _STORE
    if not file.exists():
        return _STATE, None
    try:
        pointer = json.loads(file.read_bytes())
        if pointer["format"] != FORMAT:
            msg = f"{file} has format {pointer['format']}; this release reads {FORMAT}: start the release that wrote it"
            raise StartupError(msg)
        name, installed = pointer["directory"], pointer["installed"]
        if pointer["crc32"] != _store_checksum(name, installed) or not _STORE_NAME.fullmatch(name):
            msg = "checksum does not match"
            raise ValueError(msg)
        return name, Manifest.decode(bytes.fromhex(installed)) if installed is not None else None
    except StartupError:
        raise
    except (ValueError, KeyError, TypeError, KvorumError) as error:
        msg = f"{file}, which names the store, is damaged ({error}); {_WAY_OUT}"
        raise StartupError(msg) from error
