"""The arithmetic of majorities, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvorum.core.ids import Index


def agreed_index(matches: list[Index], quorum: int) -> Index:
    """Highest index that at least ``quorum`` of these voters have reached; sorts the list in place."""
    matches.sort()
    return matches[-quorum]
