"""One follower as its leader sees it."""

from __future__ import annotations

import random

from kvorum.core.limits import INFLIGHT_BYTES_MAX
from kvorum.raft.progress import PROBE, REPLICATE, SNAPSHOT, Progress


def replicating(match: int = 10, messages_max: int = 4) -> Progress:
    progress = Progress(1, match + 1, messages_max, clock=0.0)
    progress.accepted(match)
    assert progress.state == REPLICATE
    return progress


def test_probe_sends_one_message_until_an_answer() -> None:
    """In PROBE a second message waits."""
    progress = Progress(1, 11, 4, clock=0.0)
    assert progress.may_send

    progress.sent(12, 100)

    assert not progress.may_send
    assert progress.next == 11
    assert progress.accepted(12)
    assert (REPLICATE, 12, 13) == (progress.state, progress.match, progress.next)


def test_replicate_sends_ahead_within_count_and_bytes() -> None:
    """The window closes at either bound and opens with acknowledgements."""
    progress = replicating()
    for last in (11, 12, 13, 14):
        assert progress.may_send
        progress.sent(last, 100)
    assert not progress.may_send
    progress.accepted(12)
    assert (2, 200) == (progress.in_flight, progress.in_flight_bytes)
    assert progress.may_send

    progress.sent(15, INFLIGHT_BYTES_MAX)
    assert not progress.may_send


def test_acknowledgements_in_any_order_keep_the_highest() -> None:
    """Catalogue bug 25: late and repeated acknowledgements move nothing back."""
    for seed in range(50):
        progress = replicating(0, 100)
        for last in range(1, 21):
            progress.sent(last, 10)
        answers = [*range(1, 21), *range(1, 21)]
        random.Random(seed).shuffle(answers)
        highest = 0
        for answer in answers:
            news = progress.accepted(answer)
            assert news == (answer > highest)
            highest = max(highest, answer)
            assert (highest, 21, 20 - highest) == (progress.match, progress.next, progress.in_flight)
            assert progress.in_flight_bytes == 10 * progress.in_flight


def test_probe_from_below_the_match_starts_behind_it() -> None:
    """Catalogue bug 27: what is known to agree is never asked again."""
    progress = replicating(10)
    progress.sent(12, 100)

    progress.probe_from(3)

    assert (PROBE, 11, 0, 0) == (progress.state, progress.next, progress.in_flight, progress.in_flight_bytes)


def test_rejections_that_are_overtaken_are_stale() -> None:
    """In REPLICATE those at or below the match; in PROBE all but the one that was asked."""
    progress = replicating(10)
    progress.sent(12, 100)
    assert progress.is_stale_rejection(10)
    assert not progress.is_stale_rejection(11)

    progress.probe_from(11)
    assert progress.is_stale_rejection(11)
    assert not progress.is_stale_rejection(10)


def test_old_acknowledgement_does_not_end_a_probe() -> None:
    """Only an answer at the match or above shows where the follower stands."""
    progress = replicating(10)
    progress.probe_from(11)
    assert not progress.accepted(7)
    assert progress.state == PROBE

    assert not progress.accepted(10)
    assert progress.state == REPLICATE


def test_stuck_needs_silence_for_the_whole_patience() -> None:
    """Any growth of match or of what the follower verified starts the waiting again."""
    progress = replicating(10)
    assert not progress.is_stuck(10, 0.0, 0.3)
    progress.sent(12, 100)

    assert not progress.is_stuck(10, 0.2, 0.3)
    assert not progress.is_stuck(11, 0.3, 0.3)
    assert not progress.is_stuck(11, 0.59, 0.3)
    assert progress.is_stuck(11, 0.6, 0.3)


def test_follower_that_forgot_what_it_verified_is_stuck_too() -> None:
    """After its restart only an append can tell it what is committed."""
    progress = replicating(10)
    assert not progress.is_stuck(10, 0.0, 0.3)
    assert not progress.is_stuck(0, 0.1, 0.3)
    assert progress.is_stuck(0, 0.4, 0.3)


def test_follower_that_awaits_a_snapshot_is_sent_nothing() -> None:
    """No appends, and rejections of earlier ones are stale; an answer to look again leads back to PROBE."""
    progress = replicating()
    progress.sent(12, 100)

    progress.await_snapshot()

    assert (SNAPSHOT, 0, 0) == (progress.state, progress.in_flight, progress.in_flight_bytes)
    assert not progress.may_send
    assert progress.is_stale_rejection(12)
    progress.probe_from(31)
    assert (PROBE, 31) == (progress.state, progress.next)
