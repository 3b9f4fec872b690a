"""
Who belongs to the cluster: members, the configuration entry of the log, and the cluster id.

A configuration is in force from the moment it is appended (Raft dissertation 4.1). Birth with static endpoints: every
node derives the same first configuration from its file, so log entry 1 and the cluster id agree without a word said.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvorum.core.ids import Incarnation, NodeId

CONFIGURATION_VERSION: Final = 1
_HEAD: Final = struct.Struct(">BI")
_MEMBER: Final = struct.Struct(">IQBHH")
_VOTER: Final = 1


@dataclass(frozen=True, slots=True)
class Member:
    """One member as the log knows it. Endpoints are ``host:port``; hosts are names and never resolved here."""

    node_id: NodeId
    client_endpoint: str
    peer_endpoint: str
    voter: bool = True
    incarnation: Incarnation = 0
    """Member id of the data directory that holds this seat; 0 until the leader has recorded it."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """The members in force, ascending by node id."""

    members: tuple[Member, ...]

    @classmethod
    def of(cls, members: Iterable[Member]) -> Configuration:
        """Build a configuration in canonical order, so that equal sets are equal values."""
        return cls(tuple(sorted(members, key=lambda member: member.node_id)))

    @property
    def voters(self) -> tuple[NodeId, ...]:
        """Node ids that count for elections and commits."""
        return tuple(member.node_id for member in self.members if member.voter)

    @property
    def quorum(self) -> int:
        """Smallest number of voters that is more than half."""
        return len(self.voters) // 2 + 1

    def member(self, node_id: NodeId) -> Member | None:
        """The member with this id, or None."""
        for member in self.members:  # asked for every frame of a peer: no generator
            if member.node_id == node_id:
                return member
        return None

    def with_incarnation(self, node_id: NodeId, incarnation: Incarnation) -> Configuration:
        """The same members, with the data directory of one seat recorded."""
        return Configuration(
            tuple(replace(m, incarnation=incarnation) if m.node_id == node_id else m for m in self.members)
        )

    def encode(self) -> bytes:
        """Payload of a CONFIGURATION entry: version u8, count u32, then each member (docs/formats/log.md)."""
        parts = [_HEAD.pack(CONFIGURATION_VERSION, len(self.members))]
        for member in self.members:
            client, peer = member.client_endpoint.encode(), member.peer_endpoint.encode()
            flags = _VOTER if member.voter else 0
            parts += (_MEMBER.pack(member.node_id, member.incarnation, flags, len(client), len(peer)), client, peer)
        return b"".join(parts)

    @classmethod
    def decode(cls, payload: bytes, offset: int = 0) -> Configuration:
        """
        Read what `encode` wrote.

        Raises:
            ValueError: Another version, or bytes that do not fit.
        """
        version, count = _HEAD.unpack_from(payload, offset)
        if version != CONFIGURATION_VERSION:
            msg = f"configuration entry has version {version}; this release reads {CONFIGURATION_VERSION}"
            raise ValueError(msg)
        offset += _HEAD.size
        members = []
        for _ in range(count):
            node_id, incarnation, flags, client_bytes, peer_bytes = _MEMBER.unpack_from(payload, offset)
            offset += _MEMBER.size
            client = payload[offset : offset + client_bytes].decode()
            offset += client_bytes
            peer = payload[offset : offset + peer_bytes].decode()
            offset += peer_bytes
            members.append(Member(node_id, client, peer, bool(flags & _VOTER), incarnation))
        if offset != len(payload):
            msg = f"configuration entry has {len(payload) - offset} bytes left over"
            raise ValueError(msg)
        return cls.of(members)

    def birth_id(self) -> bytes:
        """Cluster id of a cluster born from this configuration: 16 bytes of its digest (architecture section 3)."""
        return hashlib.sha256(b"kvorum birth" + self.encode()).digest()[:16]
