"""What commands have in common: JSON or people's form, errors on stderr, and one place that ends with an exit code."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from rich.console import Console

PLAIN_WIDTH = 400
"""Most columns of a table that goes to a file or a pipe: room for the long names of pods; no table fills it up."""


class OutputFormat(StrEnum):
    """Form of what a command prints."""

    TEXT = "text"
    JSON = "json"


def fail(message: str, code: int = 1) -> NoReturn:
    """End with a message on stderr."""
    print(f"kvorum: {message}", file=sys.stderr)
    raise SystemExit(code)


def usage_error(message: str) -> NoReturn:
    """End because the command line is wrong."""
    fail(message, 2)


def print_json(value: object) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def console() -> Console:
    """Make the terminal; wide and plain where there is none."""
    from rich.console import Console

    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def read_endpoints(text: str) -> list[str]:
    """Split ``a:1,b:2``; ends the command if it cannot be read."""
    from kvorum_client import split_endpoint

    endpoints = [part.strip() for part in text.split(",") if part.strip()]
    if not endpoints:
        usage_error("no endpoints given: --endpoints host:port,host:port")
    for endpoint in endpoints:
        try:
            split_endpoint(endpoint)
        except ValueError as problem:
            usage_error(str(problem))
    return endpoints


def run_async(work: Coroutine[object, object, int]) -> NoReturn:
    """Run a command's coroutine and end with the exit code it returns; a client error becomes one line."""
    import asyncio

    from kvorum_client import KvorumError

    try:
        code = asyncio.run(work)
    except KvorumError as problem:
        fail(str(problem))
    except KeyboardInterrupt:
        fail("interrupted", 130)
    raise SystemExit(code)
