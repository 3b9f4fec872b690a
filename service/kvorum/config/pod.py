"""Who a node is as a pod of a StatefulSet, and the names its peers have: built, never resolved and never looked up."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from kvorum.config.endpoints import join_endpoint
from kvorum.core.cluster import Member


@dataclass(frozen=True, slots=True)
class Pod:
    """
    One pod; every other pod of the set differs by its ordinal alone.

    A name stays while addresses change: only names are ever kept or told (operations L7).
    """

    statefulset: str
    ordinal: int
    service: str
    """The headless Service that gives each pod its name."""
    namespace: str
    cluster_domain: str
    client_port: int
    peer_port: int
    ip: str | None = None
    """Of this pod, for the leader's EndpointSlice alone."""

    @property
    def name(self) -> str:
        """Of this pod."""
        return self.name_of(self.ordinal)

    def name_of(self, ordinal: int) -> str:
        """Of any pod of the set."""
        return f"{self.statefulset}-{ordinal}"

    def host(self, ordinal: int) -> str:
        """The name of a pod in the DNS, without the dot that ends it."""
        return f"{self.name_of(ordinal)}.{self.service}.{self.namespace}.svc.{self.cluster_domain}"

    def member(self, ordinal: int) -> Member:
        """
        The seat of a pod: its ordinal is its node id.

        Peers dial the name with its last dot, so that no search list is tried first (operations L8).
        """
        host = self.host(ordinal)
        return Member(
            ordinal, join_endpoint(host, self.client_port), join_endpoint(f"{host}.", self.peer_port), voter=True
        )

    @property
    def birth_id(self) -> bytes:
        """Equal for the pods of one StatefulSet, whatever its size: what has no cluster yet knows its own by it."""
        spelt = f"{self.statefulset}.{self.service}.{self.namespace}.{self.cluster_domain}"
        return hashlib.sha256(b"kvorum pods" + spelt.encode()).digest()[:16]
