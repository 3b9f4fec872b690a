"""
The catalogue of families: which names exist, since which version, under which id.

A family is a row and a prefix, nothing more: no files, threads or caches. Ids are given in log order, so every replica
gives the same one. A group stages its new families here by itself and hands them over only once it is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from kvorum.core.operations import DEFAULT_FAMILY
from kvorum.statemachine.layout import (
    CURRENT,
    DEFAULT_FAMILY_ID,
    FAMILY_ID_BYTES,
    FAMILY_PREFIX,
    FAMILY_PREFIX_END,
    HISTORY,
    family_varint,
    pack_u32,
    unpack_family,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvorum.core.ids import Index
    from kvorum.core.ports import View

FAMILIES_MAX: Final = (1 << 8 * FAMILY_ID_BYTES) - 1
"""Ids end below the largest number, so that "the next family's prefix" always bounds a family's rows."""


class FamilyEntry(NamedTuple):
    """One family with the prefixes of its rows, built once."""

    family_id: int
    created: Index
    current: bytes
    """Start of its `current` keys."""
    current_end: bytes
    """First key behind them."""
    history: bytes
    """Start of its `history` keys."""
    varint: bytes
    """Its id as it stands in change records."""


def family_entry(family_id: int, created: Index) -> FamilyEntry:
    """Build the prefixes of a family."""
    if not 0 <= family_id < FAMILIES_MAX:
        msg = f"family id {family_id} is not below {FAMILIES_MAX}"
        raise AssertionError(msg)
    packed = pack_u32(family_id)
    return FamilyEntry(
        family_id,
        created,
        CURRENT + packed,
        CURRENT + pack_u32(family_id + 1),
        HISTORY + packed,
        family_varint(family_id),
    )


class FamilyCatalogue:
    """All families by name, in memory; the default family is there from the start."""

    def __init__(self) -> None:
        self.by_name: dict[bytes, FamilyEntry] = {DEFAULT_FAMILY: family_entry(DEFAULT_FAMILY_ID, 0)}

    @classmethod
    def load(cls, view: View) -> FamilyCatalogue:
        """Read the catalogue rows of a store."""
        catalogue = cls()
        for key, row in view.iterate(FAMILY_PREFIX, FAMILY_PREFIX_END):
            family = unpack_family(row)
            catalogue.by_name[key[len(FAMILY_PREFIX) :]] = family_entry(family.family_id, family.created)
        return catalogue

    def __len__(self) -> int:
        """Families that exist, the default one included."""
        return len(self.by_name)

    def next_entry(self, staged: int, created: Index) -> FamilyEntry:
        """Entry for the next new family of a group that has already staged ``staged`` others."""
        return family_entry(len(self.by_name) + staged, created)

    def adopt(self, families: Mapping[bytes, FamilyEntry]) -> None:
        """Take over the families of a group that was written."""
        self.by_name.update(families)

    def existed_at(self, name: bytes, version: Index) -> bool:
        """Whether the family had been created at or before a version."""
        entry = self.by_name.get(name)
        return entry is not None and entry.created <= version
