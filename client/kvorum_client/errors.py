"""
How a call can fail, and what the caller may conclude from it.

Every error says two things: ``retryable``, whether the same call may be made again and can then succeed without
applying anything twice; and ``outcome_known``, whether it is certain that a write did not take effect. Branch on the
class or on these two, never on the text.
"""

from __future__ import annotations

from typing import ClassVar


class KvorumError(Exception):
    """Root of everything this package raises on purpose."""

    retryable: ClassVar[bool] = False
    """The same call may be repeated, later or elsewhere, and cannot apply twice."""
    outcome_known: ClassVar[bool] = True
    """It is certain that the call changed nothing."""
    retry_transaction: ClassVar[bool] = False
    """The whole transaction may be started again at a new read version; `KvorumClient.run` does."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        endpoint: str | None = None,
        leader_endpoint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        """The server's error code, or None if the error was born on this side."""
        self.endpoint = endpoint
        """The node that answered, if one did."""
        self.leader_endpoint = leader_endpoint
        """The leader it named, if any."""


class InvalidRequestError(KvorumError):
    """The request itself is wrong: arguments, keys, operations; repeating it cannot help."""


class TooLargeError(InvalidRequestError):
    """A value, a transaction or a conflict set is above the server's limit; split it."""


class PermissionDeniedError(KvorumError):
    """No valid credentials, or not allowed."""


class ConflictError(KvorumError):
    """Something the transaction read was written since its read version; start it again from the beginning."""

    retry_transaction = True


class TransactionTooOldError(KvorumError):
    """The read version is no longer kept; start the transaction again."""

    retry_transaction = True


class FutureVersionError(KvorumError):
    """The read version is not applied yet on the node asked; later, or on another node, it is."""

    retryable = True
    retry_transaction = True


class UnavailableError(KvorumError):
    """No node could do it within the call's time, and it certainly was not done."""

    retryable = True


class OverloadedError(UnavailableError):
    """The cluster refused more work for the whole time of the call; nothing was done."""


class StaleReadError(UnavailableError):
    """A local read was refused: not allowed, or the node lost touch with its leader."""


class QuotaExceededError(KvorumError):
    """The disk is above its soft limit: only deletes pass until there is space again."""


class ReadTimeoutError(UnavailableError):
    """A read was not answered in time; it changes nothing, so it may simply be repeated."""


class OutcomeUnknownError(KvorumError):
    """
    A write may or may not have taken effect, or may still do so.

    Read the key to learn more, or repeat the write if doing it twice is harmless.
    """

    outcome_known = False


class UnreadableError(KvorumError):
    """A transaction read what its own versionstamped write decides only at commit."""


class TransactionClosedError(KvorumError):
    """The transaction was committed, or its commit failed; start another one."""


class ClientClosedError(KvorumError):
    """The client was closed, before the call or during it and then before anything was sent."""


class ProtocolViolationError(KvorumError):
    """The peer does not speak the contract; is it a kvorum client port? A write it was given may have been done."""

    outcome_known = False
