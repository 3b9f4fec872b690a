"""Alerts, runbooks and pages belong together: none without the others."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

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
