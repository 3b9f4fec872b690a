"""System calls of the log that fail, one by one, in the middle of everything a log does."""

from __future__ import annotations

from contextlib import suppress

import pytest

from kvorum.core.errors import StorageFailedError
from kvorum.storage.wal.writer import SegmentWriter
from kvorum_sim.crash.faults import CALLS, KINDS, count_calls, fail_each_call
from kvorum_sim.crash.lives import live

SEED = 5
STEP = 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_failed_call_loses_nothing_that_was_reported_durable(kind: str) -> None:
    """Bugs 60 and 64: an I/O error or a failed sync ends the process, a full disk is waited for."""
    report = fail_each_call(SEED, range(KINDS.index(kind), count_calls(SEED), STEP), [kind])

    assert report.problems == []
    assert report.faults.total() >= 5
    assert f"{kind} write" in report.faults


def test_failed_calls_meet_every_call_of_the_log() -> None:
    """The lives in which calls are failed make every call that can fail there."""
    counted = dict.fromkeys(CALLS, 0)

    def counting(name, call):
        def act(*arguments):
            counted[name] += 1
            return call(*arguments)

        return act

    live(SEED, lambda system: type(system)(**{
        **{name: getattr(system, name) for name in system.__slots__},
        **{name: counting(name, getattr(system, name)) for name in CALLS},
    }), mishaps=False)  # fmt: skip

    assert min(counted.values()) > 0


@pytest.mark.slow
def test_failed_calls_find_a_log_that_goes_on_after_a_failed_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug 60: an error of fsync that is passed over is found out."""
    sync = SegmentWriter.sync

    def lenient(self: SegmentWriter) -> None:
        with suppress(StorageFailedError):
            sync(self)

    monkeypatch.setattr(SegmentWriter, "sync", lenient)

    report = fail_each_call(SEED, range(60), ["EIO"])

    assert any("went on" in problem for problem in report.problems)
