"""How much space is left where the data lies, and whether that is enough to take part."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SMALL_VOLUME_PARTS: Final = 20
"""The reserve takes at most this part of a volume."""

HYSTERESIS: Final = 2
"""Reserves that must be free again before there is enough: a node that comes and goes helps nobody."""

AMPLE_BYTES: Final = 128 * 1024 * 1024
AMPLE_PARTS: Final = 10
"""With this much free, or this part of a small volume, nothing that waits for space has a reason to wait."""


class FreeSpace:
    """The volume of one directory, as of the latest `look`."""

    def __init__(
        self, path: Path, reserve_bytes: int, statvfs: Callable[[Path], os.statvfs_result] = os.statvfs
    ) -> None:
        """
        Remember where to look.

        Args:
            path: A directory; it may be missing yet.
            reserve_bytes: What must stay free; less on a small volume, see `SMALL_VOLUME_PARTS`.
            statvfs: The system call; tests bring their own.
        """
        self._path = path
        self._reserve_bytes = reserve_bytes
        self._statvfs = statvfs
        self.free_bytes = 0
        self.enough = True
        """False from the reserve being used up until twice the reserve is free."""
        self.ample = True

    def look(self) -> bool:
        """Ask the file system; returns `enough`."""
        path = self._path
        while not path.exists() and path != path.parent:
            path = path.parent
        volume = self._statvfs(path)
        total = volume.f_blocks * volume.f_frsize
        self.free_bytes = free = volume.f_bavail * volume.f_frsize
        reserve = min(self._reserve_bytes, total // SMALL_VOLUME_PARTS)
        self.enough = free >= (reserve if self.enough else HYSTERESIS * reserve)
        self.ample = self.enough and free >= min(AMPLE_BYTES, total // AMPLE_PARTS)
        return self.enough
