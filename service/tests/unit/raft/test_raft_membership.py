"""Changes of members, hand-over, cut logs and snapshots, as the driver of a machine meets them."""

from __future__ import annotations

import pytest

from kvorum.core.cluster import Configuration
from kvorum.core.entries import HardState
from kvorum.core.machine import (
    LogCut,
    Proposed,
    Role,
    Send,
    SendSnapshot,
    SnapshotInstalled,
    SnapshotSent,
    Ticked,
    TransferAsked,
)
from kvorum.core.ports import RecoveredLog
from kvorum.raft.machine import RaftMachine, RaftSettings
from kvorum.raft.membership import change_flaw
from kvorum.raft.messages import TimeoutNow
from tests.scripts.raft_world import Disk, World, member, static_configuration


def settle(world: World) -> None:
    """Deliver until nobody has anything to say."""
    while world.letters:
        world.deliver(world.letters.pop(0))


def elected(voters: int = 3, settings: RaftSettings | None = None) -> World:
    """A world in which node 0 leads and everything is quiet."""
    world = World(voters, settings=settings)
    world.auto_persist = True
    for _ in range(3):
        world.tick(0, 0.02)
    settle(world)
    assert world.nodes[0].core.may_serve
    return world


def members(*words: str) -> Configuration:
    """`0` is a voter, `0l` a learner, `0#7` held by directory 7."""
    found = []
    for word in words:
        seat, _, incarnation = word.partition("#")
        found.append(member(int(seat.rstrip("l")), voter=not seat.endswith("l"), incarnation=int(incarnation or 0)))
    return Configuration.of(found)


# --- which changes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("current", "following"),
    [
        ("0 1 2", "0 1 2 3l 4l"),
        ("0 1 2 3l", "0 1 2 3"),
        ("0 1 2", "0 1"),
        ("0 1 2", "0 1 2l"),
        ("0 1 2", "0#4 1#5 2#6"),
        ("0#4 1#5 2#6", "0#4 1#5 2l#7"),
        ("0#4 1#5 2l#6", "0#4 1#5 2l#7"),
        ("0 1", "1"),
    ],
)
def test_change_of_one_voter_has_no_flaw(current: str, following: str) -> None:
    """One voter more or less, any number of learners, directories recorded for the first time."""
    assert change_flaw(members(*current.split()), members(*following.split())) is None


@pytest.mark.parametrize(
    ("current", "following", "flaw"),
    [
        ("0 1 2", "0", "changes 2 voters at once: 1, 2"),
        ("0 1 2", "0 1 3", "changes 2 voters at once: 2, 3"),
        ("0 1 2", "0l 1l 2l", "no voter"),
        ("0#4 1#5 2#6", "0#4 1#5 2#7", "node 2 must come in as a learner"),
        ("0#4 1#5 2l#6", "0#4 1#5 2#7", "node 2 must come in as a learner"),
    ],
)
def test_change_of_more_than_one_server_is_named(current: str, following: str, flaw: str) -> None:
    """Two voters at once, none left, and a voter whose disk is another one."""
    assert flaw in (change_flaw(members(*current.split()), members(*following.split())) or "")


def test_leader_given_a_double_change_stops() -> None:
    """Disjoint majorities are worse than an outage."""
    world = elected()

    with pytest.raises(AssertionError, match="changes 2 voters"):
        world.change(0, members("0"))


def test_change_refused_names_who_must_wait_for_what() -> None:
    """A follower, an uncommitted change and a hand-over refuse; a quiet leader does not."""
    world = elected()
    core = world.nodes[0].core

    assert world.nodes[1].core.change_refused() == "this node does not lead"
    assert core.change_refused() is None
    world.change(0, members("0", "1", "2", "3l"))
    assert "index 3 is not committed" in (core.change_refused() or "")
    settle(world)
    assert core.change_refused() is None
    world.feed(0, TransferAsked(1))
    assert "handed to node 1" in (core.change_refused() or "")


def test_new_directory_in_a_seat_starts_progress_anew() -> None:
    """What the old one acknowledged says nothing of the new one; recording the first one changes nothing."""
    world = elected()
    core = world.nodes[0].core
    world.nodes[2].incarnation = 7

    world.change(0, members("0", "1", "2#7"))
    settle(world)
    assert core.matches()[2] == 3
    world.change(0, members("0", "1", "2l#8"))

    assert core.matches()[2] == 0


def test_new_voter_has_an_election_timeout_to_be_heard() -> None:
    """A learner that was silent for long does not depose its leader by being promoted."""
    world = elected(settings=RaftSettings(election_timeout_s=1.0))
    world.change(0, members("0", "1", "2", "3l"))
    settle(world)
    for _ in range(100):
        world.tick(0, 0.02)
        settle(world)
    world.change(0, members("0", "1", "2", "3"))
    world.letters.clear()

    for _ in range(45):
        world.tick(0, 0.02)

    assert world.nodes[0].core.role == Role.LEADER


def test_joiner_without_any_entry_is_a_learner() -> None:
    """An empty directory that was not born knows no members and never stands."""
    disk = Disk(HardState(), ())
    machine = RaftMachine(3, disk.recover(), disk, RaftSettings(), applied_index=0, now=0.0, incarnation=9)

    for step in range(200):
        assert machine.handle(Ticked(step * 0.02, 0.5)) == []
    assert (Role.LEARNER, 0, {}) == (machine.role, machine.term, machine.matches())


# --- hand-over ----------------------------------------------------------------------------------------


def test_proposal_during_a_hand_over_stops_the_leader() -> None:
    """The caller asks `transferring_to` first; a proposal would run away from the target."""
    world = elected()
    world.feed(0, TransferAsked(2))
    assert world.nodes[0].core.transferring_to == 2

    with pytest.raises(AssertionError, match="hand-over"):
        world.feed(0, Proposed([b"x"], 0))


def test_second_hand_over_waits_for_the_first() -> None:
    """A wish for another target is ignored; `transfers_total` counts one."""
    world = elected()
    world.feed(0, TransferAsked(2))

    effects = world.feed(0, TransferAsked(1))

    assert effects == []
    assert world.nodes[0].core.statistics()["transfers_total"] == 1
    assert world.nodes[0].core.transferring_to == 2


def test_lost_order_is_repeated_once_per_heartbeat() -> None:
    """No flood while the target does not answer."""
    world = elected()
    world.feed(0, TransferAsked(2))
    orders = 0
    for _ in range(25):
        node = world.nodes[0]
        node.now += 0.02
        effects = node.core.handle(Ticked(node.now, 0.5))
        orders += sum(isinstance(effect, Send) and isinstance(effect.message, TimeoutNow) for effect in effects)

    assert 4 <= orders <= 5


# --- the log and its base -----------------------------------------------------------------------------


def test_cut_beyond_what_was_handed_out_stops_the_node() -> None:
    """Only what the state machine holds may leave the log."""
    world = elected()

    with pytest.raises(AssertionError, match="not been given"):
        world.nodes[0].core.handle(LogCut(3))


def test_entry_times_never_fall_after_the_log_was_cut() -> None:
    """The time of the last entry is remembered when the entry itself is gone."""
    world = elected()
    world.feed(0, Proposed([b"x"], 5_000))
    settle(world)
    core = world.nodes[0].core
    world.cut_log(0, 3)
    assert core.statistics()["first_index"] == 4

    world.feed(0, Proposed([b"y"], 1_000))

    assert core.log.slice(4, 4, 1, 1)[0].time_ms == 5_000


def test_entry_times_never_fall_after_an_install_and_a_restart() -> None:
    """The first no-op behind an installed snapshot has at least the snapshot's time."""
    configuration = static_configuration(1)
    disk = Disk(HardState(4), ())
    recovered = RecoveredLog(HardState(4), 9, 3, 9, (), ((1, configuration),))
    machine = RaftMachine(0, recovered, disk, RaftSettings(), applied_index=9, now=0.0, base_time_ms=7_000)

    for step in range(5):
        machine.handle(Ticked(step * 0.02, 0.0))

    assert machine.role == Role.LEADER
    assert machine.log.slice(10, 10, 1, 1)[0].time_ms == 7_000


def test_installed_snapshot_replaces_log_commit_and_configuration() -> None:
    """Behind it the node is as if it had applied every entry itself."""
    disk = Disk(HardState(), ())
    machine = RaftMachine(3, disk.recover(), disk, RaftSettings(), applied_index=0, now=0.0)
    machine.enter_term(6, None)
    machine.handle(Ticked(0.02, 0.5))
    configuration = members("0", "1", "3")
    assert machine.accepts_snapshot(40, 5)

    machine.handle(SnapshotInstalled(40, 5, 30, configuration, time_ms=123))

    assert (40, 40, 40, 5) == (machine.base_index, machine.last_index, machine.commit_index, machine.term_at(40))
    assert (30, configuration) == machine.configuration_at(40)
    assert (Role.FOLLOWER, 40, 123) == (machine.role, machine.durability.index, machine.last_time_ms())
    assert not machine.accepts_snapshot(40, 5)
    assert not machine.accepts_snapshot(39, 5)
    assert not machine.accepts_snapshot(41, 7), "of a term that this node has not reached"


def test_snapshot_is_wanted_once_and_again_after_a_failure_only_by_heartbeat() -> None:
    """A follower that cannot take it costs one small message per heartbeat."""
    world = elected()
    world.crash(2)
    world.feed(0, Proposed([b"x"], 0))
    settle(world)
    world.cut_log(0, 3)
    world.restart(2)
    for _ in range(60):
        world.tick(0, 0.02)
        settle(world)
    core = world.nodes[0].core
    assert world.wanted == [(0, 2)]
    assert core.statistics()["snapshots_needed_total"] == 1

    world.wanted.clear()
    assert core.handle(SnapshotSent(2, 0)) == []
    assert core.statistics()["progress"][2]["state"] == "probe"  # type: ignore[index]
    assert not any(isinstance(effect, SendSnapshot) for effect in core.handle(Ticked(world.nodes[0].now, 0.5)))
    for _ in range(6):
        world.tick(0, 0.02)
        settle(world)
    assert world.wanted == [(0, 2)]
