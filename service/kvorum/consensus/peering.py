"""
The ConsensusManager's side of the peer links: who may talk, what nodes tell each other, and joining at birth.

Every node tells every peer about itself, once per health check interval and at each new link: so contact ages reach
every node (contract section 7), an empty directory learns whether it may be born, and the leader learns which data
directory holds each seat. Frames of a directory that does not hold its seat are ignored, whoever sends them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from kvorum.consensus import frames
from kvorum.consensus.birth import judge
from kvorum.core.entries import Entry, EntryBatch, EntryKind, HardState
from kvorum.core.errors import RemoteError
from kvorum.core.machine import PeerReset, Role
from kvorum.core.ports import Greeting, RecoveredLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import structlog

    from kvorum.consensus.contacts import Contacts
    from kvorum.consensus.manager import ManagerSettings
    from kvorum.consensus.proposals import Proposals
    from kvorum.consensus.reads import Reads
    from kvorum.consensus.snapshots import Snapshots
    from kvorum.core.cluster import Configuration
    from kvorum.core.ids import Incarnation, Index, NodeId, Term
    from kvorum.core.machine import Event, Machine
    from kvorum.core.ports import PeerLinks

UNBORN_REPORT_S: Final = 0.1
"""How often a node that is not born yet tells the others: birth should take a moment, not a health check interval."""

_BIRTH_TERM: Final = 1
_ZERO_ID: Final = bytes(16)


class Host(Protocol):
    """What the peering needs of its ConsensusManager."""

    settings: ManagerSettings
    machine: Machine | None
    contacts: Contacts
    proposals: Proposals
    reads: Reads
    snapshots: Snapshots | None
    cluster_id: bytes | None
    node_id: NodeId

    @property
    def speaks(self) -> bool:
        """False while the log cannot be written."""
        ...

    @property
    def term(self) -> Term:
        """Current term."""
        ...

    @property
    def leader(self) -> NodeId | None:
        """Known leader."""
        ...

    @property
    def members(self) -> Configuration:
        """Configuration in force."""
        ...

    @property
    def may_serve(self) -> bool:
        """This node leads and its no-op has committed."""
        ...

    @property
    def applied_index(self) -> Index:
        """What reads on this node show."""
        ...

    @property
    def uptime_s(self) -> float:
        """Age of this process."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether this node is on its way out."""
        ...

    def clock(self) -> float:
        """Monotonic seconds."""
        ...

    def send(self, peer: NodeId, kind: int, parts: Sequence[bytes]) -> bool:
        """Give one frame to a peer."""
        ...

    def feed(self, event: Event) -> None:
        """Give the machine one event."""
        ...

    def message_received(self, peer: NodeId, payload: bytes) -> None:
        """One message of the algorithm."""
        ...

    def propose_configuration(self, configuration: Configuration) -> None:
        """Append a configuration entry as the leader."""
        ...

    def write_first_entry(self, hard_state: HardState, batch: EntryBatch) -> None:
        """Persist log entry 1."""
        ...

    def refuse_to_start(self, why: str) -> None:
        """End the process with this message."""
        ...


class Peering:
    """`core.ports.PeerHandler` of a node; see the module text."""

    def __init__(
        self,
        host: Host,
        links: PeerLinks | None,
        incarnation: Incarnation,
        logger: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._host = host
        self._links = links
        self._incarnation = incarnation
        self._logger = logger
        self._bearing = False
        self._last_report = host.clock()
        self._waiting_for = ""
        self._recorded_at: Index = 0

    # --- birth ---

    def consider_birth(self) -> None:
        """Be born, wait, or refuse to start, by what the linked peers report."""
        host = self._host
        if self._bearing or host.stopping:
            return
        linked = {peer: report for peer, report in host.contacts.reports.items() if peer in host.contacts.greetings}
        verdict = judge(host.node_id, self._incarnation, host.settings.configuration, linked)
        if verdict.refuse is not None:
            host.refuse_to_start(verdict.refuse)
        elif verdict.born:
            self._bearing = True
            entry = Entry.create(1, _BIRTH_TERM, EntryKind.CONFIGURATION, 0, host.settings.configuration.encode())
            host.write_first_entry(HardState(_BIRTH_TERM, None), EntryBatch([entry]))
        elif verdict.waiting_for != self._waiting_for:
            self._waiting_for = verdict.waiting_for
            self._logger.info("empty data directory, waiting", waiting_for=verdict.waiting_for)

    def born(self) -> RecoveredLog:
        """The log as it stands once the first entry is durable; every node derives the same."""
        return RecoveredLog(
            hard_state=HardState(_BIRTH_TERM, None),
            base_index=0,
            base_term=0,
            last_index=1,
            terms=((1, _BIRTH_TERM),),
            configurations=((1, self._host.settings.configuration),),
        )

    # --- core.ports.PeerHandler ---

    def greet(self) -> Greeting:
        """What this node says of itself at every handshake."""
        host = self._host
        own = host.settings.configuration.member(host.node_id)
        assert own is not None, "the configuration lists this node"
        return Greeting(
            cluster_id=host.cluster_id or _ZERO_ID,
            birth_id=host.settings.configuration.birth_id(),
            node_id=host.node_id,
            incarnation=self._incarnation,
            client_endpoint=own.client_endpoint,
            version=host.settings.version,
        )

    def admit(self, greeting: Greeting) -> str | None:
        """Refuse strangers by name: another cluster, another file, an unknown seat."""
        host = self._host
        if greeting.node_id == host.node_id:
            return f"node id {greeting.node_id} is this node's own: two nodes were started with the same id"
        if host.members.member(greeting.node_id) is None:
            return f"node id {greeting.node_id} is no member of this cluster"
        if greeting.birth_id != host.settings.configuration.birth_id():
            return "its configuration lists other members (replica_endpoints or [consensus] endpoints differ)"
        if host.cluster_id and greeting.cluster_id not in {_ZERO_ID, host.cluster_id}:
            return f"it belongs to cluster {greeting.cluster_id.hex()}, this node to {host.cluster_id.hex()}"
        return None

    def link_up(self, peer: NodeId, greeting: Greeting) -> None:
        """Our link to a peer stands: tell it about us, and send again what may have been lost."""
        host = self._host
        host.contacts.greetings[peer] = greeting
        host.contacts.incarnations[peer] = greeting.incarnation
        self._send_report(peer)
        if host.machine is not None:
            host.feed(PeerReset(peer, reachable=True))
            host.proposals.link_restored(peer)
            host.reads.ask_again()

    def link_down(self, peer: NodeId, reason: str) -> None:
        """Frames given to this link may be lost."""
        self._host.contacts.greetings.pop(peer, None)
        self._logger.debug("frames to this peer may be lost", peer=peer, reason=reason)
        if self._host.machine is not None:
            self._host.feed(PeerReset(peer, reachable=False))
        if peer == self._host.leader:
            self._host.reads.ask_again()

    def frame_received(self, peer: NodeId, incarnation: Incarnation, kind: int, payload: bytes) -> None:
        """One frame from an admitted peer."""
        host = self._host
        if not host.speaks:
            return
        try:
            if kind == frames.REPORT:
                host.contacts.heard(peer, host.clock())
                host.contacts.incarnations[peer] = incarnation
                host.contacts.reports[peer] = frames.decode_report(payload)
                if host.machine is None:
                    self.consider_birth()
            elif host.machine is not None and self._holds_seat(peer, incarnation):
                host.contacts.heard(peer, host.clock())
                self._dispatch(peer, kind, payload)
        except RemoteError as error:
            self._logger.warning("peer sent what this release cannot read", peer=peer, kind=kind, error=str(error))

    def _holds_seat(self, peer: NodeId, incarnation: Incarnation) -> bool:
        member = self._host.members.member(peer)
        return member is not None and member.incarnation in {0, incarnation}

    def _dispatch(self, peer: NodeId, kind: int, payload: bytes) -> None:
        host = self._host
        if kind == frames.MACHINE:
            host.message_received(peer, payload)
        elif kind == frames.FORWARD:
            host.proposals.forward_received(peer, payload)
        elif kind == frames.FORWARD_REPLY:
            host.proposals.forward_reply_received(peer, payload)
        elif kind == frames.READ_INDEX:
            host.reads.question_received(peer, payload)
        elif kind == frames.READ_INDEX_REPLY:
            host.reads.answer_received(payload)
        elif kind == frames.SNAPSHOT_OFFER and host.snapshots is not None:
            host.snapshots.offer_received(peer, payload)
        elif kind == frames.SNAPSHOT_DONE and host.snapshots is not None:
            host.snapshots.done_received(peer, payload)
        else:
            msg = f"unknown frame kind {kind}"
            raise RemoteError(msg)

    def serve_stream(self, peer: NodeId, incarnation: Incarnation, request: bytes) -> AsyncIterator[bytes]:
        """Give a member a snapshot of this node's state."""
        snapshots = self._host.snapshots
        if snapshots is None or not self._host.speaks or not self._holds_seat(peer, incarnation):
            return _no_stream()
        return snapshots.serve(peer, request)

    # --- reports ---

    def tick(self, now: float) -> None:
        """Called a few times a second: report when it is time, record who holds which seat."""
        host = self._host
        interval = host.settings.health_check_interval_s if host.machine is not None else UNBORN_REPORT_S
        if now - self._last_report >= interval:
            self.send_reports()
        if host.may_serve:
            self._record_incarnations()

    def send_reports(self) -> None:
        """Tell every linked peer about this node."""
        self._last_report = self._host.clock()
        for peer in self._host.contacts.greetings:
            self._send_report(peer)

    def _send_report(self, peer: NodeId) -> None:
        host = self._host
        machine = host.machine
        member = host.members.member(peer) if machine else None
        report = frames.Report(
            has_data=machine is not None and machine.last_index > 1,
            role=machine.role if machine else Role.FOLLOWER,
            may_serve=host.may_serve,
            term=host.term,
            leader=host.leader,
            commit_index=machine.commit_index if machine else 0,
            applied_index=host.applied_index,
            uptime_ms=int(host.uptime_s * 1000),
            recorded_incarnation=member.incarnation if member else 0,
        )
        host.send(peer, frames.REPORT, frames.encode_report(report))

    def _record_incarnations(self) -> None:
        """The leader writes into the configuration which data directory holds each seat (architecture section 3)."""
        host = self._host
        machine = host.machine
        assert machine is not None
        configuration = machine.configuration
        if all(member.incarnation for member in configuration.members) or machine.commit_index < self._recorded_at:
            return
        recorded = configuration
        known = {**host.contacts.incarnations, host.node_id: self._incarnation}
        for member in configuration.members:
            if not member.incarnation and member.node_id in known:
                recorded = recorded.with_incarnation(member.node_id, known[member.node_id])
        if recorded != configuration:
            host.propose_configuration(recorded)
            self._recorded_at = machine.last_index


async def _no_stream() -> AsyncIterator[bytes]:
    """What a node answers that has nothing to give, or nothing for the one who asks."""
    msg = "this node gives you no snapshot now"
    for _ in ():
        yield b""
    raise RemoteError(msg)
