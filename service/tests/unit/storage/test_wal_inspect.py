"""The inspector: says what is there, changes nothing, and minds neither damage nor a live node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvorum.core.entries import EntryKind, HardState
from kvorum.storage.wal.inspect import inspect_log
from tests.unit.storage.log_under_test import configuration, entry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.storage.log_under_test import LogUnderTest

    OpenLog = Callable[..., LogUnderTest]


def test_inspect_says_what_a_log_holds(open_log: OpenLog) -> None:
    """Segments, heads, groups, records by kind, ranges, terms and the vote."""
    log = open_log()
    log.append(entry(1, 1, configuration(0, 1, 2).encode(), EntryKind.CONFIGURATION), hard_state=HardState(1, 2))
    log.append(entry(2, 1, b"", EntryKind.NOOP), entry(3, 1), entry(4, 1))
    log.append(entry(3, 2))
    log.stop()
    description = inspect_log(log.path)
    [segment] = description.segments

    assert description.error == ""
    assert description.recovered is not None
    assert description.recovered.last_index == 3
    assert (segment.version, segment.groups, segment.first_sequence, segment.last_sequence) == (1, 4, 1, 4)
    assert (segment.base_index, segment.base_term, segment.head_configurations) == (0, 0, ())
    assert (segment.head_hard_state, segment.hard_state) == (HardState(), HardState(1, 2))
    assert segment.records == {"command": 3, "configuration": 1, "hard_state": 1, "noop": 1}
    assert (segment.first_index, segment.last_index, segment.replaced_entries) == (1, 3, 2)
    assert segment.terms == (1, 2)
    assert segment.damage is None
    assert segment.used_bytes < segment.file_bytes == segment.path.stat().st_size


def test_inspect_works_on_a_live_log_and_leaves_it_alone(open_log: OpenLog) -> None:
    """Looking at a log while it is written never disturbs it, and shows at least what was durable before."""
    log = open_log()
    for index in range(1, 200):
        log.queue(entry(index, payload=bytes(300)))
        if index % 20 == 0:
            durable = log.durable
            description = inspect_log(log.path)

            assert description.error == ""
            assert description.recovered is not None
            assert description.recovered.last_index >= durable

            log.run_one()
    log.run_until(lambda: log.durable == 199)

    assert len(log.entries()) == 199
    assert len(inspect_log(log.path).segments) > 5


@pytest.mark.parametrize("good_behind", [False, True])
def test_inspect_tells_a_torn_end_from_corruption(open_log: OpenLog, *, good_behind: bool) -> None:
    """Damage is given with file, offset and whether something good lies behind it."""
    log = open_log()
    log.fill(1, 3)
    log.stop()
    segment = inspect_log(log.path).segments[-1]
    data = bytearray(segment.path.read_bytes())
    data[segment.used_bytes - (100 if good_behind else 5)] ^= 1
    segment.path.write_bytes(data)
    description = inspect_log(log.path)
    damage = description.segments[-1].damage

    assert damage is not None
    assert damage.path == segment.path
    assert damage.good_group_behind is good_behind
    assert ("rebuild this member" in description.error) is good_behind
    assert (description.recovered is None) is good_behind


def test_inspect_lists_unreadable_files_too(tmp_path: Path) -> None:
    """A file that only has a segment's name is shown with what is wrong with it."""
    (tmp_path / "0000000000000003.log").write_bytes(b"no log at all, no log at all")
    description = inspect_log(tmp_path)

    assert description.segments[0].damage is not None
    assert description.segments[0].damage.reason == "no intact file header"
    assert description.error != ""


def test_inspect_of_an_empty_directory_is_an_empty_log(tmp_path: Path) -> None:
    """Nothing is not an error."""
    description = inspect_log(tmp_path)

    assert description.segments == ()
    assert description.error == ""


def test_inspect_of_a_missing_directory_raises(tmp_path: Path) -> None:
    """A wrong path is the caller's to report."""
    with pytest.raises(FileNotFoundError):
        inspect_log(tmp_path / "missing")
