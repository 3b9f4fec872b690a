"""
The MAINTENANCE entry: how time and settings reach the replicated state.

No node drops history or sessions by its own clock or configuration. The leader proposes; every replica does the same
when it applies the entry (contract sections 5.2 and 5.4).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from kvorum.core.errors import LocalError

if TYPE_CHECKING:
    from kvorum.core.ids import Index

MAINTENANCE_VERSION: Final = 1
_PAYLOAD: Final = struct.Struct(">BQQI")


class Maintenance(NamedTuple):
    """What the leader decided."""

    low_watermark: Index
    """The new `W`; one below the present changes nothing."""
    idle_before_ms: int
    """Sessions whose last entry has an earlier time than this are forgotten; 0 forgets none."""
    sessions_max: int
    """From now on, above this many sessions the least recently used one is forgotten."""

    def encode(self) -> bytes:
        """Payload: version u8, watermark u64, idle bound u64, sessions u32, big-endian (docs/formats/log.md)."""
        return _PAYLOAD.pack(MAINTENANCE_VERSION, *self)

    @classmethod
    def decode(cls, payload: bytes, offset: int = 0) -> Maintenance:
        """
        Read what `encode` wrote.

        Raises:
            LocalError: Another version or length. The entry was committed, so the node must stop rather than guess.
        """
        if len(payload) - offset != _PAYLOAD.size or payload[offset] != MAINTENANCE_VERSION:
            msg = "a maintenance entry is of a version that this release does not know; run the release that wrote it"
            raise LocalError(msg)
        return cls(*_PAYLOAD.unpack_from(payload, offset)[1:])
