"""``kvorum wal inspect``: what a log directory holds, without changing it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, NoReturn

from kvorum.cli.output import OutputFormat, console, fail, print_json

if TYPE_CHECKING:
    from pathlib import Path

    from kvorum.storage.wal.inspect import LogDescription, SegmentDescription


def inspect(directory: Path, output: OutputFormat) -> NoReturn:
    """Print it; exit code 1 if a node would refuse to start on it."""
    from kvorum.storage.wal.inspect import inspect_log

    if not directory.is_dir():
        fail(f"{directory} is no directory; give the log directory of a node, log below its data directory", 2)
    description = inspect_log(directory)
    if not description.segments:
        inside = directory / "log"
        hint = f"; did you mean {inside}?" if inside.is_dir() else ""
        fail(f"{directory} holds no log segments{hint}")
    if output is OutputFormat.JSON:
        print_json(_plain(asdict(description)))
    else:
        _print(description)
    raise SystemExit(1 if description.error else 0)


def _plain(value: object) -> object:
    """The same value in the types JSON knows."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _print(description: LogDescription) -> None:
    from rich.table import Table

    terminal = console()
    table = Table()
    for heading in ("segment", "used", "of", "groups", "entries", "terms", "vote", "records", "damage"):
        table.add_column(heading, justify="left" if heading in {"segment", "records", "damage"} else "right")
    for segment in description.segments:
        table.add_row(*_row(segment))
    terminal.print(table)
    recovered = description.recovered
    if recovered is not None:
        state = recovered.hard_state
        voted = "nobody" if state.voted_for is None else f"node {state.voted_for}"
        terminal.print(f"a node that starts here finds entries {recovered.base_index + 1} to {recovered.last_index},")
        terminal.print(f"term {state.term}, vote for {voted}, {recovered.torn_bytes} torn bytes at the end")
        for index, configuration in recovered.configurations:
            members = ", ".join(f"{member.node_id} at {member.client_endpoint}" for member in configuration.members)
            terminal.print(f"configuration of index {index}: {members}", markup=False)
        for note in recovered.notes:
            terminal.print(note, markup=False)
    if description.error:
        terminal.print("[red]a node would refuse to start here:[/red]")
        terminal.print(description.error, markup=False)


def _row(segment: SegmentDescription) -> list[str]:
    span = f"{segment.first_index}-{segment.last_index}" if segment.first_index else "-"
    if segment.replaced_entries:
        span += f" ({segment.replaced_entries} replaced)"
    terms = f"{segment.terms[0]}-{segment.terms[-1]}" if segment.terms else "-"
    state = segment.hard_state
    damage = segment.damage
    return [
        segment.path.name,
        f"{segment.used_bytes:,}",
        f"{segment.file_bytes:,}",
        f"{segment.groups:,}",
        span,
        terms,
        f"{'-' if state.voted_for is None else state.voted_for} in {state.term}",
        ", ".join(f"{count:,} {kind}" for kind, count in segment.records.items()),
        "" if damage is None else f"at {damage.offset}: {damage.reason}",
    ]
