"""What grows is told from what only goes up and down, and a single slow window is seen."""

from __future__ import annotations

import pytest
from verdicts import MIB, Series, below, bounded, steady, window_rates

SAW = [(at % 7) * 10.0 * MIB + 100 * MIB for at in range(120)]


def growing(per_sample_mib: float) -> Series:
    return Series("log of node 0", [tooth + at * per_sample_mib * MIB for at, tooth in enumerate(SAW)])


def test_a_saw_tooth_is_bounded_and_a_rising_one_is_not():
    """Both have the same teeth; only one becomes higher."""
    assert bounded(growing(0.0), 0).ok
    assert not bounded(growing(1.0), 0).ok
    assert bounded(growing(1.0), 300).ok
    assert not bounded(growing(1.0), 250).ok


def test_the_slope_is_of_the_last_half_only():
    """A ramp at the beginning, while memory is first filled, is not growth."""
    ramp = Series("memory of node 0", [*range(60), *([60.0] * 60)])

    assert ramp.slope_per_sample() == 0
    assert ramp.growth() == 0
    assert Series("x", [float(at) for at in range(100)]).slope_per_sample() == pytest.approx(1)


@pytest.mark.parametrize(("limit_mib", "ok"), [(160, True), (159, False)])
def test_the_limit_of_memory_counts_for_the_whole_run(limit_mib, ok):
    """One sample above it is one too many."""
    assert below(Series("memory of node 0", SAW), limit_mib).ok == ok


def test_one_slow_window_makes_the_rate_unsteady():
    """Each window must reach nine tenths, not their mean."""
    assert steady([1000, 900, 1100], 1000).ok
    verdict = steady([1000, 899, 1100], 1000)
    assert not verdict.ok
    assert verdict.line().startswith("NOT ok  rate in every window")


def test_windows_are_made_of_whole_samples():
    """Six samples of five seconds make one of thirty; a rest is left out unless there is nothing else."""
    assert window_rates([50.0] * 6 + [100.0] * 6 + [0.0] * 5, 5, 30) == [10, 20]
    assert window_rates([50.0] * 3, 5, 30) == [10]


def test_one_or_two_samples_are_judged_without_a_crash():
    """A trial run of seconds has no quarters to compare."""
    for samples in ([1.0], [1.0, 2.0], [0.0, 0.0, 0.0]):
        series = Series("x", samples)
        assert isinstance(series.growth(), float)
        assert isinstance(series.slope_per_sample(), float)
