"""
Replay one seed with every log line and every operation: ``PYTHONPATH=service python -m kvorum_sim SEED``.

With four figures behind the seed it plays a simple `story` instead of the seed's `scenario`.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from kvorum.core.operations import Consistency
from kvorum_sim import nemesis
from kvorum_sim.loop import START_S
from kvorum_sim.scenario import Scenario, play_out
from kvorum_sim.story import Plan, tell
from kvorum_sim.world import World

if TYPE_CHECKING:
    from kvorum_sim.linearizability import Operation
    from kvorum_sim.process import Process


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


class _LoudWorld(World):
    """A world that prints what happens."""

    def said(self, process: Process, event: str, fields: dict[str, object]) -> None:
        _print(f"{self.now() - START_S:10.6f}  {process!r}: {event} {fields}")
        super().said(process, event, fields)

    def note(self, operation: Operation) -> Operation:
        _print(f"{self.now() - START_S:10.6f}  {operation}")
        return super().note(operation)

    def crash(self, node_id: int, *, power: bool = False) -> None:
        _print(f"{self.now() - START_S:10.6f}  crash of node {node_id}{', its power stays' if power else ''}")
        super().crash(node_id, power=power)


def main(arguments: list[str]) -> None:
    """Tell the story the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m kvorum_sim", description="Replay one seed, loudly.")
    parser.add_argument("seed", type=int)
    parser.add_argument("leader_crashes", type=int, nargs="?")
    parser.add_argument("disturbances", type=int, nargs="?", default=0)
    parser.add_argument("blackouts", type=int, nargs="?", default=0)
    parser.add_argument("level", nargs="?", default=Consistency.READ_INDEX)
    parser.add_argument(
        "--kind", action="append", choices=sorted(nemesis.ALL_KINDS), help="instead of the seed's own mix"
    )
    parser.add_argument("--edge", action=argparse.BooleanOptionalAction, help="whether clients use kvorum_client")
    taken = parser.parse_args(arguments)
    if taken.leader_crashes is None:
        kinds = tuple(taken.kind) if taken.kind else None
        _print(f"{Scenario.drawn(taken.seed, kinds, edge=taken.edge)}")
        world, reason = play_out(taken.seed, kinds, _LoudWorld, edge=taken.edge)
        verdict = f"inconclusive: {reason}" if reason else "clean"
    else:
        plan = Plan(taken.leader_crashes, taken.disturbances, taken.blackouts, taken.level)
        world, verdict = tell(taken.seed, plan, _LoudWorld), "clean"
    _print(f"{verdict}: {dict(world.outcomes)}, {world.crashes} crashes, {world.elections} elections")
    _print(f"faults: {dict(world.faults)}")
    _print(f"probes: {dict(world.probes)}")
    _print(f"refused: {dict(world.refusals)}")
    _print(f"trace {world.loop.trace_hash()}, {world.loop.steps} steps, {world.now() - START_S:.3f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
