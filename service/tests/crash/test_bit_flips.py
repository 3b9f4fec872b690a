"""Single bits flipped in every field of everything that lies on disk."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from kvorum.core.errors import StartupError
from kvorum.core.snapshot import Manifest
from kvorum.storage import data_directory
from kvorum_sim.crash.flips import flip_log, flip_snapshot, flip_while_reading
from kvorum_sim.crash.lives import configuration

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KINDS = ("command", "no-op", "configuration", "maintenance", "hard state", "base")
FIELDS = ("length", "kind", "term", "index", "time")
FRAME = ("file header magic", "file header version", "file header number", "file header salt", "file header checksum",
         "frame length", "frame salt", "frame sequence", "frame checksum", "zeros behind the groups")  # fmt: skip
WITH_PAYLOAD = ("command", "configuration", "maintenance", "hard state")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 3])
def test_bit_flipped_anywhere_in_a_log_is_refused_or_reported(seed: int) -> None:
    """One bit of every byte: refused with file, offset and way out, or a last group that is cut and said to be."""
    report = flip_log(seed)

    assert report.problems == []
    assert report.outcomes["refused"] > 1000
    assert report.outcomes["cut"] > 0
    wanted = {f"{kind} {field}" for kind in KINDS for field in FIELDS} | {*FRAME}
    assert set(report.flips) == wanted | {f"{kind} payload" for kind in WITH_PAYLOAD}


@pytest.mark.slow
def test_bit_flipped_below_an_open_log_is_never_read_as_data() -> None:
    """A read returns what was appended, or stops the node."""
    report = flip_while_reading(1)

    assert report.problems == []
    assert report.outcomes["refused"] > 1000


@pytest.mark.slow
def test_bit_flipped_anywhere_in_a_snapshot_is_refused() -> None:
    """Every bit of a small snapshot, and every place at which it may be cut short."""
    report = flip_snapshot(1)

    assert report.problems == []
    assert set(report.outcomes) == {"refused"}
    assert {
        f"snapshot {chunk} {field}" for chunk in ("manifest", "rows", "end") for field in ("length", "kind")
    } <= set(report.flips)


def must_refuse_or_mean_the_same(file: Path, read: Callable[[], object]) -> None:
    """Each bit of a small file flipped: its reader refuses it by name, or what it says is unchanged."""
    data, meaning, refused = file.read_bytes(), read(), 0
    for position in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        file.write_bytes(damaged)
        try:
            assert meaning == read(), f"bit {position % 8} of byte {position // 8}"
        except StartupError as error:
            refused += str(file) in str(error)
    file.write_bytes(data)

    # White space and such may change and mean the same.
    assert refused > 6 * len(data)


@pytest.mark.slow
def test_bit_flipped_in_the_identity_is_refused(tmp_path: Path) -> None:
    """Incarnation, cluster id and marks never come back as others."""
    data_directory._write_identity(tmp_path, 0x1234567890ABCDEF, bytes(range(16)), frozenset({"joining"}))

    must_refuse_or_mean_the_same(tmp_path / "kvorum.json", lambda: data_directory._read_identity(tmp_path))


@pytest.mark.slow
def test_bit_flipped_in_the_pointer_to_the_store_is_refused(tmp_path: Path) -> None:
    """Neither another directory nor another snapshot is ever taken for the store."""
    manifest = Manifest(bytes(range(16)), 70, 3, 99, configuration(random.Random(1), 60, 2))
    data_directory._write_store(tmp_path, "state.3", manifest)

    must_refuse_or_mean_the_same(tmp_path / "store.json", lambda: data_directory._read_store(tmp_path))
