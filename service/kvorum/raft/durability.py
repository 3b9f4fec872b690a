"""
Which part of the own log is on disk, by the tickets of the `Persist` effects.

A durable ticket proves only what the log *still* holds: entries that were replaced while their write was under way must
not count when that write is reported (etcd's TestLeaderMsgAppSelfAckAfterTermChange; catalogue bugs 24 and 26).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvorum.core.ids import Index, Ticket


class Durability:
    """Tickets issued and reported, and the index up to which the current log is durable."""

    __slots__ = ("_under_way", "hard_state_ticket", "index", "reported", "ticket")

    def __init__(self, index: Index) -> None:
        self.index = index
        """Everything up to here, as the log stands now, is on disk."""
        self.ticket: Ticket = 0
        """Last ticket issued."""
        self.reported: Ticket = 0
        self.hard_state_ticket: Ticket = 0
        """Ticket of the newest hard state while it is not durable, else 0: no message of its term leaves earlier."""
        self._under_way: deque[tuple[Ticket, Index]] = deque()

    def issue(self, last_index: Index | None) -> Ticket:
        """Next ticket, for a write whose last entry is ``last_index``, or one without entries."""
        self.ticket += 1
        if last_index is not None:
            self._under_way.append((self.ticket, last_index))
        return self.ticket

    def report(self, ticket: Ticket) -> None:
        """Everything up to this ticket is durable; reports may skip and repeat tickets."""
        assert ticket <= self.ticket, "a ticket was reported that was never issued"
        if ticket <= self.reported:
            return
        self.reported = ticket
        under_way = self._under_way
        while under_way and under_way[0][0] <= ticket:
            _, index = under_way.popleft()
            self.index = max(self.index, index)
        if self.hard_state_ticket <= ticket:
            self.hard_state_ticket = 0

    def truncated(self, index: Index) -> None:
        """Entries behind ``index`` were dropped from the log: no write under way may vouch for what replaces them."""
        self.index = min(self.index, index)
        self._under_way = deque((ticket, min(last, index)) for ticket, last in self._under_way)

    def installed(self, index: Index) -> None:
        """A snapshot replaced the log: all that was issued before is over and vouches for nothing behind its base."""
        self.index = index
        self.reported = self.ticket
        self.hard_state_ticket = 0
        self._under_way.clear()

    def ticket_of(self, index: Index) -> Ticket:
        """Ticket that must be durable before entry ``index`` is, 0 if it already is."""
        if index <= self.index:
            return 0
        needed: Ticket = 0
        for ticket, last in reversed(self._under_way):
            if last < index:
                break
            needed = ticket
        assert needed > 0, "entries that were never handed to the disk"
        return needed
