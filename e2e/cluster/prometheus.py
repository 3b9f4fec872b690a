"""A Prometheus process of a test's own, and the panels of a Grafana dashboard asked of it."""

from __future__ import annotations

import json
import math
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

from kvorum.cli.local_cluster import find_free_ports

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PANELS_MIN = 60
"""A dashboard with fewer queries was not read as Grafana reads it."""


class Prometheus:
    """
    A Prometheus that runs with the test.

    Args:
        folder: For its configuration, data and output.
        config: Its configuration, as in ``prometheus.yml``.
    """

    def __init__(self, folder: Path, config: Mapping[str, object]) -> None:
        (self._port,) = find_free_ports(1)
        file = folder / "prometheus.json"
        # JSON is YAML too.
        file.write_text(json.dumps(config), encoding="utf-8")
        self._output = (folder / "prometheus.out").open("wb")
        self._process = subprocess.Popen(
            ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}",
             f"--web.listen-address=127.0.0.1:{self._port}"],
            stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output, cwd=folder,
        )  # fmt: skip

    def end(self) -> None:
        """Stop it; what it collected goes with the folder."""
        self._process.kill()
        self._process.wait(60)
        self._output.close()

    def ask(self, path: str, **parameters: str) -> Any:
        """
        The data of one answer of its HTTP interface.

        Raises:
            AssertionError: It refuses the question.
            OSError: It does not answer, or not yet.
        """
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                text = f"{path} {parameters}: {error.read().decode()}"
            raise AssertionError(text) from error

    def query(self, expression: str) -> list[float]:
        """Values of an instant query."""
        return [float(found["value"][1]) for found in self.ask("query", query=expression)["result"]]

    def alerts(self) -> dict[str, str]:
        """Alerts that are pending or firing."""
        return {alert["labels"]["alertname"]: alert["state"] for alert in self.ask("alerts")["alerts"]}

    def rules(self) -> list[dict[str, Any]]:
        """All rules, as they were evaluated last."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]

    def empty_panels(self, dashboard: Mapping[str, Any], variables: Mapping[str, str]) -> list[str]:
        """
        Queries of a dashboard that give no number now.

        Args:
            dashboard: As Grafana imports it.
            variables: What Grafana would put in place of each variable, by its name with the dollar.
        """
        asked = [
            (panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", [])
        ]
        assert len(asked) > PANELS_MIN, f"only {len(asked)} queries found in the dashboard"
        empty = []
        for title, expression in asked:
            if not any(map(math.isfinite, self.query(substituted(expression, variables)))):
                empty.append(f"{title}: {expression}")
        return empty


def substituted(expression: str, variables: Mapping[str, str]) -> str:
    """A query of the dashboard as Grafana would send it."""
    for name, value in variables.items():
        expression = expression.replace(name, value)
    return expression
