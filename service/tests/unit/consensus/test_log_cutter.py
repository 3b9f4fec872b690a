"""How far the log is cut: the margin, followers that lag, bytes, snapshots under way, and on demand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from kvorum.consensus.compaction import FOLLOWER_MARGINS, STREAM_BYTES_FACTOR, LogCutter
from kvorum.core.machine import LogCut, Role

if TYPE_CHECKING:
    from kvorum.core.machine import Event

MARGIN = 100
BYTES = 1000


class Host:
    """A leader with two followers, and the order in which machine and log hear of a cut."""

    def __init__(self, durable: int, matches: dict[int, int], *, size: int = 0, role: str = Role.LEADER) -> None:
        self.applier = SimpleNamespace(durable_index=durable)
        self.machine = SimpleNamespace(role=role, base_index=0, matches=lambda: matches)
        self.links = frozenset(matches)
        self.stream: int | None = None
        self.told: list[str] = []
        self.cutter = LogCutter(
            self,  # type: ignore[arg-type]
            SimpleNamespace(statistics=lambda: {"size_bytes": size}, drop_before=self._dropped),
            retain_entries=MARGIN,
            retain_bytes=BYTES,
        )

    def feed(self, event: Event) -> None:
        assert isinstance(event, LogCut)
        self.machine.base_index = event.index
        self.told.append(f"machine {event.index}")

    def _dropped(self, index: int) -> None:
        self.told.append(f"log {index}")

    def reachable(self) -> frozenset[int]:
        return self.links

    def streamed_index(self) -> int | None:
        return self.stream


def test_cut_keeps_the_margin_and_tells_the_machine_first() -> None:
    """The machine never asks for what the log has dropped."""
    host = Host(1000, {1: 1000, 2: 1000})
    assert host.cutter.cut() == 900
    assert host.told == ["machine 900", "log 901"]
    assert host.cutter.cut_total == 900
    assert host.cutter.cut() == 900
    assert len(host.told) == 2


@pytest.mark.parametrize(("match", "base"), [(950, 900), (870, 870), (3, 1000 - FOLLOWER_MARGINS * MARGIN)])
def test_cut_spares_a_reachable_follower_within_two_margins(match: int, base: int) -> None:
    """Who lags a little more than the margin still gets entries; who lags far gets a snapshot."""
    assert Host(1000, {1: 1000, 2: match}).cutter.cut() == base


def test_cut_does_not_wait_for_who_cannot_be_reached_or_does_not_follow() -> None:
    """A dead follower, and everything a follower itself knows, delay nothing."""
    dead = Host(1000, {1: 1000, 2: 3})
    dead.links = frozenset({1})
    assert dead.cutter.cut() == 900
    assert Host(1000, {1: 3, 2: 3}, role=Role.FOLLOWER).cutter.cut() == 900


def test_cut_of_a_log_that_is_too_long_goes_to_the_durable_index() -> None:
    """The bound in bytes holds whoever lags; only a snapshot under way may stretch it, a few times."""
    assert Host(1000, {1: 3}, size=BYTES + 1).cutter.cut() == 1000
    streaming = Host(1000, {1: 3}, size=BYTES + 1)
    streaming.stream = 400
    assert streaming.cutter.cut() == 400
    full = Host(1000, {1: 3}, size=STREAM_BYTES_FACTOR * BYTES + 1)
    full.stream = 400
    assert full.cutter.cut() == 1000


def test_cut_on_demand_keeps_nothing_that_is_durable_elsewhere() -> None:
    """Asked by an operator, margin and followers do not count; what is not durable stays."""
    assert Host(1000, {1: 3}).cutter.cut_all() == 1000
    assert Host(50, {1: 50}).cutter.cut() == 0
