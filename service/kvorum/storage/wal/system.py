"""
The few system calls of the log, in one value, so that tests can make each of them fail.

A failed fsync or a full disk cannot be had on demand from a healthy machine, and both decide whether an acknowledged
write is safe; everything else about the log is tested on real files.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvorum.storage.data_directory import sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class SystemCalls:
    """Defaults are the real ones."""

    allocate: Callable[[int, int, int], None] = os.posix_fallocate
    write: Callable[[int, Sequence[bytes | memoryview], int], int] = os.pwritev
    sync_data: Callable[[int], None] = os.fdatasync
    sync_file: Callable[[int], None] = os.fsync
    sync_directory: Callable[[Path], None] = sync_directory


REAL: Final = SystemCalls()
