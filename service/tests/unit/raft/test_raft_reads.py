"""Rounds that confirm reads."""

from __future__ import annotations

import pytest

from kvorum.raft.reads import READS_WAITING_MAX, ReadRounds


def test_reads_during_a_round_wait_for_the_next() -> None:
    """A round confirms exactly the reads that waited when it started, at the commit index of that moment."""
    reads = ReadRounds()
    assert reads.ask(1)
    assert reads.ask(2)
    reads.start_round(7)
    assert reads.ask(3)

    assert (1, 7) == (reads.round, reads.index)
    assert (1, 2) == reads.finish_round()
    reads.start_round(9)
    assert (2, 9) == (reads.round, reads.index)
    assert (3,) == reads.finish_round()


def test_drop_gives_every_read_back_in_order() -> None:
    """Nothing waits for ever (catalogue bug 39)."""
    reads = ReadRounds()
    reads.ask(1)
    reads.start_round(7)
    reads.ask(2)

    assert (1, 2) == reads.drop()
    assert () == reads.drop()


def test_queue_beyond_its_bound_refuses() -> None:
    """Every queue is bounded."""
    reads = ReadRounds()
    for request in range(READS_WAITING_MAX):
        assert reads.ask(request)

    assert not reads.ask(-1)


def test_two_rounds_at_once_are_a_defect() -> None:
    """One round at a time, and none without a reason."""
    reads = ReadRounds()
    with pytest.raises(AssertionError, match="needs a reason"):
        reads.start_round(1)
    reads.ask(1)
    reads.start_round(1)
    reads.ask(2)
    with pytest.raises(AssertionError, match="one round at a time"):
        reads.start_round(1)
