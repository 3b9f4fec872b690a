"""
A node's data directory: whose it is, that nobody else uses it, and where the rest lies in it.

::

    kvorum.lock    locked (flock) while a process uses the directory; holds its process id
    kvorum.json    identity: format, incarnation, cluster id (docs/formats/log.md)
    log/           consensus log
    state/         storage engine

Not what lies below ``log/`` and ``state/``: their rooms open them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import zlib
from typing import TYPE_CHECKING, Final

from kvorum.core.errors import LocalError, StartupError, StorageFailedError

if TYPE_CHECKING:
    from pathlib import Path

    from kvorum.core.ids import Incarnation

FORMAT: Final = 1
CLUSTER_ID_BYTES: Final = 16
_IDENTITY: Final = "kvorum.json"
_IDENTITY_DRAFT: Final = "kvorum.json.new"
_LOCK: Final = "kvorum.lock"
_LOG: Final = "log"
_STATE: Final = "state"
_HALF_MADE: Final = frozenset({_IDENTITY_DRAFT, _LOCK, "lost+found"})
"""What an interrupted creation, or mkfs, may have left in a directory that is still nobody's."""
_WAY_OUT: Final = (
    "rebuild this member from its peers; until then the others carry on, and an empty directory may not take its seat"
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

    def __init__(self, path: Path, lock: int, incarnation: Incarnation, cluster_id: bytes | None) -> None:
        self.path = path
        self.log_path = path / _LOG
        self.state_path = path / _STATE
        self.incarnation = incarnation
        self._cluster_id = cluster_id
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> DataDirectory:
        """
        Lock a data directory, creating it first if it is missing or empty.

        Raises:
            StartupError: It is in use, foreign, of another format, damaged, or the disk refuses; says what to do.

        Durable:
            The incarnation, which is drawn once and never changes.
        """
        try:
            return cls._open(path)
        except OSError as error:
            raise StartupError(_explain(path, error)) from error

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
            incarnation, cluster_id = _read_identity(path)
            for name in (_LOG, _STATE):
                (path / name).mkdir(exist_ok=True)
            sync_directory(path)
        except BaseException:
            os.close(lock)
            raise
        return cls(path, lock, incarnation, cluster_id)

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
        try:
            _write_identity(self.path, self.incarnation, cluster_id)
        except OSError as error:
            raise StorageFailedError(_explain(self.path, error)) from error
        self._cluster_id = cluster_id

    def close(self) -> None:
        """Let go of the lock; the object must not be used afterwards."""
        os.close(self._lock)


def _explain(path: Path, error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"data directory {path}: the disk is full ({error}); free space or enlarge the volume, then start again"
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


def _checksum(incarnation: str, cluster_id: str | None) -> int:
    return zlib.crc32(f"{FORMAT} {incarnation} {cluster_id}".encode())


def _write_identity(path: Path, incarnation: Incarnation, cluster_id: bytes | None) -> None:
    """Replace the identity file; a crash leaves the old one or the new one, whole."""
    spelt, cluster = f"{incarnation:016x}", cluster_id.hex() if cluster_id else None
    identity = {
        "format": FORMAT,
        "incarnation": spelt,
        "cluster_id": cluster,
        "crc32": _checksum(spelt, cluster),
    }
    draft = path / _IDENTITY_DRAFT
    with draft.open("w", encoding="ascii") as file:
        file.write(json.dumps(identity, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path / _IDENTITY)
    sync_directory(path)


def _read_identity(path: Path) -> tuple[Incarnation, bytes | None]:
    file = path / _IDENTITY
    try:
        identity = json.loads(file.read_bytes())
        version = identity["format"]
        if version != FORMAT:
            msg = f"{file} has format {version}; this release reads {FORMAT}: start the release that wrote it"
            raise StartupError(msg)
        incarnation, cluster_id = identity["incarnation"], identity["cluster_id"]
        if identity["crc32"] != _checksum(incarnation, cluster_id):
            msg = "checksum does not match"
            raise ValueError(msg)
        return int(incarnation, 16), bytes.fromhex(cluster_id) if cluster_id is not None else None
    except (ValueError, KeyError, TypeError) as error:
        msg = f"identity file {file} is damaged ({error}); {_WAY_OUT}"
        raise StartupError(msg) from error
