"""The judge of the writers' output, and the writers themselves on nodes without Kubernetes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from cluster import history
from cluster.release import ROOT, WORKLOAD
from kvorum.cli.local_cluster import LocalCluster

if TYPE_CHECKING:
    from pathlib import Path

FINAL = {
    "batches": 1,
    "operations": 3,
    "succeeded": 9,
    "counted": 2,
    "audits": 1,
    "violations": [],
}
WRITE = [0, "register/1", "set", "a", None, 10, 20, "ok", ""]
OVERWRITE = [0, "register/1", "set", "b", None, 30, 40, "ok", ""]
READ = [1, "register/1", "get", None, "b", 50, 60, "ok", "read_index"]


def output(*operations: list[Any], **final: object) -> list[str]:
    """What writers print that did these operations."""
    totals = FINAL | {"operations": len(operations)} | final
    batch = {"batch": 1, "succeeded": 9, "failed": 0, "unknown": 0, "ops": operations}
    return [json.dumps(line) for line in ({"ready": True}, batch, {"final": totals})]


def test_history_that_may_have_happened_passes() -> None:
    """A read of the newest value, a counter that agrees and accounts that add up are fine."""
    history.read(output(WRITE, OVERWRITE, READ)).judge()


def test_history_with_a_stale_read_fails() -> None:
    """Reading what was overwritten before is found, and shown."""
    stale = [*READ[:4], "a", *READ[5:]]

    with pytest.raises(AssertionError, match="no order of the operations is legal"):
        history.read(output(WRITE, OVERWRITE, stale)).judge()


@pytest.mark.parametrize(("lag_s", "legal"), [(2.9, True), (3.1, False)])
def test_history_with_a_leader_read_may_lag_a_little(lag_s: float, *, legal: bool) -> None:
    """A leader that does not know of its successor yet may be some seconds behind, and no more."""
    begun = OVERWRITE[6] + round(lag_s * 1e6)
    late = [1, "register/1", "get", None, "a", begun, begun + 10, "ok", "leader"]
    seen = history.read(output(WRITE, OVERWRITE, late))

    if legal:
        seen.judge()
    else:
        with pytest.raises(AssertionError, match="no order of the operations is legal"):
            seen.judge()


def test_history_of_a_write_of_unknown_outcome_may_go_either_way() -> None:
    """What nobody knows the outcome of may be read later, or never."""
    unknown = [*OVERWRITE[:6], None, "unknown", ""]

    for value in ("a", "b"):
        history.read(output(WRITE, unknown, [*READ[:4], value, *READ[5:]])).judge()


@pytest.mark.parametrize(
    ("final", "reason"),
    [
        ({"violations": ["1 acknowledged writes are lost"]}, "are lost"),
        ({"batches": 2}, "1 of 2 batches"),
        ({"operations": 4}, "not complete"),
        ({"succeeded": 0}, "nothing was tested"),
        ({"counted": 0}, "never counted"),
        ({"audits": 0}, "nobody looked"),
    ],
)
def test_history_fails_with_its_reason(final: dict[str, object], reason: str) -> None:
    """Whatever the writers found, a log that is not complete, and a run that tested nothing are failures."""
    with pytest.raises(AssertionError, match=reason):
        history.read(output(WRITE, OVERWRITE, READ, **final)).judge()


def test_history_cut_short_fails() -> None:
    """Without the last line nothing is proven."""
    with pytest.raises(AssertionError, match="did not print their totals"):
        history.read(output(WRITE, OVERWRITE, READ)[:-1]).judge()


def test_history_with_foreign_output_fails() -> None:
    """A traceback in the middle is shown, not skipped."""
    with pytest.raises(AssertionError, match="Traceback"):
        history.read(["Traceback (most recent call last):"])


def test_history_tells_the_longest_silence() -> None:
    """Seconds in which no call succeeded are counted from the batches."""
    batches = [{"succeeded": count} for count in (0, 5, 5, 5, 9, 9, 12)]

    assert history.History(batches=batches).longest_silence_s == 2


def workload(*arguments: str) -> list[str]:
    """Command line of the script, as the pod has it."""
    return [sys.executable, str(WORKLOAD), *arguments]


@pytest.mark.process
@pytest.mark.slow
def test_writers_pass_their_own_judge_across_a_killed_leader(tmp_path: Path) -> None:
    """On three nodes of this machine, one of them killed: the writers print a whole history, and it is legal."""
    stop, log = tmp_path / "stop", tmp_path / "log"
    with LocalCluster(tmp_path / "cluster") as cluster, log.open("w") as output_file:
        cluster.start()
        endpoints = ",".join(cluster.endpoints)
        command = workload("run", "--endpoints", endpoints, "--stop-file", str(stop), "--seconds-max", "45")
        environment = os.environ | {"PYTHONPATH": str(ROOT / "client")}
        with subprocess.Popen(command, stdout=output_file, env=environment) as process:
            until_batches(log, 2)
            cluster.nodes[0].kill()
            until_batches(log, 4)
            cluster.nodes[0].start()
            stop.touch()
            assert process.wait(50) == 0

    history.read(log.read_text().splitlines()).judge()


def until_batches(log: Path, count: int) -> None:
    """Wait until that many lines with operations are there."""
    deadline = time.monotonic() + 40
    while log.read_text().count('"batch"') < count:
        assert time.monotonic() < deadline, log.read_text()[-1000:]
        time.sleep(0.05)


@pytest.mark.process
@pytest.mark.slow
def test_verify_notices_a_missing_key(tmp_path: Path) -> None:
    """`verify` passes on what `load` wrote, and fails on one key more."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "client")}
    with LocalCluster(tmp_path / "cluster", size=1) as cluster:
        cluster.start()

        def call(command: str, count: int) -> subprocess.CompletedProcess[str]:
            arguments = workload(command, "--endpoints", cluster.endpoints[0], "--count", str(count))
            return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=50, check=False)

        assert call("load", 20).returncode == 0
        assert call("verify", 20).returncode == 0
        missing = call("verify", 21)

    assert missing.returncode == 1
    assert json.loads(missing.stdout) == {"verified": 20, "wrong": ["e2e/20"]}
