"""Tickets and what they prove."""

from __future__ import annotations

import pytest

from kvorum.raft.durability import Durability


def test_report_of_a_ticket_makes_everything_up_to_it_durable() -> None:
    """Reports may skip tickets: a group commit covers several."""
    durability = Durability(5)
    for last in (6, 8, None, 9):
        durability.issue(last)

    durability.report(3)
    assert durability.index == 8
    durability.report(2)
    assert durability.index == 8
    durability.report(4)
    assert durability.index == 9


def test_ticket_of_an_entry_is_the_write_that_holds_it() -> None:
    """An acknowledgement of older entries need not wait for newer writes, and durable ones wait for nothing."""
    durability = Durability(5)
    for last in (6, 8, None, 9):
        durability.issue(last)

    assert [0, 1, 2, 2, 4] == [durability.ticket_of(index) for index in (5, 6, 7, 8, 9)]
    durability.report(2)
    assert [0, 4] == [durability.ticket_of(index) for index in (8, 9)]
    with pytest.raises(AssertionError, match="never handed"):
        durability.ticket_of(10)


def test_truncation_takes_the_vouching_from_writes_under_way() -> None:
    """A write of entries that were replaced meanwhile proves nothing about their successors (catalogue bug 24)."""
    durability = Durability(5)
    durability.issue(9)
    durability.truncated(6)
    durability.issue(8)

    durability.report(1)
    assert durability.index == 6
    assert durability.ticket_of(7) == 2
    durability.report(2)
    assert durability.index == 8


def test_truncation_of_durable_entries_lowers_the_durable_index() -> None:
    """What is on disk but no longer in the log does not count."""
    durability = Durability(9)
    durability.truncated(4)
    assert durability.index == 4

    durability.issue(6)
    assert durability.ticket_of(5) == 1


def test_hard_state_ticket_holds_until_it_is_reported() -> None:
    """Zero again only once the newest hard state is durable."""
    durability = Durability(0)
    durability.hard_state_ticket = durability.issue(None)
    durability.issue(1)
    durability.hard_state_ticket = durability.issue(None)

    durability.report(2)
    assert durability.hard_state_ticket == 3
    durability.report(3)
    assert durability.hard_state_ticket == 0


def test_report_of_an_unknown_ticket_is_a_defect() -> None:
    """A disk cannot have written what nobody asked for."""
    with pytest.raises(AssertionError, match="never issued"):
        Durability(0).report(1)


def test_writes_under_way_vouch_for_nothing_behind_an_installed_snapshot() -> None:
    """The log was replaced: late reports of earlier tickets are no news, new tickets count up as before."""
    durability = Durability(5)
    durability.issue(9)
    durability.hard_state_ticket = durability.issue(None)

    durability.installed(7)
    durability.report(2)

    assert (7, 0) == (durability.index, durability.hard_state_ticket)
    assert durability.issue(8) == 3
    assert durability.ticket_of(8) == 3
