"""Options that several sub-commands share."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from kvorum.cli.output import OutputFormat

LOCALHOST: Final = "localhost:9090"

Endpoints = Annotated[
    str,
    typer.Option(
        "--endpoints",
        "-e",
        envvar="KVORUM_ENDPOINTS",
        help="Client endpoints of the nodes, host:port separated by commas.",
    ),
]
HttpEndpoints = Annotated[
    str | None,
    typer.Option(
        "--http-endpoints",
        envvar="KVORUM_HTTP_ENDPOINTS",
        help="HTTP endpoints of the nodes, in the same order; default client port - 1000.",
    ),
]
Output = Annotated[OutputFormat, typer.Option("--output", "-o", help="Form of the output.")]
