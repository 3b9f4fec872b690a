"""
How things fail: the codes of contract section 6, refusals as values, and the few exceptions that cross rooms.

A request that is refused is normal life and travels as a `Refusal` value. An exception means a defect, a broken
disk or bad input at start-up.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class ErrorCode:
    """Codes a client branches on (contract section 6); strings, because they go on the wire as they are."""

    BAD_REQUEST: Final = "BAD_REQUEST"
    INVALID_ARGUMENT: Final = "INVALID_ARGUMENT"
    INVALID_KEY: Final = "INVALID_KEY"
    INVALID_OPERATION: Final = "INVALID_OPERATION"
    TOO_LARGE: Final = "TOO_LARGE"
    UNSUPPORTED: Final = "UNSUPPORTED"
    CONFLICT: Final = "CONFLICT"
    TRANSACTION_TOO_OLD: Final = "TRANSACTION_TOO_OLD"
    FUTURE_VERSION: Final = "FUTURE_VERSION"
    NOT_LEADER: Final = "NOT_LEADER"
    UNAVAILABLE: Final = "UNAVAILABLE"
    STALE: Final = "STALE"
    OVERLOADED: Final = "OVERLOADED"
    QUOTA_EXCEEDED: Final = "QUOTA_EXCEEDED"
    TIMEOUT: Final = "TIMEOUT"
    UNAUTHENTICATED: Final = "UNAUTHENTICATED"
    PERMISSION_DENIED: Final = "PERMISSION_DENIED"
    INTERNAL: Final = "INTERNAL"
    CORRUPTION: Final = "CORRUPTION"
    NETWORK: Final = "NETWORK"


class Refusal(NamedTuple):
    """
    A request that was not done, or whose outcome is unknown (TIMEOUT and INTERNAL only).

    ``leader_id`` and ``leader_endpoint`` come together: with NOT_LEADER, and with UNAVAILABLE if a leader is known.
    """

    code: str
    text: str
    leader_id: int | None = None
    leader_endpoint: str | None = None


class KvorumError(Exception):
    """Root of kvorum's own exceptions."""


class LocalError(KvorumError):
    """A defect on this side: a caller broke a precondition."""


class RemoteError(KvorumError):
    """The other side broke the protocol."""


class StorageFailedError(KvorumError):
    """
    A disk operation failed in a way that must end the process: a failed fsync, EIO, damage in the log.

    The text names the file, what happened and the way out.
    """


class OutOfSpaceError(StorageFailedError):
    """
    The disk is full, or a quota is used up: nothing was written and nothing is lost.

    The one failure of a disk that a node survives: it steps aside and tries again until there is space.
    """


class WriteStalledError(KvorumError):
    """The storage engine asks to wait; nothing was written and the batch is spent: build it again later."""


class StartupError(KvorumError):
    """The node cannot start; the text says why and what to do. The CLI prints it without a traceback."""
