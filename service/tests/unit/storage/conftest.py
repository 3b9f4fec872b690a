"""Opens logs for the tests of this room."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.storage.log_under_test import LogUnderTest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def open_log(tmp_path: Path) -> Iterator[Callable[..., LogUnderTest]]:
    """Opens logs, by default in one directory, and stops what a test leaves running."""
    opened: list[LogUnderTest] = []

    def open_one(path: Path | None = None, **options: object) -> LogUnderTest:
        opened.append(LogUnderTest(path or tmp_path / "log", **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    for log in opened:
        log.stop()
