"""Running programs with a bound, and waiting for conditions with a bound."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

T = TypeVar("T")

COMMAND_S: Final = 60.0
PROGRESS_S: Final = 15.0
OUTPUT_SHOWN: Final = 4000


class CommandError(Exception):
    """A program failed, or did not end in its time; the message holds its output."""


class NotYetError(Exception):
    """What is waited for is not so yet; the text says what is there instead."""


def not_yet(text: str) -> NoReturn:
    """Say what is there instead of what is waited for."""
    raise NotYetError(text)


def run(
    command: Sequence[str],
    *,
    timeout_s: float = COMMAND_S,
    given: str | None = None,
    directory: Path | None = None,
) -> str:
    """
    Run a program and return what it printed on its standard output.

    Args:
        command: Program and arguments.
        timeout_s: When it is killed.
        given: Its standard input; none by default.
        directory: Where it runs.
    """
    shown = " ".join(command)
    try:
        done = subprocess.run(
            command, input=given or "", capture_output=True, text=True, timeout=timeout_s, cwd=directory, check=False
        )
    except subprocess.TimeoutExpired as problem:
        text = f"`{shown}` did not end within {timeout_s:.0f} s"
        raise CommandError(text) from problem
    except OSError as problem:
        text = f"`{shown}` cannot be started: {problem}"
        raise CommandError(text) from problem
    if done.returncode != 0:
        text = f"`{shown}` ended with {done.returncode}: {(done.stderr + done.stdout).strip()[-OUTPUT_SHOWN:]}"
        raise CommandError(text)
    return done.stdout


class Kubectl:
    """
    ``kubectl`` against the current KUBECONFIG, in one namespace.

    Args:
        namespace: Put in front of every command; None for objects of the whole cluster.
    """

    def __init__(self, namespace: str | None = None) -> None:
        self.namespace = namespace

    def __call__(self, *arguments: str, timeout_s: float = COMMAND_S, given: str | None = None) -> str:
        """Run one command; the API server gets as long as the command itself."""
        where = [] if self.namespace is None else ["--namespace", self.namespace]
        return run(["kubectl", *where, *arguments], timeout_s=timeout_s, given=given)

    def get(self, *arguments: str) -> Any:
        """Objects as Kubernetes shows them: one, or a list under ``items``."""
        return json.loads(self("get", *arguments, "--output", "json", "--request-timeout", "15s"))

    def apply(self, *objects: dict[str, object]) -> None:
        """Create objects, or change them."""
        self("apply", "--filename", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


def wait_until(condition: Callable[[], T], what: str, within_s: float, *, pause_s: float = 0.5) -> T:
    """
    Ask until the condition neither raises `NotYetError` nor `CommandError`, and return its answer.

    Raises:
        AssertionError: It never came true within its time; the message says how it stood at last.
    """
    started = shown = time.monotonic()
    while True:
        try:
            return condition()
        except (NotYetError, CommandError) as problem:
            now = time.monotonic()
            if now - started > within_s:
                text = f"not within {within_s:.0f} s: {what}; at last: {problem}"
                raise AssertionError(text) from problem
            if now - shown > PROGRESS_S:
                shown = now
                say(f"waiting since {now - started:.0f} s: {what}; {str(problem)[:300]}")
        time.sleep(pause_s)


def say(text: str) -> None:
    """Tell whoever watches what happens, with the time."""
    print(f"  {time.strftime('%H:%M:%S')}  {text}", flush=True)


def hold(seconds: float, why: str) -> None:
    """Let a fault last: the one place where time itself is waited for."""
    say(f"for {seconds:.0f} s {why}")
    time.sleep(seconds)
