"""
Seeded runs of 3 and 5 cores against loss, repetition, reordering, partitions, slow disks and crashes.

Half of them also cut logs, send snapshots, hand leadership over, change members and lose whole data directories.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from kvorum.core.cluster import Configuration
from kvorum.core.machine import PeerReset, Proposed, ReadAsked, Role, TransferAsked
from kvorum.raft.machine import RaftMachine, RaftSettings
from kvorum.raft.membership import change_flaw
from tests.scripts.raft_world import Letter, World, member

if TYPE_CHECKING:
    from tests.scripts.raft_world import Snapshot

SEEDS = 120
STEPS = 900
SETTLE_ROUNDS = 400
TICK_S = 0.02
SEATS = 6
FIRST_INCARNATION = 100


class Nemesis:
    """Drives one world from one seed: chance decides what happens next, then everything heals."""

    def __init__(self, seed: int, voters: int, *, churn: bool = False) -> None:
        self.churn = churn
        self.snapshots: list[Snapshot] = []
        """Old ones, which somebody may offer late."""
        self.incarnations = FIRST_INCARNATION + SEATS
        self.counts = dict.fromkeys(("changes", "wipes", "joins", "installs", "transfers", "cuts", "late"), 0)
        self.random = random.Random(seed)
        settings = RaftSettings(
            election_timeout_s=0.3,
            heartbeat_s=0.04,
            max_batch_entries=self.random.choice((2, 4, 64)),
            append_bytes_max=self.random.choice((80, 200, 4096)),
            appends_in_flight_max=self.random.choice((1, 2, 8)),
        )
        learners = self.random.choice((0, 0, 1))
        self.world = World(voters, learners, settings, FIRST_INCARNATION if churn else 0)
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
        if self.churn and chance.random() < 0.06:
            self.administer()
            return
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
            if leader.transferring_to is not None:
                return
            count = self.random.randint(1, 6)
            self.values += count
            payloads = [b"%d" % (self.values - n) + bytes(self.random.randrange(60)) for n in range(count)]
            self.world.feed(leader.node_id, Proposed(payloads, self.values))
        else:
            asked = leader if self.random.random() < 0.9 else self.random.choice(cores)
            self.requests += 1
            self.world.feed(asked.node_id, ReadAsked(self.requests))

    # --- administration ---------------------------------------------------------------------------

    def administer(self) -> None:
        """One thing that operators, retention or the loss of a disk do."""
        world, chance = self.world, self.random
        leader = world.leader()
        draw = chance.random()
        if draw < 0.25:
            self.cut_a_log()
        elif draw < 0.5:
            if world.wanted:
                sender, to = chance.choice(world.wanted)
                self.send_snapshot(sender, to, fails=chance.random() < 0.2)
            elif self.snapshots:
                late = chance.choice(self.snapshots)
                self.counts["late"] += world.install(chance.choice(list(world.nodes)), late)
        elif draw < 0.57 and leader is not None:
            self.counts["transfers"] += 1
            world.feed(leader.node_id, TransferAsked(chance.choice((None, *world.nodes))))
        elif draw < 0.65:
            self.lose_a_disk()
        elif leader is not None and leader.change_refused() is None:
            self.change_members(leader)

    def cut_a_log(self) -> None:
        up = [node for node in self.world.nodes.values() if node.machine is not None and node.applied]
        if up:
            node = self.random.choice(up)
            node_id, shown = node.node_id, len(node.applied)
            self.snapshots = [*self.snapshots[-3:], self.world.take_snapshot(node_id)]
            self.world.cut_log(node_id, self.random.randint(shown * 2 // 3, shown))
            self.counts["cuts"] += 1

    def send_snapshot(self, sender: int, to: int, *, fails: bool) -> None:
        before = self.world.nodes[to].core.base_index if to in self.world.nodes and self.world.nodes[to].machine else -1
        self.world.stream(sender, to, fails=fails)
        node = self.world.nodes.get(to)
        if node is not None and node.machine is not None and before >= 0:
            self.counts["installs"] += node.core.base_index > before

    def next_incarnation(self) -> int:
        self.incarnations += 1
        return self.incarnations

    def lose_a_disk(self) -> None:
        """Of a node whose loss every configuration that anybody follows can bear; it comes back empty."""
        world = self.world
        victim = self.random.choice(list(world.nodes))
        for node in world.nodes.values():
            for _, configuration in node.disk.recovered_configurations()[-3:]:
                if not self.bears(configuration, victim):
                    return
            if node.machine is not None:
                for _, configuration in node.core.configurations[-3:]:
                    if not self.bears(configuration, victim):
                        return
        self.counts["wipes"] += 1
        world.join(victim, self.next_incarnation())

    def bears(self, configuration: Configuration, victim: int) -> bool:
        nodes = self.world.nodes
        intact = [
            each.node_id
            for each in configuration.members
            if each.voter
            and each.node_id != victim
            and each.node_id in nodes
            and nodes[each.node_id].incarnation == each.incarnation
        ]
        return len(intact) >= configuration.quorum

    def change_members(self, leader: RaftMachine) -> None:
        """Some change that is a single-server change and keeps a quorum of intact voters."""
        world, chance = self.world, self.random
        current = leader.configuration
        members = {each.node_id: each for each in current.members}
        seat = chance.randrange(SEATS)
        each = members.get(seat)
        node = world.nodes.get(seat)
        if each is None:
            if node is None or chance.random() < 0.5:
                world.join(seat, self.next_incarnation())
                self.counts["joins"] += 1
            members[seat] = member(seat, voter=False, incarnation=world.nodes[seat].incarnation)
        elif node is not None and node.incarnation != each.incarnation:
            members[seat] = replace(each, voter=False, incarnation=node.incarnation)
        elif each.voter:
            if chance.random() < 0.6:
                del members[seat]
            else:
                members[seat] = replace(each, voter=False)
        elif leader.matches().get(seat, 0) >= leader.commit_index:
            members[seat] = replace(each, voter=True)
        following = Configuration.of(members.values())
        if following != current and change_flaw(current, following) is None and self.bears(following, -1):
            self.counts["changes"] += 1
            world.change(leader.node_id, following)

    def heal_members(self) -> None:
        """Bring wiped members back as learners, and learners that hold everything to votes."""
        leader = self.world.leader()
        for sender, to in list(self.world.wanted):
            self.send_snapshot(sender, to, fails=False)
        if leader is None or leader.change_refused() is not None:
            return
        for each in leader.configuration.members:
            node = self.world.nodes[each.node_id]
            if node.incarnation != each.incarnation:
                healed = replace(each, voter=False, incarnation=node.incarnation)
            elif not each.voter and leader.matches().get(each.node_id, -1) == leader.commit_index:
                healed = replace(each, voter=True)
            else:
                continue
            others = [other for other in leader.configuration.members if other.node_id != each.node_id]
            self.world.change(leader.node_id, Configuration.of([*others, healed]))
            return

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
            if self.churn:
                self.heal_members()
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
        newest = self.world.leader()
        if newest is None:
            return False
        # Who was removed may know nothing of the others' later life.
        members = [self.world.nodes[each.node_id] for each in newest.configuration.members]
        cores = [node.core for node in members]
        leaders = [core for core in cores if core.role == Role.LEADER]
        last = {core.last_index for core in cores}
        applied = {len(node.applied) for node in members}
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
@pytest.mark.parametrize("block", range(10))
def test_cores_under_faults_keep_every_invariant_and_recover(block: int, voters: int) -> None:
    """Under any mixture of faults no safety property breaks, and after healing all nodes agree within seconds."""
    size = SEEDS // 20
    for seed in range(block * size, (block + 1) * size):
        try:
            Nemesis(seed, voters).run()
        except BaseException as error:
            error.add_note(f"replay: Nemesis(seed={seed}, voters={voters}).run()")
            raise


@pytest.mark.slow
@pytest.mark.parametrize("voters", [1, 3, 5])
@pytest.mark.parametrize("block", range(10))
def test_cores_under_churn_keep_every_invariant_and_recover(block: int, voters: int) -> None:
    """The same while members, disks and leaders change, logs are cut and states are streamed."""
    size = SEEDS // 30
    for seed in range(block * size, (block + 1) * size):
        try:
            Nemesis(seed, voters, churn=True).run()
        except BaseException as error:
            error.add_note(f"replay: Nemesis(seed={seed}, voters={voters}, churn=True).run()")
            raise
