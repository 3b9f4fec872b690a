"""House rules that no linter says: sizes, tasks, purity, constants, pages, words."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
PURE_ROOMS = ("core", "raft", "paxos", "statemachine")
MODULE_LINES_MAX = 600
PURE_MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60

MAY_CREATE_TASKS: frozenset[str] = frozenset(
    (
        # The client has no supervisor: each of these keeps its task, and ends it in `close`.
        "client/kvorum_client/connection.py",
        "client/kvorum_client/leader.py",
        "client/kvorum_client/pool.py",
        # The owner of the peer links keeps every task of every link and cancels them in `stop`.
        "service/kvorum/peers/tcp.py",
        # Awaited by whoever starts it or kept until it ends; what it raises ends the process.
        "service/kvorum/consensus/manager.py",
        "service/kvorum/consensus/snapshots.py",
        # A claim keeps its one task, and `close` cancels it; what it raises ends the process.
        "service/kvorum/discovery/genesis.py",
        # One task from `start` to `stop`; what it raises ends the process.
        "service/kvorum/app/scaling.py",
        # The story keeps its clients and faults, looks at them all the time, and awaits them all.
        "service/kvorum_sim/scenario.py",
        # The virtual-time loop is what tasks run on.
        "service/kvorum_sim/loop.py",
        "service/kvorum_sim/process.py",
        # A stream keeps the task that makes its items, and cancels it when the connection breaks.
        "service/kvorum_sim/streams.py",
        # The driver of raftos keeps the writes that it begins, and cancels what never ends.
        "service/kvorum_sim/teeth/raftos_driver.py",
        # The demo runs its writers beside the killing.
        "service/kvorum/cli/demo.py",
    )
)


@cache
def _files(*suffixes: str) -> tuple[str, ...]:
    """Paths that git tracks, or would if asked, below the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = sorted(set(filter(None, listed.split("\0"))))
    return tuple(path for path in paths if path.endswith(suffixes) and (ROOT / path).is_file())


@cache
def _text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def _tree(path: str) -> ast.Module:
    return ast.parse(_text(path), path)


def _modules() -> tuple[str, ...]:
    """Modules of the product: neither tests nor benches."""
    return tuple(path for path in _files(".py") if path.startswith(("service/", "client/")) and "/tests/" not in path)


def _is_pure(path: str) -> bool:
    return path.startswith(tuple(f"service/kvorum/{room}/" for room in PURE_ROOMS))


def _functions(path: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(_tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_house_modules_are_short() -> None:
    """No Python module has more than 600 lines, no pure one more than 400."""
    too_long = {
        path: lines
        for path in _files(".py")
        if (lines := _text(path).count("\n")) > (PURE_MODULE_LINES_MAX if _is_pure(path) else MODULE_LINES_MAX)
    }

    assert too_long == {}


def test_house_functions_are_short() -> None:
    """No function of the product has more than 60 lines, decorators not counted."""
    too_long = {
        f"{path}:{function.lineno} {function.name}": lines
        for path in _modules()
        for function in _functions(path)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES_MAX
    }

    assert too_long == {}


def test_house_tasks_have_an_owner() -> None:
    """Only modules that keep and end their tasks make any; a forgotten task swallows its exception."""
    makers = {
        path
        for path in _modules()
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Attribute) and node.attr in ("create_task", "ensure_future")
    }

    assert makers <= MAY_CREATE_TASKS, f"tasks without an owner: {sorted(makers - MAY_CREATE_TASKS)}"


def test_house_pure_rooms_know_no_clock_and_no_chance() -> None:
    """In pure rooms no attribute of time or random is touched, however it got there; nor is hash order relied on."""
    forbidden = {"time", "random", "secrets", "uuid", "datetime", "os", "threading", "asyncio"}
    touched = [
        f"{path}:{node.lineno} {node.value.id}.{node.attr}"
        for path in _modules()
        if _is_pure(path)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in forbidden
    ]

    assert touched == []


def test_house_every_limit_is_used() -> None:
    """A constant of core.limits that nothing reads bounds nothing."""
    limits = "service/kvorum/core/limits.py"
    names = [
        node.targets[0].id if isinstance(node, ast.Assign) else node.target.id  # type: ignore[attr-defined,union-attr]
        for node in _tree(limits).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
    ]
    others = "\n".join(_text(path) for path in _modules() if path != limits)

    assert names
    assert [name for name in names if not re.search(rf"\b{name}\b", others)] == []


def test_house_every_test_states_its_fact() -> None:
    """Every test of the repository has a docstring, and a name that says what happens."""
    silent = [
        f"{path}:{function.lineno} {function.name}"
        for path in _files(".py")
        if "/test_" in path
        for function in _functions(path)
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]

    assert silent == []


def test_house_test_files_have_names_of_their_own() -> None:
    """Equal file names make reports ambiguous; `__init__.py` would change how tests are imported."""
    names = [Path(path).name for path in _files(".py") if "/tests/" in path]
    unique = [name for name in names if name.startswith("test_")]

    assert sorted(unique) == sorted(set(unique))
    assert "__init__.py" not in names


def test_house_decisions_are_listed() -> None:
    """Every page of docs/decisions is linked from its index, in order and without gaps, and has the five parts."""
    pages = [path for path in _files(".md") if re.match(r"docs/decisions/\d{4}-", path)]
    index = _text("docs/decisions/README.md")
    parts = ("## Context", "## Decision", "## Consequences", "## What would change our mind", "## Tests that guard it")

    assert [path for path in pages if f"({Path(path).name})" not in index] == []
    assert [int(Path(path).name[:4]) for path in pages] == list(range(1, len(pages) + 1))
    assert [(path, part) for path in pages for part in parts if part not in _text(path)] == []


def test_house_links_between_pages_lead_somewhere() -> None:
    """A relative link in a page names a file that exists."""
    broken = [
        f"{path}: {target}"
        for path in _files(".md")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", _text(path))
        if "://" not in target and not ((ROOT / path).parent / target).exists()
    ]

    assert broken == []


def test_house_no_unfinished_business() -> None:
    """The repository holds no notes to self; what is missing is said in CHANGELOG.md or the pages."""
    words = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
    found = [path for path in _files(".py", ".md", ".toml", ".thrift", ".c") if words.search(_text(path))]

    assert found == []


def test_house_no_paths_of_one_machine() -> None:
    """Nothing points outside the repository, to places that exist on one machine only."""
    foreign = re.compile(r"(?<![\w.])/wo" r"rk/|\.\./sha" r"red|/ro" r"ot/")
    found = [
        path
        for path in _files(".py", ".md", ".toml", ".txt", ".lock", ".c", "Makefile", "run")
        if foreign.search(_text(path))
    ]

    assert found == []


@pytest.mark.parametrize("package", ["service/kvorum", "client/kvorum_client", "client/kvorum_idl"])
def test_house_packages_are_typed(package: str) -> None:
    """Every shipped package carries the marker that lets type checkers read it."""
    assert (ROOT / package / "py.typed").is_file()
