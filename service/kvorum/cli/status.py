"""``kvorum status``: what each node says of itself, side by side."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from kvorum.cli.output import OutputFormat, console, print_json, read_endpoints, run_async
from kvorum_client import KvorumClient, NodeStatus

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from kvorum_client import KvorumError


def leader_of(answers: Mapping[str, NodeStatus | KvorumError]) -> NodeStatus | None:
    """The node that says it leads, in the highest term if two say so."""
    leaders = [status for status in answers.values() if isinstance(status, NodeStatus) and status.role == "leader"]
    return max(leaders, key=lambda status: status.term, default=None)


def show_status(endpoints: str, output: OutputFormat) -> NoReturn:
    """Print the table; exit code 1 if no node leads."""
    asked = read_endpoints(endpoints)

    async def work() -> int:
        async with KvorumClient(asked, connect_timeout_s=1.0) as client:
            answers = await client.status_all()
        leader = leader_of(answers)
        if output is OutputFormat.JSON:
            _print_json(answers, leader)
        else:
            _print_table(answers, leader)
        return 0 if leader is not None else 1

    run_async(work())


def _print_json(answers: Mapping[str, NodeStatus | KvorumError], leader: NodeStatus | None) -> None:
    nodes: list[dict[str, object]] = []
    for endpoint, answer in answers.items():
        if isinstance(answer, NodeStatus):
            nodes.append(asdict(answer) | {"reachable": True})
        else:
            nodes.append({"endpoint": endpoint, "reachable": False, "error": str(answer)})
    print_json({"leader": None if leader is None else leader.endpoint, "nodes": nodes})


def _print_table(answers: Mapping[str, NodeStatus | KvorumError], leader: NodeStatus | None) -> None:
    from rich.table import Table

    commit = max((status.commit_index for status in answers.values() if isinstance(status, NodeStatus)), default=0)
    table = Table(title=None)
    for heading in ("endpoint", "node", "role", "term", "leader", "commit", "applied", "behind", "uptime", "version"):
        table.add_column(heading, justify="left" if heading in {"endpoint", "role", "version"} else "right")
    problems = []
    for endpoint, answer in answers.items():
        if not isinstance(answer, NodeStatus):
            table.add_row(endpoint, "", "[red]unreachable[/red]", *[""] * 7)
            problems.append(f"{endpoint}: {answer}")
            continue
        role = f"[green]{answer.role}[/green]" if answer.role == "leader" else answer.role
        table.add_row(
            endpoint,
            str(answer.node_id),
            role,
            str(answer.term),
            "-" if answer.leader_id is None else str(answer.leader_id),
            str(answer.commit_index),
            str(answer.applied_index),
            str(max(0, commit - answer.applied_index)),
            _duration(answer.uptime_seconds),
            answer.server_version,
        )
    terminal = console()
    terminal.print(table)
    for problem in problems:
        terminal.print(problem, markup=False)
    if leader is None:
        statuses = [status for status in answers.values() if isinstance(status, NodeStatus)]
        named = {status.leader_id: status.leader_endpoint for status in statuses if status.leader_id is not None}
        for node_id, leader_endpoint in named.items():
            terminal.print(f"none of these leads; node {node_id} at {leader_endpoint} is said to", markup=False)
        if not named:
            terminal.print("[red]no leader[/red]")


def _duration(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes}m"
    return f"{minutes}m{left}s" if minutes else f"{left}s"
