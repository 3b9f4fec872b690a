"""
Cutting the log: entries that the state machine holds durably may go, but for a margin that spares followers a snapshot.

Each node cuts its own log, by its own durable applied index; nobody has to agree on it (architecture section 3.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from kvorum.core.machine import LogCut, Role

if TYPE_CHECKING:
    from kvorum.consensus.applier import Applier
    from kvorum.core.ids import Index, NodeId
    from kvorum.core.machine import Event, Machine
    from kvorum.core.ports import Log

FOLLOWER_MARGINS: Final = 2
"""A follower that can be reached keeps the entries it lacks within this many margins."""

STREAM_BYTES_FACTOR: Final = 4
"""Entries behind a snapshot that is being sent are kept up to this many times the byte bound."""


class Host(Protocol):
    """What the cutting needs of its ConsensusManager."""

    machine: Machine | None
    applier: Applier

    def feed(self, event: Event) -> None:
        """Give the machine one event."""
        ...

    def reachable(self) -> frozenset[NodeId]:
        """Peers to which a link stands."""
        ...

    def streamed_index(self) -> Index | None:
        """Lowest index of a snapshot that is being sent, if any."""
        ...


class LogCutter:
    """Decides what the log still has to hold, each time the state machine became durable."""

    def __init__(self, host: Host, log: Log, *, retain_entries: int, retain_bytes: int) -> None:
        """
        Wire it up.

        Args:
            host: The manager.
            log: What is cut.
            retain_entries: Entries kept behind the durable index for followers that lag.
            retain_bytes: A log longer than this is cut up to the durable index, whoever lags.
        """
        self._host = host
        self._log = log
        self._retain_entries = retain_entries
        self._retain_bytes = retain_bytes
        self.cut_total = 0

    def cut(self) -> Index:
        """Cut by the rules of the settings; returns the base of the log."""
        host = self._host
        assert host.machine is not None
        durable = host.applier.durable_index
        size = self._log.statistics().get("size_bytes", 0)
        bound = durable if size > self._retain_bytes else self._kept_for_followers(durable)
        streamed = host.streamed_index()
        if streamed is not None and size <= STREAM_BYTES_FACTOR * self._retain_bytes:
            bound = min(bound, streamed)
        return self._cut_to(bound)

    def cut_all(self) -> Index:
        """On demand: up to the durable index, whoever lags; returns the base of the log."""
        return self._cut_to(self._host.applier.durable_index)

    def _kept_for_followers(self, durable: Index) -> Index:
        host = self._host
        assert host.machine is not None
        bound = durable - self._retain_entries
        if host.machine.role == Role.LEADER:
            reachable = host.reachable()
            matches = [match for peer, match in host.machine.matches().items() if peer in reachable]
            if matches and min(matches) < bound:
                bound = max(min(matches), durable - FOLLOWER_MARGINS * self._retain_entries)
        return bound

    def _cut_to(self, index: Index) -> Index:
        host = self._host
        assert host.machine is not None
        base = host.machine.base_index
        if index > base:
            self.cut_total += index - base
            # Safety: the machine first, so that it never asks the log for what is gone.
            host.feed(LogCut(index))
            self._log.drop_before(index + 1)
        return host.machine.base_index
