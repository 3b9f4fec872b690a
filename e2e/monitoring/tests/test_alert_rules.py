"""The alerts as Prometheus itself understands them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FILES = Path(__file__).resolve().parents[3] / "helm/kvorum/files"

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt install prometheus)"
)


def _promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=50, check=False)


def test_alert_rules_are_valid() -> None:
    """Prometheus takes the file as it is."""
    found = _promtool("check", "rules", str(FILES / "alerts.yaml"))

    assert found.returncode == 0, found.stdout + found.stderr
    assert "SUCCESS" in found.stdout


def test_alert_rules_fire_when_they_should_and_only_then() -> None:
    """Every case of the rules' own test file holds."""
    found = _promtool("test", "rules", str(FILES / "tests/alerts_test.yaml"))

    assert found.returncode == 0, found.stdout + found.stderr
