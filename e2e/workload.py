"""
Writers that run inside the cluster, and the record of what they were told; `cluster/history.py` judges it.

This file is one script on purpose: it is mounted into a pod of kvorum's own image, which has ``kvorum_client`` and
nothing of this directory. It prints one JSON object per line: ``ready`` once, a ``batch`` every second, ``final`` at
the end, after the file that means "stop" has appeared.

- Registers: reads, writes and deletes of few keys by several clients; every operation with its times is printed.
- Own keys: each is written once, by one client, and acknowledged or not; at the end all are read back.
- A counter: increments in transactions; it must end at the number of increments that were acknowledged.
- Accounts: transfers in transactions; every look at all of them sees the same sum.

``load`` and ``verify`` write and check a fixed set of keys, for scenarios in which nothing runs meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kvorum_client import (
    ConflictError,
    KvorumClient,
    KvorumError,
    TransactionTooOldError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from kvorum_client import Transaction

T = TypeVar("T")

REGISTER_KEYS: Final = 24
ACCOUNTS: Final = 5
BALANCE: Final = 1000
BATCH_S: Final = 1.0
ERRORS_KEPT: Final = 50
SLOW_S: Final = 3.0
GIVE_UP_S: Final = 180.0
"""The longest wait at the beginning and at the end for a cluster that answers."""

LEVELS: Final = ("read_index", "leader")
"""What a local read may see is another matter; a leader read may lag a little, and the judge knows it."""

_ROUND: Final = 1e6


@dataclass
class Totals:
    """What the writers were told, in numbers."""

    attempted: int = 0
    succeeded: int = 0
    failed: int = 0
    """Calls that raised, although they certainly had no effect."""
    unknown: int = 0
    """Calls whose outcome the client could not learn in its time."""
    conflicts: int = 0
    """Transactions given up because others were faster: no failure."""
    counted: int = 0
    counted_unknown: int = 0
    transfers: int = 0
    audits: int = 0
    own: int = 0
    slowest_s: float = 0.0
    slow: list[str] = field(default_factory=list)
    """Calls that took more than a few seconds, as far as `ERRORS_KEPT`."""
    violations: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Writers:
    """
    All clients of one run.

    Args:
        clients: Shared among the writers, one after the other.
        prefix: In front of every key, so that two runs on one cluster do not meet.
        pause_s: Mean pause of a writer between two calls.
        chance: Where choices come from.
    """

    def __init__(self, clients: list[KvorumClient], prefix: str, pause_s: float, chance: Random) -> None:
        self.totals = Totals()
        self.stopping = asyncio.Event()
        self._clients = clients
        self._prefix = prefix.encode()
        self._pause_s = pause_s
        self._chance = chance
        self._operations: list[list[Any]] = []
        self._own: dict[int, list[int]] = {}
        """Numbers of the own keys that were acknowledged, by client."""
        self._batches = 0
        self._recorded = 0

    # --- the run ------------------------------------------------------------------------------------------------------

    async def run(self, registers: int, counters: int, transfers: int) -> None:
        """Everything from the first call to the last line."""
        await self._patiently("open the accounts", self._open_accounts)
        say(ready=True)
        reporter = asyncio.create_task(self._report(), name="report")
        async with asyncio.TaskGroup() as group:
            number = 0
            for kind, count in ((self._register, registers), (self._counter, counters), (self._transfer, transfers)):
                for _ in range(count):
                    group.create_task(self._writer(number, kind), name=f"writer {number}")
                    number += 1
        await self._finish()
        reporter.cancel()
        self._print_batch()
        say(final=vars(self.totals) | {"batches": self._batches, "operations": self._recorded})

    async def _writer(self, number: int, kind: Callable[[int, KvorumClient], Awaitable[None]]) -> None:
        client = self._clients[number % len(self._clients)]
        while not self.stopping.is_set():
            await kind(number, client)
            try:
                async with asyncio.timeout(self._chance.expovariate(1 / self._pause_s)):
                    await self.stopping.wait()
            except TimeoutError:
                continue

    async def _call(self, what: str, work: Awaitable[T]) -> tuple[str, T | None]:
        """Await one call, count how it ended, and say so."""
        totals = self.totals
        totals.attempted += 1
        started = time.monotonic()
        try:
            result = await work
        except (ConflictError, TransactionTooOldError):
            totals.conflicts += 1
            return "conflict", None
        except KvorumError as problem:
            if problem.outcome_known:
                totals.failed += 1
            else:
                totals.unknown += 1
            if len(totals.errors) < ERRORS_KEPT:
                after = time.monotonic() - started
                totals.errors.append(f"{what} after {after:.2f} s: {type(problem).__name__}: {problem}")
            return "failed" if problem.outcome_known else "unknown", None
        totals.succeeded += 1
        took = round(time.monotonic() - started, 3)
        totals.slowest_s = max(totals.slowest_s, took)
        if took > SLOW_S and len(totals.slow) < ERRORS_KEPT:
            totals.slow.append(f"{what} took {took} s, until batch {self._batches}")
        return "ok", result

    # --- registers ----------------------------------------------------------------------------------------------------

    async def _register(self, number: int, client: KvorumClient) -> None:
        """One operation of a register client."""
        drawn = self._chance.random()
        if drawn < 0.3:
            await self._write_own(number, client)
            return
        key = f"register/{self._chance.randrange(REGISTER_KEYS)}"
        if drawn < 0.6:
            value = f"{number}.{self.totals.attempted}"
            await self._record(number, key, "set", value, client.set(self._key(key), value.encode()))
        elif drawn < 0.65:
            await self._record(number, key, "delete", None, client.delete(self._key(key)))
        else:
            level = self._chance.choice(LEVELS)
            work = client.get(self._key(key), consistency=level)
            await self._record(number, key, "get", None, work, level)

    async def _record(
        self, number: int, key: str, kind: str, argument: str | None, work: Awaitable[Any], level: str = ""
    ) -> str:
        """Await an operation of a register and note what its client saw."""
        invoked = round(time.monotonic() * _ROUND)
        outcome, result = await self._call(f"{kind} {key}", work)
        returned = None if outcome == "unknown" else round(time.monotonic() * _ROUND)
        seen = result.decode() if isinstance(result, bytes) else None
        self._operations.append([number, key, kind, argument, seen, invoked, returned, outcome, level])
        return outcome

    async def _write_own(self, number: int, client: KvorumClient) -> None:
        """Write a key that nobody else ever writes, and remember it if it was acknowledged."""
        count = self.totals.attempted
        outcome, _ = await self._call("own key", client.set(self._own_key(number, count), b"%d" % count))
        if outcome == "ok":
            self._own.setdefault(number, []).append(count)
            self.totals.own += 1

    def _own_key(self, number: int, count: int) -> bytes:
        return self._key(f"own/{number}/{count:09d}")

    def _key(self, name: str) -> bytes:
        return self._prefix + name.encode()

    # --- counter and accounts -----------------------------------------------------------------------------------------

    async def _counter(self, _: int, client: KvorumClient) -> None:
        """Add one, exactly once."""
        outcome, _value = await self._call("increment", client.run(self._increment))
        self.totals.counted += outcome == "ok"
        self.totals.counted_unknown += outcome == "unknown"

    async def _increment(self, transaction: Transaction) -> None:
        key = self._key("counter")
        transaction.set(key, b"%d" % (int(await transaction.get(key) or b"0") + 1))

    async def _open_accounts(self) -> None:
        async def body(transaction: Transaction) -> None:
            for account in range(ACCOUNTS):
                transaction.set(self._key(f"account/{account}"), b"%d" % BALANCE)

        await self._clients[0].run(body, retry_unknown=True)

    async def _transfer(self, _: int, client: KvorumClient) -> None:
        """Move money between two accounts, or look whether all of it is there."""
        if self._chance.random() < 0.3:
            await self._audit(client)
            return
        keys = [self._key(f"account/{account}") for account in self._chance.sample(range(ACCOUNTS), 2)]
        amount = self._chance.randrange(1, 20)

        async def body(transaction: Transaction) -> None:
            balances = [int(await transaction.get(key) or b"0") for key in keys]
            transaction.set(keys[0], b"%d" % (balances[0] - amount))
            transaction.set(keys[1], b"%d" % (balances[1] + amount))

        outcome, _nothing = await self._call("transfer", client.run(body))
        self.totals.transfers += outcome == "ok"

    async def _audit(self, client: KvorumClient) -> None:
        async def body(transaction: Transaction) -> list[int]:
            begin, end = self._key("account/"), self._key("account0")
            return [int(value) for _, value in await transaction.get_range(begin, end)]

        outcome, balances = await self._call("audit", client.run(body))
        if outcome != "ok" or balances is None:
            return
        self.totals.audits += 1
        if len(balances) != ACCOUNTS or sum(balances) != ACCOUNTS * BALANCE:
            self.totals.violations.append(f"the accounts do not add up to {ACCOUNTS * BALANCE}: {balances}")

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Read everything back once the cluster answers."""
        client = self._clients[0]
        await self._patiently("read the counter back", lambda: self._judge_counter(client))
        await self._patiently("read the own keys back", lambda: self._judge_own(client))
        await self._audit(client)
        for number in range(REGISTER_KEYS):
            key = f"register/{number}"
            work = client.get(self._key(key), consistency="read_index")
            await self._record(-1, key, "get", None, work, "read_index")

    async def _judge_counter(self, client: KvorumClient) -> None:
        value = int(await client.get(self._key("counter"), consistency="read_index") or b"0")
        least, most = self.totals.counted, self.totals.counted + self.totals.counted_unknown
        if not least <= value <= most:
            self.totals.violations.append(f"the counter stands at {value}; acknowledged were {least} to {most}")

    async def _judge_own(self, client: KvorumClient) -> None:
        pairs = await client.get_range(self._key("own/"), self._key("own0"), consistency="read_index")
        there = dict(pairs)
        lost = [
            f"own/{number}/{count}"
            for number, counts in self._own.items()
            for count in counts
            if there.get(self._own_key(number, count)) != b"%d" % count
        ]
        if lost:
            self.totals.violations.append(f"{len(lost)} acknowledged writes are lost, the first is {lost[0]}")

    async def _patiently(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Repeat until the cluster answers."""
        deadline = time.monotonic() + GIVE_UP_S
        while True:
            try:
                return await work()
            except KvorumError as problem:
                if time.monotonic() > deadline:
                    self.totals.violations.append(f"could not {what} in {GIVE_UP_S:.0f} s: {problem}")
                    return None
                say(waiting=what, problem=str(problem))
            await asyncio.sleep(0.5)

    # --- the record ---------------------------------------------------------------------------------------------------

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(BATCH_S)
            self._print_batch()

    def _print_batch(self) -> None:
        operations, self._operations = self._operations, []
        self._batches += 1
        self._recorded += len(operations)
        totals = self.totals
        say(
            batch=self._batches,
            succeeded=totals.succeeded,
            failed=totals.failed,
            unknown=totals.unknown,
            ops=operations,
        )


async def stop_when_told(writers: Writers, stop_file: Path, seconds_max: float) -> None:
    """Stop the writers at SIGTERM, when the file appears, or when the time is over."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    deadline = time.monotonic() + seconds_max
    while time.monotonic() < deadline and not await asyncio.to_thread(stop_file.exists):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await told.wait()
                break
    writers.stopping.set()


async def run(arguments: argparse.Namespace) -> None:
    """Writers until told to stop."""
    endpoints = arguments.endpoints.split(",")
    # Half of the writers know only the first endpoint, the Service, and half only the others, the pods by name.
    groups = [endpoints[:1], endpoints[1:]] if len(endpoints) > 1 else [endpoints]
    clients = [KvorumClient(group, timeout_s=arguments.timeout) for group in groups]
    writers = Writers(clients, arguments.prefix, 1 / arguments.rate, random.Random(arguments.seed))
    stopper = asyncio.create_task(
        stop_when_told(writers, Path(arguments.stop_file), arguments.seconds_max), name="stopper"
    )
    try:
        await writers.run(arguments.registers, arguments.counters, arguments.transfers)
    finally:
        stopper.cancel()
        for client in clients:
            await client.close()


async def load(arguments: argparse.Namespace) -> None:
    """Write the fixed keys."""
    async with KvorumClient(arguments.endpoints.split(","), timeout_s=arguments.timeout) as client:
        for number in range(arguments.count):
            key = f"{arguments.prefix}{number}"
            await client.set(key.encode(), f"value of {key}".encode())
    say(loaded=arguments.count)


async def verify(arguments: argparse.Namespace) -> None:
    """Read the fixed keys; exit code 1 if any is missing or different."""
    wrong = []
    async with KvorumClient(arguments.endpoints.split(","), timeout_s=arguments.timeout) as client:
        for number in range(arguments.count):
            key = f"{arguments.prefix}{number}"
            if await client.get(key.encode(), consistency=arguments.level) != f"value of {key}".encode():
                wrong.append(key)
    say(verified=arguments.count - len(wrong), wrong=wrong[:20])
    if wrong:
        sys.exit(1)


def say(**values: object) -> None:
    """Print one line."""
    print(json.dumps(values, separators=(",", ":")), flush=True)


def main() -> None:
    """Read the arguments and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "load", "verify"])
    parser.add_argument("--endpoints", required=True, help="host:port,host:port: the client Service, then pods by name")
    parser.add_argument("--prefix", default="e2e/", help="in front of every key")
    parser.add_argument("--timeout", type=float, default=15.0, help="seconds that one call has")
    parser.add_argument("--count", type=int, default=300, help="load, verify: number of keys")
    parser.add_argument("--level", default="read_index", help="verify: read level")
    parser.add_argument("--registers", type=int, default=6)
    parser.add_argument("--counters", type=int, default=2)
    parser.add_argument("--transfers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=15.0, help="calls per second and writer, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-file", default="/tmp/stop")
    parser.add_argument("--seconds-max", type=float, default=3600.0)
    arguments = parser.parse_args()
    asyncio.run({"run": run, "load": load, "verify": verify}[arguments.command](arguments))


if __name__ == "__main__":
    main()
