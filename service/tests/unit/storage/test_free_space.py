"""The reserve: when a node has too little space, and when it has enough again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from kvorum.storage.free_space import FreeSpace

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024


class Volume:
    """A file system of a given size; its free space counts what the superuser alone may use separately."""

    def __init__(self, total: int) -> None:
        self.total, self.free = total, total
        self.asked: list[Path] = []

    def statvfs(self, path: Path) -> SimpleNamespace:
        self.asked.append(path)
        return SimpleNamespace(
            f_frsize=4096, f_blocks=self.total // 4096, f_bavail=self.free // 4096, f_bfree=self.total // 4096
        )


def looks(space: FreeSpace, volume: Volume, *mebibytes: int) -> list[bool]:
    """What is said while so much is free, one after the other."""
    said = []
    for free in mebibytes:
        volume.free = free * MIB
        said.append(space.look())
    return said


def test_reserve_has_hysteresis(tmp_path: Path) -> None:
    """Below the reserve there is too little; only twice the reserve is enough again."""
    volume = Volume(10_000 * MIB)
    space = FreeSpace(tmp_path, 64 * MIB, volume.statvfs)  # type: ignore[arg-type]

    assert looks(space, volume, 65, 64, 63, 64, 100, 127, 128, 64, 10) == (
        [True, True, False, False, False, False, True, True, False]
    )
    assert space.free_bytes == 10 * MIB


def test_small_volume_keeps_a_small_reserve(tmp_path: Path) -> None:
    """A volume is never all reserve: a twentieth of it at most."""
    volume = Volume(100 * MIB)
    space = FreeSpace(tmp_path, 64 * MIB, volume.statvfs)  # type: ignore[arg-type]

    assert looks(space, volume, 6, 4, 9, 10) == [True, False, False, True]
    assert space.ample
    assert looks(space, volume, 9) == [True]
    assert not space.ample


def test_no_reserve_is_always_enough_but_not_ample(tmp_path: Path) -> None:
    """Without a reserve log and store alone say when the disk is full."""
    volume = Volume(10_000 * MIB)
    space = FreeSpace(tmp_path / "not" / "made" / "yet", 0, volume.statvfs)  # type: ignore[arg-type]

    assert looks(space, volume, 1000, 0) == [True, True]
    assert not space.ample
    assert set(volume.asked) == {tmp_path}, "the nearest directory that exists"
