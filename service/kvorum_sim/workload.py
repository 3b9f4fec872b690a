"""
What simulated clients do: registers, transfers between accounts, ranges, snapshot reads, and a counter behind sessions.

Every client works through one node while that lives. What it is told is kept for the judges; sums of accounts are
judged at once, because no state that a client may see has another sum.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

from kvorum.core.codec import encode_operation, identified
from kvorum.core.operations import AtomicCommit, KeyRange, Mutation, MutationKind
from kvorum.statemachine.ranges import RangeQuery
from kvorum_sim.linearizability import Outcome
from kvorum_sim.model import Commit, SnapshotRead
from kvorum_sim.probes import Probe

if TYPE_CHECKING:
    from kvorum_sim.calls import Call
    from kvorum_sim.process import Process
    from kvorum_sim.world import World

CLIENTS: Final = 6
ACCOUNTS: Final = 5
BALANCE: Final = 100
SHARED_KEYS: Final = 5
RETRIES: Final = 8
KINDS: Final = ("get", "set", "delete", "own", "transfer", "sum", "count", "look back")
ACCOUNT_NAMES: Final = tuple(b"account-%d" % number for number in range(ACCOUNTS))
_RANGE: Final = RangeQuery(begin=b"account-", end=b"account-~")


class Workload:
    """
    All clients of one history.

    Args:
        world: The cluster.
        pause_s: Mean pause of a client between two operations.
    """

    def __init__(self, world: World, pause_s: float) -> None:
        self.world = world
        self.commits: list[Commit] = []
        self.reads: list[SnapshotRead] = []
        self.counted = 0
        """Increments that were acknowledged."""
        self.uncertain = 0
        """Increments that may have been applied, or not, and were given up."""
        self.retried = 0
        self.stopping = False
        self._pause_s = pause_s
        chance = world.chance
        # Each history has its own mix, so that some stress one thing and others another.
        self._weights = [chance.choice((0, 1, 1, 3, 6)) for _ in KINDS]
        self._weights[0] = self._weights[1] = max(2, self._weights[0])

    async def open_accounts(self) -> bool:
        """Give every account its first balance, in one commit."""
        mutations = tuple(Mutation(MutationKind.SET, b"", key, b"%d" % BALANCE) for key in ACCOUNT_NAMES)
        body = encode_operation(AtomicCommit(0, mutations))
        outcome, _ = await self.world.write(self.world.chance.choice(self.world.node_ids), "open accounts", body)
        return outcome == Outcome.OK

    async def client(self, number: int) -> None:
        """One client's life."""
        world = self.world
        chance = random.Random(f"{world.seed} client {number}")
        node_id = number % len(world.node_ids)
        count = 0
        while not self.stopping:
            await asyncio.sleep(chance.expovariate(1 / self._pause_s))
            if world.process(node_id) is None or chance.random() < 0.02:
                node_id = chance.choice(world.node_ids)
            count += 1
            shared = b"shared-%d" % chance.randrange(SHARED_KEYS)
            value = b"%d.%d" % (number, count)
            match chance.choices(KINDS, self._weights)[0]:
                case "get":
                    await world.get(number, node_id, shared)
                case "set":
                    await world.set(number, node_id, shared, value)
                case "delete":
                    await world.delete(number, node_id, shared)
                case "own":
                    await world.set(number, node_id, b"own-" + value, value)
                case "transfer":
                    await self._transfer(node_id, chance, value)
                case "sum":
                    await self._sum(node_id, chance)
                case "count":
                    await self._count(node_id, chance, number, count)
                case _:
                    await self._look_back(node_id, chance)

    async def finish(self) -> None:
        """Whatever clients have to do in a healthy cluster, at the end."""

    def judge_end(self, process: Process) -> None:
        """The counter holds what was acknowledged, and nothing that was not asked for."""
        counted = counter(process)
        if not self.counted <= counted <= self.counted + self.uncertain:
            self.world.violated(
                f"{process!r} counts {counted} after {self.counted} acknowledged requests and "
                f"{self.uncertain} of which nobody knows"
            )

    def judge_retries(self, retries: int) -> None:
        """So many entries repeated an earlier identity."""
        if retries:
            self.world.probes[Probe.DEDUPLICATED] += retries

    async def _version(self, node_id: int) -> int | None:
        outcome, call = await self.world.read(node_id, "read version", lambda process: process.executor.applied_index)
        return None if outcome != Outcome.OK or call is None else int(call.result)

    async def _transfer(self, node_id: int, chance: random.Random, mark: bytes) -> None:
        """Move money between two accounts, as a transaction that has read both."""
        world = self.world
        invoked = world.now()
        version = await self._version(node_id)
        if version is None:
            return
        keys = chance.sample(ACCOUNT_NAMES, 2)
        outcome, call = await world.read_at(
            node_id, "balances", version, lambda process: [process.executor.read_at(b"", key, version) for key in keys]
        )
        if outcome != Outcome.OK or call is None:
            return
        self.reads += [SnapshotRead(version, key, value) for key, value in zip(keys, call.result, strict=True)]
        balances = [int(value.split(b"|")[0]) for value in call.result]
        amount = chance.randrange(1, 20)
        after = (balances[0] - amount, balances[1] + amount)
        mutations = tuple(
            Mutation(MutationKind.SET, b"", key, b"%d|%s" % (balance, mark))
            for key, balance in zip(keys, after, strict=True)
        )
        if chance.random() < 0.3:
            commit = AtomicCommit(version, mutations, (), (KeyRange(b"", b"account-", b"account-~"),))
        else:
            commit = AtomicCommit(version, mutations, tuple(keys))
        await self._commit(node_id, f"transfer {mark!r}", encode_operation(commit), invoked)

    async def _commit(self, node_id: int, what: str, body: bytes, invoked: float) -> tuple[str, Call | None]:
        outcome, call = await self.world.write(node_id, what, body)
        version = 0
        if call is not None and outcome == Outcome.OK:
            version = call.result.version or call.index
        self.commits.append(Commit(what, invoked, self.world.now(), outcome, version))
        return outcome, call

    async def _sum(self, node_id: int, chance: random.Random) -> None:
        """All accounts in one range, now or at a version."""
        world = self.world
        if chance.random() < 0.5:
            outcome, call = await world.read(node_id, "sum", lambda process: _scan(process, None))
        else:
            version = await self._version(node_id)
            if version is None:
                return
            outcome, call = await world.read_at(node_id, "sum", version, lambda process: _scan(process, version))
        if outcome == Outcome.OK and call is not None:
            self.judge_sum(call.result, repr(call))

    def judge_sum(self, pairs: list[tuple[bytes, bytes]], where: str) -> None:
        """Money is neither made nor lost."""
        total = sum(int(value.split(b"|")[0]) for _, value in pairs)
        if len(pairs) != ACCOUNTS or total != ACCOUNTS * BALANCE:
            self.world.violated(f"{where} saw {total} in {len(pairs)} accounts: {pairs}")

    async def _count(self, node_id: int, chance: random.Random, number: int, count: int) -> None:
        """
        Add one to a counter, with an identity, and repeat it until it is decided.

        The counter is a number of keys, and each application makes a new one, out of its version: a request that were
        applied twice would count twice.
        """
        world = self.world
        client_id = b"sim-client-%05d" % number
        key = b"count-%d-%d-" % (number, count)
        stamped = Mutation(MutationKind.VERSIONSTAMPED_KEY, b"", key + bytes(10), b"1")
        body = identified(encode_operation(stamped), client_id, count)
        invoked = world.now()
        unknown = False
        for attempt in range(RETRIES):
            if attempt:
                self.retried += 1
                await asyncio.sleep(chance.uniform(0.05, 0.5))
                node_id = chance.choice(world.node_ids)
            outcome, call = await world.write(node_id, f"count {key!r}", body)
            unknown |= outcome == Outcome.UNKNOWN
            if outcome == Outcome.OK and call is not None:
                self.counted += 1
                version = call.result.version or call.index
                self.commits.append(Commit(f"count {key!r}", invoked, world.now(), outcome, version))
                return
        self.uncertain += unknown

    async def _look_back(self, node_id: int, chance: random.Random) -> None:
        """Read a key at an older version."""
        world = self.world
        version = await self._version(node_id)
        if version is None:
            return
        version = max(0, version - chance.randrange(100))
        key = chance.choice((*ACCOUNT_NAMES, b"shared-%d" % chance.randrange(SHARED_KEYS)))
        outcome, call = await world.read_at(
            node_id, "look back", version, lambda process: process.executor.read_at(b"", key, version)
        )
        if outcome == Outcome.OK and call is not None:
            self.reads.append(SnapshotRead(version, key, call.result))


def counter(process: Process) -> int:
    """How far the counter is."""
    query = RangeQuery(begin=b"count-", end=b"count-~", limit=0)
    return next(len(result.pairs) for result in process.executor.scan(query) if result is not None)


def _scan(process: Process, version: int | None) -> list[tuple[bytes, bytes]]:
    for result in process.executor.scan(_RANGE, version):
        if result is not None:
            return result.pairs
    return []
