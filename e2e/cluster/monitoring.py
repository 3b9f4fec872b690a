"""
A real Prometheus on the pods of a release, on any cluster that kubectl reaches.

Prometheus runs beside the test and scrapes every pod through the API server (``kubectl proxy``), so neither pod
addresses nor a registry nor the Prometheus operator are needed. In the operator's place `Discovery` reads the chart's
ServiceMonitor and finds the pods behind it as the operator would have Prometheus find them: Services by its selector,
their EndpointSlices, the named port, and the labels namespace, service, pod and job.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import threading
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from cluster.commands import CommandError, Kubectl, not_yet, say, wait_until
from cluster.prometheus import Prometheus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cluster.release import Release

GROUP: Final = "monitoring.coreos.com"
CRDS: Final = (f"servicemonitors.{GROUP}", f"prometheusrules.{GROUP}")
PROXY_S: Final = 10.0
LOOK_S: Final = 1.0
SERVICE_MONITOR: Final = {
    "metrics.serviceMonitor.enabled": True,
    "metrics.serviceMonitor.interval": "2s",
    "metrics.serviceMonitor.scrapeTimeout": "2s",
}
RULES: Final = {"metrics.prometheusRule.enabled": True}
DASHBOARD: Final = {"metrics.dashboard.enabled": True}


def needed() -> None:
    """Skip the test if this machine has no Prometheus."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not on PATH (Debian: apt install prometheus)")


@dataclass(frozen=True, slots=True)
class Monitoring:
    """What the chart gives to those who watch: found in the cluster, or rendered where it cannot be put there."""

    service_monitor: dict[str, Any]
    rules: dict[str, Any]
    dashboard: dict[str, Any]


def install(release: Release) -> Monitoring:
    """
    Install with ServiceMonitor, PrometheusRule and dashboard, and read them back.

    A cluster without the kinds of the Prometheus operator gets the dashboard alone; what the chart would have put there
    is rendered and used all the same.
    """
    try:
        Kubectl()("get", "customresourcedefinitions", *CRDS)
    except CommandError as problem:
        say(f"ServiceMonitor and PrometheusRule are rendered but not installed: {problem}")
        release.install(DASHBOARD)
        rendered = {
            document["kind"]: document
            for document in yaml.safe_load_all(release.template({**SERVICE_MONITOR, **RULES}))
            if document is not None
        }
        service_monitor, rules = rendered["ServiceMonitor"], rendered["PrometheusRule"]
    else:
        release.install({**SERVICE_MONITOR, **RULES, **DASHBOARD})
        (service_monitor,) = release.kubectl.get(CRDS[0])["items"]
        (rules,) = release.kubectl.get(CRDS[1])["items"]
    (dashboard,) = release.kubectl.get("configmaps", "--selector", "grafana_dashboard=1")["items"]
    (text,) = dashboard["data"].values()
    return Monitoring(service_monitor["spec"], rules["spec"], json.loads(text))


@contextlib.contextmanager
def watch(release: Release, monitoring: Monitoring, folder: Path) -> Iterator[Prometheus]:
    """Scrape the pods behind the ServiceMonitor, evaluate the rules, until the end of the block."""
    endpoint = monitoring.service_monitor["endpoints"][0]
    rules, targets = folder / "rules.json", folder / "targets.json"
    rules.write_text(json.dumps(monitoring.rules), encoding="utf-8")
    targets.write_text("[]", encoding="utf-8")
    config = {
        "global": {"evaluation_interval": endpoint["interval"]},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": "service-monitor",
                "scrape_interval": endpoint["interval"],
                "scrape_timeout": endpoint["scrapeTimeout"],
                "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}],
            }
        ],
    }
    with api_server() as address:
        discovery = Discovery(address, release.namespace, monitoring.service_monitor, targets)
        prometheus = Prometheus(folder, config)
        try:
            discovery.start()
            wait_until(lambda: _answers(prometheus), "Prometheus answers", 30)
            yield prometheus
        finally:
            prometheus.end()
            discovery.stop()


def _answers(prometheus: Prometheus) -> None:
    try:
        prometheus.ask("status/runtimeinfo")
    except (OSError, AssertionError) as problem:
        not_yet(str(problem))


@contextlib.contextmanager
def api_server() -> Iterator[str]:
    """The API server without its credentials, on an address of this machine: ``kubectl proxy``."""
    command = ["kubectl", "proxy", "--port=0", "--address=127.0.0.1"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r"(127\.0\.0\.1:\d+)", said)
            assert found, f"`{' '.join(command)}` says {said!r}"
            yield found.group(1)
        finally:
            process.kill()


class Discovery:
    """
    Keeps a file of targets for Prometheus up to date with what a ServiceMonitor selects.

    Args:
        address: Of the API server, as `api_server` gives it.
        namespace: The release's.
        monitor: ``spec`` of the ServiceMonitor, of the forms that the chart makes.
        file: The targets, as Prometheus's file discovery reads them.
    """

    def __init__(self, address: str, namespace: str, monitor: dict[str, Any], file: Path) -> None:
        assert monitor["namespaceSelector"]["matchNames"] == [namespace]
        self._address = address
        self._namespace = namespace
        self._monitor = monitor
        self._file = file
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="discovery")

    def start(self) -> None:
        """Look again and again."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        self._thread.join(2 * PROXY_S)

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_S):
            try:
                targets = self._targets()
            except OSError as problem:
                say(f"the API server does not say which pods there are: {problem}")
                continue
            new = self._file.with_suffix(".new")
            new.write_text(json.dumps(targets), encoding="utf-8")
            new.replace(self._file)

    def _targets(self) -> list[dict[str, object]]:
        labels = self._monitor["selector"]["matchLabels"]
        return [
            self._target(service, slice_, endpoint)
            for service in self._list("api/v1", "services", labels)
            for slice_ in self._list(
                "apis/discovery.k8s.io/v1",
                "endpointslices",
                {"kubernetes.io/service-name": service["metadata"]["name"]},
            )
            for endpoint in slice_["endpoints"] or ()
            if endpoint.get("targetRef", {}).get("kind") == "Pod"
        ]

    def _target(self, service: dict[str, Any], slice_: dict[str, Any], endpoint: dict[str, Any]) -> dict[str, object]:
        wanted = self._monitor["endpoints"][0]
        (port,) = (port["port"] for port in slice_["ports"] if port["name"] == wanted["port"])
        pod = endpoint["targetRef"]["name"]
        return {
            "targets": [self._address],
            "labels": {
                "__metrics_path__": f"/api/v1/namespaces/{self._namespace}/pods/{pod}:{port}/proxy{wanted['path']}",
                "instance": f"{endpoint['addresses'][0]}:{port}",
                "namespace": self._namespace,
                "service": service["metadata"]["name"],
                "endpoint": wanted["port"],
                "pod": pod,
                "job": service["metadata"]["labels"][self._monitor["jobLabel"]],
            },
        }

    def _list(self, api: str, kind: str, labels: dict[str, str]) -> list[dict[str, Any]]:
        selector = urllib.parse.quote(",".join(f"{name}={value}" for name, value in labels.items()))
        url = f"http://{self._address}/{api}/namespaces/{self._namespace}/{kind}?labelSelector={selector}"
        with urllib.request.urlopen(url, timeout=PROXY_S) as answer:
            return list(json.load(answer)["items"])
