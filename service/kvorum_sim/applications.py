"""
What applications do with kvorum_client: the whole way from a call over simulated sockets and the Thrift edge and back.

Each application has one `KvorumClient`, several workers share it, and now and then it starts anew, in the middle of
their calls. The judges are those of `workload`; what the client promises about errors is judged here: an error that
says its outcome is known means that nothing was done, and every call ends within its time.
"""

from __future__ import annotations

import asyncio
import math
import random
from typing import TYPE_CHECKING, Final, TypeVar

from kvorum_client import (
    ClientClosedError,
    ConflictError,
    InvalidRequestError,
    KvorumClient,
    KvorumError,
    ProtocolViolationError,
    TransactionClosedError,
)
from kvorum_sim.linearizability import Kind, Operation, Outcome
from kvorum_sim.model import Commit, SnapshotRead
from kvorum_sim.probes import Probe
from kvorum_sim.sockets import SERVICE
from kvorum_sim.workload import ACCOUNT_NAMES, BALANCE, CLIENTS, SHARED_KEYS, Workload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kvorum_client import KeyValue, Transaction
    from kvorum_sim.edge import Clients
    from kvorum_sim.process import Process
    from kvorum_sim.world import World

T = TypeVar("T")

APPLICATIONS: Final = 3
KINDS: Final = ("get", "set", "delete", "own", "scan", "transfer", "sum", "count", "tally", "look again")
RESTART_SHARE: Final = 0.01
"""How often a worker starts its application anew instead of doing something."""
SLACK_S: Final = 0.1
TALLY_ATTEMPTS: Final = 4
TALLY_PAUSES_S: Final = 2.0
LARGE_BYTES_MAX: Final = 30_000
_DEFECTS: Final = (ProtocolViolationError, InvalidRequestError, TransactionClosedError)
"""Errors that no fault may cause."""


class Application:
    """
    One user of the cluster.

    Args:
        workload: What it is part of.
        name: Where it is, for the network.
    """

    client: KvorumClient

    def __init__(self, workload: Applications, name: str) -> None:
        self.name = name
        self._workload = workload
        self._chance = random.Random(f"{workload.world.seed} {name}")
        self._starts = 0
        # One patient and one that is not: with short budgets more calls end without an answer.
        self.timeout_s, self.attempt_timeout_s = self._chance.choice(((15.0, 5.5), (15.0, 1.0), (4.0, 0.5)))
        self.open()

    def open(self) -> None:
        """Begin with a new client, which knows all nodes, some, or a name that leads to any of them."""
        chance = self._chance
        world = self._workload.world
        known = [f"node-{node_id}:9090" for node_id in world.node_ids if node_id not in world.leaving]
        endpoints = chance.choice((known, chance.sample(known, chance.randrange(1, len(known))), [f"{SERVICE}:9090"]))
        self._starts += 1
        self.client = self._workload.new_client(
            self.name, endpoints, f"{self.name} start {self._starts}", self.timeout_s, self.attempt_timeout_s
        )

    async def restart(self) -> None:
        """Close the client under the calls of the other workers, and go on with another one."""
        old = self.client
        self.open()
        await old.close()

    @property
    def lonely(self) -> bool:
        """Whether the cluster has moved away from all that it was configured with."""
        gone = self._workload.world.gone
        return all(
            endpoint.startswith("node-") and int(endpoint[5:].partition(":")[0]) in gone
            for endpoint in self.client.endpoints
        )


class Applications(Workload):
    """All applications of one history."""

    def __init__(self, world: World, pause_s: float) -> None:
        super().__init__(world, pause_s)
        assert world.clients is not None, "a world with an edge"
        self._edge: Clients = world.clients
        self.tallied = 0
        """Increments by transactions that were acknowledged."""
        self.tally_uncertain = 0
        self._kind_weights = [world.chance.choice((0, 1, 1, 3, 6)) for _ in KINDS]
        self._kind_weights[0] = self._kind_weights[1] = max(2, self._kind_weights[0])
        self._applications = [Application(self, f"client {number}") for number in range(APPLICATIONS)]

    def new_client(
        self, place: str, endpoints: list[str], seed: str, timeout_s: float = 15.0, attempt_timeout_s: float = 5.5
    ) -> KvorumClient:
        """A client on the simulated network, all of whose chance comes from the seed."""
        chance = random.Random(f"{self.world.seed} {seed}")

        async def connect(
            protocol_factory: Callable[[], asyncio.Protocol], host: str, port: int
        ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
            return await self._edge.sockets.connect(place, protocol_factory, host, port)

        return KvorumClient(
            endpoints,
            timeout_s=timeout_s,
            attempt_timeout_s=attempt_timeout_s,
            connector=connect,
            random=chance,
            new_client_id=lambda: chance.randbytes(16),
        )

    # --- the story's side ---

    async def open_accounts(self) -> bool:
        """Give every account its first balance, in one commit."""
        client = self.new_client("opener", [f"node-{node_id}:9090" for node_id in self.world.node_ids], "opener")
        transaction = client.transaction()
        for name in ACCOUNT_NAMES:
            transaction.set(name, b"%d" % BALANCE)
        outcome, _ = await self._told("open accounts", transaction.commit(), 15.0)
        await client.close()
        return outcome == Outcome.OK

    async def client(self, number: int) -> None:
        """One worker's life."""
        world = self.world
        application = self._applications[number % APPLICATIONS]
        chance = random.Random(f"{world.seed} worker {number}")
        count = 0
        while not self.stopping:
            await asyncio.sleep(chance.expovariate(1 / self._pause_s))
            if chance.random() < RESTART_SHARE or application.lonely:
                await application.restart()
            count += 1
            mark = b"%d.%d" % (number, count)
            match chance.choices(KINDS, self._kind_weights)[0]:
                case "get" | "set" | "delete" | "own" as kind:
                    await self._single(application, chance, number, kind, mark)
                case "scan":
                    await self._scan(application, chance, number)
                case "transfer":
                    await self._move(application, chance, mark)
                case "sum":
                    await self._add_up(application, chance)
                case "count":
                    await self._stamp(application, b"count-%d-%d-" % (number, count))
                case "tally":
                    await self._tally(application)
                case _:
                    await self._look_again(application, chance)

    async def finish(self) -> None:
        """A healthy cluster serves clients, at every node; nobody keeps a connection that nobody wants."""
        world = self.world
        for node_id in world.node_ids:
            client = self.new_client(f"last {node_id}", [f"node-{node_id}:9090"], f"last {node_id}")
            for number in range(SHARED_KEYS):
                key = b"shared-%d" % number
                await self._note(200 + node_id, key, Kind.GET, None, client.get(key), 15.0)
            value = b"%d" % node_id
            last = await self._note(200 + node_id, b"last", Kind.SET, value, client.set(b"last", value), 15.0)
            if last != Outcome.OK:
                world.violated(f"a healthy cluster takes no write of a client through node {node_id}")
            await client.close()
        for application in self._applications:
            await application.client.close()
        await asyncio.sleep(1.0)
        for application in self._applications:
            if left := self._edge.sockets.open_at(application.name):
                world.violated(f"{application.name} is closed and keeps {left} connections")
        for process in world.alive:
            assert process.server is not None
            there, known = self._edge.sockets.open_at(process.node_id), process.server.connection_count
            if there != known:
                world.violated(f"{process!r} knows {known} connections, there are {there}")
            self._edge.judge(process)

    def judge_end(self, process: Process) -> None:
        """The counters hold what was acknowledged, and nothing that was not asked for."""
        super().judge_end(process)
        tally = int(process.executor.get(b"", b"tally") or 0)
        if not self.tallied <= tally <= self.tallied + self.tally_uncertain:
            self.world.violated(
                f"{process!r} tallies {tally} after {self.tallied} acknowledged transactions and "
                f"{self.tally_uncertain} of which nobody knows"
            )

    def judge_retries(self, retries: int) -> None:
        """Entries that repeat an identity are retries of clients: nobody else gives one."""
        super().judge_retries(retries)
        self.world.probes[Probe.CLIENT_DEDUPLICATED] += retries

    # --- what a client is told ---

    async def _told(self, what: str, call: Awaitable[T], budget_s: float) -> tuple[str, T | None]:
        """What a call gives, or what its error says of it; it must say so within its time."""
        world = self.world
        begun = world.now()
        result: T | None = None
        try:
            result = await call
            outcome = Outcome.OK
        except KvorumError as problem:
            # A class of the package's inside must not get out, and its own side must not be wrong.
            if isinstance(problem, _DEFECTS) or type(problem).__name__ == "ConnectionLostError":
                world.violated(f"{what}: {type(problem).__name__}: {problem}")
            outcome = Outcome.FAILED if problem.outcome_known else Outcome.UNKNOWN
            world.refusals[problem.code or type(problem).__name__, str(problem)] += 1
            if isinstance(problem, ConflictError):
                world.probes[Probe.CONFLICT] += 1
            if outcome == Outcome.UNKNOWN:
                world.probes[Probe.WRITE_UNKNOWN] += 1
            world.loop.trace(f"{what}: {type(problem).__name__}: {problem}")
            decided = not isinstance(problem, ClientClosedError)
        else:
            decided = True
        if (took := world.now() - begun) > budget_s + SLACK_S:
            world.violated(f"{what} took {took:.3f} s instead of {budget_s} s at most ({outcome})")
        if decided:
            world.outcomes[outcome] += 1
        world.loop.trace(f"{what} {outcome} {result!r}")
        return outcome, result

    async def _note(
        self, worker: int, key: bytes, kind: str, argument: bytes | None, call: Awaitable[bytes | None], budget_s: float
    ) -> str:
        """One operation on one key, into the history."""
        begun = self.world.now()
        outcome, result = await self._told(f"{kind} {key!r}", call, budget_s)
        if kind == Kind.GET and outcome == Outcome.UNKNOWN:
            self.world.violated(f"a read of {key!r} has an unknown outcome")
        returned = math.inf if outcome == Outcome.UNKNOWN else self.world.now()
        self.world.note(Operation(worker, key, kind, argument, result, begun, returned, outcome))
        return outcome

    async def _single(
        self, application: Application, chance: random.Random, worker: int, kind: str, mark: bytes
    ) -> None:
        """One call on one key."""
        key = b"shared-%d" % chance.randrange(SHARED_KEYS)
        client, budget_s = application.client, application.timeout_s
        match kind:
            case "get":
                await self._note(worker, key, Kind.GET, None, client.get(key), budget_s)
            case "delete":
                await self._note(worker, key, Kind.DELETE, None, client.delete(key), budget_s)
            case _:
                value = mark
                if chance.random() < 0.1:
                    value += b" " + bytes(chance.randrange(LARGE_BYTES_MAX))
                if kind == "own":
                    key = b"own-" + mark
                await self._note(worker, key, Kind.SET, value, client.set(key, value), budget_s)

    async def _scan(self, application: Application, chance: random.Random, worker: int) -> None:
        """All shared keys in one range: a read of each, at some moment of the call."""
        begun = self.world.now()
        call = application.client.get_range(b"shared-", b"shared-~", reverse=chance.random() < 0.5)
        outcome, pairs = await self._told("scan", call, application.timeout_s)
        if outcome != Outcome.OK or pairs is None:
            return
        found = {pair.key: pair.value for pair in pairs}
        returned = self.world.now()
        for number in range(SHARED_KEYS):
            key = b"shared-%d" % number
            self.world.note(Operation(worker, key, Kind.GET, None, found.get(key), begun, returned, Outcome.OK))

    # --- transactions ---

    async def _move(self, application: Application, chance: random.Random, mark: bytes) -> None:
        """Move money between two accounts, as a transaction that has read both."""
        keys = chance.sample(ACCOUNT_NAMES, 2)
        amount = chance.randrange(1, 20)
        wide = chance.random() < 0.3
        transaction = application.client.transaction()

        async def balances() -> tuple[int, list[bytes | None]]:
            version = await transaction.get_read_version()
            return version, [await transaction.get(key) for key in keys]

        outcome, read = await self._told("balances", balances(), 3 * application.timeout_s)
        if outcome != Outcome.OK or read is None:
            return
        version, values = read
        self.reads += [SnapshotRead(version, key, value) for key, value in zip(keys, values, strict=True)]
        for key, value, change in zip(keys, values, (-amount, amount), strict=True):
            transaction.set(key, b"%d|%s" % (int((value or b"").split(b"|")[0]) + change, mark))
        if wide:
            transaction.add_read_conflict_range(b"account-", b"account-~")
        begun = self.world.now()
        outcome, committed = await self._told(f"transfer {mark!r}", transaction.commit(), application.timeout_s)
        self.commits.append(Commit(f"transfer {mark!r}", begun, self.world.now(), outcome, committed or 0))

    async def _add_up(self, application: Application, chance: random.Random) -> None:
        """All accounts in one range, now or in a transaction."""
        client, budget_s = application.client, application.timeout_s
        call: Awaitable[list[KeyValue]]
        if chance.random() < 0.5:
            call = client.get_range(b"account-", b"account-~", reverse=chance.random() < 0.5)
        else:
            call = client.transaction().get_range(b"account-", b"account-~")
            budget_s *= 2
        outcome, pairs = await self._told("sum", call, budget_s)
        if outcome == Outcome.OK and pairs is not None:
            self.judge_sum([(pair.key, pair.value) for pair in pairs], "a client")

    async def _stamp(self, application: Application, prefix: bytes) -> None:
        """Add one to the counter of versionstamped keys: a write that were applied twice would count twice."""
        begun = self.world.now()
        call = application.client.set_versionstamped_key(prefix + bytes(10), b"1")
        outcome, key = await self._told(f"count {prefix!r}", call, application.timeout_s)
        if outcome == Outcome.OK and key is not None:
            self.counted += 1
            version = int.from_bytes(key[-10:-2], "big")
            self.commits.append(Commit(f"count {prefix!r}", begun, self.world.now(), outcome, version))
        self.uncertain += outcome == Outcome.UNKNOWN

    async def _tally(self, application: Application) -> None:
        """Add one to a counter by reading and writing it, as often as it takes."""

        async def add(transaction: Transaction) -> None:
            value = await transaction.get(b"tally")
            transaction.set(b"tally", b"%d" % (int(value or 0) + 1))

        call = application.client.run(add, attempts=TALLY_ATTEMPTS)
        budget_s = TALLY_ATTEMPTS * 3 * application.timeout_s + TALLY_PAUSES_S
        outcome, _ = await self._told("tally", call, budget_s)
        self.tallied += outcome == Outcome.OK
        self.tally_uncertain += outcome == Outcome.UNKNOWN

    async def _look_again(self, application: Application, chance: random.Random) -> None:
        """Read a key at a version that others have gone on from."""
        key = chance.choice((*ACCOUNT_NAMES, b"shared-%d" % chance.randrange(SHARED_KEYS)))
        transaction = application.client.transaction()
        outcome, version = await self._told("version", transaction.get_read_version(), application.timeout_s)
        if outcome != Outcome.OK or version is None:
            return
        await asyncio.sleep(chance.expovariate(4))
        outcome, value = await self._told("look again", transaction.snapshot.get(key), application.timeout_s)
        if outcome == Outcome.OK:
            self.reads.append(SnapshotRead(version, key, value))


assert CLIENTS % APPLICATIONS == 0, "every application has as many workers"
