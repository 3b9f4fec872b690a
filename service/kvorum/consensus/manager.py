"""
ConsensusManager: the seam between routing and any consensus algorithm (named in the seed design).

It owns the machine, feeds it events, and carries out its effects strictly in order: entries go to the log's thread,
messages leave once what they promise is durable, committed groups go to the applier. One turn of the loop collects
what clients asked for and hands it over as one batch. Everything runs on one loop; there are no tasks and no locks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from kvorum.consensus import frames
from kvorum.consensus.applier import Applier, head_start
from kvorum.consensus.commit_times import CommitTimes
from kvorum.consensus.compaction import LogCutter
from kvorum.consensus.contacts import Contacts
from kvorum.consensus.membership import Membership
from kvorum.consensus.peering import Peering
from kvorum.consensus.proposals import Proposals
from kvorum.consensus.reads import Reads
from kvorum.consensus.registry import build_machine
from kvorum.consensus.reporting import Reporting
from kvorum.consensus.retention import Retention
from kvorum.consensus.settings import ManagerSettings, Surroundings
from kvorum.consensus.snapshots import Snapshots
from kvorum.core.codec import TAG
from kvorum.core.entries import Entry, EntryBatch, EntryKind, HardState
from kvorum.core.errors import Refusal, StartupError
from kvorum.core.limits import UNCOMMITTED_BYTES_MAX
from kvorum.core.machine import (
    AppliedUpTo,
    Apply,
    DropReads,
    LeadershipChanged,
    Persist,
    Persisted,
    Proposed,
    ReadAsked,
    Received,
    Send,
    SendSnapshot,
    ServeReads,
    Ticked,
)
from kvorum.observe.histogram import LatencyHistogram

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from kvorum.consensus.retention import RetainedState
    from kvorum.core.cluster import Configuration
    from kvorum.core.ids import Index, NodeId, Ticket
    from kvorum.core.machine import Effect, Event, Machine
    from kvorum.core.maintenance import Maintenance
    from kvorum.core.operations import Applied
    from kvorum.core.ports import PendingRead, PendingWrite, RecoveredLog
    from kvorum.core.snapshot import Manifest
    from kvorum.statemachine.executor import KvStoreExecutor

TICK_S: Final = 0.02
"""How often the machine hears of time: a fifth of the default heartbeat."""

STALL_S: Final = 0.1
"""A tick this late means that the loop stood still: received messages are drained before any timer counts."""

UNCOMMITTED_BYTES_ROOM: Final = UNCOMMITTED_BYTES_MAX // 4
"""Large values count by bytes: beyond this, proposals wait although fewer than the outstanding bound are under way."""

EXPIRY_TICKS: Final = 5
"""Deadlines are looked at every fifth tick, 100 ms: inside the slack of contract section 1.3."""

HUNG_SYNC_TIMEOUTS: Final = 2
"""Election timeouts that one sync of the log may take before this node falls silent, so that the others elect."""

__all__ = ["ConsensusManager", "ManagerSettings", "Surroundings"]


class ConsensusManager(Reporting):
    """See the module text. Public: propose, read_index, wait_applied, report, and the properties between them."""

    def __init__(self, settings: ManagerSettings, around: Surroundings) -> None:
        self.settings = settings
        self.node_id = settings.node_id
        self._around = around
        self._loop = around.loop
        self.clock = around.clock
        self._log = around.log
        self._links = around.links
        self._state = around.state
        self._logger = around.logger
        self._started = around.clock()
        self._nonce = around.randomness.getrandbits(64)
        self.machine: Machine | None = None
        self._effects: deque[Effect] = deque()
        self._executing = False
        self._durable: Ticket = 0
        self._ticket_base: Ticket = 0  # 1 if the first entry was written before there was a machine to number it
        self._held: deque[Send] = deque()
        self._flush_scheduled = False
        self._ticks = 0
        self._last_tick = self._started
        self._tick_postponed = False
        self._stopping = self._stopped = self._leaving = False
        self._short_of_space: set[str] = set()
        self.log_hangs = False
        self.installing = False
        self._hard_state = HardState()
        self._replay: tuple[Index, Index] = (0, 0)
        self._reset: tuple[Ticket, Callable[[], None]] | None = None
        self._base_time_ms = around.log.recovered.base_time_ms
        self._appended: Ticket = 0
        self._undurable_since: float | None = None
        self.cluster_id = around.cluster_id
        self.incarnation = around.incarnation
        self.removed = False
        self.contacts = Contacts(self.node_id, self._started, node_timeout_s=settings.node_timeout_s)
        prefix = TAG.pack(around.incarnation, self._nonce, 0)[:16]
        own_numbers = self._nonce >> 1  # where this process begins to count what peers answer by number
        self.proposals = Proposals(
            self,
            prefix,
            leader_wait_s=settings.leader_wait_s,
            outstanding_max=settings.outstanding_max,
            first_position=own_numbers,
        )
        self.peering = Peering(
            self, around.links, around.incarnation, around.logger, birth=around.birth, joining=around.joining
        )
        self.membership = Membership(
            self, around.loop, around.logger, standalone=around.links is None, first_number=own_numbers
        )
        self.reads = Reads(self, leader_wait_s=settings.leader_wait_s, first_request=own_numbers)
        self._attach_state(settings, around)
        self.leader_changes_total = 0
        self.commit_times = CommitTimes()
        self.heartbeat_failures: dict[NodeId, int] = {}
        self.loop_lag = LatencyHistogram(0.001, 14)
        self._last_leader: NodeId | None = None
        self.leader_heard = self._started

    def _attach_state(self, settings: ManagerSettings, around: Surroundings) -> None:
        """Everything that stands around the state machine: what feeds it, copies it, shortens its log and its past."""
        self.applier = Applier(
            around.state,
            around.loop,
            around.clock,
            on_applied=self._group_applied,
            flush=around.flush,
            on_flushed=self._flushed,
            on_space=partial(self.space_changed, "store"),
            flush_entries=settings.flush_entries,
            head_start=head_start(settings.node_id),
        )
        self.snapshots = (
            Snapshots(self, around.links, cast("KvStoreExecutor", around.state), around.staging, around.logger)
            if around.staging is not None
            else None
        )
        self.cutter = LogCutter(
            self, around.log, retain_entries=settings.retain_entries, retain_bytes=settings.retain_bytes
        )
        self.retention = Retention(
            self, settings.retention, cast("RetainedState", around.state), self.applier.flush_now
        )

    # --- life ---

    def start(self) -> None:
        """Open the log's thread and the links, then be born, rejoin, or wait for the others."""
        self._log.start(self._persisted, partial(self.space_changed, "log"))
        recovered = self._log.recovered
        if recovered.last_index > 0 or (self.cluster_id is not None and self.peering.joining):
            self.become_member(recovered)
        elif self.cluster_id is not None:
            msg = (
                "the data directory belongs to a cluster but its log is empty: it was damaged or cleared by hand; "
                "give the node its files back, or remove the whole directory and restore the cluster"
            )
            raise StartupError(msg)
        if self._links is not None:
            self._links.start(self.peering)
        if self.machine is None:
            self.peering.consider_birth()
        self._schedule_tick()

    def unready(self) -> None:
        """Tell /readyz that this node goes away; it still serves."""
        self._leaving = True

    async def hand_over(self, heir: NodeId | None = None) -> None:
        """Before a planned stop: if this node leads, let another one, while it serves on; bounded."""
        await self.membership.hand_over(heir)

    async def stop(self, grace_s: float) -> None:
        """Refuse new work, give what is under way up to ``grace_s``, then stop links and log."""
        self._stopping = True
        self.membership.shut_down()
        self.proposals.shut_down()
        end = self.clock() + grace_s
        while self.clock() < end and (self.proposals.pending_count or self.reads.pending_count):  # noqa: ASYNC110
            await asyncio.sleep(TICK_S)  # a poll per tick, in shut-down only
        if self.snapshots is not None:
            await self.snapshots.stop()
        self.reads.shut_down()
        self.proposals.abandon()
        if self._links is not None:
            await self._links.stop()
        await self._log.stop()
        # The loop goes on for a moment, but storage closes now: a replay under way must not run into it.
        self._stopped = True
        self.applier.halt()

    def join(self, cluster_id: bytes) -> None:
        """Enter a cluster that names this data directory, with the empty log that its leader fills."""
        self._around.on_joining(True)
        self.cluster_id = cluster_id
        self.become_member(self._log.recovered)

    def arrived(self) -> None:
        """The own log shows the own seat: from now on it may not be empty again."""
        self._around.on_joining(False)

    def leave(self) -> None:
        """The cluster removed this data directory: take no part ever again, and tell everybody who waits."""
        self.removed = True
        self._around.on_removed()
        if self._leaving:
            self._logger.info("the cluster has let this node go", node_id=self.node_id)
        else:
            self._logger.error("removed from the cluster: to join anew, stop this node, remove its data, and add it")
        self.membership.shut_down(removed=True)
        self.reads.shut_down()
        self.proposals.abandon()

    def become_member(self, recovered: RecoveredLog) -> None:
        """Start the machine on a log that holds at least the first configuration, or on that of a joining node."""
        settings = self.settings
        self.cluster_id = self.cluster_id or self.peering.birth.cluster_id
        self._around.on_born(self.cluster_id)
        self._hard_state = recovered.hard_state
        self._replay = (self._state.applied_index, recovered.last_index)
        self.machine = build_machine(
            settings.algorithm,
            self.node_id,
            recovered,
            self._log,
            settings.timings,
            applied_index=self._state.applied_index,
            now=self.clock(),
            incarnation=self.incarnation,
        )
        self.peering.started(recovered.configurations)
        self._last_tick = self.clock()
        self._logger.info(
            "joined the cluster",
            cluster_id=self.cluster_id.hex(),
            term=self.machine.term,
            last_index=self.machine.last_index,
            applied_index=self._state.applied_index,
        )
        self.peering.send_reports()

    # --- what routing asks ---

    def propose(self, body: bytes, pending: PendingWrite, received: float, deadline: float) -> None:
        """Take one write, on any node; see `Proposals.propose`."""
        if self._stopping or self.removed:
            pending.decided(0, self.gone())
        else:
            self.proposals.propose(body, pending, received, deadline)

    def read_index(self, pending: PendingRead, received: float, deadline: float, *, confirm: bool = True) -> None:
        """Serve a read once it is legal; see `Reads.ask`."""
        if self._stopping or self.removed:
            pending.refused(self.gone())
        else:
            self.reads.ask(pending, received, deadline, confirm=confirm)

    def wait_applied(self, index: Index, pending: PendingRead, expires: float, refusal: Refusal) -> None:
        """Serve a read once this node shows ``index``, or refuse it at ``expires``."""
        self.reads.wait_applied(index, pending, expires, refusal)

    @property
    def alone(self) -> bool:
        """A cluster of one that serves: its own state is linearizable as it stands."""
        return self._links is None and self.may_serve

    # --- events in ---

    def feed(self, event: Event) -> None:
        """Give the machine one event and carry out all that follows, in order."""
        assert self.machine is not None, "no machine before birth"
        self._effects.extend(self.machine.handle(event))
        if self._executing:
            return
        self._executing = True
        try:
            while self._effects:
                self._execute(self._effects.popleft())
        finally:
            self._executing = False
        self.applier.pump()

    def flush_soon(self) -> None:
        """Collect what this turn of the loop brings, then hand it over as one batch."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        self.proposals.flush()
        self.reads.flush()

    def _persisted(self, ticket: Ticket) -> None:
        if self.machine is None:
            self.become_member(self.peering.born())
            return
        if self._reset is not None:
            due, installed = self._reset
            if ticket < due:
                return  # nothing may be read from the log any more, and nobody waits: this node is deaf
            self._reset = None
            self._held.clear()
            installed()
        ticket -= self._ticket_base
        if ticket <= 0:
            return
        self._durable = ticket
        self._undurable_since = None if ticket == self._appended else self.clock()
        if self.log_hangs:
            self.log_hangs = False
            self._logger.info("the log syncs again: taking part once more")
            self._speaks_again()
        if self._held:
            self._release(ticket)
        self.feed(Persisted(ticket))

    def _release(self, ticket: Ticket) -> None:
        # Safety: a vote or an acknowledgement leaves only after what it promises is on disk.
        held, self._held = self._held, deque()
        for send in held:
            if send.after <= ticket:
                self._transmit(send)
            else:
                self._held.append(send)

    def space_changed(self, what: str, has_space: bool) -> None:  # noqa: FBT001 - a port callback
        """
        Disk full: fall silent like a paused node, so that the others elect; speak again when there is space.

        Args:
            what: The log, the store, or the reserve kept free for both; each has its own view of the disk.
            has_space: Whether that one goes on.
        """
        had_space = self.has_space
        if has_space:
            self._short_of_space.discard(what)
        else:
            self._short_of_space.add(what)
        if self.has_space and not had_space:
            self._logger.info("disk has space again: taking part once more")
            self._speaks_again()
        elif had_space and not self.has_space:
            self._logger.error("disk full: this node votes and appends nothing until there is space", met_by=what)

    def _speaks_again(self) -> None:
        """What was said meanwhile did not leave or was not heard; the leader may still be the same."""
        self.proposals.leadership_changed()
        self.reads.ask_again()

    # --- effects out ---

    def _execute(self, effect: Effect) -> None:
        kind = type(effect)
        if kind is Send:
            if effect.after <= self._durable:  # type: ignore[union-attr]
                self._transmit(effect)  # type: ignore[arg-type]
            else:
                self._held.append(effect)  # type: ignore[arg-type]
        elif isinstance(effect, Persist):
            if self._undurable_since is None:
                self._undurable_since = self.clock()
            self._appended = effect.ticket
            if effect.hard_state is not None:
                self._hard_state = effect.hard_state
            self._log.append(effect.ticket + self._ticket_base, effect.hard_state, effect.batch)
        elif isinstance(effect, Apply):
            if self.commit_times:
                self.commit_times.committed(effect.batch.entries[-1].index, self.clock())
            self.applier.add(effect.batch)
        elif isinstance(effect, ServeReads):
            self.reads.confirmed(effect.requests, effect.index)
        elif isinstance(effect, DropReads):
            self.reads.dropped(effect.requests)
        elif isinstance(effect, SendSnapshot):
            if self.snapshots is not None:
                self.snapshots.offer(effect.to)
        else:
            assert isinstance(effect, LeadershipChanged), effect
            self._leadership_changed(effect)

    def _transmit(self, send: Send) -> None:
        assert self.machine is not None
        assert self._links is not None, "a cluster of one sends nothing"
        if not self.speaks:
            return
        parts = self.machine.encode(send.message)
        if not self._links.send(send.to, frames.MACHINE, parts, urgent=send.urgent) and send.urgent:
            self.heartbeat_failures[send.to] = self.heartbeat_failures.get(send.to, 0) + 1

    def _leadership_changed(self, change: LeadershipChanged) -> None:
        self._logger.info(
            "leadership changed", term=change.term, role=change.role, leader=change.leader, reason=change.reason
        )
        if change.leader is not None:
            self.leader_heard = self.clock()
        if change.leader is not None and change.leader != self._last_leader:
            self._last_leader = change.leader
            self.leader_changes_total += 1
        self.commit_times.forget()
        self.proposals.leadership_changed()
        self.reads.ask_again()
        self._loop.call_soon(self._pursue_changes)

    def _pursue_changes(self) -> None:
        if not self._stopped:
            self.membership.tick(self.clock())

    def _group_applied(self, entries: Sequence[Entry], outcomes: Sequence[Applied | Refusal | None]) -> None:
        self.proposals.applied(entries, outcomes)
        index = entries[-1].index
        self._log.note_committed(index)
        self.reads.applied(index)
        self.feed(AppliedUpTo(index))

    # --- host of snapshots and of the cutting of the log ---

    @property
    def applied_time_ms(self) -> int:
        """Time of the last applied entry; 0 if it left the log before this process began, and the log has no note."""
        applied = cast("KvStoreExecutor", self._state).entry_time_ms
        if not applied and self.machine is not None and self.applied_index > self.machine.base_index:
            return self._log.read(self.applied_index, self.applied_index, 1)[0].time_ms
        return max(applied, self._base_time_ms)

    def create_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside everything else; what it raises ends the process."""
        task = self._loop.create_task(work)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._loop.call_exception_handler({"message": "a task of the consensus failed", "exception": error})

    def reset_log(self, manifest: Manifest, done: Callable[[], None]) -> None:
        """Reset the log to a snapshot; calls back once that is durable, before the machine hears of anything else."""
        # The machine did not ask for this ticket and does not count it.
        self._ticket_base += 1
        ticket = self._appended + self._ticket_base
        self._reset = (ticket, done)
        self._log.reset(ticket, self._hard_state, manifest.base, manifest.configuration)

    def snapshot_installed(self, manifest: Manifest) -> None:
        """The state machine shows a snapshot: answer those who waited for it."""
        self._base_time_ms = manifest.time_ms
        self._log.note_committed(manifest.index)
        self._log.drop_before(manifest.index + 1)
        self.proposals.snapshot_installed()
        self.reads.applied(manifest.index)
        self._speaks_again()

    def reachable(self) -> frozenset[NodeId]:
        """Peers to which a link stands."""
        return frozenset(self.contacts.greetings)

    def streamed_index(self) -> Index | None:
        """Lowest index of a snapshot that is being sent, if any."""
        return self.snapshots.needed_index if self.snapshots else None

    def compact_log(self) -> tuple[Index, Index]:
        """On demand: drop every entry that the store holds durably; the base of the log before and after."""
        before = self.machine.base_index if self.machine else 0
        return before, self.cutter.cut_all() if self.machine and self.snapshots else before

    def _flushed(self) -> None:
        # Only who can send a snapshot instead may drop entries.
        if self.machine is not None and self.snapshots is not None and not self._stopped:
            self.cutter.cut()

    # --- hosts of proposals and reads ---

    def room(self) -> int:
        """Entries that may still be appended before some are applied; none while the engine is stalled."""
        machine = self.machine
        if self.applier.stalled or machine is None or machine.uncommitted_bytes > UNCOMMITTED_BYTES_ROOM:
            return 0
        if not self.complete:
            return 0  # what waits goes into the log once a majority of the cluster that is wanted votes
        if machine.transferring_to is not None:
            return 0  # what waits goes to the next leader
        return self.settings.outstanding_max - (machine.last_index - self.applied_index)

    def append(self, payloads: list[bytes]) -> None:
        """Propose as the leader."""
        assert self.machine is not None
        self.commit_times.appended(self.machine.last_index + len(payloads), self.clock())
        self.feed(Proposed(payloads, self._around.wall_ms()))

    def ask_machine(self, request: int) -> None:
        """Have leadership confirmed for a read."""
        self.feed(ReadAsked(request))

    def send(self, peer: NodeId, kind: int, parts: Sequence[bytes]) -> bool:
        """Give one frame to a peer; False if it certainly did not leave."""
        return self._links is not None and self.speaks and self._links.send(peer, kind, parts)

    def propose_configuration(self, configuration: Configuration) -> None:
        """Append a configuration entry as the leader; in force from that moment."""
        self.feed(Proposed([configuration.encode()], self._around.wall_ms(), EntryKind.CONFIGURATION))

    def propose_maintenance(self, maintenance: Maintenance) -> None:
        """Append a maintenance entry as the leader, unless it is handing over."""
        if self.machine is not None and self.machine.transferring_to is None:
            self.feed(Proposed([maintenance.encode()], self._around.wall_ms(), EntryKind.MAINTENANCE))

    def write_first_entry(self, hard_state: HardState, batch: EntryBatch) -> None:
        """Persist log entry 1 of a cluster that is being born; `become_member` follows when it is durable."""
        self._ticket_base = 1
        self._log.append(1, hard_state, batch)

    def refuse_to_start(self, why: str) -> None:
        """This node may not join; the process ends with this message."""
        self._around.on_refused(StartupError(why))

    def message_received(self, peer: NodeId, payload: bytes, *, seated: bool = True) -> None:
        """One message of the algorithm, from the directory that holds its seat, or from one that may be new here."""
        assert self.machine is not None
        message = self.machine.decode(payload)
        if not seated and self.machine.counts_sender(message):
            return
        self.feed(Received(peer, message))
        if peer == self.machine.leader:
            self.leader_heard = self.clock()

    @property
    def stopping(self) -> bool:
        """Whether this node is on its way out."""
        return self._stopping

    # --- time ---

    def _schedule_tick(self) -> None:
        self._loop.call_later(TICK_S, self._tick)

    def _watch_log(self, now: float) -> None:
        """A sync that hangs makes a leader that neither works nor leaves: fall silent, as with a full disk."""
        since = self._undurable_since
        bound = HUNG_SYNC_TIMEOUTS * self.settings.timings.election_timeout_s
        if since is not None and now - since > bound and not self.log_hangs:
            self.log_hangs = True
            self._logger.error("a sync of the log hangs: this node takes no part until it ends", seconds=now - since)

    def _tick(self) -> None:
        if self._stopped:
            return
        now = self.clock()
        lag = now - self._last_tick - TICK_S
        self.loop_lag.observe(max(0.0, lag))
        if lag > STALL_S and not self._tick_postponed:
            # Safety: after a stall, received messages are drained before any timer, or a pause elects (catalogue 78).
            # Once only: a loop whose every turn is that slow would otherwise never send a heartbeat.
            self._last_tick = now
            self._tick_postponed = True
            self._loop.call_later(0.001, self._tick)
            return
        self._tick_postponed = False
        self._last_tick = now
        self._ticks += 1
        self._watch_log(now)
        if self.machine is not None and self.speaks:
            self.feed(Ticked(now, self._around.randomness.random()))
            self._flush()
            self.retention.tick(now, busy=self.applier.stalled)
        if self._ticks % EXPIRY_TICKS == 0:
            self.proposals.expire(now)
            self.reads.expire(now)
            self.peering.tick(now)
            self.membership.tick(now)
            self.applier.tick(now)
            if self.snapshots is not None:
                self.snapshots.tick(now)
        self._schedule_tick()
