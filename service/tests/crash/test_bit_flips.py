"""Single bits flipped in every field of everything that lies on disk."""

from __future__ import annotations

import pytest

from kvorum_sim.crash.flips import flip_log, flip_snapshot, flip_while_reading

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
