"""A real Prometheus looks at a real cluster: no panel of the dashboard is empty, every alert can be evaluated."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import shutil
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.prometheus import Prometheus, substituted
from tests.process.harness import Writers, eventually
from tests.process.wire import ConnectionLost, atomic_set, get, set_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.process.harness import Cluster, Node

FILES = Path(__file__).resolve().parents[3] / "helm/kvorum/files"
VARIABLES = {"$namespace": "db", "$job": "kvorum", "$pod": ".+", "$__rate_interval": "10s"}

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: apt install prometheus)"
)

KUBERNETES_SIDE = b"""\
# TYPE kvorum_k8s_desired_replicas gauge
kvorum_k8s_desired_replicas 3
# TYPE kvorum_scale_state gauge
kvorum_scale_state{state="steady"} 1
kvorum_scale_state{state="blocked"} 0
# TYPE kvorum_k8s_api_errors_total counter
kvorum_k8s_api_errors_total 0
"""
"""What a node on Kubernetes says beyond the nodes of this test, whose membership follows no StatefulSet."""


class _KubernetesSide(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(KUBERNETES_SIDE)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def configuration(cluster: Cluster, side_port: int) -> dict[str, object]:
    """Scrape every node each second, and evaluate the alerts as often."""
    targets = [
        {"targets": [f"127.0.0.1:{node.port - 1000}"], "labels": {"namespace": "db", "pod": f"kvorum-{number}"}}
        for number, node in enumerate(cluster.nodes)
    ]
    side = {"targets": [f"127.0.0.1:{side_port}"], "labels": {"namespace": "db", "pod": "kvorum-0"}}
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(FILES / "alerts.yaml")],
        "scrape_configs": [
            {"job_name": "kvorum", "static_configs": targets},
            {
                "job_name": "kubernetes-side",
                "static_configs": [side],
                "metric_relabel_configs": [{"target_label": "job", "replacement": "kvorum"}],
            },
        ],
    }


@contextlib.contextmanager
def kubernetes_side() -> Iterator[int]:
    """Serve what only nodes on Kubernetes say, on the port that is given."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _KubernetesSide)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


@pytest.fixture
def look(tmp_path: Path) -> Iterator[Callable[[Cluster], Prometheus]]:
    """Start a Prometheus on a cluster; it ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(cluster: Cluster) -> Prometheus:
            made = Prometheus(tmp_path, configuration(cluster, stack.enter_context(kubernetes_side())))
            stack.callback(made.end)
            return made

        yield start


def move_leader(node: Node) -> None:
    """Ask a node to have the lead moved, as `kvorum leader move` does; it may be refused while nobody leads."""
    request = urllib.request.Request(f"http://127.0.0.1:{node.port - 1000}/admin/leader/move", b"{}", method="POST")
    request.add_header("Content-Type", "application/json")
    with (
        contextlib.suppress(urllib.error.URLError, TimeoutError),
        urllib.request.urlopen(request, timeout=60) as answer,
    ):
        answer.read()


async def use(cluster: Cluster, stop: asyncio.Event) -> None:
    """Reads, commits and conflicts through every node that runs."""
    number = 0
    while not stop.is_set():
        number += 1
        for node in cluster.running:
            with contextlib.suppress(OSError, TimeoutError, ConnectionLost):
                for call in (
                    set_key(b"hot", b"%d" % number),
                    get(b"hot"),
                    atomic_set([(b"a", b"%d" % number)]),
                    atomic_set([(b"a", b"old")], read_version=2, read=[b"hot"]),
                ):
                    await node.call(call)
        await asyncio.sleep(0.05)


async def shows(prometheus: Prometheus, name: str, state: str) -> None:
    async def shown() -> bool:
        return (await asyncio.to_thread(prometheus.alerts)).get(name) == state

    await eventually(shown, f"{name} is {state}", pause=0.2)


async def test_prometheus_fills_every_panel_and_sees_the_leader_change(
    make_cluster: Callable[..., Cluster], look: Callable[[Cluster], Prometheus]
) -> None:
    """With load, and a killed leader: the alerts on it come, and every query of the dashboard has numbers."""
    cluster = make_cluster()
    cluster.start()
    killed = await cluster.ready()
    prometheus = look(cluster)

    async def scraped() -> bool:
        return await asyncio.to_thread(prometheus.query, 'sum(up{job="kvorum"})') == [3.0]

    await eventually(scraped, "Prometheus scrapes all nodes", pause=0.2)
    assert "KvorumHighLeaderChanges" not in await asyncio.to_thread(prometheus.alerts)
    stop = asyncio.Event()
    using = asyncio.create_task(use(cluster, stop))
    async with Writers([node for node in cluster.nodes if node is not killed], clients=2) as writers:
        await writers.acknowledged(50)
        killed.kill()
        await shows(prometheus, "KvorumMembersDown", "pending")
        await writers.acknowledged(50)

        async def too_many_changes() -> bool:
            await asyncio.to_thread(move_leader, cluster.running[0])
            return (await asyncio.to_thread(prometheus.alerts)).get("KvorumHighLeaderChanges") == "firing"

        await eventually(too_many_changes, "KvorumHighLeaderChanges fires", pause=0.5)
        killed.start()
        missing: list[str] = []
        dashboard = json.loads((FILES / "dashboard.json").read_text())

        async def filled() -> bool:
            missing[:] = await asyncio.to_thread(prometheus.empty_panels, dashboard, VARIABLES)
            return not missing

        with contextlib.suppress(AssertionError):
            await eventually(filled, "every panel shows something", pause=0.5)
        assert missing == []
    stop.set()
    await using

    rules = await asyncio.to_thread(prometheus.rules)
    assert len(rules) == (FILES / "alerts.yaml").read_text().count("- alert: ")
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule.get("lastError")] == []
    assert {rule["health"] for rule in rules} == {"ok"}


async def test_prometheus_finds_the_values_of_the_dashboard_variables(
    make_cluster: Callable[..., Cluster], look: Callable[[Cluster], Prometheus]
) -> None:
    """Namespace, cluster and pods can be chosen, and the annotations can be asked for."""
    cluster = make_cluster()
    cluster.start()
    await cluster.ready()
    prometheus = look(cluster)
    dashboard = json.loads((FILES / "dashboard.json").read_text())
    found: dict[str, list[str]] = {}

    async def chosen() -> bool:
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                inside = variable["definition"].removeprefix("label_values(").removesuffix(")")
                match, _, label = inside.rpartition(", ")
                parameters = {"match[]": substituted(match, VARIABLES)}
                path = f"label/{label}/values"
                found[variable["name"]] = await asyncio.to_thread(lambda p=path, q=parameters: prometheus.ask(p, **q))
        return len(found["pod"]) == 3

    await eventually(chosen, "the variables have values", pause=0.2)
    assert found == {"namespace": ["db"], "job": ["kvorum"], "pod": ["kvorum-0", "kvorum-1", "kvorum-2"]}
    for annotation in dashboard["annotations"]["list"]:
        await asyncio.to_thread(prometheus.query, substituted(annotation["expr"], VARIABLES))
