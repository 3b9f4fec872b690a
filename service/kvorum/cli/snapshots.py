"""``kvorum snapshot``: the state of a cluster as one file, and a new cluster out of such a file."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Final, NoReturn, cast

from kvorum.cli.admin_client import AdminClient, AdminError, http_endpoints
from kvorum.cli.output import OutputFormat, console, fail, print_json
from kvorum.cli.snapshot_files import SnapshotFileError, SnapshotSummary, read_chunks, verify_file, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress, TaskID

READ_TIMEOUT_S: Final = 60.0
"""How long a node may send nothing before the transfer counts as broken."""


def save(path: Path, *, endpoints: str, https: str | None, force: bool, output: OutputFormat) -> NoReturn:
    """Write the state of the first node that answers to a file."""
    if path.is_dir():
        fail(f"{path} is a directory; give the name of a file in it", 2)
    if path.exists() and not force:
        fail(f"{path} exists; give another name, or --force to replace it", 2)
    client = AdminClient(http_endpoints(endpoints, https), READ_TIMEOUT_S)
    try:
        with client.open("GET", "/snapshot") as response, _progress(total=False) as progress:
            task = progress.add_task("saving", total=None, rows=0)
            summary = write_file(
                path,
                cast("IO[bytes]", response),
                lambda size, rows: progress.update(task, advance=size, rows=rows),
            )
    except (AdminError, SnapshotFileError) as problem:
        fail(str(problem))
    except KeyboardInterrupt:
        fail("interrupted; no file was written", 130)
    _print_summary(path, summary, output, next_step=f"kvorum snapshot status {path} reads it again")
    raise SystemExit(0)


def status(path: Path, output: OutputFormat) -> NoReturn:
    """Read a file to its end, look at every checksum, and say what it holds."""
    _print_summary(path, _verified(path), output, next_step=None)
    raise SystemExit(0)


def restore(
    path: Path,
    *,
    config: Path | None,
    node_id: int | None,
    port: int | None,
    db_path: Path | None,
    output: OutputFormat,
) -> NoReturn:
    """Make a file the data directory of a new cluster's first node; the flags are those that the node starts with."""
    from kvorum.app.node import first_configuration
    from kvorum.app.restore import restore as fill
    from kvorum.config.load import Flags, load_settings
    from kvorum.core.errors import KvorumError, StartupError

    flags = Flags(port=port, node_id=node_id, db_path=db_path)
    try:
        settings, warnings = load_settings(config_file=config, environment=os.environ, flags=flags)
    except StartupError as problem:
        fail(str(problem))
    for warning in warnings:
        print(f"kvorum: {warning}", file=sys.stderr)
    directory = settings.data_directory
    _must_be_free(directory)
    # A damaged file must be noticed before anything is written.
    summary = _verified(path)
    member = first_configuration(settings).member(settings.node_id)
    assert member is not None, "settings describe the node itself"
    try:
        with path.open("rb") as file, _progress(total=True) as progress:
            task = progress.add_task("restoring", total=path.stat().st_size, rows=0)
            manifest = fill(_counted(read_chunks(file), progress, task), directory, member)
    except (KvorumError, OSError) as problem:
        fail(f"{problem}; {directory} is not usable as it is: remove what is in it before you try again")
    except KeyboardInterrupt:
        fail(f"interrupted; remove what is in {directory} before you try again", 130)
    document = {
        "data_directory": str(directory),
        "node_id": settings.node_id,
        "cluster_id": manifest.cluster_id.hex(),
        "index": manifest.index,
        "rows": summary.rows,
        "from_cluster_id": summary.manifest.cluster_id.hex(),
        "from_index": summary.manifest.index,
    }
    if output is OutputFormat.JSON:
        print_json(document)
    else:
        _print_restored(document, settings.node_id, others=len(settings.client_endpoints) > 1)
    raise SystemExit(0)


def _must_be_free(directory: Path) -> None:
    if directory.exists() and (
        not directory.is_dir() or {entry.name for entry in directory.iterdir()} - {"lost+found"}
    ):
        fail(
            f"{directory} is not an empty directory; a snapshot is restored only into an empty one: move it aside, or "
            "name another with --db-path",
            2,
        )


def _counted(chunks: Iterator[bytes], progress: Progress, task: TaskID) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        progress.update(task, advance=len(chunk))


def _print_restored(document: dict[str, object], node_id: int, *, others: bool) -> None:
    print(f"{document['data_directory']} holds {document['rows']:,} rows of index {document['from_index']:,}")
    print(
        f"new cluster {document['cluster_id']}, which begins at index {document['index']:,}, with node {node_id} alone"
    )
    print(f"next: start node {node_id} with the same flags (kvorum serve)", end="")
    print("; then add each other node, empty: kvorum member add HOST:PORT" if others else "")


def _verified(path: Path) -> SnapshotSummary:
    if not path.is_file():
        fail(f"{path} is no file; give a file that kvorum snapshot save wrote", 2)
    try:
        with _progress(total=True) as progress:
            task = progress.add_task("verifying", total=path.stat().st_size, rows=0)
            return verify_file(path, lambda size: progress.update(task, advance=size))
    except SnapshotFileError as problem:
        fail(str(problem))
    except KeyboardInterrupt:
        fail("interrupted", 130)


def _progress(*, total: bool) -> Progress:
    """A bar where the size is known, figures where it is not; nothing where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = [TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn()]
    columns.insert(1, BarColumn() if total else TextColumn("{task.fields[rows]:,} rows"))
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _print_summary(path: Path, summary: SnapshotSummary, output: OutputFormat, next_step: str | None) -> None:
    manifest = summary.manifest
    if output is OutputFormat.JSON:
        print_json(
            {
                "file": str(path),
                "file_bytes": path.stat().st_size,
                "cluster_id": manifest.cluster_id.hex(),
                "index": manifest.index,
                "term": manifest.term,
                "time_ms": manifest.time_ms,
                "members": [
                    {
                        "node_id": member.node_id,
                        "client_endpoint": member.client_endpoint,
                        "peer_endpoint": member.peer_endpoint,
                        "voter": member.voter,
                    }
                    for member in manifest.members.members
                ],
                "rows": summary.rows,
                "bytes": summary.bytes,
                "sha256": summary.sha256,
            }
        )
        return
    _print_text(console(), path, summary)
    if next_step is not None:
        console().print(next_step, markup=False)


def _print_text(terminal: Console, path: Path, summary: SnapshotSummary) -> None:
    from rich.table import Table

    manifest = summary.manifest
    when = (
        datetime.fromtimestamp(manifest.time_ms / 1000, UTC).isoformat(timespec="seconds") if manifest.time_ms else "-"
    )
    members = ", ".join(
        f"{member.node_id} at {member.client_endpoint}{'' if member.voter else ' (learner)'}"
        for member in manifest.members.members
    )
    table = Table(show_header=False)
    for name, value in (
        ("file", f"{path}, {path.stat().st_size:,} bytes, every checksum holds"),
        ("applied index", f"{manifest.index:,}"),
        ("term", str(manifest.term)),
        ("time of that entry", when),
        ("cluster", manifest.cluster_id.hex()),
        ("members", members),
        ("rows", f"{summary.rows:,} with {summary.bytes:,} bytes"),
        ("SHA-256 of the rows", summary.sha256),
    ):
        table.add_row(name, value)
    terminal.print(table)
