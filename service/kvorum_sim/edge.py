"""
The Thrift edge of simulated processes, composed as `app.node` composes it, on simulated sockets.

What passes from the edge into routing is watched: which write was tried where and what each attempt was told says
whether a client has met the rare states that its retries are made for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from kvorum.core.codec import IDENTIFIED, OPCODE_COMMIT, identity_of
from kvorum.core.operations import Applied
from kvorum.thrift.protocol.scanner import Malformed
from kvorum.thrift.server import ThriftServer
from kvorum.thrift.settings import ThriftSettings
from kvorum_sim.calls import DEADLINE_SLACK_S, UNKNOWN_CODES
from kvorum_sim.probes import Probe
from kvorum_sim.sockets import SimulatedSockets

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from kvorum.core.errors import Refusal
    from kvorum.core.ids import Index, NodeId
    from kvorum.core.ports import PendingRead, PendingWrite
    from kvorum.core.status import NodeReport
    from kvorum_sim.loop import VirtualLoop
    from kvorum_sim.network import SimulatedNetwork
    from kvorum_sim.process import Process


class Clients:
    """
    Everything between the clients and the nodes of one world.

    Args:
        loop: Where time comes from.
        network: Says how long a passage takes.
        seed: Draws the rest.
        probes: Counts rare states.
        violated: Ends the run.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        network: SimulatedNetwork,
        seed: int,
        probes: Counter[str],
        violated: Callable[[str], NoReturn],
    ) -> None:
        self.loop = loop
        self.probes = probes
        self.sockets = SimulatedSockets(loop, network, seed=seed, probes=probes)
        self.attempts: dict[tuple[bytes, int], list[Attempt]] = {}
        """Every attempt of every write that has an identity."""
        self.violated = violated

    def crash(self, process: Process, *, power: bool) -> None:
        """A process ends."""
        self.judge(process)
        self.sockets.crash(process.node_id, power=power)

    def judge(self, process: Process) -> None:
        """Clients of ours send nothing that is no message, except when they are cut off; every write is answered."""
        assert process.server is not None
        odd = {
            reason: count
            for reason, count in process.server.malformed_counts.items()
            if count and reason != Malformed.CUT_SHORT
        }
        if odd:
            self.violated(f"{process!r} took what a client sent for malformed: {odd}")
        for attempts in self.attempts.values():
            for attempt in attempts:
                if attempt.process is process and attempt.outcome is None and attempt.is_late:
                    self.violated(f"{attempt} is not decided")


def serve_clients(process: Process, clients: Clients) -> ThriftServer:
    """Let a process listen for clients."""
    server = ThriftServer(
        _WatchedRouting(process, clients),
        process.executor,
        ThriftSettings(),
        clock=process.clock,
        wall=lambda: process.wall_ms() / 1000,
        draw=lambda: 1.0,
        on_defect=clients.loop.fail,
        logger=process.logger,
    )
    server.attach(process.loop)
    clients.sockets.listen(process.node_id, process.loop, server.connection)
    return server


@dataclass(slots=True)
class Attempt:
    """One time that a write reached a node."""

    process: Process
    deadline: float
    """On the clock of the process."""
    outcome: Applied | Refusal | None = None
    """What the edge was told; None while it was not, or when its node died first."""

    @property
    def node_id(self) -> NodeId:
        """Who was asked."""
        return self.process.node_id

    @property
    def is_late(self) -> bool:
        """Whether the answer is overdue (contract section 1.3); a process that stood still may need a moment."""
        process = self.process
        rested = process.loop.time() - process.loop.resumed_at > DEADLINE_SLACK_S
        return process.alive and not process.paused and rested and process.clock() - self.deadline > DEADLINE_SLACK_S

    @property
    def certainly_failed(self) -> bool:
        """Whether its client may know that nothing came of it."""
        return (
            self.outcome is not None
            and not isinstance(self.outcome, Applied)
            and (self.outcome.code not in UNKNOWN_CODES)
        )


class _WatchedWrite:
    """A write of the edge that notes what it is told."""

    __slots__ = ("_attempt", "_clients", "_earlier", "_is_commit", "_pending")

    def __init__(
        self, pending: PendingWrite, attempt: Attempt, earlier: list[Attempt], clients: Clients, *, is_commit: bool
    ) -> None:
        self._pending = pending
        self._attempt = attempt
        self._earlier = earlier
        self._clients = clients
        self._is_commit = is_commit

    def decided(self, index: Index, outcome: Applied | Refusal) -> None:
        """The write is decided, on its node."""
        attempt, probes = self._attempt, self._clients.probes
        if attempt.is_late:
            self._clients.violated(f"{attempt} is decided late: {outcome}")
        attempt.outcome = outcome
        open_ones = [earlier for earlier in self._earlier if not earlier.certainly_failed]
        if isinstance(outcome, Applied) and open_ones:
            probes[Probe.CLIENT_RESOLVED] += 1
            if self._is_commit and any(earlier.node_id != attempt.node_id for earlier in open_ones):
                probes[Probe.CLIENT_FAILOVER] += 1
        self._pending.decided(index, outcome)


class _WatchedRouting:
    """The real routing, with a look at the writes."""

    def __init__(self, process: Process, clients: Clients) -> None:
        self._process = process
        self._routing = process.routing
        self._clients = clients
        self.default_level = process.routing.default_level

    def write(self, body: bytes, pending: PendingWrite, received: float, deadline: float) -> None:
        identity = identity_of(body)
        if identity is not None:
            earlier = self._clients.attempts.setdefault(identity, [])
            attempt = Attempt(self._process, deadline)
            is_commit = body[0] & ~IDENTIFIED == OPCODE_COMMIT
            pending = _WatchedWrite(pending, attempt, list(earlier), self._clients, is_commit=is_commit)
            earlier.append(attempt)
        self._routing.write(body, pending, received, deadline)

    def read(self, level: str, pending: PendingRead, received: float, deadline: float) -> bool:
        return self._routing.read(level, pending, received, deadline)

    def read_at(self, version: Index, pending: PendingRead, received: float, deadline: float) -> bool:
        return self._routing.read_at(version, pending, received, deadline)

    def report(self) -> NodeReport:
        return self._routing.report()
