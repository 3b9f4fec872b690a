"""A store under test: an executor on the in-memory engine, fed with numbered log entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvorum.core.codec import TAG, encode_operation
from kvorum.core.entries import Entry, EntryKind
from kvorum.core.operations import AtomicCommit, Mutation, MutationKind
from kvorum.statemachine.executor import KvStoreExecutor
from kvorum.statemachine.layout import STATE_KEY, pack_state
from kvorum.statemachine.ranges import RangeQuery
from kvorum.storage.memory_engine import MemoryEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvorum.core.errors import Refusal
    from kvorum.core.operations import Applied, WriteOperation
    from kvorum.statemachine.journal import JournalBounds
    from kvorum.statemachine.ranges import RangeResult

NOOP = "noop"


def last(steps: Iterator):
    """What a sliced generator yields last."""
    result = None
    for result in steps:  # noqa: B007 - the last one is wanted
        pass
    assert result is not None
    return result


def entry_of(index: int, operation: WriteOperation | str) -> Entry:
    """The log entry of an operation, or of the no-op."""
    if operation == NOOP:
        return Entry.create(index, 1, EntryKind.NOOP, 1_700_000_000_000, b"")
    payload = TAG.pack(7, 8, index) + encode_operation(operation)
    return Entry.create(index, 1, EntryKind.COMMAND, 1_700_000_000_000, payload)


class Store:
    """An executor and the short words its tests are written in."""

    NOOP = NOOP
    last = staticmethod(last)
    entry_of = staticmethod(entry_of)

    def __init__(self, engine: MemoryEngine | None = None, bounds: JournalBounds | None = None) -> None:
        self.engine = engine or MemoryEngine()
        self.bounds = bounds
        self.reopen()

    def reopen(self) -> None:
        """Open the store again, as after a restart."""
        self.executor = KvStoreExecutor(self.engine, self.bounds)

    @staticmethod
    def set(key: bytes, value: bytes, family: bytes = b"") -> Mutation:
        return Mutation(MutationKind.SET, family, key, value)

    @staticmethod
    def delete(key: bytes, family: bytes = b"") -> Mutation:
        return Mutation(MutationKind.DELETE, family, key)

    @staticmethod
    def commit(read_version: int, *mutations: Mutation, keys=(), ranges=(), existing_style=True) -> AtomicCommit:
        return AtomicCommit(read_version, mutations, tuple(keys), tuple(ranges), existing_style)

    def entries(self, *operations: WriteOperation | str) -> list[Entry]:
        first = self.executor.applied_index + 1
        return [entry_of(index, operation) for index, operation in enumerate(operations, first)]

    def group(self, *operations: WriteOperation | str) -> list[Applied | Refusal | None]:
        """Apply operations as one group."""
        return last(self.executor.apply(self.entries(*operations)))

    def one(self, operation: WriteOperation | str) -> Applied | Refusal | None:
        """Apply one operation as a group of its own."""
        (outcome,) = self.executor.apply_group(self.entries(operation))
        return outcome

    def code(self, operation: WriteOperation) -> str | None:
        """Error code with which an operation is refused, None if it is applied."""
        return getattr(self.one(operation), "code", None)

    def fill_to(self, index: int) -> None:
        """No-ops up to an applied index."""
        while self.executor.applied_index < index:
            count = min(1000, index - self.executor.applied_index)
            self.group(*[NOOP] * count)

    def scan(self, version: int | None = None, **query) -> RangeResult:
        return last(self.executor.scan(RangeQuery(**query), version))

    def hash(self) -> str:
        _, digest = last(self.executor.state_hash())
        return digest

    def raise_watermark(self, version: int) -> None:
        """Put a watermark into the state row and open the store again."""
        batch = self.engine.batch()
        state = pack_state(self.executor.applied_index, self.executor.last_commit_version, version)
        batch.put(STATE_KEY, state)
        self.engine.write(batch)
        self.reopen()


@pytest.fixture
def store() -> Store:
    """An empty store."""
    return Store()


@pytest.fixture(scope="session")
def make_store() -> type[Store]:
    """The class, for tests that need several stores or one on a given engine."""
    return Store
