"""Seeded runs of 3 and 5 cores against loss, repetition, reordering, partitions, slow disks and crashes."""

from __future__ import annotations

import random

import pytest

from kvorum.core.machine import PeerReset, Proposed, ReadAsked, Role
from kvorum.raft.machine import RaftSettings
from tests.scripts.raft_world import Letter, World

SEEDS = 240
STEPS = 900
SETTLE_ROUNDS = 400
TICK_S = 0.02


class Nemesis:
    """Drives one world from one seed: chance decides what happens next, then everything heals."""

    def __init__(self, seed: int, voters: int) -> None:
        self.random = random.Random(seed)
        settings = RaftSettings(
            election_timeout_s=0.3,
            heartbeat_s=0.04,
            max_batch_entries=self.random.choice((2, 4, 64)),
            append_bytes_max=self.random.choice((80, 200, 4096)),
            appends_in_flight_max=self.random.choice((1, 2, 8)),
        )
        self.world = World(voters, self.random.choice((0, 0, 1)), settings)
        self.world.auto_confirm = self.random.random() < 0.5
        self.loss = self.random.choice((0.0, 0.05, 0.25))
        self.repetition = self.random.choice((0.0, 0.1))
        self.reordering = self.random.random() < 0.5
        self.crashes = self.random.choice((0.0, 0.01, 0.02))
        self.cut: set[tuple[int, int]] = set()
        self.frozen: set[int] = set()
        """Nodes whose timers stand still while they still answer."""
        self.requests = 0
        self.values = 0

    def run(self) -> None:
        """Trouble, then peace: in the end one leader, and every node has applied the same log."""
        for _ in range(STEPS):
            self.step()
        self.settle()

    def step(self) -> None:
        world = self.world
        chance = self.random
        world.drawn = chance.random()
        node = chance.choice(list(world.nodes.values()))
        draw = chance.random()
        if node.machine is None:
            if draw < 0.1:
                world.restart(node.node_id)
            return
        if draw < 0.30:
            for other in world.nodes:
                if other not in self.frozen:
                    world.tick(other, TICK_S)
        elif draw < 0.65:
            for _ in range(chance.randrange(1, 8)):
                self.deliver_one()
        elif draw < 0.80:
            world.persist(node.node_id, chance.choice((1, 2, None)))
        elif draw < 0.85:
            world.confirm(node.node_id)
        elif draw < 0.93:
            self.propose_or_read()
        elif draw < 0.95:
            node.durable_applied = chance.randint(node.durable_applied, len(node.applied))
            world.feed(node.node_id, PeerReset(chance.choice(list(world.nodes)), reachable=chance.random() < 0.5))
        elif draw < 0.97:
            self.repartition()
        elif draw < 0.97 + self.crashes:
            world.crash(node.node_id)

    def deliver_one(self) -> None:
        letters = self.world.letters
        if not letters:
            return
        letter = letters.pop(self.random.randrange(len(letters)) if self.reordering else 0)
        if (letter.sender, letter.to) in self.cut or self.random.random() < self.loss:
            return
        if self.random.random() < self.repetition:
            letters.append(letter)
        self.world.deliver(letter)

    def propose_or_read(self) -> None:
        cores = [node.machine for node in self.world.nodes.values() if node.machine is not None]
        leaders = [core for core in cores if core.role == Role.LEADER]
        if not leaders:
            return
        leader = self.random.choice(leaders)
        if self.random.random() < 0.5:
            count = self.random.randint(1, 6)
            self.values += count
            payloads = [b"%d" % (self.values - n) + bytes(self.random.randrange(60)) for n in range(count)]
            self.world.feed(leader.node_id, Proposed(payloads, self.values))
        else:
            asked = leader if self.random.random() < 0.9 else self.random.choice(cores)
            self.requests += 1
            self.world.feed(asked.node_id, ReadAsked(self.requests))

    def repartition(self) -> None:
        nodes = list(self.world.nodes)
        self.cut = set()
        for _ in range(self.random.choice((0, 1, 2, 4))):
            self.cut.add((self.random.choice(nodes), self.random.choice(nodes)))
        self.frozen = {self.random.choice(nodes)} if self.random.random() < 0.3 else set()
        if self.random.random() < 0.4:
            leader = self.world.leader()
            alone = self.random.choice(nodes) if leader is None else leader.node_id
            self.frozen = {alone} if self.random.random() < 0.5 else self.frozen
            self.cut |= {(alone, other) for other in nodes} | {(other, alone) for other in nodes}

    def settle(self) -> None:
        """Heal everything and let time pass; old letters arrive late rather than never."""
        world = self.world
        late: list[Letter] = world.letters[:20]
        for node in world.nodes.values():
            if node.machine is None:
                world.restart(node.node_id)
        for count in range(SETTLE_ROUNDS):
            for node in list(world.nodes):
                world.drawn = self.random.random()
                world.tick(node, TICK_S)
                world.persist(node)
                while world.nodes[node].unconfirmed:
                    world.confirm(node)
            letters, world.letters = world.letters, []
            for letter in letters:
                world.deliver(letter)
            if count == SETTLE_ROUNDS // 2:
                for letter in late:
                    world.deliver(letter)
            if count > SETTLE_ROUNDS // 2 and self.is_settled():
                return
        states = {n: (m.core.role, m.core.term, m.core.commit_index, m.core.last_index) for n, m in world.nodes.items()}
        pytest.fail(f"not settled: {states}")

    def is_settled(self) -> bool:
        cores = [node.core for node in self.world.nodes.values()]
        leaders = [core for core in cores if core.role == Role.LEADER]
        last = {core.last_index for core in cores}
        applied = {len(node.applied) for node in self.world.nodes.values()}
        return (
            len(leaders) == 1
            and leaders[0].may_serve
            and applied == last
            and len(last) == 1
            and all(core.leader == leaders[0].node_id for core in cores)
            and leaders[0].uncommitted_bytes == 0
        )


@pytest.mark.slow
@pytest.mark.parametrize("voters", [3, 5])
@pytest.mark.parametrize("block", range(8))
def test_cores_under_faults_keep_every_invariant_and_recover(block: int, voters: int) -> None:
    """Under any mixture of faults no safety property breaks, and after healing all nodes agree within seconds."""
    size = SEEDS // 16
    for seed in range(block * size, (block + 1) * size):
        try:
            Nemesis(seed, voters).run()
        except BaseException as error:
            error.add_note(f"replay: Nemesis(seed={seed}, voters={voters}).run()")
            raise
