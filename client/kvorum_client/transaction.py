"""
Optimistic transactions: reads at one version, writes kept here until the commit, one conflict check at the end.

A transaction without writes needs no commit round: everything it read is of one moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from kvorum_client.errors import InvalidRequestError, KvorumError, TransactionClosedError
from kvorum_client.overlay import (
    DEFAULT_END,
    UNDECIDED,
    ConflictSet,
    Overlay,
    RangeRead,
    family_name,
    must_be_stampable,
)
from kvorum_client.wire import new_struct

if TYPE_CHECKING:
    from types import TracebackType

    from kvorum_client.calls import Caller
    from kvorum_client.results import KeyValue

PAGE_PAIRS: Final = 10_000
"""Pairs asked for at once by a range read."""


class Transaction:
    """
    One attempt of a transaction; get one from `KvorumClient.transaction`, or let `KvorumClient.run` repeat it.

    Reads see the transaction's own writes, and what they take from the server enters the conflict set. Reads through
    `snapshot` see the same and add nothing. As a context manager it commits at the end of the block, unless the block
    raised or committed itself.
    """

    def __init__(self, caller: Caller, *, timeout_s: float | None) -> None:
        self._caller = caller
        self._timeout_s = timeout_s
        self._overlay = Overlay()
        self._conflicts = ConflictSet()
        self._operations: list[object] = []
        self._read_version: int | None = None
        self.closed = False
        """True once a commit was begun or the transaction was cancelled."""
        self.committed_version: int | None = None
        """Version of the commit, once there is one."""
        self.generated_keys: tuple[bytes, ...] = ()
        """Final keys of the versionstamped keys, in the order of the calls, after the commit."""
        self.generated_values: tuple[bytes, ...] = ()
        """Final values of the versionstamped values, in the order of the calls, after the commit."""
        self.snapshot: Final = SnapshotReads(self)
        """The same reads, without entering the conflict set."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and not self.closed:
            await self.commit()
        else:
            self.closed = True

    # --- reads --------------------------------------------------------------------------------------------------------

    async def get_read_version(self) -> int:
        """Return the version all reads of this transaction show; fixed by the first call or the first read."""
        self._must_be_open()
        if self._read_version is None:
            # Two reads may start at once; the first answer counts for both.
            reply = await self._caller.call("getReadVersion", {}, timeout_s=self._timeout_s)
            if self._read_version is None:
                self._read_version = int(reply.read_version)
        return self._read_version

    async def get(self, key: bytes, *, family: str | None = None) -> bytes | None:
        """Value of a key, or None; the transaction will depend on it unless it wrote the key itself."""
        return await self._get(key, family, conflict=True)

    async def get_range(
        self,
        begin: bytes = b"",
        end: bytes | None = None,
        *,
        limit: int | None = None,
        reverse: bool = False,
        family: str | None = None,
    ) -> list[KeyValue]:
        """
        Pairs with begin <= key < end, ascending, or descending with ``reverse``.

        The transaction will depend on the part that was read: all of the range, or, when ``limit`` was reached, up to
        the last pair returned. ``end`` None means ``ff``.
        """
        return await self._get_range(begin, end, limit, family, reverse=reverse, conflict=True)

    async def _get(self, key: bytes, family: str | None, *, conflict: bool) -> bytes | None:
        self._must_be_open()
        name = family_name(family)
        decided, value = self._overlay.lookup(name, key)
        if decided:
            return value
        version = await self.get_read_version()
        fields: dict[str, object] = {"key": key, "read_version": version, "column_family": family}
        try:
            reply = await self._caller.call("snapshotGet", fields, timeout_s=self._timeout_s)
        except InvalidRequestError as problem:
            _must_mean_unknown_family(problem, family)
            found = None
        else:
            found = reply.value if reply.found else None
        if conflict:
            self._conflicts.add_key(name, key)
        return found

    async def _get_range(
        self, begin: bytes, end: bytes | None, limit: int | None, family: str | None, *, reverse: bool, conflict: bool
    ) -> list[KeyValue]:
        self._must_be_open()
        if limit is not None and limit < 0:
            text = "limit must not be negative; None means no limit"
            raise InvalidRequestError(text)
        name = family_name(family)
        stop = DEFAULT_END if end is None else end
        read = RangeRead(
            self._overlay.between(name, begin, stop), begin, stop, limit=limit, reverse=reverse, page_pairs=PAGE_PAIRS
        )
        while (page := read.next_page()) is not None:
            fields: dict[str, object] = {
                "begin_key": page.begin,
                "end_key": page.end,
                "limit": page.limit,
                "reverse": reverse or None,
                "column_family": family,
                "read_version": await self.get_read_version(),
            }
            try:
                reply = await self._caller.call("snapshotGetRange", fields, timeout_s=self._timeout_s)
            except InvalidRequestError as problem:
                _must_mean_unknown_family(problem, family)
                read.feed((), None)
                continue
            if reply.has_more and reply.next_key is None:
                text = "the node cut a range short without saying where to go on; it is older than this client"
                raise KvorumError(text)
            read.feed(((pair.key, pair.value) for pair in reply.key_values), reply.next_key if reply.has_more else None)
        if conflict:
            self._conflicts.add_range(name, read.read_begin, read.read_end)
        return read.pairs

    # --- writes -------------------------------------------------------------------------------------------------------

    def set(self, key: bytes, value: bytes, *, family: str | None = None) -> None:
        """Write a key at commit; own reads see it at once."""
        self._must_be_open()
        self._overlay.write(family_name(family), key, value)
        self._operations.append(_operation("set", key, value, family))

    def delete(self, key: bytes, *, family: str | None = None) -> None:
        """Remove a key at commit; own reads see it at once."""
        self._must_be_open()
        self._overlay.write(family_name(family), key, None)
        self._operations.append(_operation("delete", key, None, family))

    def set_versionstamped_key(self, key_buffer: bytes, value: bytes, *, family: str | None = None) -> None:
        """Write under a key whose last 10 bytes become the versionstamp; see `generated_keys` after the commit."""
        self._must_be_open()
        must_be_stampable(key_buffer)
        self._overlay.write_stamped_key(family_name(family), key_buffer)
        self._operations.append(_operation("SET_VERSIONSTAMPED_KEY", key_buffer, value, family))

    def set_versionstamped_value(self, key: bytes, value_buffer: bytes, *, family: str | None = None) -> None:
        """Write a value whose last 10 bytes become the versionstamp; see `generated_values` after the commit."""
        self._must_be_open()
        must_be_stampable(value_buffer)
        self._overlay.write(family_name(family), key, UNDECIDED)
        self._operations.append(_operation("SET_VERSIONSTAMPED_VALUE", key, value_buffer, family))

    def add_read_conflict_key(self, key: bytes, *, family: str | None = None) -> None:
        """Depend on a key without reading it."""
        self._must_be_open()
        self._conflicts.add_key(family_name(family), key)

    def add_read_conflict_range(self, begin: bytes, end: bytes, *, family: str | None = None) -> None:
        """Depend on begin <= key < end without reading it."""
        self._must_be_open()
        if begin >= end:
            text = "a conflict range must begin below its end"
            raise InvalidRequestError(text)
        self._conflicts.add_range(family_name(family), begin, end)

    # --- the end ------------------------------------------------------------------------------------------------------

    async def commit(self) -> int:
        """
        Make all writes take effect at one version, or none of them.

        Returns:
            The commit version; without writes the read version (0 if nothing was read), for nothing is sent then.

        Raises:
            ConflictError: Something read was written since; nothing took effect.
            OutcomeUnknownError: It may have taken effect.
        """
        self._must_be_open()
        if not self._operations:
            self.closed = True
            return self._read_version or 0
        # Without a read the conflict set, if any, counts from now.
        version = await self.get_read_version() if self._conflicts else 0
        self.closed = True
        keys, ranges = self._conflicts.normalised()
        fields: dict[str, object] = {
            "read_version": version,
            "operations": self._operations,
            "read_conflict_keys": keys,
            "read_conflict_ranges": [
                new_struct("ConflictRange", begin_key=begin, end_key=end, column_family=family)
                for family, begin, end in ranges
            ]
            or None,
        }
        reply = await self._caller.call("atomicCommit", fields, timeout_s=self._timeout_s)
        self.committed_version = int(reply.committed_version)
        self.generated_keys = tuple(reply.generated_keys or ())
        self.generated_values = tuple(reply.generated_values or ())
        return self.committed_version

    def cancel(self) -> None:
        """Drop everything; nothing was sent that could take effect."""
        self.closed = True

    def _must_be_open(self) -> None:
        if self.closed:
            text = "the transaction is over; begin another one"
            raise TransactionClosedError(text)


class SnapshotReads:
    """Reads of a transaction that it does not depend on."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    async def get(self, key: bytes, *, family: str | None = None) -> bytes | None:
        """Like `Transaction.get`, without entering the conflict set."""
        return await self._transaction._get(key, family, conflict=False)  # noqa: SLF001 - one class in two faces

    async def get_range(
        self,
        begin: bytes = b"",
        end: bytes | None = None,
        *,
        limit: int | None = None,
        reverse: bool = False,
        family: str | None = None,
    ) -> list[KeyValue]:
        """Like `Transaction.get_range`, without entering the conflict set."""
        return await self._transaction._get_range(  # noqa: SLF001 - one class in two faces
            begin, end, limit, family, reverse=reverse, conflict=False
        )


def _operation(kind: str, key: bytes, value: bytes | None, family: str | None) -> object:
    operation: object = new_struct("Operation", type=kind, key=key, value=value, column_family=family)
    return operation


def _must_mean_unknown_family(problem: InvalidRequestError, family: str | None) -> None:
    """
    Tell a family that did not exist at the read version, which is simply empty, from a request that is wrong.

    The contract answers both with INVALID_ARGUMENT; a name of legal length in a read at a version that the server gave
    leaves only the former.
    """
    if problem.code != "INVALID_ARGUMENT" or not family or len(family.encode()) > 255:
        raise problem
