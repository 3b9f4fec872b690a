"""
A latency histogram that costs two integer additions.

prometheus-client's own ``observe`` takes about a microsecond under a lock; the hot path has two for all bookkeeping.
A custom collector (`observe.metrics`) turns these into Prometheus histograms when somebody scrapes.
"""

from __future__ import annotations


class LatencyHistogram:
    """Counts durations in buckets whose upper bounds double: first_s, 2 first_s, 4 first_s ... and one above all."""

    __slots__ = ("_scale", "bounds", "counts", "sum_s")

    def __init__(self, first_s: float, buckets: int) -> None:
        self._scale = 1.0 / first_s
        self.bounds = tuple(first_s * 2**i for i in range(buckets))
        self.counts = [0] * (buckets + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration; anything below zero counts as zero."""
        self.sum_s += seconds
        bucket = int(seconds * self._scale).bit_length()
        self.counts[bucket if bucket < len(self.counts) else -1] += 1

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self.counts)
