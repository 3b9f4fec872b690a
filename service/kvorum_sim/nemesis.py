"""
What goes wrong: one function per kind of fault, each doing one fault from its beginning to its end.

A fault counts only if it took effect; one that met nobody to harm is tried again. Kinds are mixed by the scenario and
know nothing of each other, so several may hit the same node at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeAlias

from kvorum.consensus.changes import Action, Change
from kvorum.core.errors import StorageFailedError
from kvorum.core.machine import TransferAsked
from kvorum_sim.probes import Probe
from kvorum_sim.world import seat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kvorum.consensus.changes import Outcome
    from kvorum.core.ids import NodeId
    from kvorum_sim.process import Process
    from kvorum_sim.sockets import SimulatedSockets
    from kvorum_sim.world import World

    Strike: TypeAlias = Callable[[World], Awaitable[bool]]

CHANGE_S: Final = 25.0
"""How long a change of the members may take while other things go wrong."""

STOP_S: Final = 20.0
"""After so long a process that was told to stop is killed, as Kubernetes does."""

TRAP_S: Final = 3.0
"""How long a trap may wait for bytes that it can tear."""

EIO_WAIT_S: Final = 3.0
"""How long a disk that was told to fail may take to be used."""


def _victim(world: World) -> Process | None:
    """Some node that runs, the leader more often than others."""
    running = [process for process in world.alive if not process.paused]
    leader = world.leader()
    if leader is not None and not leader.paused and world.chance.random() < 0.5:
        return leader
    return world.chance.choice(running) if running else None


def _restart(world: World, node_id: NodeId) -> None:
    """Start a node that is down; one whose disk is full cannot start, and is tried again when there is space."""
    if world.process(node_id) is not None or node_id in world.refused | world.gone or world.disk(node_id).removed:
        return
    files = world.disk(node_id).log.files
    try:
        world.start(node_id)
    except StorageFailedError:
        if node_id in world.expected_failures and files.fail_next is None:
            # The failure that was planned struck at the start.
            world.expected_failures.discard(node_id)
            world.probes[Probe.DISK_FAILED] += 1
            _restart(world, node_id)
        elif files.full:
            world.probes[Probe.START_REFUSED] += 1
        else:
            raise


async def _crash(world: World) -> bool:
    """Kill one node, with or without its power, and start it again."""
    process = _victim(world)
    if process is None:
        return False
    world.crash(process.node_id, power=world.chance.random() < 0.5)
    await asyncio.sleep(world.chance.choice((0.01, 0.3, 1.0, 2.5)) * world.chance.random())
    _restart(world, process.node_id)
    return True


async def _black_out(world: World) -> bool:
    """Cut the power of all nodes at one moment."""
    running = world.alive
    for process in running:
        world.crash(process.node_id)
    for node_id in world.chance.sample(world.node_ids, len(world.node_ids)):
        await asyncio.sleep(world.chance.uniform(0, 0.3))
        _restart(world, node_id)
    return bool(running)


async def _pause(world: World) -> bool:
    """Freeze a process; it wakes to everything that came meanwhile."""
    process = _victim(world)
    if process is None:
        return False
    boots = process.disk.boots
    world.pause(process.node_id)
    await asyncio.sleep(world.chance.choice((0.05, 0.5, 1.5, 3.0)) * world.chance.uniform(0.3, 1))
    world.resume(process.node_id, boots)
    return True


async def _break_link(world: World) -> bool:
    """Reset one connection."""
    one, other = world.chance.sample(world.node_ids, 2)
    before = world.network.links_broken
    world.network.break_link(one, other)
    await asyncio.sleep(0)
    return world.network.links_broken > before


async def _hold_cuts(world: World, pairs: list[tuple[NodeId, NodeId]]) -> bool:
    for one, other in pairs:
        world.cut(one, other)
    await asyncio.sleep(world.chance.choice((0.1, 0.6, 1.5, 3.0, 6.0)) * world.chance.uniform(0.3, 1))
    for one, other in pairs:
        world.heal(one, other)
    return bool(pairs)


async def _one_way(world: World) -> bool:
    """Nothing passes from one node to another, or from one to all, or from all to one."""
    one, other = world.chance.sample(world.node_ids, 2)
    others = [node_id for node_id in world.node_ids if node_id != one]
    pairs = world.chance.choice(
        (
            [(one, other)],
            [(one, peer) for peer in others],
            [(peer, one) for peer in others],
        )
    )
    return await _hold_cuts(world, pairs)


async def _partition(world: World) -> bool:
    """Two sides that do not hear each other; mostly one of them has a majority."""
    nodes = world.chance.sample(world.node_ids, len(world.node_ids))
    size = world.chance.randrange(1, len(nodes))
    sides = (nodes[:size], nodes[size:])
    return await _hold_cuts(
        world, [(a, b) for one in sides for other in sides if one is not other for a in one for b in other]
    )


async def _ring(world: World) -> bool:
    """Every node hears its neighbours only; of three nodes, one pair is apart."""
    nodes = world.chance.sample(world.node_ids, len(world.node_ids))
    count = len(nodes)
    if count == 3:
        return await _hold_cuts(world, [(nodes[0], nodes[1]), (nodes[1], nodes[0])])
    far = [(a, b) for i, a in enumerate(nodes) for j, b in enumerate(nodes) if (i - j) % count not in {0, 1, count - 1}]
    return await _hold_cuts(world, far)


async def _loss(world: World) -> bool:
    """Some of the machines' messages never arrive."""
    world.loss = world.chance.choice((0.02, 0.1, 0.3))
    await asyncio.sleep(world.chance.uniform(0.3, 2.0))
    world.loss = 0.0
    return True


async def _duplication(world: World) -> bool:
    """Some of the machines' messages come again, later."""
    world.duplication = world.chance.choice((0.05, 0.3, 0.8))
    await asyncio.sleep(world.chance.uniform(0.3, 2.0))
    world.duplication = 0.0
    return True


async def _reordering(world: World) -> bool:
    """Some of the machines' messages are overtaken by later ones."""
    world.lateness = world.chance.choice((0.05, 0.3, 0.8))
    await asyncio.sleep(world.chance.uniform(0.3, 2.0))
    world.lateness = 0.0
    return True


async def _slow_network(world: World) -> bool:
    """Every passage takes long."""
    network = world.network
    usual, network.delay_s_max = network.delay_s_max, world.chance.choice((0.1, 0.25, 0.6))
    await asyncio.sleep(world.chance.uniform(0.2, 1.5))
    network.delay_s_max = usual
    return True


async def _slow_disk(world: World) -> bool:
    """One disk takes long to sync, or hangs for a while."""
    process = _victim(world)
    if process is None:
        return False
    disk = process.disk.log
    usual, disk.sync_delay_s = disk.sync_delay_s, world.chance.choice((0.1, 0.4, 1.0, 4.0))
    await asyncio.sleep(world.chance.uniform(0.3, 2.0))
    disk.sync_delay_s = usual
    return True


async def _disk_full(world: World) -> bool:
    """One disk has no block left, then again."""
    process = _victim(world)
    if process is None:
        return False
    files = process.disk.log.files
    led = process.consensus.is_leader
    before = files.failures
    files.full = True
    await asyncio.sleep(world.chance.uniform(0.5, 3.0))
    files.full = False
    _restart(world, process.node_id)
    if led and files.failures > before:
        world.probes[Probe.DISK_FULL_LEADER] += 1
    return files.failures > before


async def _store_full(world: World) -> bool:
    """One store has no space for a flush while the log still has some; it goes on a while after there is space."""
    process = _victim(world)
    if process is None:
        return False
    node_id, applier, led = process.node_id, process.consensus.applier, process.consensus.is_leader
    engine = process.staging.engine
    engine.full = True
    applier.flush_now()
    await asyncio.sleep(world.chance.uniform(0.3, 3.0))
    stepped_aside = not applier.has_space
    if stepped_aside and led:
        world.probes[Probe.STORE_FULL_LEADER] += 1
    for space_s in (world.chance.uniform(0, 2.0), 0.0):
        found = world.process(node_id)
        engines = [engine, world.disk(node_id).engine, *([found.staging.engine] if found is not None else [])]
        for each in engines:
            if space_s:
                each.full = False
            else:
                each.go_on()
        await asyncio.sleep(space_s)
    _restart(world, node_id)
    return stepped_aside


async def _disk_failure(world: World) -> bool:
    """One call of the log fails with EIO: the node must end, and comes back."""
    process = _victim(world)
    if process is None or process.node_id in world.expected_failures:
        return False
    node_id, files = process.node_id, process.disk.log.files
    world.expected_failures.add(node_id)
    files.fail_next = world.chance.choice(("write", "sync"))
    end = world.now() + EIO_WAIT_S
    while node_id in world.expected_failures and world.now() < end:  # noqa: ASYNC110 - polls virtual time
        await asyncio.sleep(0.01)
    took_effect = node_id not in world.expected_failures
    files.fail_next = None
    world.expected_failures.discard(node_id)
    await asyncio.sleep(world.chance.uniform(0, 1.0))
    _restart(world, node_id)
    return took_effect


async def _damage(world: World) -> bool:
    """
    Flip a bit of what was synced: the node must refuse to start.

    The disk is then repaired from its mirror; what a wiped disk does is another kind of fault.
    """
    process = _victim(world)
    if process is None or process.node_id in world.expected_failures:
        return False
    node_id = process.node_id
    world.crash(node_id)
    disk = world.disk(node_id).log
    damage = disk.flip_synced_bit()
    if damage is None:
        _restart(world, node_id)
        return False
    world.refused.add(node_id)
    full, disk.files.full = disk.files.full, False
    try:
        world.start(node_id)
    except StorageFailedError:
        world.probes[Probe.DAMAGE_REFUSED] += 1
    else:
        world.violated(f"node {node_id} starts on a damaged log: {damage}")
    disk.files.full = full
    await asyncio.sleep(world.chance.uniform(0.1, 1.5))
    disk.files.flip(*damage)
    world.refused.discard(node_id)
    _restart(world, node_id)
    return True


async def _clock_jump(world: World) -> bool:
    """The wall clock of one node jumps, by up to an hour, either way."""
    process = _victim(world)
    if process is None:
        return False
    process.wall_jump_ms += world.chance.choice((-3_600_000, -5_000, 5_000, 3_600_000))
    await asyncio.sleep(0)
    return True


async def _stall(world: World) -> bool:
    """One storage engine asks its writers to wait."""
    process = _victim(world)
    if process is None:
        return False
    engine = process.staging.engine
    engine.stalled = True
    await asyncio.sleep(world.chance.uniform(0.1, 1.5))
    engine.stalled = False
    return True


async def _transfer(world: World) -> bool:
    """The leader is asked to hand over."""
    leader = world.leader()
    if leader is None or leader.paused:
        return False
    target = world.chance.choice([None, *(n for n in world.node_ids if n != leader.node_id)])
    machine = leader.consensus.machine
    if machine is None or machine.transferring_to is not None:
        return False
    term = machine.term
    leader.consensus.feed(TransferAsked(target))
    end = world.now() + 2.0
    while world.now() < end:
        await asyncio.sleep(0.02)
        led = world.leader()
        if led is not None and led is not leader and led.consensus.term == term + 1:
            world.probes[Probe.TRANSFERRED] += 1
            break
    return True


async def _lost_disk(world: World) -> bool:
    """
    Replace the disk of one node by an empty one; one at a time, until the new one is a voter.

    Until then nothing else may happen to the members, for a second lost disk could be one too many.
    """
    process = _victim(world)
    if (
        process is None
        or world.changing
        or process.node_id in world.expected_failures
        or len(world.members().voters) < len(world.node_ids)
    ):
        return False
    world.changing = True
    try:
        # Whatever is committed now must be everywhere first: a voter that still catches up is as good as a lost one.
        if not await _until(world, _all_hold(world)):
            return False
        node_id = process.node_id
        if world.process(node_id) is not process or process.paused:
            return False
        world.crash(node_id)
        incarnation = world.wipe(node_id)
        await asyncio.sleep(world.chance.uniform(0, 1.0))
        _restart(world, node_id)
        return await _until(world, lambda: _votes(world, node_id, incarnation))
    finally:
        world.changing = False


def _all_hold(world: World) -> Callable[[], bool]:
    """Whether every node has committed what is committed at this moment."""
    target = len(world.inspector.committed)

    def all_hold() -> bool:
        machines = [process.consensus.machine for process in world.alive]
        if len(machines) < len(world.node_ids):
            return False
        return all(machine is not None and machine.commit_index >= target for machine in machines)

    return all_hold


def _votes(world: World, node_id: NodeId, incarnation: int) -> bool:
    member = world.members().member(node_id)
    return member is not None and member.voter and member.incarnation == incarnation


async def _until(world: World, condition: Callable[[], bool]) -> bool:
    """Wait as long as a change of members may take while other things go wrong."""
    end = world.now() + CHANGE_S
    while not condition() and world.now() < end:  # noqa: ASYNC110 - polls virtual time
        await asyncio.sleep(0.05)
    return condition()


async def _churn(world: World) -> bool:
    """Add a node, or remove one, through whichever node is asked."""
    if world.changing:
        return False
    world.changing = True
    try:
        count = len(world.node_ids)
        if count <= 3 or (count < 6 and world.chance.random() < 0.5):
            node_id = world.add_node()
            return await _until_made(world, node_id, Action.ADD)
        leader = world.leader()
        node_id = world.chance.choice(world.node_ids)
        if leader is not None and world.chance.random() < 0.4:
            node_id = leader.node_id
        return await _until_made(world, node_id, Action.REMOVE)
    finally:
        world.changing = False


async def _until_made(world: World, node_id: NodeId, action: str) -> bool:
    """Ask for a change again and again; a removed node is retired, an added one is waited for until it votes."""
    peer = seat(node_id)
    change = Change(action, node_id, peer.client_endpoint, peer.peer_endpoint)
    added = action == Action.ADD
    if not added:
        world.leaving.add(node_id)
    outcomes: list[Outcome] = []
    end = world.now() + CHANGE_S
    while world.now() < end:
        asked = [process for process in world.alive if not process.paused and process.consensus.machine is not None]
        if asked:
            world.chance.choice(asked).consensus.membership.ask(change, 2.0, outcomes.append)
        await asyncio.sleep(world.chance.uniform(0.3, 2.2))
        member = world.members().member(node_id)
        if (member is not None) == added and (not added or (member is not None and member.voter)):
            world.probes[Probe.MEMBER_CHANGED] += 1
            if not added:
                await asyncio.sleep(world.chance.uniform(0, 0.5))
                world.retire(node_id)
            return True
    return False


async def settle_members(world: World) -> None:
    """Nothing goes wrong any more: finish every change that was begun and not made."""
    for node_id in world.node_ids:
        if node_id in world.leaving:
            if not await _until_made(world, node_id, Action.REMOVE):
                world.violated(f"a healthy cluster does not let node {node_id} go")
        elif world.members().member(node_id) is None and not await _until_made(world, node_id, Action.ADD):
            world.violated(f"a healthy cluster does not take in node {node_id}")


KINDS: Final[dict[str, Strike]] = {
    "crash": _crash,
    "power cut": _black_out,
    "pause": _pause,
    "broken link": _break_link,
    "one-way cut": _one_way,
    "partition": _partition,
    "ring": _ring,
    "loss": _loss,
    "duplication": _duplication,
    "reordering": _reordering,
    "slow network": _slow_network,
    "slow disk": _slow_disk,
    "disk full": _disk_full,
    "store full": _store_full,
    "disk failure": _disk_failure,
    "damaged log": _damage,
    "clock jump": _clock_jump,
    "engine stall": _stall,
    "transfer": _transfer,
    "lost disk": _lost_disk,
    "churn": _churn,
}


async def _planned_stop(world: World) -> bool:
    """A node is told to stop, as by a rolling restart, and started again; whatever else happens may end it first."""
    process = _victim(world)
    if process is None or process.consensus.machine is None:
        return False
    stopping = process.stop()
    end = world.now() + STOP_S
    while not stopping.done() and process.alive and world.now() < end:  # noqa: ASYNC110 - polls virtual time
        await asyncio.sleep(0.005)
    stopped = stopping.done() and not stopping.cancelled()
    if stopped:
        stopping.result()
    if process.alive:
        world.crash(process.node_id, power=True)
    await asyncio.sleep(world.chance.choice((0.01, 0.3, 1.0)) * world.chance.random())
    _restart(world, process.node_id)
    return stopped


async def _client_cut(world: World) -> bool:
    """Nothing passes between some clients and some nodes, both ways or one."""
    sockets, chance = _sockets(world), world.chance
    clients = sorted({client for node_id in world.node_ids for client in sockets.clients_of(node_id)})
    if not clients:
        return False
    nodes = list(world.node_ids)
    whose, where = chance.choice(
        (
            ([chance.choice(clients)], [chance.choice(nodes)]),
            ([chance.choice(clients)], nodes),
            (clients, [chance.choice(nodes)]),
        )
    )
    pairs = [(client, node_id) for client in whose for node_id in where]
    ways = chance.choice((pairs, [(b, a) for a, b in pairs], pairs + [(b, a) for a, b in pairs]))
    before = sockets.held
    for one, other in ways:
        sockets.cut(one, other)
    await asyncio.sleep(chance.choice((0.1, 0.6, 1.5, 6.0, 12.0)) * chance.uniform(0.3, 1))
    for one, other in ways:
        sockets.heal(one, other)
    return sockets.held > before


async def _client_reset(world: World) -> bool:
    """One connection of a client is reset, whatever it does."""
    await asyncio.sleep(0)
    return _sockets(world).reset_one()


async def _torn(world: World, *, to_client: bool) -> bool:
    sockets = _sockets(world)
    trap = sockets.set_trap(to_client=to_client)
    if trap is None:
        await asyncio.sleep(TRAP_S)
        return False
    end = world.now() + TRAP_S
    while not trap.sprung and world.now() < end:  # noqa: ASYNC110 - polls virtual time
        await asyncio.sleep(0.01)
    sockets.clear_trap(trap)
    return trap.sprung


async def _torn_reply(world: World) -> bool:
    """A connection of a client breaks in the middle of a reply."""
    return await _torn(world, to_client=True)


async def _torn_request(world: World) -> bool:
    """A connection of a client breaks in the middle of a request."""
    return await _torn(world, to_client=False)


def _sockets(world: World) -> SimulatedSockets:
    assert world.clients is not None, "faults of clients need clients: a world with an edge"
    return world.clients.sockets


CLIENT_KINDS: Final[dict[str, Strike]] = {
    "planned stop": _planned_stop,
    "client cut": _client_cut,
    "client reset": _client_reset,
    "torn reply": _torn_reply,
    "torn request": _torn_request,
}
"""Only for worlds with an edge."""

ALL_KINDS: Final = KINDS | CLIENT_KINDS


async def play(world: World, kind: str, times: int, gap_s: float) -> bool:
    """
    Do ``times`` faults of one kind.

    Returns:
        Whether all of them took effect.
    """
    tries = 0
    done = 0
    while done < times and tries < 4 * times:
        await asyncio.sleep(world.chance.expovariate(1 / gap_s))
        tries += 1
        if await ALL_KINDS[kind](world):
            done += 1
            world.faults[kind] += 1
            world.loop.trace(f"fault {kind}")
    return done == times
