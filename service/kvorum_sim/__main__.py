"""Replay one seed with every log line and every operation: ``PYTHONPATH=service python -m kvorum_sim SEED``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from kvorum.core.operations import Consistency
from kvorum_sim.loop import START_S
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

    def _note(self, operation: Operation) -> Operation:
        _print(f"{self.now() - START_S:10.6f}  {operation}")
        return super()._note(operation)


def main(arguments: list[str]) -> None:
    """Tell the story the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m kvorum_sim", description="Replay one seed, loudly.")
    parser.add_argument("seed", type=int)
    parser.add_argument("leader_crashes", type=int, nargs="?", default=1)
    parser.add_argument("disturbances", type=int, nargs="?", default=0)
    parser.add_argument("blackouts", type=int, nargs="?", default=0)
    parser.add_argument("level", nargs="?", default=Consistency.READ_INDEX)
    taken = parser.parse_args(arguments)
    plan = Plan(taken.leader_crashes, taken.disturbances, taken.blackouts, taken.level)
    world = tell(taken.seed, plan, _LoudWorld)
    _print(f"clean: {len(world.history)} operations, {world.crashes} crashes, {world.elections} elections")
    _print(f"refused: {dict(world.refusals)}")
    _print(f"trace {world.loop.trace_hash()}, {world.loop.steps} steps, {world.now() - START_S:.3f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
