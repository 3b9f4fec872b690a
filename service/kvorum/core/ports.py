"""
What the rooms need from the outside world, in their own words.

Adapters are handed in by `app`; the simulator hands in its own. Fakes pass the conformance tests of the real ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from kvorum.core.cluster import Configuration
    from kvorum.core.entries import Entry, EntryBatch, HardState
    from kvorum.core.errors import Refusal
    from kvorum.core.ids import Incarnation, Index, NodeId, Term, Ticket
    from kvorum.core.operations import Applied
    from kvorum.core.snapshot import Manifest


# --- storage engine ---


class WriteBatch(Protocol):
    """Changes that take effect together or not at all. Spent by `StorageEngine.write`, whether it succeeds or not."""

    def put(self, key: bytes, value: bytes) -> None:
        """Set a key."""
        ...

    def delete(self, key: bytes) -> None:
        """Remove a key; removing a missing key is no error."""
        ...

    def delete_range(self, begin: bytes, end: bytes) -> None:
        """Remove begin <= key < end."""
        ...


class View(Protocol):
    """An ordered map of bytes that does not change while it is looked at."""

    def get(self, key: bytes) -> bytes | None:
        """Value of a key, or None."""
        ...

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of many keys in their order."""
        ...

    def iterate(self, begin: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """
        Pairs with begin <= key < end in unsigned byte order, or from the upper end down.

        The iterator itself is a consistent view of the moment it was made, whatever is written afterwards.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """Cheap figures, never a scan; estimates are enough (contract section 7)."""

    keys: int = 0
    bytes_on_disk: int = 0
    cache_hit_rate_percent: int = 0
    compaction_pending_bytes: int = 0


class StorageEngine(View, Protocol):
    """The one storage port. A write is atomic; it is durable only after `flush` (the log replays the rest)."""

    def batch(self) -> WriteBatch:
        """An empty batch for `write`."""
        ...

    def write(self, batch: WriteBatch) -> None:
        """
        Make a batch visible.

        Raises:
            WriteStalledError: The engine is behind; nothing was written. The batch is spent: build it again, later.
            OutOfSpaceError: The disk is full; nothing was written. The batch is spent: build it again, later.
            StorageFailedError: The disk failed; the process must end.
        """
        ...

    def snapshot(self) -> View:
        """A view that stays as it is now until dropped."""
        ...

    def flush(self) -> None:
        """
        Block until everything written before is durable. Called in a thread; must not hold the interpreter lock.

        Raises:
            OutOfSpaceError: The disk is full; what was written is kept in memory: flush again, later.
            StorageFailedError: The disk failed; the process must end.
        """
        ...

    def statistics(self) -> EngineStatistics:
        """Figures for status and metrics."""
        ...

    def close(self) -> None:
        """Flush nothing, release everything."""
        ...


class StagingArea(Protocol):
    """
    Where a snapshot becomes the next store, beside the present one (architecture section 3.3).

    The switch is one atomic step on disk, `commit`: a crash before it leaves the old store and the old log; after it
    the new store, and a log that the next start resets to the manifest's base unless that has happened already.
    """

    async def begin(self) -> StorageEngine:
        """An empty engine; what an earlier attempt staged is gone."""
        ...

    async def seal(self) -> None:
        """Make everything written to the staged engine durable."""
        ...

    async def commit(self, manifest: Manifest) -> None:
        """From here on the staged store is the store, durably. It must be sealed."""
        ...

    async def settle(self) -> None:
        """The log follows, durably: forget that it might not, and close and remove the store of before."""
        ...

    async def abandon(self) -> None:
        """Remove what is staged."""
        ...


# --- the consensus log ---


@dataclass(frozen=True, slots=True)
class Base:
    """The entry before the first that a log keeps: what an installed snapshot ended with, or what was dropped last."""

    index: Index
    term: Term
    time_ms: int = 0
    """0 if it is not known."""


@dataclass(frozen=True, slots=True)
class RecoveredLog:
    """What a log directory held when it was opened."""

    hard_state: HardState
    base_index: Index
    """Index before the first entry kept; 0 for a log that was never cut."""
    base_term: Term
    last_index: Index
    terms: tuple[tuple[Index, Term], ...]
    """(first index, term) of each run of entries of one term, ascending; the base is not part of it."""
    configurations: tuple[tuple[Index, Configuration], ...]
    """Newest committed configuration known at the base, and each later one in the log, ascending by index."""
    torn_bytes: int = 0
    """Bytes of a torn last group that were cut; reported, not an error."""
    notes: tuple[str, ...] = field(default=())
    base_time_ms: int = 0
    """Time of the entry at the base; 0 if it is not known."""


class Log(Protocol):
    """
    The durable sequence of entries and hard states (architecture section 3.2).

    `append` returns at once; a thread writes and syncs whole groups, then reports the newest durable ticket on the
    loop. A failed sync ends the process; a full disk stops appending until there is space.
    """

    recovered: RecoveredLog

    def append(self, ticket: Ticket, hard_state: HardState | None, batch: EntryBatch | None) -> None:
        """Queue one `machine.Persist`. Tickets come in order."""
        ...

    def read(self, first: Index, last: Index, bytes_max: int) -> list[Entry]:
        """Durable entries from ``first`` to at most ``last``, at least one, then until ``bytes_max`` is passed."""
        ...

    def reset(self, ticket: Ticket, hard_state: HardState, base: Base, configuration: Entry) -> None:
        """
        Queue the install of a snapshot: forget every entry, go on behind ``base``.

        One group of the stream (docs/formats/log.md section 2.5); durable like an append, under the same tickets.
        ``configuration`` is the CONFIGURATION entry in force at the base.
        """
        ...

    def note_committed(self, index: Index) -> None:
        """Say what is committed: which configuration the next segment's head may treat as final. Costs nothing."""
        ...

    def drop_before(self, index: Index) -> None:
        """Forget segments that hold only entries below ``index``."""
        ...

    def start(self, on_durable: Callable[[Ticket], None], on_space: Callable[[bool], None]) -> None:
        """
        Begin; callbacks run on the loop.

        ``on_durable(ticket)``: everything up to the ticket is on disk. ``on_space(False)``: the disk is full, nothing
        is appended; ``on_space(True)``: it goes on again.
        """
        ...

    async def stop(self) -> None:
        """Write and sync what is queued, then close."""
        ...

    def statistics(self) -> dict[str, float]:
        """Figures for metrics."""
        ...


# --- peers ---


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a node says of itself in the handshake of a link."""

    cluster_id: bytes
    """16 bytes; all zero while the node does not belong to a cluster yet."""
    birth_id: bytes
    """16 bytes: the cluster id it would be born into by its file."""
    node_id: NodeId
    incarnation: Incarnation
    client_endpoint: str
    version: str


class PeerHandler(Protocol):
    """What the owner of the links wants to hear; all calls on the loop, never re-entrant with `send`."""

    def greet(self) -> Greeting:
        """This node's greeting, asked for at every handshake."""
        ...

    def admit(self, greeting: Greeting) -> str | None:
        """Refuse a caller by returning the reason, which is sent to it and logged; None admits it."""
        ...

    def turned_away(self, peer: NodeId, reason: str) -> None:
        """A peer that this node dialled refused it, with this reason."""
        ...

    def link_up(self, peer: NodeId, greeting: Greeting) -> None:
        """Our outgoing link to a peer stands; ``greeting`` is what it said."""
        ...

    def link_down(self, peer: NodeId, reason: str) -> None:
        """Our outgoing link broke; frames given to it since may be lost."""
        ...

    def frame_received(self, peer: NodeId, incarnation: Incarnation, kind: int, payload: bytes) -> None:
        """One frame from an admitted peer."""
        ...

    def serve_stream(self, peer: NodeId, incarnation: Incarnation, request: bytes) -> AsyncIterator[bytes]:
        """
        Answer an admitted peer's `PeerLinks.fetch`: items of at most about 256 KiB, drawn as the peer takes them.

        Raises:
            RemoteError: Not now, or not a request; the text travels to the peer.
        """
        ...


class PeerLinks(Protocol):
    """One outgoing connection per peer, dialled for ever with jitter; names are resolved at every dial."""

    def start(self, handler: PeerHandler) -> None:
        """Listen and dial."""
        ...

    def set_peers(self, endpoints: Mapping[NodeId, str]) -> None:
        """Who the peers are from now on: new ones are dialled, links to others are closed. May be called any time."""
        ...

    def dismiss(self, peer: NodeId, reason: str) -> None:
        """Close the connection that a peer has dialled here, if it stands: it dials again, and is judged anew."""
        ...

    def fetch(self, peer: NodeId, request: bytes) -> AsyncIterator[bytes]:
        """
        Ask a peer for a stream over a connection of its own; the peer's `PeerHandler.serve_stream` answers.

        Raises:
            RemoteError: Refused (with the peer's reason), unreachable, broken, or silent for too long.
        """
        ...

    def send(self, peer: NodeId, kind: int, parts: Sequence[bytes], *, urgent: bool = False) -> bool:
        """Queue one frame; False if there is no link or its queue is full: then it certainly did not leave."""
        ...

    async def stop(self) -> None:
        """Close everything."""
        ...

    def statistics(self) -> dict[NodeId, dict[str, float]]:
        """Per peer: bytes and frames sent, failures, round trip."""
        ...


# --- the replicated state machine ---


class StateMachine(Protocol):
    """Applies committed entries (`statemachine.executor.KvStoreExecutor`)."""

    applied_index: Index

    def apply(self, entries: Sequence[Entry]) -> Iterator[list[Applied | Refusal | None] | None]:
        """
        Apply one group atomically, in slices: yields None where the caller may serve others, then the outcomes.

        One outcome per entry, None for entries that no client waits for. Until the outcomes are yielded, reads show the
        state before the group.

        Raises:
            WriteStalledError: At the end of the group, with nothing changed; apply the same group again later.
        """
        ...


# --- those who wait ---


class PendingWrite(Protocol):
    """Somebody who waits for a write; called exactly once."""

    def decided(self, index: Index, outcome: Applied | Refusal) -> None:
        """The write's entry was applied here at ``index``, or (index 0) it was refused or its time is up."""
        ...


class PendingRead(Protocol):
    """Somebody who waits until a read is legal; exactly one of the two is called, once."""

    def serve(self) -> None:
        """Read now, from this node's applied state."""
        ...

    def refused(self, refusal: Refusal) -> None:
        """It will not become legal in time."""
        ...
