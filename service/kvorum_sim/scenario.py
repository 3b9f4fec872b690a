"""
One history from one seed: the plan it draws, the story, and the verdict.

`examine` never raises for what it finds: a history is counted, inconclusive (too little happened to prove anything) or
failed, and every verdict carries what a report needs. `play_out` is the same and raises.
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from kvorum_sim import nemesis
from kvorum_sim.applications import Applications
from kvorum_sim.calls import Violation
from kvorum_sim.linearizability import Kind, Outcome, check
from kvorum_sim.loop import START_S
from kvorum_sim.model import Reference, judge
from kvorum_sim.probes import Probe
from kvorum_sim.process import Bounds
from kvorum_sim.workload import CLIENTS, SHARED_KEYS, Workload, counter
from kvorum_sim.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

DECIDED_MIN: Final = 300
"""Client operations with a known outcome; a history with fewer is inconclusive."""
SETTLED_S: Final = 30.0
"""After the last fault is healed, the cluster must agree within this."""
STORY_S_MAX: Final = 240.0
FINAL_TRIES: Final = 5
EDGE_EVERY: Final = 3
"""One seed in so many has kvorum_client and the Thrift edge in it."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a seed stands for."""

    seed: int
    nodes: int
    kinds: tuple[str, ...]
    faults: int
    """Of each kind."""
    gap_s: float
    pause_s: float
    bounds: Bounds
    edge: bool
    """Clients are kvorum_client's, and come through the Thrift edge; otherwise they call the routing of nodes."""

    @classmethod
    def drawn(cls, seed: int, kinds: tuple[str, ...] | None = None, *, edge: bool | None = None) -> Scenario:
        """One to three kinds of fault, a cluster of three or five, and a pace; every third seed has the edge."""
        chance = random.Random(f"scenario {seed}")
        drawn = _met_by_the_store(seed, chance.sample(_DRAWN, chance.choice((1, 2, 2, 3))))
        edge = _has_edge(seed, kinds) if edge is None else edge
        if edge and not kinds:
            drawn = _with_client_faults(seed, drawn)
        kinds = kinds or drawn
        bounds = Bounds(
            retain_entries=chance.choice((5, 20, 100, 10_000)), flush_entries=chance.choice((10, 30, 100, 50_000))
        )
        return cls(
            seed,
            chance.choice((3, 3, 3, 5)),
            kinds,
            -(-chance.randrange(10, 16) // len(kinds)),
            chance.choice((0.1, 0.3, 0.6)),
            chance.choice((0.02, 0.05)),
            bounds,
            edge,
        )

    @property
    def composition(self) -> str:
        """The kinds, for a report."""
        return ("edge: " if self.edge else "") + " + ".join(self.kinds)


_DRAWN: Final = sorted(nemesis.KINDS.keys() - {"store full"})


def _met_by_the_store(seed: int, kinds: list[str]) -> tuple[str, ...]:
    """A full disk is met by the log in one half of the cases and by the store in the other."""
    if random.Random(f"full {seed}").random() < 0.5:
        kinds = ["store full" if kind == "disk full" else kind for kind in kinds]
    return tuple(sorted(kinds))


def _has_edge(seed: int, kinds: tuple[str, ...] | None) -> bool:
    """Whether it has, when nobody says so: a seed's own mix by its number, chosen kinds only if they need it."""
    return not seed % EDGE_EVERY if kinds is None else any(kind in nemesis.CLIENT_KINDS for kind in kinds)


def _with_client_faults(seed: int, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Mostly something happens to the clients' connections as well, sometimes nothing else."""
    chance = random.Random(f"clients {seed}")
    theirs = chance.sample(sorted(nemesis.CLIENT_KINDS), chance.choice((0, 1, 1, 2)))
    ours = () if theirs and chance.random() < 0.1 else kinds
    return tuple(sorted((*ours, *theirs)))


@dataclass(slots=True)
class Verdict:
    """What came of one history; plain values, so that it travels between processes and into a report."""

    seed: int
    composition: str
    nodes: int
    verdict: str = "counted"
    """``counted``, ``inconclusive`` or ``failed``."""
    reason: str = ""
    trace: str = ""
    steps: int = 0
    checks: int = 0
    """Events of machines after which every invariant was looked at."""
    virtual_s: float = 0.0
    real_s: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    probes: dict[str, int] = field(default_factory=dict)
    edge: bool = False
    """Whether its clients were kvorum_client's."""
    replay: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def replay_command(seed: int, kinds: tuple[str, ...] | None = None, *, edge: bool | None = None) -> str:
    """The one command that plays a history again, loudly."""
    chosen = "".join(f" --kind '{kind}'" for kind in kinds or ())
    if edge is not None and edge != _has_edge(seed, kinds):
        chosen += " --edge" if edge else " --no-edge"
    return f"PYTHONPATH=service .venv/bin/python -m kvorum_sim {seed}{chosen}"


def play_out(
    seed: int,
    kinds: tuple[str, ...] | None = None,
    make_world: Callable[..., World] = World,
    *,
    edge: bool | None = None,
) -> tuple[World, str]:
    """
    Tell the story of a seed and judge it.

    Returns:
        The world, and why the history proves nothing, or an empty text.

    Raises:
        AssertionError: An invariant or a promise was broken; a note says how to replay it.
    """
    scenario = Scenario.drawn(seed, kinds, edge=edge)
    world = make_world(seed, nodes=scenario.nodes, bounds=scenario.bounds, edge=scenario.edge)
    try:
        return world, world.run(_story(world, scenario))
    except Exception as error:
        world.loop.abandon()
        error.add_note(f"at {world.now() - START_S:.6f} s; replay with: {replay_command(seed, kinds, edge=edge)}")
        raise


def examine(seed: int, kinds: tuple[str, ...] | None = None, *, edge: bool | None = None) -> Verdict:
    """Play a seed and say what came of it, whatever it is."""
    scenario = Scenario.drawn(seed, kinds, edge=edge)
    replay = replay_command(seed, kinds, edge=edge)
    verdict = Verdict(seed, scenario.composition, scenario.nodes, edge=scenario.edge, replay=replay)
    started = time.perf_counter()
    worlds: list[World] = []

    def make(*args: Any, **named: Any) -> World:
        worlds.append(World(*args, **named))
        return worlds[-1]

    try:
        _, verdict.reason = play_out(seed, kinds, make, edge=edge)
        if verdict.reason:
            verdict.verdict = "inconclusive"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the verdict
        verdict.verdict = "failed"
        verdict.reason = "".join(traceback.format_exception_only(error)) + _where(error)
    if worlds:
        world = worlds[0]
        verdict.trace = world.loop.trace_hash()
        verdict.steps = world.loop.steps
        verdict.checks = world.inspector.checks
        verdict.virtual_s = world.now() - START_S
        verdict.outcomes, verdict.faults = dict(world.outcomes), dict(world.faults)
        verdict.probes = dict(world.probes)
    verdict.real_s = time.perf_counter() - started
    return verdict


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return "".join(f"  {frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}\n" for frame in frames)


async def _story(world: World, scenario: Scenario) -> str:
    for node_id in world.node_ids:
        world.start(node_id)
    await world.until(lambda: world.leader() is not None, within_s=3, what="the first leader")
    workload = (Applications if scenario.edge else Workload)(world, scenario.pause_s)
    if not await workload.open_accounts():
        world.violated("a fresh cluster does not take its first write")
    strikes = [
        asyncio.ensure_future(nemesis.play(world, kind, scenario.faults, scenario.gap_s)) for kind in scenario.kinds
    ]
    clients = [asyncio.ensure_future(workload.client(number)) for number in range(CLIENTS)]
    everything = asyncio.gather(*strikes)
    end = world.now() + STORY_S_MAX
    while not everything.done() or (_decided(world) < DECIDED_MIN and world.now() < end):
        for task in (*clients, *strikes):
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error
        await asyncio.sleep(0.05)
    took_effect = await everything
    workload.stopping = True
    await _heal(world)
    await asyncio.gather(*clients)
    await nemesis.settle_members(world)
    await world.until(world.converged, within_s=SETTLED_S, what="all nodes to agree")
    await _final_reads(world, workload)
    _judge(world, workload)
    if not all(took_effect):
        failed = [kind for kind, whole in zip(scenario.kinds, took_effect, strict=True) if not whole]
        return f"not all planned faults took effect: {', '.join(failed)}"
    if _decided(world) < DECIDED_MIN:
        return f"only {_decided(world)} client operations were decided"
    return ""


def _decided(world: World) -> int:
    """Operations that a node has answered with a known outcome."""
    return world.outcomes[Outcome.OK] + world.outcomes[Outcome.FAILED]


async def _heal(world: World) -> None:
    """No fault is left; what is down starts."""
    world.network.heal_all()
    for node_id in world.node_ids:
        if world.process(node_id) is None and not world.disk(node_id).removed:
            world.start(node_id)
        await asyncio.sleep(0)


async def _final_reads(world: World, workload: Workload) -> None:
    """A healthy cluster serves, on every node."""
    for node_id in world.node_ids:
        for number in range(SHARED_KEYS):
            for _ in range(FINAL_TRIES):
                if (await world.get(100 + node_id, node_id, b"shared-%d" % number)).outcome == Outcome.OK:
                    break
            else:
                world.violated(f"node {node_id} does not serve reads in a healthy cluster: {dict(world.refusals)}")
    for _ in range(FINAL_TRIES):
        if (await world.set(99, world.chance.choice(world.node_ids), b"last", b"write")).outcome == Outcome.OK:
            break
    else:
        world.violated(f"a healthy cluster takes no write: {dict(world.refusals)}")
    await workload.finish()
    await world.until(world.converged, within_s=SETTLED_S, what="all nodes to agree on the last write")


def _judge(world: World, workload: Workload) -> None:
    world.check_equal_states()
    world.inspector.recheck(world.alive)
    reference = Reference(world.records)
    wrong = judge(reference, workload.commits, workload.reads)
    if wrong is not None:
        world.violated(wrong)
    for process in world.alive:
        for key, value in reference.final().items():
            if process.executor.get(b"", key) != value:
                world.violated(f"{process!r} shows {process.executor.get(b'', key)!r} for {key!r}, the log {value!r}")
        counted = counter(process)
        if counted != reference.stamped:
            world.violated(f"{process!r} counts {counted}, but {reference.stamped} requests took effect in the log")
        workload.judge_end(process)
    workload.judge_retries(reference.retries)
    lost = [o for o in world.history if o.kind == Kind.SET and o.outcome == Outcome.OK and o.key[:4] == b"own-"]  # type: ignore[index]
    for operation in lost:
        for process in world.alive:
            if process.executor.get(b"", operation.key) != operation.argument:  # type: ignore[arg-type]
                world.violated(f"{process!r} lost an acknowledged write: {operation}")
    for operation in world.history:
        if operation.outcome == Outcome.UNKNOWN and operation.key[:4] == b"own-":  # type: ignore[index]
            there = world.alive[0].executor.get(b"", operation.key) is not None  # type: ignore[arg-type]
            world.probes[Probe.UNKNOWN_APPLIED if there else Probe.UNKNOWN_LOST] += 1
    verdict = check(world.history)
    if not verdict:
        raise Violation(verdict.explanation)


def totals(verdicts: list[Verdict]) -> dict[str, Any]:
    """Figures over many histories, for the summary and the ledger."""
    sums: dict[str, Counter[str]] = {name: Counter() for name in ("outcomes", "faults", "probes")}
    for verdict in verdicts:
        for name, counts in sums.items():
            counts.update(getattr(verdict, name))
    return {
        "histories": Counter(verdict.verdict for verdict in verdicts),
        "edge_histories": sum(verdict.edge and verdict.verdict == "counted" for verdict in verdicts),
        "compositions": Counter(verdict.composition for verdict in verdicts),
        "checks": sum(verdict.checks for verdict in verdicts),
        "virtual_s": round(sum(verdict.virtual_s for verdict in verdicts), 1),
        "real_s": round(sum(verdict.real_s for verdict in verdicts), 1),
        **sums,
    }
