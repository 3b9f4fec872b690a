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


TORN = """
import sys
from kvorum.core.errors import WriteStalledError
from kvorum.statemachine.group import ApplyGroup
from kvorum.statemachine.layout import STATE_KEY
from kvorum_sim.crash import store

finish = ApplyGroup.finish

def torn(self, applied_index):
    put, held = self._put, []
    self._put = lambda key, row: held.append((key, row)) if key == STATE_KEY else put(key, row)
    state = finish(self, applied_index)
    while True:
        second = self._engine.batch()
        second.put(*held[0])
        try:
            self._engine.write(second)
        except WriteStalledError:
            continue
        return state

ApplyGroup.finish = torn
sys.exit(store.main(sys.argv[1:]))
"""
"""The store with the applied index in a batch of its own, behind the rows."""


def killed(
    directory: Path, cycles: int, seed: int, program: tuple[str, ...] = ("-m", "kvorum_sim.crash.store")
) -> dict:
    found = subprocess.run(
        [sys.executable, *program, str(directory), "--cycles", str(cycles), "--seed", str(seed)],
        env={**os.environ, "PYTHONPATH": str(SERVICE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout, found.stderr
    return json.loads(found.stdout)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_store_killed_anywhere_holds_the_log_applied_up_to_one_index(tmp_path: Path) -> None:
    """Bug 66: applied index and rows agree after every kill, and what was flushed is there."""
    report = killed(tmp_path / "store", CYCLES, 7)

    assert report["problems"] == []
    assert report["cycles"] == CYCLES
    assert report["cycles_with_loss"] > 0
    assert report["killed_flushing"] > 0
    assert report["flushes"] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_store_that_writes_its_applied_index_apart_is_found_out(tmp_path: Path) -> None:
    """Two batches where there must be one: sooner or later a flush comes between them, and a kill behind it."""
    report = killed(tmp_path / "store", CYCLES, 7, ("-c", TORN))

    assert any("its rows are not those of the log" in problem for problem in report["problems"])
