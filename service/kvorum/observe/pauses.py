"""
How long Python's garbage collector stands in the way of everything else.

A collection holds the interpreter lock, so the loop, and with it heartbeats, waits for its end: a long one looks like
a dead leader from outside. Watching costs two clock readings per collection, and those are rare.
"""

from __future__ import annotations

import gc
from time import perf_counter
from typing import TYPE_CHECKING

from kvorum.observe.histogram import LatencyHistogram

if TYPE_CHECKING:
    from collections.abc import Mapping


class CollectorPauses:
    """Times every collection between `watch` and `leave`."""

    def __init__(self) -> None:
        self.histogram = LatencyHistogram(0.0001, 14)
        self._began: float | None = None

    def watch(self) -> None:
        """Begin; once."""
        gc.callbacks.append(self._called)

    def leave(self) -> None:
        """End; harmless without a beginning."""
        if self._called in gc.callbacks:
            gc.callbacks.remove(self._called)

    def _called(self, phase: str, _: Mapping[str, int]) -> None:
        if phase == "start":
            self._began = perf_counter()
        elif self._began is not None:
            self.histogram.observe(perf_counter() - self._began)
            self._began = None
