"""
ReadIndex: many reads share one numbered round of the leader (Raft dissertation 6.4).

Reads that arrive while a round is under way wait for the next one: only a round that *started after* a read proves
that this node still led when the read arrived. Rounds are numbered by the leader and never reused, so a late answer
confirms nothing newer than itself (catalogue bugs 33 and 34).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kvorum.core.ids import Index

READS_WAITING_MAX: Final = 65_536
"""Reads waiting for a round: more than all client connections of a node can have open at the default pipelining."""


class ReadRounds:
    """Reads waiting for the next round, those in the round under way, and its number."""

    __slots__ = ("confirming", "index", "round", "waiting")

    def __init__(self) -> None:
        self.round = 0
        """Number of the newest round; it goes on in messages whether or not reads wait for it."""
        self.index: Index = 0
        """What the round under way will confirm: the commit index when it started."""
        self.waiting: list[int] = []
        self.confirming: list[int] = []

    def ask(self, request: int) -> bool:
        """Queue one read; False if the queue is full."""
        if len(self.waiting) >= READS_WAITING_MAX:
            return False
        self.waiting.append(request)
        return True

    def start_round(self, commit_index: Index) -> None:
        """All that wait take part in a new round."""
        assert self.waiting, "a round needs a reason"
        assert not self.confirming, "one round at a time"
        self.confirming, self.waiting = self.waiting, []
        self.index = commit_index
        self.round += 1

    def finish_round(self) -> tuple[int, ...]:
        """The round under way is confirmed; returns its reads, oldest first."""
        confirmed = tuple(self.confirming)
        self.confirming = []
        return confirmed

    def drop(self) -> tuple[int, ...]:
        """Leadership is over; returns every read that was not confirmed, oldest first."""
        dropped = (*self.confirming, *self.waiting)
        self.confirming = []
        self.waiting = []
        return dropped
