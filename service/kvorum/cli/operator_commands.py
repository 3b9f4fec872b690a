"""The sub-commands for operators: members, leader, snapshots; each asks nodes over HTTP or reads a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvorum.cli.options import LOCALHOST, Endpoints, HttpEndpoints, Output
from kvorum.cli.output import OutputFormat

member = typer.Typer(help="Who belongs to the cluster: list, add, promote, remove, replace.", no_args_is_help=True)
leader = typer.Typer(help="Who leads: show, move.", no_args_is_help=True)
snapshot = typer.Typer(help="The state of a cluster in one file: save, status, restore.", no_args_is_help=True)

NodeId = Annotated[int, typer.Argument(help="The node's id, as kvorum member list shows it.", min=0)]
Wait = Annotated[float, typer.Option("--timeout", help="Seconds the change may take.", min=0.1, max=600.0)]
PeerEndpoint = Annotated[
    str | None, typer.Option("--peer-endpoint", help="Where peers reach it, host:port; default client port - 2000.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Do it although too few voters answer, or the node is up or far behind.")
]
File = Annotated[Path, typer.Argument(help="The snapshot file.")]


@member.command("list")
def list_members(
    *,
    endpoints: Endpoints = LOCALHOST,
    http_endpoints: HttpEndpoints = None,
    timeout: Wait = 10.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Show every member, what it is and how far it is; exit code 1 if no leader is known."""
    from kvorum.cli.members import MemberCommand

    MemberCommand(endpoints, http_endpoints, timeout, output).list_members()


@member.command("add")
def add_member(
    *,
    endpoint: Annotated[str, typer.Argument(help="Client endpoint of the new node, host:port.")],
    peer_endpoint: PeerEndpoint = None,
    node_id: Annotated[int | None, typer.Option("--node-id", "-n", help="Its id; default the next one.", min=0)] = None,
    endpoints: Endpoints = LOCALHOST,
    http_endpoints: HttpEndpoints = None,
    timeout: Wait = 30.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Take in a node as a learner: it gets every entry, and a vote once it has caught up."""
    from kvorum.cli.members import MemberCommand

    MemberCommand(endpoints, http_endpoints, timeout, output).add(endpoint, peer_endpoint, node_id)


@member.command("promote")
def promote_member(
    *,
    node_id: NodeId,
    force: Force = False,
    endpoints: Endpoints = LOCALHOST,
    http_endpoints: HttpEndpoints = None,
    timeout: Wait = 30.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Make a learner a voter at once; the leader does so by itself when the learner has caught up."""
    from kvorum.cli.members import MemberCommand

    MemberCommand(endpoints, http_endpoints, timeout, output).promote(node_id, force=force)


@member.command("remove")
def remove_member(
    *,
    node_id: NodeId,
    force: Force = False,
    endpoints: Endpoints = LOCALHOST,
    http_endpoints: HttpEndpoints = None,
    timeout: Wait = 30.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Take a node out for good, dead or alive; its data directory never serves under this id again."""
    from kvorum.cli.members import MemberCommand

    MemberCommand(endpoints, http_endpoints, timeout, output).remove(node_id, force=force)


@member.command("replace")
def replace_member(
    *,
    node_id: NodeId,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="New client endpoint, host:port; default the present one.")
    ] = None,
    peer_endpoint: PeerEndpoint = None,
    force: Force = False,
    endpoints: Endpoints = LOCALHOST,
    http_endpoints: HttpEndpoints = None,
    timeout: Wait = 30.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Give the seat of a node whose disk is lost to an empty data directory; it comes back as a learner."""
    from kvorum.cli.members import MemberCommand

    MemberCommand(endpoints, http_endpoints, timeout, output).replace(node_id, endpoint, peer_endpoint, force=force)


@leader.command("show")
def show_leader(
    *,
    endpoints: Endpoints = LOCALHOST,
    http_endpoints: HttpEndpoints = None,
    timeout: Wait = 10.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Show who leads, as the first node that answers knows it; exit code 1 if nobody is known to."""
    from kvorum.cli.members import MemberCommand

    MemberCommand(endpoints, http_endpoints, timeout, output).show_leader()


@leader.command("move")
def move_leader(
    *,
    node_id: Annotated[
        int | None, typer.Argument(help="Who is to lead; absent: the voter that has most of the log.", min=0)
    ] = None,
    endpoints: Endpoints = LOCALHOST,
    http_endpoints: HttpEndpoints = None,
    timeout: Wait = 10.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Hand leadership over without an outage."""
    from kvorum.cli.members import MemberCommand

    MemberCommand(endpoints, http_endpoints, timeout, output).move_leader(node_id)


@snapshot.command("save")
def save_snapshot(
    *,
    file: File,
    force: Annotated[bool, typer.Option("--force", help="Replace a file of that name.")] = False,
    endpoints: Endpoints = LOCALHOST,
    http_endpoints: HttpEndpoints = None,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Write the state of the first node that answers to a file, while it serves; every checksum is looked at."""
    from kvorum.cli.snapshots import save

    save(file, endpoints=endpoints, https=http_endpoints, force=force, output=output)


@snapshot.command("status")
def show_snapshot(*, file: File, output: Output = OutputFormat.TEXT) -> None:
    """Read a file to its end, look at every checksum, and say what it holds; exit code 1 if it is not whole."""
    from kvorum.cli.snapshots import status

    status(file, output)


@snapshot.command("restore")
def restore_snapshot(
    *,
    file: File,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="TOML configuration file of the new node.")
    ] = None,
    node_id: Annotated[
        int | None, typer.Option("--node-id", "-n", help="Its index in replica_endpoints.", min=0)
    ] = None,
    port: Annotated[int | None, typer.Option("--port", "-p", help="Its client port.", min=1, max=65535)] = None,
    db_path: Annotated[
        Path | None, typer.Option("--db-path", "-d", help="Its data directory, used as it is; missing or empty.")
    ] = None,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Begin a new cluster, of one node for now, with the state in a file; the node must not run yet."""
    from kvorum.cli.snapshots import restore

    restore(file, config=config, node_id=node_id, port=port, db_path=db_path, output=output)
