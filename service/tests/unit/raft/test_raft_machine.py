"""The machine as its driver meets it: timers, batches, bounds, configurations."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from kvorum.core import limits
from kvorum.core.cluster import Configuration, Member
from kvorum.core.entries import Entry, EntryBatch, EntryKind, HardState
from kvorum.core.errors import LocalError
from kvorum.core.machine import (
    AppliedUpTo,
    Apply,
    LeadershipChanged,
    LogCut,
    Persist,
    Persisted,
    Proposed,
    ReadAsked,
    Received,
    Role,
    Send,
    Ticked,
)
from kvorum.raft.machine import RaftMachine, RaftSettings
from kvorum.raft.messages import AppendRequest, Heartbeat, VoteReply
from kvorum.raft.reads import READS_WAITING_MAX
from kvorum.raft.state import APPLIES_UNDER_WAY_MAX
from tests.scripts.raft_world import Disk, World, static_configuration


def elected(voters: int = 3, settings: RaftSettings | None = None) -> World:
    """A world in which node 0 leads and everything is quiet."""
    world = World(voters, settings=settings)
    world.auto_persist = True
    for _ in range(3):
        world.tick(0, 0.02)
    while world.letters:
        world.deliver(world.letters.pop(0))
    assert world.nodes[0].core.may_serve
    return world


def kinds(effects: list[object], kind: type) -> list[object]:
    return [effect for effect in effects if isinstance(effect, kind)]


# --- time ---------------------------------------------------------------------------------------------


def test_first_timers_of_a_birth_are_early_and_staggered() -> None:
    """Node k stands 30 ms + k * 150 ms after its start, whatever the configured timeout is."""
    for rank in range(3):
        world = World(3, settings=RaftSettings(election_timeout_s=30.0))
        stood_at = None
        for step in range(1, 40):
            world.tick(rank, 0.02)
            if world.nodes[rank].core.role == Role.CANDIDATE:
                stood_at = step * 0.02
                break
        assert stood_at is not None
        assert 0.03 + rank * 0.15 <= stood_at <= 0.03 + rank * 0.15 + 0.04


def test_pause_of_a_follower_does_not_elect() -> None:
    """However long the process stood still, one tick advances its clock by one heartbeat interval (bug 78)."""
    world = elected()
    follower = world.nodes[1]

    world.tick(1, 3600.0)

    assert follower.core.role == Role.FOLLOWER
    assert follower.core.leader == 0
    assert follower.core.clock <= 0.1 + 1e-9


def test_clock_that_goes_back_changes_nothing() -> None:
    """A monotonic clock never does; if it did, no timer would run backwards."""
    world = elected()
    before = world.nodes[1].core.clock

    world.nodes[1].core.handle(Ticked(-5.0, 0.5))

    assert world.nodes[1].core.clock == before


@pytest.mark.parametrize("drawn", [0.0, 0.5, 0.999])
def test_later_timeouts_lie_between_half_and_the_whole(drawn: float) -> None:
    """The random number of the tick decides where in [T/2, T]."""
    world = elected()
    world.drawn = drawn
    world.tick(1, 0.0)
    world.nodes[1].core.handle(Received(0, Heartbeat(2, 2, 0)))
    silence_s = 0.0
    while world.nodes[1].core.role == Role.FOLLOWER:
        world.tick(1, 0.02)
        silence_s += 0.02

    assert 0.5 + 0.5 * drawn <= silence_s <= 0.5 + 0.5 * drawn + 0.021


# --- effects ------------------------------------------------------------------------------------------


def test_one_batch_serves_disk_and_all_followers() -> None:
    """The very same batch object goes to the disk and, in one message, to every follower in step."""
    world = elected()
    effects = world.nodes[0].core.handle(Proposed([b"a", b"b"], 5))

    (persist,) = [effect for effect in effects if isinstance(effect, Persist)]
    sends = [effect for effect in effects if isinstance(effect, Send)]
    assert [1, 2] == [send.to for send in sends]
    assert sends[0].message is sends[1].message
    assert sends[0].message.batch is persist.batch
    assert [0, 0] == [send.after for send in sends]


def test_leadership_change_comes_first_and_once() -> None:
    """Whoever carries out the effects already knows the new role; nothing is announced without a change."""
    world = World(1)
    world.drawn = 0.0
    effects = []
    for _ in range(3):
        world.nodes[0].now += 0.02
        effects.append(world.nodes[0].core.handle(Ticked(world.nodes[0].now, 0.0)))
    (stood,) = [found for found in effects if found]

    assert isinstance(stood[0], LeadershipChanged)
    assert (2, Role.LEADER, 0) == (stood[0].term, stood[0].role, stood[0].leader)
    assert len(kinds(list(stood), LeadershipChanged)) == 1
    assert "elected by 1 of 1" in stood[0].reason


def test_tickets_count_up_by_one() -> None:
    """The log relies on it."""
    world = elected()
    core = world.nodes[0].core
    tickets = []
    for text in (b"a", b"b", b"c"):
        tickets += [effect.ticket for effect in core.handle(Proposed([text], 0)) if isinstance(effect, Persist)]

    assert list(range(tickets[0], tickets[0] + 3)) == tickets


def test_times_of_entries_never_fall() -> None:
    """A wall clock that was set back, and a no-op that has no clock, repeat the newest time."""
    world = elected()
    core = world.nodes[0].core
    core.handle(Proposed([b"a"], 1000))
    core.handle(Proposed([b"b"], 400))

    assert [1000, 1000] == [entry.time_ms for entry in core.log.slice(3, 4, 9, 999)]


def test_proposals_beyond_a_message_are_split() -> None:
    """Batches stay within entries and bytes of one message; one entry larger than a message travels alone."""
    world = elected(settings=RaftSettings(max_batch_entries=3, append_bytes_max=400))
    core = world.nodes[0].core

    effects = core.handle(Proposed([b"x"] * 7 + [b"y" * 1000] + [b"z" * 150] * 3, 0))

    sizes = [len(effect.batch) for effect in effects if isinstance(effect, Persist) and effect.batch]
    assert [3, 3, 1, 1, 2, 1] == sizes


# --- bounds -------------------------------------------------------------------------------------------


def long_log(entries: int) -> tuple[RaftMachine, Disk]:
    configuration = static_configuration(1)
    log = [Entry.create(1, 1, EntryKind.CONFIGURATION, 0, configuration.encode())]
    log += [Entry.create(index, 1, EntryKind.COMMAND, 0, b"x") for index in range(2, entries + 1)]
    disk = Disk(HardState(1), log)
    return RaftMachine(0, disk.recover(), disk, RaftSettings(), applied_index=0, now=0.0), disk


def test_restart_with_a_long_log_hands_out_few_groups_at_a_time() -> None:
    """A million committed entries do not leave the core at once: each confirmation releases the next group."""
    machine, disk = long_log(5000)
    for step in range(1, 4):
        effects = machine.handle(Ticked(step * 0.02, 0.0))
        disk.under_way.extend(effect for effect in effects if isinstance(effect, Persist))
    assert machine.role == Role.LEADER
    ticket = disk.write_one()

    groups = [effect.batch for effect in machine.handle(Persisted(ticket)) if isinstance(effect, Apply)]

    assert len(groups) == APPLIES_UNDER_WAY_MAX
    confirmed = 0
    while groups:
        group = groups.pop(0)
        assert len(group) <= limits.APPLY_ENTRIES_MAX
        assert group.entries[0].index == confirmed + 1
        confirmed = group.entries[-1].index
        released = [e.batch for e in machine.handle(AppliedUpTo(confirmed)) if isinstance(e, Apply)]
        assert len(released) <= 1
        groups += released
    assert confirmed == 5001


def test_lagging_follower_gets_few_messages_per_answer() -> None:
    """Its window grows by one per answer; the loop never reads a whole window from disk at a stroke."""
    settings = RaftSettings(max_batch_entries=10)
    world = elected(settings=settings)
    world.crash(2)
    for _ in range(50):
        world.feed(0, Proposed([b"x"] * 10, 0))
    world.restart(2)
    world.letters.clear()
    core = world.nodes[0].core
    core._replicator.peer_reset(2, reachable=True)  # the event in two steps, to see each effect
    core.effects.clear()
    progress = core._replicator._progress[2]

    sent = []
    for match in (2, 12, 22, 32):
        core.effects = []
        progress.accepted(match)
        core._replicator._fill(progress)
        sent.append(len(core.effects))

    assert [2, 2, 2, 2] == sent
    assert progress.in_flight == 5


def test_proposals_beyond_the_uncommitted_bound_are_a_defect() -> None:
    """The caller pushes back by `uncommitted_bytes`; the core refuses to grow without end (catalogue bug 30)."""
    world = elected()
    core = world.nodes[0].core
    payload = bytes(limits.ENTRY_BYTES_MAX - 100)
    while core.uncommitted_bytes <= limits.UNCOMMITTED_BYTES_MAX:
        core.handle(Proposed([payload], 0))

    with pytest.raises(AssertionError, match="push back"):
        core.handle(Proposed([b"x"], 0))


def test_entry_beyond_its_bound_is_a_defect() -> None:
    """It was to be refused before; nobody could ever receive it (catalogue bug 75)."""
    world = elected()
    with pytest.raises(AssertionError, match="never be sent"):
        world.nodes[0].core.handle(Proposed([bytes(limits.ENTRY_BYTES_MAX)], 0))


def test_reads_beyond_the_bound_are_given_back() -> None:
    """The queue of reads is bounded as every queue."""
    world = elected()
    core = world.nodes[0].core
    for request in range(READS_WAITING_MAX + 1):
        core.handle(ReadAsked(request))

    (effect,) = core.handle(ReadAsked(-1))
    assert (-1,) == effect.requests


# --- configurations -----------------------------------------------------------------------------------


@dataclass
class Grown:
    configuration: Configuration
    entry: Entry


def grown(index: int, term: int) -> Grown:
    members = [Member(node, f"node{node}:9090", f"node{node}:7090", voter=node < 3) for node in range(4)]
    configuration = Configuration.of(members)
    return Grown(configuration, Entry.create(index, term, EntryKind.CONFIGURATION, 0, configuration.encode()))


def test_configuration_counts_from_its_append_and_goes_with_its_entry() -> None:
    """Catalogue bugs 43 and 44: adopted when appended, rolled back when the entry is replaced."""
    world = World(3)
    core = world.nodes[1].core
    new = grown(2, 2)
    core.handle(Received(0, AppendRequest(2, 1, 1, 0, 0, batch=EntryBatch([new.entry]))))
    assert new.configuration == core.configuration

    other = Entry.create(2, 3, EntryKind.NOOP, 0, b"")
    core.handle(Received(2, AppendRequest(3, 1, 1, 0, 0, batch=EntryBatch([other]))))

    assert static_configuration(3) == core.configuration
    assert [1] == [index for index, _ in core.configurations]


def test_leader_replicates_to_a_member_from_the_append_on() -> None:
    """A learner of a new configuration gets entries at once and counts for nothing."""
    world = elected()
    core = world.nodes[0].core
    configuration = grown(3, 2).configuration

    effects = core.handle(Proposed([configuration.encode()], 0, EntryKind.CONFIGURATION))

    assert configuration == core.configuration
    assert 3 in [effect.to for effect in effects if isinstance(effect, Send)]
    assert core.quorum == 2
    assert (3, 3) == (len(core.voters), len(core.statistics()["progress"]))  # type: ignore[arg-type]


def test_old_configurations_are_forgotten_once_the_log_is_cut() -> None:
    """Only those from the newest one at the base on stay; a snapshot below the commit index needs the older ones."""
    world = elected()
    core = world.nodes[0].core
    configuration = static_configuration(3).with_incarnation(0, 77)

    world.feed(0, Proposed([configuration.encode()], 0, EntryKind.CONFIGURATION))
    assert [1, 3] == [index for index, _ in core.configurations]
    while world.letters:
        world.deliver(world.letters.pop(0))

    assert [1, 3] == [index for index, _ in core.configurations]
    assert (1, static_configuration(3)) == core.configuration_at(2)
    assert (3, configuration) == core.configuration_at(3)
    world.feed(0, LogCut(3))
    assert [3] == [index for index, _ in core.configurations]


def test_node_outside_the_configuration_is_a_learner_that_never_stands() -> None:
    """It follows whoever leads, and keeps quiet."""
    configuration = static_configuration(3)
    disk = Disk(HardState(1), [Entry.create(1, 1, EntryKind.CONFIGURATION, 0, configuration.encode())])
    machine = RaftMachine(9, disk.recover(), disk, RaftSettings(), applied_index=0, now=0.0)

    effects = [effect for step in range(200) for effect in machine.handle(Ticked(step * 0.02, 0.5))]

    assert [] == effects
    assert machine.role == Role.LEARNER


# --- doors --------------------------------------------------------------------------------------------


def test_unknown_event_is_refused_and_changes_nothing() -> None:
    """Anything that is not in the table is an error."""
    world = elected()
    with pytest.raises(LocalError, match="knows no event str"):
        world.nodes[0].core.handle("event")  # type: ignore[arg-type]


def test_proposal_to_a_follower_is_a_defect() -> None:
    """The caller has asked for the role before."""
    world = elected()
    with pytest.raises(AssertionError, match="only a leader"):
        world.nodes[1].core.handle(Proposed([b"x"], 0))


def test_state_machine_ahead_of_the_log_is_refused_at_the_start() -> None:
    """Nothing is applied before it is durable here, so such a directory is damaged."""
    disk = Disk(HardState(1), [Entry.create(1, 1, EntryKind.NOOP, 0, b"")])
    with pytest.raises(AssertionError, match="has applied 5"):
        RaftMachine(0, disk.recover(), disk, RaftSettings(), applied_index=5, now=0.0)


def test_statistics_name_what_metrics_need() -> None:
    """Plain numbers, and per follower where it stands."""
    world = elected()
    statistics = world.nodes[0].core.statistics()

    assert (2, "leader", 0, 2, 2) == tuple(
        statistics[name] for name in ("term", "role", "leader", "last_index", "commit_index")
    )
    progress = statistics["progress"]
    assert isinstance(progress, dict)
    assert {"replicate"} == {follower["state"] for follower in progress.values()}
    assert {} == world.nodes[1].core.statistics()["progress"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"heartbeat_s": 0.0},
        {"heartbeat_s": 0.6},
        {"max_batch_entries": 0},
        {"append_bytes_max": 0},
        {"appends_in_flight_max": 0},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    """The error names the value and what is allowed."""
    with pytest.raises(ValueError, match="must be"):
        RaftSettings(**wrong)  # type: ignore[arg-type]


def test_candidacies_are_counted_by_their_end() -> None:
    """Won, never answered in the PreVote, and never answered as a candidate are three different things."""
    world = elected()
    assert world.nodes[0].core.statistics()["elections_won_total"] == 1

    core = world.nodes[1].core
    for _ in range(400):
        world.tick(1, 0.02)
    figures = core.statistics()
    assert figures["is_asking"]
    assert figures["prevotes_lost_total"] > 0
    assert figures["elections_timed_out_total"] == 0

    core.handle(Received(2, VoteReply(core.term + 1, prevote=True, granted=True)))
    for _ in range(100):
        world.tick(1, 0.02)

    assert core.statistics()["elections_timed_out_total"] == 1
    assert core.statistics()["elections_lost_total"] == 0
