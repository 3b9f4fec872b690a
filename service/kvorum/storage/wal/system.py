"""
The few system calls of the log, in one value, so that tests can make each of them fail and a simulator can answer them.

A failed fsync, a full disk or a power cut cannot be had on demand from a healthy machine, and they decide whether an
acknowledged write is safe. Everything the log asks of the operating system stands here; nothing goes around it.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvorum.storage.data_directory import sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def _create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)


def _open_to_read(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _read_file(path: Path) -> bytes:
    return path.read_bytes()


def _list_directory(path: Path) -> list[Path]:
    return list(path.iterdir())


def _unlink(path: Path) -> None:
    path.unlink()


def _file_size(path: Path) -> int:
    return path.stat().st_size


def _truncate(path: Path, size: int) -> None:
    os.truncate(path, size)


def _draw_salt() -> int:
    return secrets.randbelow(2**32 - 1) + 1


@dataclass(frozen=True, slots=True)
class SystemCalls:
    """Defaults are the real ones. A descriptor is whatever `create` and `open_to_read` return."""

    allocate: Callable[[int, int, int], None] = os.posix_fallocate
    write: Callable[[int, Sequence[bytes | memoryview], int], int] = os.pwritev
    sync_data: Callable[[int], None] = os.fdatasync
    sync_file: Callable[[int], None] = os.fsync
    sync_directory: Callable[[Path], None] = sync_directory
    create: Callable[[Path], int] = _create
    """A new file, to write; it must not exist."""
    open_to_read: Callable[[Path], int] = _open_to_read
    read: Callable[[int, int, int], bytes] = os.pread
    close: Callable[[int], None] = os.close
    read_file: Callable[[Path], bytes] = _read_file
    list_directory: Callable[[Path], list[Path]] = _list_directory
    unlink: Callable[[Path], None] = _unlink
    file_size: Callable[[Path], int] = _file_size
    truncate: Callable[[Path, int], None] = _truncate
    draw_salt: Callable[[], int] = _draw_salt
    """A fresh salt for a segment: never 0, and not to be foreseen by whoever writes values."""


REAL: Final = SystemCalls()
