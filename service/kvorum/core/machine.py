"""
The shape of a consensus algorithm: a pure machine, events in, ordered effects out.

`consensus.ConsensusManager` drives any `Machine` and carries its effects out **in order**. Time and chance enter only
inside events, so equal events give equal effects. Nothing here blocks, sleeps, opens or draws.

The one rule that makes the order safe: a `Send` with ``after = t`` may leave only when `Persisted` has been reported
for ticket ``t`` or a later one. Votes and acknowledgements carry the ticket of what they promise; a leader's entries
carry 0 and leave while its own fsync is still in flight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvorum.core.cluster import Configuration
    from kvorum.core.entries import EntryBatch, HardState
    from kvorum.core.ids import Index, NodeId, Term, Ticket


class Role:
    """Role names as `getStatus` and the metrics spell them."""

    LEADER = "leader"
    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEARNER = "learner"


# --- events: past facts ---


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time went on. ``now`` is monotonic seconds; ``drawn`` is a fresh random number in [0, 1)."""

    now: float
    drawn: float


@dataclass(frozen=True, slots=True)
class Received:
    """A message came from a peer whose handshake proved that it holds this seat."""

    sender: NodeId
    message: Any


@dataclass(frozen=True, slots=True)
class Proposed:
    """Payloads to append, in this order, one entry each. Only for a leader; the caller has checked `Machine.role`."""

    payloads: Sequence[bytes]
    time_ms: int
    """The leader's wall clock; an entry never gets an earlier time than its predecessor."""
    kind: int = 1


@dataclass(frozen=True, slots=True)
class ReadAsked:
    """A linearizable read wants to know its index; ``request`` is the caller's number for it. Only for a leader."""

    request: int


@dataclass(frozen=True, slots=True)
class Persisted:
    """Everything up to this ticket is durable on this node."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class AppliedUpTo:
    """The state machine shows everything up to this index."""

    index: Index


@dataclass(frozen=True, slots=True)
class PeerReset:
    """
    Messages given to a peer may be lost: its link broke, or with ``reachable`` it came up (again).

    An optional hint: without it the machine finds out by silence.
    """

    peer: NodeId
    reachable: bool


@dataclass(frozen=True, slots=True)
class TransferAsked:
    """
    Hand leadership to ``target``, or to the most up-to-date voter (dissertation 3.10).

    Only for a leader. It takes no proposals until the other leads or an election timeout has passed.
    """

    target: NodeId | None = None


@dataclass(frozen=True, slots=True)
class LogCut:
    """Entries up to ``index`` leave the log; the state machine holds them durably. Followers behind get a snapshot."""

    index: Index


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """The state stream that `SendSnapshot` asked for is over; ``index`` is what it held, 0 if it failed."""

    peer: NodeId
    index: Index


@dataclass(frozen=True, slots=True)
class SnapshotInstalled:
    """
    State machine and log were replaced by a snapshot that `Machine.accepts_snapshot` had allowed.

    The log is empty behind (``index``, ``term``); all of it is durable, and so is the hard state of the moment.
    """

    index: Index
    term: Term
    configuration_index: Index
    configuration: Configuration
    time_ms: int = 0
    """Time of the entry at ``index``: entries behind it never get an earlier one."""


Event: TypeAlias = (
    Ticked
    | Received
    | Proposed
    | ReadAsked
    | Persisted
    | AppliedUpTo
    | PeerReset
    | TransferAsked
    | LogCut
    | SnapshotSent
    | SnapshotInstalled
)


# --- effects: orders, to be carried out in the order given ---


@dataclass(frozen=True, slots=True)
class Persist:
    """
    Append to the durable log; tickets count up by one.

    Entries whose first index is not above the last one in the log replace everything from that index on.
    """

    ticket: Ticket
    hard_state: HardState | None
    batch: EntryBatch | None


@dataclass(frozen=True, slots=True)
class Send:
    """Give a message to a peer once ticket ``after`` is durable. Losing it is allowed, delaying it too."""

    to: NodeId
    message: Any
    after: Ticket = 0
    urgent: bool = False
    """Heartbeats and votes: never behind bulk entries in a queue."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Hand these committed *and locally durable* entries to the state machine, in order, each exactly once."""

    batch: EntryBatch


@dataclass(frozen=True, slots=True)
class ServeReads:
    """These reads are confirmed: each may be answered from any state that has applied ``index``."""

    requests: tuple[int, ...]
    index: Index


@dataclass(frozen=True, slots=True)
class DropReads:
    """Leadership was lost before these reads were confirmed; ask again elsewhere."""

    requests: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LeadershipChanged:
    """Term, role or known leader changed; for routing, logs and metrics."""

    term: Term
    role: str
    leader: NodeId | None
    reason: str


@dataclass(frozen=True, slots=True)
class SendSnapshot:
    """
    This follower needs entries that are gone: offer it a stream of the state, and report `SnapshotSent` at its end.

    Until then it gets heartbeats only.
    """

    to: NodeId


Effect: TypeAlias = Persist | Send | Apply | ServeReads | DropReads | LeadershipChanged | SendSnapshot


class Machine(Protocol):
    """One replicated-log algorithm (`raft.machine.RaftMachine` first); see the module text."""

    @property
    def node_id(self) -> NodeId:
        """Seat of this node."""
        ...

    @property
    def term(self) -> Term:
        """Current term."""
        ...

    @property
    def role(self) -> str:
        """One of `Role`."""
        ...

    @property
    def leader(self) -> NodeId | None:
        """Known leader of the current term."""
        ...

    @property
    def commit_index(self) -> Index:
        """Highest index known to be committed."""
        ...

    @property
    def last_index(self) -> Index:
        """Last entry of the log, durable or not."""
        ...

    @property
    def configuration(self) -> Configuration:
        """The configuration in force."""
        ...

    @property
    def uncommitted_bytes(self) -> int:
        """Own proposals that are not committed; the caller pushes back before `limits.UNCOMMITTED_BYTES_MAX`."""
        ...

    def handle(self, event: Event) -> list[Effect]:
        """Take one event; return what is owed to the outside world, in the order in which it must be paid."""
        ...

    def encode(self, message: Any) -> list[bytes]:
        """Byte form of one of this machine's messages as parts to be sent back to back (no copy of entry blocks)."""
        ...

    def decode(self, payload: bytes) -> Any:
        """Inverse of `encode`. Raises `core.errors.RemoteError` on anything it would not have written."""
        ...

    def counts_sender(self, message: Any) -> bool:
        """
        Whether a message lets its sender count as a member: votes and acknowledgements do, requests do not.

        Requests are heard from nodes outside the configuration too, which may merely be old (dissertation 4.2.2).
        """
        ...

    @property
    def base_index(self) -> Index:
        """Index before the first entry of the log."""
        ...

    @property
    def transferring_to(self) -> NodeId | None:
        """Whom this leader hands over to; it must be given no proposals meanwhile."""
        ...

    def change_refused(self) -> str | None:
        """
        Why the configuration cannot change now, None if it can.

        One change at a time, only by a leader whose no-op has committed and that does not hand over (Ongaro 2015;
        catalogue bugs 41 and 42). The next configuration differs by one voter at most.
        """
        ...

    def matches(self) -> dict[NodeId, Index]:
        """Leader: per other member, the index up to which its log is known to be durable and equal; else empty."""
        ...

    def term_at(self, index: Index) -> Term:
        """Term of an entry of the log or of its base; -1 for an index it does not hold."""
        ...

    def configuration_at(self, index: Index) -> tuple[Index, Configuration]:
        """The newest configuration at or below a committed index, with the index of its entry."""
        ...

    def accepts_snapshot(self, index: Index, term: Term) -> bool:
        """
        Whether a snapshot that ends at this entry would help, and would lose nothing this node has acknowledged.

        So: it lies beyond the commit index, and the log does not hold that very entry (catalogue bugs 51 and 52).
        """
        ...

    @property
    def may_serve(self) -> bool:
        """True on a leader whose no-op of this term has committed: it knows the commit index of its predecessors."""
        ...

    @property
    def term_start(self) -> Index:
        """Index of a leader's no-op; what it shows is of its predecessors' time until that is applied."""
        ...

    def statistics(self) -> dict[str, Any]:
        """Numbers for metrics and status; never changes anything."""
        ...
