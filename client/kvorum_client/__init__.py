"""
The asyncio client of kvorum; this module is its only door.

``KvorumClient`` makes calls and fails over between nodes; ``Transaction`` is what its ``transaction`` and ``run`` hand
out; every error is a ``KvorumError`` that says whether it may be retried and whether the outcome is known.
"""

from __future__ import annotations

from kvorum_client.client import KvorumClient
from kvorum_client.errors import (
    ClientClosedError,
    ConflictError,
    FutureVersionError,
    InvalidRequestError,
    KvorumError,
    OutcomeUnknownError,
    OverloadedError,
    PermissionDeniedError,
    ProtocolViolationError,
    QuotaExceededError,
    ReadTimeoutError,
    StaleReadError,
    TooLargeError,
    TransactionClosedError,
    TransactionTooOldError,
    UnavailableError,
    UnreadableError,
)
from kvorum_client.pool import Connector, split_endpoint
from kvorum_client.results import ClusterHealth, KeyValue, Member, NodeHealth, NodeStatus
from kvorum_client.transaction import SnapshotReads, Transaction

__all__ = [
    "ClientClosedError",
    "ClusterHealth",
    "ConflictError",
    "Connector",
    "FutureVersionError",
    "InvalidRequestError",
    "KeyValue",
    "KvorumClient",
    "KvorumError",
    "Member",
    "NodeHealth",
    "NodeStatus",
    "OutcomeUnknownError",
    "OverloadedError",
    "PermissionDeniedError",
    "ProtocolViolationError",
    "QuotaExceededError",
    "ReadTimeoutError",
    "SnapshotReads",
    "StaleReadError",
    "TooLargeError",
    "Transaction",
    "TransactionClosedError",
    "TransactionTooOldError",
    "UnavailableError",
    "UnreadableError",
    "split_endpoint",
]
