"""A bounded slice of `make crash` over the log: seeds as they are, and broken logs that must be found out."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from kvorum.storage.wal import recovery, segmented_log, segments
from kvorum.storage.wal.layout import Flaw, Group, group_at
from kvorum.storage.wal.system import REAL
from kvorum_sim.crash import lives
from kvorum_sim.crash.campaign import MUST_HAPPEN, distinct, examine, replay
from kvorum_sim.crash.flips import flip_log
from kvorum_sim.crash.images import images_of
from kvorum_sim.filesystem import SimulatedFiles

if TYPE_CHECKING:
    from pathlib import Path

    from kvorum.storage.wal.system import SystemCalls

SEEDS = range(100, 105)
IMAGES = 140
BROKEN_SEEDS = range(200, 212)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_crash_images_of_a_seed_give_back_what_was_durable(seed: int) -> None:
    """Whatever a power cut leaves of a log opens, and says what had been reported durable or was under way."""
    report = examine(seed, IMAGES)

    assert report.problems == []
    assert len(report.digests) > IMAGES - 30
    assert report.again > 0


def test_crash_lives_do_everything_a_log_is_asked_for() -> None:
    """The recorded lives of the slice and of `make crash` hold every act that has to be crashed in."""
    acts: Counter[str] = Counter()
    for seed in (*SEEDS, *range(20)):
        acts += lives.live(seed).acts

    assert [act for act in MUST_HAPPEN if not acts[act]] == []


def test_crash_images_are_the_same_for_the_same_seed() -> None:
    """A failure can be shown again by its two numbers."""
    first, second = (
        [(number, image.kind, image.digest) for number, image, _ in distinct(lives.live(5))] for _ in range(2)
    )

    assert first == second
    assert len(first) > 500
    assert replay(5, first[40][0]) == 0


def test_crash_images_include_everything_synced_or_not_synced() -> None:
    """At the end of a journal the best image is what a process reads; the worst lacks what no sync covers."""
    recording = lives.live(3)
    *_, last = (image for image in images_of(recording.journal, random.Random(1)) if "all written" in image.kind)

    assert recording.files.contents() == dict(last.contents)


def _refuses_nothing(data: bytes, offset: int, salt: int) -> Group | Flaw | None:
    """`group_at` without its checksum."""
    found = group_at(data, offset, salt)
    if isinstance(found, Flaw) and found.reason == "checksum does not match":
        length = int.from_bytes(data[offset : offset + 4], "big")
        return Group(found.claimed_sequence, offset, offset + 20 + length)
    return found


def _found_out(monkeypatch: pytest.MonkeyPatch | None = None, alter=lambda system: system) -> str:
    """What the suite says first of a broken log; empty if it says nothing."""
    for seed in BROKEN_SEEDS:
        report = examine(seed, 120, alter)
        if report.problems:
            return str(report.problems[0]["reason"])
    return ""


def _unsynced(call: str):
    def alter(system: SystemCalls) -> SystemCalls:
        return replace(system, **{call: lambda _: None})

    return alter


@pytest.mark.slow
@pytest.mark.parametrize("call", ["sync_data", "sync_file", "sync_directory"])
def test_crash_images_find_a_log_that_does_not_sync(call: str) -> None:
    """Bugs 59 and 63: acknowledged before it is durable, or in a file whose name is not."""
    assert _found_out(alter=_unsynced(call)) != ""


@pytest.mark.slow
def test_crash_images_find_a_recovery_that_checks_no_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torn group that is taken for whole comes back as entries nobody appended."""
    monkeypatch.setattr(recovery, "group_at", _refuses_nothing)
    monkeypatch.setattr(segments, "group_at", _refuses_nothing)

    assert _found_out() != ""


@pytest.mark.slow
def test_crash_images_find_a_recovery_that_deletes_before_it_has_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old copy of the last group must stay until the new one is durable."""
    take_over = segmented_log._take_over

    def hasty(directory, found, segment_bytes, system):
        for file in found.files:
            if not file.kept_end:
                system.unlink(file.path)
        found.files = [file for file in found.files if file.kept_end]
        return take_over(directory, found, segment_bytes, system)

    monkeypatch.setattr(segmented_log, "_take_over", hasty)

    assert _found_out() != ""


def test_flips_find_a_recovery_that_cuts_damage_with_good_groups_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug 61: damage in the middle that is taken for a torn tail shortens the log silently."""
    monkeypatch.setattr(recovery, "find_group", lambda *_: None)

    assert any("shortened" in problem for problem in flip_log(1).problems)


def test_crash_recorder_does_to_files_what_the_system_does(tmp_path: Path) -> None:
    """The same life on real files ends with the same bytes, so what is recorded is what would be done."""
    simulated, real = SimulatedFiles(random.Random(9)), random.Random(9)
    for lifetime in range(3):
        for directory, system in (
            (lives.DIRECTORY, simulated.system),
            (tmp_path, replace(REAL, draw_salt=lambda: real.randrange(1, 2**32))),
        ):
            log = lives.DrivenLog.boot(system, 1024, directory=directory)
            log.start(lambda _: None, lambda _: None)
            first = log.recovered.last_index + 1
            for index in range(first, first + 20):
                entry = lives.Entry.create(index, 1, 1, index, b"%d" % index * (index % 90))
                log.append(index, None, lives.EntryBatch([entry]))
                log.pump()
            log.drop_before(first - 3 * lifetime)
            log.pump()
            log.leave()

        assert {path.name: data for path, data in simulated.contents().items()} == {
            path.name: path.read_bytes() for path in tmp_path.iterdir()
        }
