"""How long a leader's batches take to be committed."""

from __future__ import annotations

from kvorum.consensus.commit_times import CommitTimes


def test_commit_times_counts_each_batch_once() -> None:
    """A commit ends the batches up to it and leaves the others under way."""
    times = CommitTimes()
    times.appended(4, 10.0)
    times.appended(9, 10.5)

    times.committed(5, 11.0)
    assert (times.histogram.count, times.histogram.sum_s) == (1, 1.0)
    assert times

    times.committed(9, 11.0)
    assert (times.histogram.count, times.histogram.sum_s) == (2, 1.5)
    assert not times


def test_commit_times_forgets_what_a_leader_left_behind() -> None:
    """Batches of an earlier leadership are not counted when their indexes are committed later."""
    times = CommitTimes()
    times.appended(4, 10.0)

    times.forget()
    times.committed(4, 99.0)

    assert times.histogram.count == 0
