"""A process that applies through the real executor and RocksDB, killed again and again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SERVICE = Path(__file__).parents[2]
CYCLES = 30


def killed(directory: Path, cycles: int, seed: int) -> dict:
    found = subprocess.run(
        [sys.executable, "-m", "kvorum_sim.crash.store", str(directory), "--cycles", str(cycles), "--seed", str(seed)],
        env={**os.environ, "PYTHONPATH": str(SERVICE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout, found.stderr
    return json.loads(found.stdout)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_store_killed_anywhere_holds_the_log_applied_up_to_one_index(tmp_path: Path) -> None:
    """Bug 66: applied index and rows agree after every kill, and what was flushed is there."""
    report = killed(tmp_path / "store", CYCLES, 7)

    assert report["problems"] == []
    assert report["cycles"] == CYCLES
    assert report["cycles_with_loss"] > 0
    assert report["killed_flushing"] > 0
    assert report["flushes"] > 0
