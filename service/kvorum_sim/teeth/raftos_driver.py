"""
Drives stock raftos 0.2.6, which lives in an environment of its own, and tells what its nodes were seen to do.

Run as a script by the Python of that environment; it knows nothing of kvorum and imports nothing of it. The nodes are
the package's own classes with their own files. Letters between them pass through the package's own serializer, and the
driver alone decides, from a seed, which letter arrives, is lost or arrives twice, whose timer fires and when a client
writes. After each step an observer compares what it saw with what Raft promises; it knows nothing of the package's
defects. Histories without faults, driven and watched in the same way, must be clean.

Shims without which nothing starts on Python 3.10 and later, all of them about names that Python has removed:
`asyncio.Queue(loop=...)` and `asyncio.futures.InvalidStateError`. The serializer is the package's own for JSON, because
the standard one calls msgpack with an argument that is gone. Timers are so long that only the driver fires them.

::

    python -P raftos_driver.py SEEDS
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import random
import sys
import tempfile
import types
from collections import defaultdict
from typing import Any, Final

STEPS: Final = 150
UNDER_WAY_MAX: Final = 60
SETTLE_ROUNDS: Final = 8
"""Turns of the loop after which every task that a step has begun has put its letters into the post."""

HOST: Final = "127.0.0.1"
NEVER_S: Final = 1e6

fsyncs = 0


def package() -> Any:
    """The package, with its shims and settings."""
    loaded: Any = importlib.import_module("raftos")
    server: Any = importlib.import_module("raftos.server")
    serializers: Any = importlib.import_module("raftos.serializers")
    names = {**vars(asyncio), "Queue": lambda loop=None: asyncio.Queue()}  # noqa: ARG005 - the argument is the point
    server.asyncio = types.SimpleNamespace(**names)
    vars(asyncio.futures).setdefault("InvalidStateError", asyncio.InvalidStateError)
    loaded.configure({"serializer": serializers.JSONSerializer, "heartbeat_interval": NEVER_S})
    return types.SimpleNamespace(config=loaded.config, configure=loaded.configure, Node=server.Node)


def count_fsyncs() -> None:
    """From now on calls that make a file durable are counted."""

    def counted(real: Any) -> Any:
        def call(file: Any) -> Any:
            global fsyncs  # noqa: PLW0603 - one count for the process, as there is one module `os`
            fsyncs += 1
            return real(file)

        return call

    for name in ("fsync", "fdatasync", "sync"):
        setattr(os, name, counted(getattr(os, name)))


class Observer:
    """
    What Raft promises, checked on what is seen from outside: letters, roles, logs and commit indexes.

    Args:
        nodes: By number.
    """

    def __init__(self, nodes: list[Any]) -> None:
        self.nodes = nodes
        self.found: dict[str, str] = {}
        self._votes: dict[tuple[int, int], int] = {}
        self._grants: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        self._leaders: dict[int, int] = {}
        self._won: set[tuple[int, int]] = set()
        self._committed: dict[tuple[int, int], str] = {}
        self._reached = [0] * len(nodes)

    def convict(self, name: str, text: str) -> None:
        """Keep the first sight of each kind."""
        self.found.setdefault(name, text)

    def sent(self, sender: int, receiver: int, letter: dict[str, Any]) -> None:
        """A letter was put into the post."""
        term = letter["term"]
        if letter["type"] == "request_vote":
            self._vote(sender, term, sender)
        elif letter["type"] == "request_vote_response" and letter.get("vote_granted"):
            self._vote(sender, term, receiver)
        elif letter["type"] == "append_entries" and (sender, term) not in self._won:
            self.convict("leads a term it never won", f"node {sender} sends entries of term {term}, which it never won")

    def arrived(self, sender: int, receiver: int, letter: dict[str, Any]) -> None:
        """A letter is about to be delivered."""
        state = self.nodes[receiver].state
        if letter["type"] == "request_vote_response" and letter.get("vote_granted"):
            self._grants[receiver, state.storage.term].append((sender, letter["term"]))

    def look(self) -> None:
        """After each step, before and after its letters leave."""
        for number, node in enumerate(self.nodes):
            role, term = type(node.state.state).__name__, node.state.storage.term
            if role == "Leader" and (number, term) not in self._won and self._leaders.get(term) != number:
                self._elected(number, term)
            self._look_at_log(number, node.state.log)

    def _vote(self, voter: int, term: int, candidate: int) -> None:
        before = self._votes.setdefault((voter, term), candidate)
        if before != candidate:
            self.convict("double vote", f"node {voter} voted in term {term} for node {before} and for node {candidate}")

    def _elected(self, number: int, term: int) -> None:
        grants = self._grants[number, term]
        fresh = [voter for voter, granted in grants if granted == term]
        count = len(self.nodes)
        self._won.add((number, term))
        before = self._leaders.setdefault(term, number)
        if before != number:
            self.convict("two leaders", f"nodes {before} and {number} both lead term {term}")
        if 2 * (1 + len(set(fresh))) > count:
            return
        if len(fresh) < len(grants):
            stale = next(grant for grant in grants if grant[1] != term)
            text = (
                f"node {number} leads term {term}, one of the votes it counted is node {stale[0]}'s of term {stale[1]}"
            )
            self.convict("stale grants counted", text)
        elif len(set(fresh)) < len(fresh):
            text = f"node {number} of {count} leads term {term} with the votes of {sorted({number, *fresh})}, one twice"
            self.convict("repeated grants counted", text)
        else:
            self.convict("wrong majority", f"node {number} leads term {term} with {1 + len(fresh)} of {count} votes")

    def _look_at_log(self, number: int, log: Any) -> None:
        for index in range(1, self._reached[number] + 1):
            held = json.dumps(log[index], sort_keys=True) if index <= len(log) else None
            if held != self._committed[number, index]:
                text = (
                    f"node {number} had committed entry {index}, {self._committed[number, index]}, and now holds "
                    f"{held or 'nothing'} there"
                )
                self.convict("committed entry erased", text)
                self._reached[number] = index - 1
                return
        for index in range(self._reached[number] + 1, min(log.commit_index, len(log)) + 1):
            self._committed[number, index] = json.dumps(log[index], sort_keys=True)
            copies = [
                other
                for other, node in enumerate(self.nodes)
                if len(node.state.log) >= index and node.state.log[index] == log[index]
            ]
            if 2 * len(copies) <= len(self.nodes):
                text = (
                    f"node {number} committed entry {index}, which only {len(copies)} of {len(self.nodes)} nodes hold"
                )
                self.convict("committed by a minority", text)
            self._reached[number] = index


class History:
    """
    One cluster under one seed.

    Args:
        raftos: The package.
        seed: Decides everything.
        count: Of nodes.
        faults: Whether letters are lost, repeated and overtaken, and anybody's timer fires at any time.
    """

    def __init__(self, raftos: Any, seed: int, count: int, *, faults: bool) -> None:
        self.random = random.Random(seed)
        self.raftos = raftos
        self.faults = faults
        loop = asyncio.get_running_loop()
        self.ports = {9001 + number: number for number in range(count)}
        self.nodes = [raftos.Node((HOST, port), loop) for port in self.ports]
        for node in self.nodes:
            for port in self.ports:
                if port != node.port:
                    node.update_cluster((HOST, port))
        self.observer = Observer(self.nodes)
        self.post: list[tuple[int, int, bytes]] = []
        self.commands: list[asyncio.Future[Any]] = []
        self.errors: set[str] = set()

    async def run(self) -> None:
        """Take all steps."""
        for node in self.nodes:
            node.state.start()
        for step in range(STEPS):
            self.step(step)
            self.observer.look()
            await self.settle()
            self.observer.look()
        for command in self.commands:
            command.cancel()
        for node in self.nodes:
            node.state.stop()

    def step(self, step: int) -> None:
        """One thing happens."""
        dice = self.random.random()
        if not self.faults:
            if step == 0:
                self.nodes[0].state.state.start_election()
            elif self.post:
                self.deliver(self.post.pop(0))
            else:
                self.write() if dice < 0.5 else self.fire(0)
        elif dice < 0.62 and self.post:
            letter = self.random.choice(self.post)
            if self.random.random() < 0.85:
                self.post.remove(letter)
            self.deliver(letter)
        elif dice < 0.70 and self.post:
            self.post.remove(self.random.choice(self.post))
        elif dice < 0.86:
            self.write()
        else:
            self.fire(self.random.randrange(len(self.nodes)))

    def deliver(self, letter: tuple[int, int, bytes]) -> None:
        """A letter arrives; what its handler raises is lost, as in the package's own protocol class."""
        sender, receiver, data = letter
        told = self.raftos.config.serializer.unpack(data)
        self.observer.arrived(sender, receiver, told)
        told["sender"] = (HOST, self.nodes[sender].port)
        try:
            self.nodes[receiver].request_handler(told)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is noted
            self.errors.add(f"{type(error).__name__}: {error}")

    def write(self) -> None:
        """A client writes to whoever believes to lead."""
        leaders = [node for node in self.nodes if type(node.state.state).__name__ == "Leader"]
        if leaders:
            leader = self.random.choice(leaders).state.state
            self.commands.append(asyncio.ensure_future(leader.execute_command({"key": self.random.randrange(1000)})))

    def fire(self, number: int) -> None:
        """The timer of a node's role is over: that of a leader's heartbeat, or of an election."""
        role = self.nodes[number].state.state
        timer = getattr(role, "heartbeat_timer", None) or role.election_timer
        timer.callback()

    async def settle(self) -> None:
        """All tasks have done what they can; letters are in the post."""
        for _ in range(SETTLE_ROUNDS):
            await asyncio.sleep(0)
        for number, node in enumerate(self.nodes):
            while not node.requests.empty():
                request = node.requests.get_nowait()
                receiver = self.ports[request["destination"][1]]
                self.observer.sent(number, receiver, request["data"])
                self.post.append((number, receiver, self.raftos.config.serializer.pack(request["data"])))
        del self.post[:-UNDER_WAY_MAX]


async def trial(seeds: int) -> dict[str, Any]:
    """Histories with faults, then as many as a tenth of them without."""
    raftos = package()
    count_fsyncs()
    found: dict[str, dict[str, Any]] = {}
    clean: list[str] = []
    errors: set[str] = set()
    written = histories = 0
    for seed in range(seeds + seeds // 10):
        faults = seed < seeds
        count = (4, 3, 5)[seed % 3] if faults else (3, 5)[seed % 2]
        with tempfile.TemporaryDirectory() as folder:
            raftos.configure({"log_path": folder})
            history = History(raftos, seed, count, faults=faults)
            await history.run()
        histories += faults
        errors |= history.errors
        written += sum(command.done() and not command.cancelled() for command in history.commands)
        for name, text in history.observer.found.items():
            if faults:
                found.setdefault(name, {"name": name, "seed": seed, "nodes": count, "text": text})
            else:
                clean.append(f"seed {seed}: {name}: {text}")
    if written and not fsyncs:
        text = f"{written} writes were acknowledged, with no call of fsync, fdatasync or sync in the whole process"
        found["never fsyncs"] = {"name": "never fsyncs", "seed": 0, "nodes": 0, "text": text}
    return {
        "convictions": list(found.values()),
        "histories": histories,
        "calm": seeds // 10,
        "false_alarms": clean,
        "raised": sorted(errors),
    }


if __name__ == "__main__":
    logger: Any = importlib.import_module("logging").getLogger("asyncio")
    logger.setLevel("CRITICAL")
    sys.stdout.write(json.dumps(asyncio.run(trial(int(sys.argv[1])))) + "\n")
