"""
The ConsensusManager's side of the peer links: who may talk, what nodes tell each other, and joining at birth.

Every node tells every peer about itself, once per health check interval and at each new link: so contact ages reach
every node (contract section 7), an empty directory learns whether it may be born, and the leader learns which data
directory holds each seat. Frames of a directory that does not hold its seat are ignored, whoever sends them.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from kvorum.consensus import frames
from kvorum.consensus.founding import FileBirth
from kvorum.core.cluster import Configuration
from kvorum.core.entries import Entry, EntryBatch, EntryKind, HardState
from kvorum.core.errors import RemoteError
from kvorum.core.machine import PeerReset, Role
from kvorum.core.ports import Greeting, RecoveredLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import structlog

    from kvorum.consensus.contacts import Contacts
    from kvorum.consensus.founding import Birth
    from kvorum.consensus.manager import ManagerSettings
    from kvorum.consensus.membership import Membership
    from kvorum.consensus.proposals import Proposals
    from kvorum.consensus.reads import Reads
    from kvorum.consensus.snapshots import Snapshots
    from kvorum.core.ids import Incarnation, Index, NodeId, Term
    from kvorum.core.machine import Event, Machine
    from kvorum.core.ports import PeerLinks

UNBORN_REPORT_S: Final = 0.1
"""How often a node that is not born yet tells the others: birth should take a moment, not a health check interval."""

PARTING_S: Final = 5.0
"""A removed member keeps its link for this long, so that it hears of it."""

FORSAKEN_S: Final = 10.0
"""A directory that joins, and has heard no leader for this long, believes a peer that its seat is gone."""

GONE_MAX: Final = 256
REPORTS_MAX: Final = 256

BIRTH_PATIENCE_S: Final = 1.5
"""A fresh cluster is born at once when all its nodes are there, by a majority alone only after this long: the node that
is missing may be the one that remembers a cluster, and its link just not up yet."""

_NO_SEAT: Final = re.compile(r"\(configuration ([0-9]{1,19}) of cluster ([0-9a-f]{32})\)")
"""End of a refusal, for the node that is refused (docs/formats/peer-frames.md)."""

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
    membership: Membership
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

    removed: bool

    @property
    def complete(self) -> bool:
        """The birth of the cluster is over."""
        ...

    def contact_age_s(self) -> float:
        """Seconds since the last contact with a leader."""
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

    def message_received(self, peer: NodeId, payload: bytes, *, seated: bool = True) -> None:
        """One message of the algorithm."""
        ...

    def write_first_entry(self, hard_state: HardState, batch: EntryBatch) -> None:
        """Persist log entry 1."""
        ...

    def join(self, cluster_id: bytes) -> None:
        """Enter a cluster that names this data directory."""
        ...

    def arrived(self) -> None:
        """The own log shows the own seat."""
        ...

    def leave(self) -> None:
        """The cluster removed this data directory."""
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
        *,
        birth: Birth | None = None,
        joining: bool = False,
    ) -> None:
        self._host = host
        self.birth = birth or FileBirth(host.node_id, host.settings.configuration)
        self._links = links
        self._incarnation = incarnation
        self._logger = logger
        self._bearing = False
        self._last_report = host.clock()
        self._waiting_for = ""
        self.joining = joining
        """This directory came to a cluster that was there, and no committed configuration has shown its seat yet."""
        self.learned: frames.Members | None = None
        """Newest committed configuration that a peer has told and this node has not committed itself."""
        self.changes_total = 0
        """Configurations that became committed in front of this process."""
        self._committed: tuple[Index, Configuration] = (0, Configuration(()))
        self._seated_at: Index = 0
        """Newest configuration of the log that gives a seat to this directory."""
        self._gone: deque[tuple[NodeId, Incarnation]] = deque(maxlen=GONE_MAX)
        self._parting: dict[NodeId, tuple[str, float]] = {}
        """Members that were removed a moment ago: they should hear of it."""
        self._peers = {member.node_id: member.peer_endpoint for member in self.birth.expected.members}
        """Whom the links were told to reach: at first those that were expected when the links were made."""
        self._peers.pop(host.node_id, None)

    # --- birth ---

    def consider_birth(self) -> None:
        """Be born, wait, or refuse to start, by what the linked peers report."""
        host = self._host
        if self._bearing or host.stopping or host.machine is not None:
            return
        contacts = host.contacts
        clusters = {peer: greeting.cluster_id for peer, greeting in contacts.greetings.items()}
        learned = None if self.learned is None else self.learned.configuration
        verdict = self.birth.judge(
            self._incarnation,
            {peer: report for peer, report in contacts.reports.items() if peer in contacts.greetings},
            {peer: cluster if any(cluster) else None for peer, cluster in clusters.items()},
            learned,
            patient=host.uptime_s < BIRTH_PATIENCE_S,
        )
        if verdict.refuse is not None:
            host.refuse_to_start(verdict.refuse)
        elif verdict.joins:
            assert self.learned is not None
            self.joining = True
            host.join(self.learned.cluster_id)
        elif verdict.born:
            if self.birth.prepare(host.clock(), self.consider_birth):
                self._bearing = True
                entry = Entry.create(1, _BIRTH_TERM, EntryKind.CONFIGURATION, 0, self.birth.first.encode())
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
            configurations=((1, self.birth.first),),
        )

    # --- core.ports.PeerHandler ---

    def greet(self) -> Greeting:
        """What this node says of itself at every handshake."""
        host = self._host
        own = host.members.member(host.node_id) or self.birth.expected.member(host.node_id)
        assert own is not None, "a node expects itself"
        return Greeting(
            cluster_id=host.cluster_id or _ZERO_ID,
            birth_id=self.birth.birth_id,
            node_id=host.node_id,
            incarnation=self._incarnation,
            client_endpoint=own.client_endpoint,
            version=host.settings.version,
        )

    def admit(self, greeting: Greeting) -> str | None:
        """
        Refuse strangers by name: another cluster, another file, a directory without a seat.

        Two nodes of one cluster may have been started with different files. A node without a cluster may come: it is
        told nothing but who the members are.
        """
        host = self._host
        peer, theirs = greeting.node_id, greeting.cluster_id
        if peer == host.node_id:
            return f"node id {peer} is this node's own: two nodes were started with the same id"
        if host.removed:
            return "this node was removed from the cluster"
        if not any(theirs):
            return self._usurper_flaw(greeting) if host.cluster_id else self.birth.unborn_flaw(greeting)
        if host.cluster_id is None:
            return None
        if theirs != host.cluster_id:
            return f"it belongs to cluster {theirs.hex()}, this node to {host.cluster_id.hex()}"
        return self._seat_flaw(peer, greeting.incarnation)

    def _seat_flaw(self, peer: NodeId, incarnation: Incarnation) -> str | None:
        """Why a data directory of this cluster may not take part; None if it may, or might be newer than this node."""
        seat = (peer, incarnation)
        if seat not in self._gone and (self._holds_seat(*seat) or not self._is_current(peer)):
            return None
        index, committed = self._committed
        held = committed.member(peer)
        if seat not in self._gone and held is not None and held.incarnation in (0, incarnation):
            # Safety: the caller takes what follows below as proof, and this change may still be overwritten.
            return f"incarnation {incarnation:016x} of node {peer} is being removed or replaced"
        cluster = (self._host.cluster_id or _ZERO_ID).hex()
        return (
            f"incarnation {incarnation:016x} of node {peer} holds no seat in this cluster: it was removed or "
            f"replaced; remove its data directory and let it join anew (configuration {index} of cluster {cluster})"
        )

    def turned_away(self, peer: NodeId, reason: str) -> None:
        """
        A peer refuses this node; if a newer configuration than the own log knows has no seat for it, it was removed.

        A node that was down when it was removed learns it in this way: nobody dials it any more.
        """
        host = self._host
        found = _NO_SEAT.search(reason)
        if found is None or host.machine is None or host.removed or host.cluster_id is None:
            return
        known = self._seated_at
        if self.joining:
            # Which configuration gave the seat is not in the log yet, and the peer may be older than that. Who is
            # wrong here gives up a seat like a lost disk: the leader gives it to the directory that comes next.
            if host.contact_age_s() < FORSAKEN_S or not host.speaks:  # deaf while it installs a snapshot
                return
            known = host.machine.last_index
        if found[2] == host.cluster_id.hex() and int(found[1]) > known:
            self._logger.warning("a newer configuration has no seat for this node", told_by=peer, index=int(found[1]))
            self._part()

    def has_gone(self, peer: NodeId) -> bool:
        """Whether the directory that a peer was last seen with was removed or replaced."""
        return (peer, self._host.contacts.incarnations.get(peer, 0)) in self._gone

    def _part(self) -> None:
        self._host.leave()
        if self._links is not None:
            self._links.set_peers({})

    def _usurper_flaw(self, greeting: Greeting) -> str | None:
        """Why an empty directory may not come in a seat whose holder is there: it would break that one's links."""
        host = self._host
        age = host.contacts.seat_age_s(greeting.node_id, host.clock())
        if host.members.member(greeting.node_id) is None or age is None:
            return None
        if self._holds_seat(greeting.node_id, greeting.incarnation):
            return None
        if age >= 2 * host.settings.timings.election_timeout_s:
            return None
        return (
            f"node {greeting.node_id} was heard {age:.1f} s ago with another data directory: two nodes were started "
            "with the same id, or its disk was wiped a moment ago"
        )

    def _is_current(self, peer: NodeId) -> bool:
        """
        Whether this node would know if a peer had a seat: it hears a leader, and that is not the peer itself.

        Otherwise the peer may be newer than all this node has heard of, and even lead.
        """
        host = self._host
        heard = host.contact_age_s() < host.settings.timings.election_timeout_s
        return bool(self._committed[0]) and not self.joining and heard and host.leader not in (None, peer)

    def link_up(self, peer: NodeId, greeting: Greeting) -> None:
        """Our link to a peer stands: tell it about us, and send again what may have been lost."""
        host = self._host
        host.contacts.greetings[peer] = greeting
        host.contacts.incarnations[peer] = greeting.incarnation
        self._send_report(peer)
        self._send_members(peer)
        if host.machine is None:
            self.consider_birth()
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
            seated = self._holds_seat(peer, incarnation)
            if seated:
                host.contacts.heard_seat(peer, host.clock())
            if kind == frames.REPORT:
                self._report_received(peer, incarnation, frames.decode_report(payload))
            elif kind == frames.MEMBERS:
                self._members_received(frames.decode_members(payload))
            elif host.machine is not None and seated:
                self._dispatch(peer, kind, payload)
            elif host.machine is not None and (peer, incarnation) not in self._gone:
                self._dispatch_unseated(peer, kind, payload)
        except RemoteError as error:
            self._logger.warning("peer sent what this release cannot read", peer=peer, kind=kind, error=str(error))

    def _report_received(self, peer: NodeId, incarnation: Incarnation, report: frames.Report) -> None:
        contacts = self._host.contacts
        # It came while this node heard no leader and could not judge it, and hears nothing, for nobody dials it.
        if report.has_data and report.commit_index < self._committed[0] and peer not in self._parting:
            flaw = self._seat_flaw(peer, incarnation)
            if flaw is not None and self._links is not None:
                self._links.dismiss(peer, flaw)
                return
        if peer not in contacts.reports and len(contacts.reports) >= REPORTS_MAX:
            return
        contacts.incarnations[peer] = incarnation
        contacts.reports[peer] = report
        if self._host.machine is None:
            self.consider_birth()
        elif not (report.has_data or report.commit_index):
            # What it was told when the members changed may have come while it heard nothing, or while we said nothing.
            self._send_members(peer)

    def _members_received(self, members: frames.Members) -> None:
        """A peer tells a committed configuration: it may name this directory, or others that this node must reach."""
        host = self._host
        if host.cluster_id is not None and members.cluster_id != host.cluster_id:
            return
        newest = max(self._committed[0], self.learned.index if self.learned is not None else 0)
        if members.index <= newest:
            return
        self.learned = members
        if host.machine is None:
            self.consider_birth()
        else:
            self._look_for_own_seat(members.index, members.configuration)
        self._follow(host.clock())

    def _holds_seat(self, peer: NodeId, incarnation: Incarnation) -> bool:
        member = self._host.members.member(peer)
        return member is not None and member.incarnation in {0, incarnation}

    def _dispatch_unseated(self, peer: NodeId, kind: int, payload: bytes) -> None:
        """A member that this node's log does not show yet: it may lead, and have what this node needs to see it."""
        host = self._host
        if kind == frames.MACHINE:
            host.message_received(peer, payload, seated=False)
        elif kind == frames.SNAPSHOT_OFFER and host.snapshots is not None:
            host.snapshots.offer_received(peer, payload)

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
        elif kind == frames.ADMIN:
            host.membership.request_received(peer, payload)
        elif kind == frames.ADMIN_REPLY:
            host.membership.reply_received(payload)
        else:
            msg = f"unknown frame kind {kind}"
            raise RemoteError(msg)

    def serve_stream(self, peer: NodeId, incarnation: Incarnation, request: bytes) -> AsyncIterator[bytes]:
        """Give a member a snapshot of this node's state."""
        snapshots = self._host.snapshots
        if snapshots is None or not self._host.speaks or not self._holds_seat(peer, incarnation):
            return _no_stream()
        return snapshots.serve(peer, request)

    def tick(self, now: float) -> None:
        """Called a few times a second: report when it is time, follow the configuration."""
        host = self._host
        if host.removed:
            return
        interval = host.settings.health_check_interval_s if host.machine is not None else UNBORN_REPORT_S
        if now - self._last_report >= interval:
            self.send_reports()
        if host.machine is not None:
            self._look_at_committed(host.machine, now)
        elif self.birth.must_look_again(now):
            self.consider_birth()
        if not host.removed:
            self._follow(now)

    # --- following the configuration ---

    def started(self, configurations: Sequence[tuple[Index, Configuration]]) -> None:
        """There is a machine now, on a log with these configurations."""
        self._seated_at = max((at for at, found in configurations if self._seats_self(found)), default=0)

    def _seats_self(self, configuration: Configuration) -> bool:
        """Whether this directory has a seat; one that joins counts only what is recorded for it by name."""
        member = configuration.member(self._host.node_id)
        if member is None:
            return False
        return member.incarnation == self._incarnation or (not member.incarnation and not self.joining)

    def _look_at_committed(self, machine: Machine, now: float) -> None:
        """Notice a configuration that became committed: tell it on, and part from those it does not name."""
        index, configuration = machine.configuration_at(machine.commit_index)
        before = self._committed[1]
        if index == self._committed[0]:
            return
        self._committed = (index, configuration)
        self.changes_total += 1
        if self.learned is not None and self.learned.index <= index:
            self.learned = None
        for member in before.members:
            after = configuration.member(member.node_id)
            if member.incarnation and (after is None or after.incarnation not in (0, member.incarnation)):
                self._gone.append((member.node_id, member.incarnation))
            if after is None and member.node_id != self._host.node_id:
                self._parting[member.node_id] = (member.peer_endpoint, now + PARTING_S)
        for member in configuration.members:
            if (seat := (member.node_id, member.incarnation)) in self._gone:
                self._gone.remove(seat)  # added again before it knew that it had been removed
        self._look_for_own_seat(index, configuration)
        for peer in self._host.contacts.greetings:
            self._send_members(peer)

    def _look_for_own_seat(self, index: Index, configuration: Configuration) -> None:
        """
        In a committed configuration: arrive, or find out that this directory was removed.

        A restarted node replays configurations that are older than its seat; they say nothing.
        """
        if self._seats_self(configuration):
            self._seated_at = max(self._seated_at, index)
            if self.joining and self._committed[0] >= index:
                self.joining = False
                self._host.arrived()
        elif not self.joining and index >= self._seated_at and not self._host.removed:
            self._part()

    def _follow(self, now: float) -> None:
        """Have links to the members in force, and to whom this node must still or may soon talk."""
        host = self._host
        if self._links is None or host.removed:
            return
        configurations = [host.members]
        if host.machine is None or self.joining or not host.complete:
            configurations.append(self.birth.expected)
        if self.learned is not None:
            configurations.append(self.learned.configuration)
        self._parting = {peer: parting for peer, parting in self._parting.items() if now < parting[1]}
        peers = {peer: endpoint for peer, (endpoint, _) in self._parting.items()}
        for configuration in reversed(configurations):
            peers |= {member.node_id: member.peer_endpoint for member in configuration.members}
        peers.pop(host.node_id, None)
        if peers != self._peers:
            self._links.set_peers(peers)
            self._peers = peers
            host.contacts.keep([*peers, *host.contacts.greetings])

    def _send_members(self, peer: NodeId) -> None:
        host = self._host
        index, configuration = self._committed
        if index and host.cluster_id is not None:
            members = frames.Members(host.cluster_id, index, configuration)
            host.send(peer, frames.MEMBERS, frames.encode_members(members))

    # --- reports ---

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
            has_data=machine is not None and (machine.last_index > 1 or machine.term > _BIRTH_TERM),
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


async def _no_stream() -> AsyncIterator[bytes]:
    """What a node answers that has nothing to give, or nothing for the one who asks."""
    msg = "this node gives you no snapshot now"
    for _ in ():
        yield b""
    raise RemoteError(msg)
