"""Alerts, runbooks and pages belong together: none without the others."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import typer.main

from kvorum.cli.commands import app

ROOT = Path(__file__).resolve().parents[4]
FILES = ROOT / "helm/kvorum/files"
RUNBOOKS = ROOT / "docs/operations/runbooks"
PARTS = ["## What it means", "## How bad", "## Look", "## Do", "## Escalate"]

ALERTS = (FILES / "alerts.yaml").read_text(encoding="utf-8")
TESTS = (FILES / "tests/alerts_test.yaml").read_text(encoding="utf-8")
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in RUNBOOKS.glob("*.md") if page.stem != "README"}


def _rules() -> list[str]:
    """The text of each alert."""
    return re.split(r"\n\s+- alert: ", ALERTS)[1:]


def _names() -> list[str]:
    return [rule.split("\n", 1)[0] for rule in _rules()]


def _documented() -> set[str]:
    page = (ROOT / "docs/operations/metrics.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `(kvorum_\w+)` \|", page, re.MULTILINE))


def _unknown_metrics(text: str) -> set[str]:
    """Names of kvorum's metrics that no page explains; a histogram's series belong to it."""
    used = set(re.findall(r"\bkvorum_[a-z]\w+", text)) - {"kvorum_client"}
    known = _documented()
    return {name for name in used if name not in known and re.sub(r"_(bucket|sum|count)$", "", name) not in known}


def test_every_alert_is_complete() -> None:
    """Each alert has a severity, a summary, a description, and the path of the runbook that carries its name."""
    assert len(_names()) > 20
    for name, rule in zip(_names(), _rules(), strict=True):
        assert re.search(r"severity: (warning|critical)\n", rule), name
        assert "summary: " in rule, name
        assert "description: " in rule, name
        assert f"runbook_url: docs/operations/runbooks/{name}.md" in rule, name


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    """Pages and alerts have the same names, and the index lists them all."""
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")

    assert set(_names()) == set(PAGES)
    assert [name for name in PAGES if f"({name}.md)" not in index] == []


def test_every_runbook_has_the_same_parts() -> None:
    """Who is woken at night finds everything in the same place."""
    for name, text in PAGES.items():
        assert text.startswith(f"# {name}\n"), name
        assert re.findall(r"^## .*$", text, re.MULTILINE) == PARTS, name
        assert len(text.splitlines()) < 60, name


def test_every_alert_is_tested_firing_and_silent() -> None:
    """Per severity there is a case in which the alert fires, and one in which it does not, although time has passed."""
    for name, rule in zip(_names(), _rules(), strict=True):
        cases = TESTS.split(f"alertname: {name}\n")[1:]
        severity = re.findall(r"severity: (\w+)", rule)[0]
        firing = [case for case in cases if f"exp_labels: {{severity: {severity}," in case.split("- eval_time")[0]]
        silent = [case for case in cases if case.lstrip().startswith("exp_alerts: []")]
        assert firing, (name, severity)
        assert silent, (name, severity)


def test_alerts_and_runbooks_ask_for_metrics_that_exist() -> None:
    """Whatever an alert, a test of one or a runbook names stands on the page of metrics."""
    assert _unknown_metrics(ALERTS) == set()
    assert _unknown_metrics(TESTS) == set()
    assert {name: found for name, text in PAGES.items() if (found := _unknown_metrics(text))} == {}


def test_runbooks_name_commands_that_exist() -> None:
    """Every `kvorum` command of a runbook, with its options, is one of ours."""
    command = typer.main.get_command(app)
    asked = set()
    for text in PAGES.values():
        asked |= set(re.findall(r"(?:-- |`)(kvorum [a-z][^`\n]*)", text))
    assert len(asked) > 8
    for line in sorted(asked):
        _, *words = shlex.split(line)
        found = command
        while words and words[0] in getattr(found, "commands", {}):
            found = found.commands[words.pop(0)]  # type: ignore[attr-defined]
        assert not hasattr(found, "commands"), f"no such command: {line}"
        options = {option for parameter in found.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, line
        assert all(word.isupper() or word.startswith("-") or "/" in word or ":" in word for word in words), line


def _panels() -> list[dict[str, Any]]:
    """Panels of the dashboard that show something."""
    dashboard = json.loads((FILES / "dashboard.json").read_text(encoding="utf-8"))
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_dashboard_asks_for_metrics_that_exist() -> None:
    """Every query of every panel, variable and annotation names metrics of the page on metrics."""
    assert _unknown_metrics((FILES / "dashboard.json").read_text(encoding="utf-8")) == set()


def test_dashboard_begins_with_leader_term_commit_and_applied() -> None:
    """Who looks at night sees first who leads, in which term, and how far each pod is."""
    first = [panel["targets"][0]["expr"].split("{")[0] for panel in _panels()[:4]]

    assert first == [
        "kvorum_raft_is_leader",
        "kvorum_raft_term",
        "kvorum_raft_commit_index",
        "kvorum_raft_applied_index",
    ]


def test_dashboard_panels_are_in_order() -> None:
    """No two panels have one number, one title or one query, overlap, or leave the grid; every query is of one job."""
    panels = _panels()
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert [title for title, expressions in _repeated(panels).items() if len(expressions) > 1] == []
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert [query for query in queries if 'namespace="$namespace", job="$job"' not in query] == []


def _repeated(panels: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Titles of panels by the whole of what they ask."""
    asked: dict[str, list[str]] = {}
    for panel in panels:
        asked.setdefault(" & ".join(target["expr"] for target in panel["targets"]), []).append(panel["title"])
    return asked
