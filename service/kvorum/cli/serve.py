"""``kvorum serve``: flags to settings, settings to a node."""

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
