"""Pauses of the garbage collector are seen."""

from __future__ import annotations

import gc

from kvorum.observe.pauses import CollectorPauses


def test_pauses_count_each_collection_while_watched() -> None:
    """Collections are timed between the beginning and the end of the watch only."""
    pauses = CollectorPauses()
    gc.collect()
    assert pauses.histogram.count == 0

    pauses.watch()
    gc.collect()
    pauses.leave()
    seen = pauses.histogram.count
    gc.collect()

    assert seen >= 1
    assert pauses.histogram.count == seen
    assert pauses.histogram.sum_s > 0


def test_pauses_leave_twice_is_harmless() -> None:
    """A node that never watched can stop like any other."""
    pauses = CollectorPauses()

    pauses.leave()

    assert gc.callbacks.count(pauses._called) == 0
