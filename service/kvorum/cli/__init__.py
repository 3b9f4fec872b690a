"""The ``kvorum`` command: begin reading at `commands`, which declares every sub-command."""

from __future__ import annotations


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    from kvorum.cli.commands import app

    app(prog_name="kvorum")
