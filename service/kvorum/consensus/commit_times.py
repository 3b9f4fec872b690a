"""How long a leader's entries take from their append until they are committed and durable here: once per batch."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from kvorum.observe.histogram import LatencyHistogram

if TYPE_CHECKING:
    from kvorum.core.ids import Index


class CommitTimes:
    """Batches under way on a leader; there are never more than undecided proposals, which are bounded."""

    def __init__(self) -> None:
        self.histogram = LatencyHistogram(0.0005, 14)
        self._under_way: deque[tuple[Index, float]] = deque()

    def __bool__(self) -> bool:
        return bool(self._under_way)

    def appended(self, last_index: Index, now: float) -> None:
        """A batch that ends at this index is being appended."""
        self._under_way.append((last_index, now))

    def committed(self, index: Index, now: float) -> None:
        """Everything up to this index is committed and durable here."""
        under_way = self._under_way
        while under_way and under_way[0][0] <= index:
            self.histogram.observe(now - under_way.popleft()[1])

    def forget(self) -> None:
        """Leadership changed: what becomes of these is for others to say."""
        self._under_way.clear()
