"""The hot-path histogram."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvorum.observe.histogram import LatencyHistogram


@given(st.floats(min_value=0, max_value=100))
def test_histogram_observe_counts_in_the_right_bucket(seconds: float) -> None:
    """A duration is counted once, in a bucket whose bounds enclose it up to the cut to a whole multiple."""
    histogram = LatencyHistogram(0.001, 12)

    histogram.observe(seconds)

    bucket = histogram.counts.index(1)
    lower = 0.0 if bucket == 0 else histogram.bounds[bucket - 1]
    assert sum(histogram.counts) == histogram.count == 1
    assert histogram.sum_s == seconds
    assert lower <= seconds * 1.000001
    if bucket < len(histogram.bounds):
        assert seconds <= histogram.bounds[bucket] * 1.000001


def test_histogram_observe_below_zero_counts_as_zero() -> None:
    """A clock that stepped back does no harm to the buckets."""
    histogram = LatencyHistogram(0.001, 3)

    histogram.observe(-0.0001)

    assert histogram.counts == [1, 0, 0, 0]
