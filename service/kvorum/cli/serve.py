"""``kvorum serve`` and ``kvorum check-config``: flags to settings, settings to a node."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kvorum.cli.output import fail

if TYPE_CHECKING:
    from pathlib import Path
    from typing import NoReturn


def serve(
    *,
    port: int | None,
    config: Path | None,
    node_id: int | None,
    db_path: Path | None,
    log_dir: Path | None,
    http_port: int | None,
    verbose: bool,
) -> NoReturn:
    """Run a node until it is told to stop."""
    from kvorum.app.run import run
    from kvorum.config.load import Flags, load_settings
    from kvorum.core.errors import StartupError

    flags = Flags(port=port, node_id=node_id, db_path=db_path, log_dir=log_dir, http_port=http_port, verbose=verbose)
    try:
        settings, warnings = load_settings(config_file=config, environment=os.environ, flags=flags)
    except StartupError as problem:
        fail(str(problem))
    raise SystemExit(run(settings, warnings))


def check_config(config: Path | None, node_id: int | None) -> NoReturn:
    """Say what a node would make of its file and environment; exit code 1 if it could not start with them."""
    from kvorum.config.load import Flags, load_settings
    from kvorum.core.errors import StartupError

    try:
        settings, warnings = load_settings(config_file=config, environment=os.environ, flags=Flags(node_id=node_id))
    except StartupError as problem:
        fail(str(problem))
    for warning in warnings:
        print(f"warning: {warning}")
    ports = ", ".join(
        f"{use} {port}"
        for use, port in (("client", settings.client_port), ("peer", settings.peer_port), ("http", settings.http_port))
        if port is not None
    )
    print(f"good: node {settings.node_id} at {settings.advertise_endpoint}, ports {ports}")
    raise SystemExit(0)
