"""Every sub-command with its options; what a command needs is imported when called, so that each starts fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvorum.cli.operator_commands import leader, member, snapshot
from kvorum.cli.options import LOCALHOST, Endpoints, HttpEndpoints, Output
from kvorum.cli.output import OutputFormat

app = typer.Typer(
    help="kvorum: a transactional key-value store kept by Raft consensus.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
wal = typer.Typer(help="A node's consensus log: look into it, or cut it.", no_args_is_help=True)
app.add_typer(member, name="member")
app.add_typer(leader, name="leader")
app.add_typer(snapshot, name="snapshot")
app.add_typer(wal, name="wal")

Hex = Annotated[bool, typer.Option("--hex", help="Keys and values are hexadecimal instead of text with \\xNN.")]
Family = Annotated[str | None, typer.Option("--family", "-f", help="Column family; the default one if absent.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds for the whole command's call.", min=0.1)]
Consistency = Annotated[
    str | None,
    typer.Option("--consistency", help="Read level: read_index (linearizable), leader or local; else the node's own."),
]


@app.command()
def serve(
    *,
    port: Annotated[
        int | None, typer.Option("--port", "-p", help="Client port; THRIFT_PORT wins.", min=1, max=65535)
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="TOML configuration file.")] = None,
    node_id: Annotated[
        int | None, typer.Option("--node-id", "-n", help="This node's index in replica_endpoints.", min=0)
    ] = None,
    db_path: Annotated[Path | None, typer.Option("--db-path", "-d", help="Data directory, used as it is.")] = None,
    log_dir: Annotated[
        Path | None, typer.Option("--log-dir", help="Directory for log files; default logs; - for none.")
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option("--http-port", help="Port of metrics and health; default client port - 1000.", min=1, max=65535),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log at debug level.")] = False,
) -> None:
    """
    Run one node until SIGTERM.

    Without a file: a standalone node on port 9090 with its data below the current directory. Peers use the client
    port - 2000.
    """
    from kvorum.cli.serve import serve as run_node

    run_node(
        port=port,
        config=config,
        node_id=node_id,
        db_path=db_path,
        log_dir=log_dir,
        http_port=http_port,
        verbose=verbose,
    )


@app.command("check-config")
def check_config(
    *,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="TOML configuration file.")] = None,
    node_id: Annotated[
        int | None, typer.Option("--node-id", "-n", help="The node's index in replica_endpoints.", min=0)
    ] = None,
) -> None:
    """Say whether a node could start with this file and environment; asks nobody and writes nothing."""
    from kvorum.cli.serve import check_config as run_check

    run_check(config, node_id)


@app.command()
def status(*, endpoints: Endpoints = LOCALHOST, output: Output = OutputFormat.TEXT) -> None:
    """Show each node's role, term and progress; exit code 1 if none of them leads."""
    from kvorum.cli.status import show_status

    show_status(endpoints, output)


@app.command()
def verify(
    *,
    endpoints: Endpoints = LOCALHOST,
    http_endpoints: HttpEndpoints = None,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Compare the state of all nodes by its hash at one applied index; exit code 1 if they differ."""
    from kvorum.cli.verify import verify as run_verify

    run_verify(endpoints, http_endpoints, output)


@app.command()
def check(
    *,
    endpoints: Endpoints = LOCALHOST,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for each call.", min=0.1, max=600.0)] = 15.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Write a key through every voter and read it, linearizably, through all others; one endpoint finds them all."""
    from kvorum.cli.check import check as run_check

    run_check(endpoints, timeout, output)


@app.command()
def get(
    *,
    key: Annotated[str, typer.Argument(help="The key.")],
    endpoints: Endpoints = LOCALHOST,
    family: Family = None,
    consistency: Consistency = None,
    hexadecimal: Hex = False,
    timeout: Timeout = 15.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Print the value of a key; exit code 1 if there is none."""
    from kvorum.cli.keys import KeyCommand

    command = KeyCommand(endpoints, as_hex=hexadecimal, timeout_s=timeout, output=output, family=family)
    command.get(key, consistency)


@app.command("set")
def set_key(
    *,
    key: Annotated[str, typer.Argument(help="The key.")],
    value: Annotated[str, typer.Argument(help="The value.")],
    endpoints: Endpoints = LOCALHOST,
    family: Family = None,
    hexadecimal: Hex = False,
    timeout: Timeout = 15.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Write a key; exit code 0 means durable on a quorum."""
    from kvorum.cli.keys import KeyCommand

    command = KeyCommand(endpoints, as_hex=hexadecimal, timeout_s=timeout, output=output, family=family)
    command.set(key, value)


@app.command()
def delete(
    *,
    key: Annotated[str, typer.Argument(help="The key.")],
    endpoints: Endpoints = LOCALHOST,
    family: Family = None,
    hexadecimal: Hex = False,
    timeout: Timeout = 15.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Remove a key; a missing key is no error."""
    from kvorum.cli.keys import KeyCommand

    command = KeyCommand(endpoints, as_hex=hexadecimal, timeout_s=timeout, output=output, family=family)
    command.delete(key)


@app.command("range")
def range_(
    *,
    begin: Annotated[str, typer.Argument(help="First key, inclusive; absent: from the start.")] = "",
    end: Annotated[str | None, typer.Argument(help="Last key, exclusive; absent: \\xff.")] = None,
    endpoints: Endpoints = LOCALHOST,
    family: Family = None,
    limit: Annotated[int, typer.Option("--limit", "-l", help="Most pairs to print; 0: all.", min=0)] = 0,
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="From the upper end down.")] = False,
    keys_only: Annotated[bool, typer.Option("--keys-only", help="Print no values.")] = False,
    consistency: Consistency = None,
    hexadecimal: Hex = False,
    timeout: Timeout = 15.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Print keys and values of a range, one pair a line."""
    from kvorum.cli.keys import KeyCommand

    command = KeyCommand(endpoints, as_hex=hexadecimal, timeout_s=timeout, output=output, family=family)
    command.range(begin, end, limit=limit, reverse=reverse, keys_only=keys_only, consistency=consistency)


@app.command()
def demo(
    *,
    writes: Annotated[int, typer.Option("--writes", help="Keys to write.", min=100, max=10_000_000)] = 10_000,
    writers: Annotated[int, typer.Option("--writers", help="Writers at the same time.", min=1, max=1000)] = 32,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the three nodes running afterwards.")] = False,
) -> None:
    """Start three nodes, write while the leader is killed and restarted, and prove that nothing was lost."""
    from kvorum.cli.demo import run_demo

    run_demo(writes=writes, writers=writers, keep=keep)


@app.command()
def version() -> None:
    """Print kvorum's version."""
    import kvorum

    print(kvorum.__version__)


@wal.command("inspect")
def inspect_wal(
    *,
    directory: Annotated[Path, typer.Argument(help="The log directory: log below a node's data directory.")],
    output: Output = OutputFormat.TEXT,
) -> None:
    """Say what a log directory holds: segments, entries, terms, votes, and where it is torn."""
    from kvorum.cli.wal import inspect

    inspect(directory, output)


@wal.command("compact")
def compact_wal(
    *,
    endpoints: Endpoints = LOCALHOST,
    http_endpoints: HttpEndpoints = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for each node.", min=0.1, max=600.0)] = 30.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Cut the log of every node given, up to what its store holds durably; nodes do so by themselves, too."""
    from kvorum.cli.members import compact_logs

    compact_logs(endpoints, http_endpoints, timeout, output)
