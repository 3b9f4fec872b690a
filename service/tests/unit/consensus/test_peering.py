"""Who may connect: what the peering says to the greeting of a caller."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
import structlog

from kvorum.consensus.founding import PodBirth
from kvorum.consensus.manager import ConsensusManager, ManagerSettings, Surroundings
from kvorum.consensus.peering import Peering
from kvorum.core.cluster import Configuration, Member
from kvorum.core.ports import Greeting
from kvorum.statemachine.executor import KvStoreExecutor
from kvorum.storage.memory_engine import MemoryEngine
from kvorum.storage.wal.memory_log import MemoryLog

STRANGER = b"another cluster!"


@pytest.fixture
def subject():
    """A cluster of one that was born, on memory."""
    loop = asyncio.new_event_loop()
    born = loop.create_future()
    manager = ConsensusManager(
        ManagerSettings(node_id=0, configuration=Configuration.of([Member(0, "node:9090", "")])),
        Surroundings(
            loop=loop,
            clock=loop.time,
            wall_ms=lambda: int(loop.time() * 1000),
            randomness=random.Random(1),
            log=MemoryLog(loop.call_later),
            links=None,
            state=KvStoreExecutor(MemoryEngine()),
            flush=loop.call_soon,
            incarnation=1,
            cluster_id=None,
            on_born=born.set_result,
            on_refused=born.set_exception,
            logger=structlog.get_logger(),
        ),
    )
    manager.start()
    loop.run_until_complete(asyncio.wait_for(born, 120))
    yield manager
    loop.run_until_complete(manager.stop(0.0))
    loop.close()


def greeting(subject: ConsensusManager, node_id: int, cluster_id: bytes) -> Greeting:
    return Greeting(cluster_id, subject.peering.greet().birth_id, node_id, 77, "other:9090", "1")


def test_caller_of_another_cluster_is_refused_and_both_clusters_are_named(subject: ConsensusManager):
    """Two clusters that share an endpoint by mistake never exchange a message."""
    reason = subject.peering.admit(greeting(subject, 1, STRANGER))

    assert reason == f"it belongs to cluster {STRANGER.hex()}, this node to {subject.cluster_id.hex()}"


def test_caller_with_the_own_node_id_is_refused(subject: ConsensusManager):
    """Two nodes that were started with the same id do not talk, whatever cluster they belong to."""
    for cluster_id in (subject.cluster_id, STRANGER):
        assert "two nodes were started with the same id" in subject.peering.admit(greeting(subject, 0, cluster_id))


def test_caller_of_the_own_cluster_is_admitted_from_a_seat_not_known_yet(subject: ConsensusManager):
    """A member that this node's log does not show yet may lead, and have what this node needs to see it."""
    assert subject.peering.admit(greeting(subject, 1, subject.cluster_id)) is None


class Links:
    """Peer links that only remember whom they are to reach."""

    def __init__(self):
        self.told = []

    def set_peers(self, peers):
        self.told.append(peers)


def test_pods_that_are_expected_before_the_first_tick_are_linked(subject: ConsensusManager):
    """How many pods are wanted may be known at once; the links, which were made without them, must still hear of it."""
    links, pods = Links(), [Member(node_id, f"n{node_id}:9090", f"n{node_id}.:7090") for node_id in range(3)]
    birth = PodBirth(pods[0], 7, b"set", None)
    peering = Peering(subject, links, 7, structlog.get_logger(), birth=birth, joining=True)

    birth.expect(pods, 0, 3)
    peering.tick(0.0)
    peering.tick(0.1)

    assert [{1, 2}] == [set(peers) & {1, 2} for peers in links.told]


def test_empty_caller_without_a_seat_is_admitted_though_it_was_heard_a_moment_ago(subject: ConsensusManager):
    """At a birth of pods it was expected, and heard, before the first configuration left it out."""
    subject.contacts.heard_seat(1, subject.clock())

    assert subject.peering.admit(greeting(subject, 1, bytes(16))) is None


class Committed:
    """A machine of which only the newest committed configuration is asked."""

    def __init__(self, index, configuration):
        self.commit_index = index
        self._found = (index, configuration)

    def configuration_at(self, _index):
        return self._found


def test_directory_that_was_added_again_before_it_knew_of_its_removal_is_admitted(subject: ConsensusManager):
    """Its seat names it once more; turned away for ever, it could never say that it has caught up."""
    peering, own, back = subject.peering, Member(0, "node:9090", "", incarnation=1), Member(1, "b:9090", "b:7090")
    back = replace(back, voter=False, incarnation=77)
    for index, members in ((7, [own, back]), (8, [own])):
        peering._look_at_committed(Committed(index, Configuration.of(members)), 0.0)
    reason = peering.admit(greeting(subject, 1, subject.cluster_id))
    assert reason.endswith(f"(configuration 8 of cluster {subject.cluster_id.hex()})")

    peering._look_at_committed(Committed(9, Configuration.of([own, back])), 0.0)

    assert peering.admit(greeting(subject, 1, subject.cluster_id)) is None
