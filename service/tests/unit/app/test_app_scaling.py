"""The scaler's edges: signals, a silent API server, files, ends. What clusters do with it is in tests/sim."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog

from kvorum.app import scaling
from kvorum.app.scaling import Scaler
from kvorum.config.pod import Pod
from kvorum.config.settings import Discovery, Settings
from kvorum.consensus.changes import Outcome
from kvorum.core.cluster import Configuration
from kvorum.core.errors import StartupError
from kvorum.discovery import kubernetes_api
from kvorum.discovery import scaling as rules
from kvorum.discovery.kubernetes_api import REASONS, KubernetesApi
from kvorum.discovery.scaling import SCALE_STATES, ScaleState
from tests.unit.discovery.fake_api import (
    GENESIS,
    GENESIS_PATH,
    LEADER_SLICE,
    NAMESPACE,
    SLICE_PATH,
    STATEFULSET,
    STATEFULSET_PATH,
    FakeApi,
    pod_path,
)

PAGE = Path(__file__).resolve().parents[4] / "docs/operations/metrics.md"


class FakeConsensus:
    """A follower among three voters that hears its leader; what it is asked to change is noted and granted."""

    def __init__(self, own):
        self.node_id = own
        self.members = Configuration.of(POD.member(node_id) for node_id in range(3))
        self.settings = SimpleNamespace(timings=SimpleNamespace(election_timeout_s=1.0))
        self.machine = SimpleNamespace(matches=dict, commit_index=7, change_refused=lambda: None)
        self.contacts = SimpleNamespace(reports={}, greetings={}, seat_age_s=lambda _peer, _now: 0.1)
        self.peering = SimpleNamespace(birth=None, has_gone=lambda _peer: False)
        self.membership = self
        self.may_serve = False
        self.removed = False
        self.complete = True
        self.cluster_id = bytes(16)
        self.term = 3
        self.changes = []
        self.grants = True

    def contact_age_s(self):
        return 0.1

    async def change(self, change, _timeout_s):
        self.changes.append((change.action, change.node_id))
        if not self.grants:
            return Outcome(ok=False, text="no quorum")
        self.removed = True
        return Outcome(ok=True, text="removed")


POD = Pod("kv", 2, "kv-headless", "data", "cluster.local", 9090, 7090, "10.0.0.2")


@pytest.fixture
def server():
    fake = FakeApi()
    yield fake
    fake.stop()


@pytest.fixture
async def make(server, tmp_path, monkeypatch):
    """A started scaler on a fake follower, with the real client against the fake API server."""
    monkeypatch.setattr(scaling, "OTHERS_POLL_S", 0.02)
    monkeypatch.setattr(scaling, "LEADER_POLL_S", 0.02)
    monkeypatch.setattr(scaling, "RECORDS_S", 0.02)
    monkeypatch.setattr(scaling, "BUSY_POLL_S", 0.02)
    monkeypatch.setattr(kubernetes_api, "READ_S", 0.1)
    loop = asyncio.get_running_loop()
    api = KubernetesApi(loop, NAMESPACE, STATEFULSET, kubeconfig=server.write_kubeconfig(tmp_path / "kubeconfig"))
    made = []

    def build(**discovery):
        settings = Settings(discovery=Discovery(method="kubernetes", **discovery))
        consensus = FakeConsensus(2)
        failures = []
        scaler = Scaler(
            settings,
            POD,
            consensus,
            api if settings.discovery.api else None,
            structlog.get_logger(),
            loop,
            loop.time,
            random.Random(1),
            failures.append,
        )
        made.append(scaler)
        scaler.start()
        return SimpleNamespace(scaler=scaler, consensus=consensus, failures=failures, api=api)

    yield build
    for scaler in made:
        await scaler.stop()
    await api.close()


async def until(condition):
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.005)


async def test_scaler_that_was_not_started_stops_at_once() -> None:
    """A node that ends during its start has nothing to ask."""
    loop = asyncio.get_running_loop()
    scaler = Scaler(
        Settings(), POD, FakeConsensus(2), None, structlog.get_logger(), loop, loop.time, random.Random(1), print
    )

    assert await scaler.stopping() is False
    await scaler.stop()


async def test_scaler_tells_a_restart_from_a_scale_down(make, server) -> None:
    """The size is read after the signal: what was read before it may be old."""
    pod = make()
    await until(lambda: pod.scaler.status()["desired_replicas"] == 3)
    assert await pod.scaler.stopping() is False
    assert pod.consensus.changes == []

    server.scale(2)
    other = make()
    assert await other.scaler.stopping() is True
    assert other.consensus.changes == [("remove", 2)]


async def test_scaler_that_sleeps_wakes_up_for_the_signal(make, monkeypatch) -> None:
    """A pod that is told to stop does not wait for the next look."""
    monkeypatch.setattr(scaling, "OTHERS_POLL_S", 3600.0)
    pod = make()
    await until(lambda: pod.scaler.status()["state"] == ScaleState.FOLLOWING)
    async with asyncio.timeout(120):
        assert await pod.scaler.stopping() is False


async def test_scaler_says_once_why_a_change_is_not_made(make, server) -> None:
    """A node that knocks and cannot be taken in is tried again and again, and complained of once."""
    server.scale(4)
    with structlog.testing.capture_logs() as lines:
        pod = make()
        pod.consensus.grants = False
        pod.consensus.may_serve = True
        pod.consensus.contacts.reports[3] = SimpleNamespace(has_data=False)
        await until(lambda: len(pod.consensus.changes) > 3)
        pod.consensus.may_serve = False

    assert set(pod.consensus.changes) == {("add", 3)}
    assert [line["reason"] for line in lines if "was not made" in line["event"]] == ["no quorum"]


async def test_scaler_takes_in_nobody_who_was_just_removed(make, server) -> None:
    """Its link was made when it was empty, and stands for a moment longer: that is no wish to join."""
    server.scale(4)
    pod = make()
    pod.consensus.peering.has_gone = lambda peer: peer == 3
    pod.consensus.contacts.greetings[3] = SimpleNamespace(cluster_id=bytes(16))
    pod.consensus.may_serve = True
    await until(lambda: pod.scaler.status()["state"] == ScaleState.GROWING)
    assert pod.consensus.changes == []
    pod.consensus.peering.has_gone = lambda _peer: False
    await until(lambda: pod.consensus.changes)
    pod.consensus.may_serve = False

    assert pod.consensus.changes[0] == ("add", 3)


async def test_scaler_that_leads_writes_its_address_and_the_record(make, server) -> None:
    """Both stand where they belong soon after; what may not be written is complained of once, and then it works."""
    server.trouble[SLICE_PATH] = 403
    with structlog.testing.capture_logs() as lines:
        pod = make(genesis_config_map=GENESIS, leader_endpoint_slice=LEADER_SLICE)
        pod.consensus.may_serve = True
        await until(lambda: "data" in server.objects[GENESIS_PATH])
        await until(lambda: pod.api.errors["forbidden"] > 2)
        assert pod.scaler.status()["complaints"] == ["the leader's EndpointSlice cannot be written: forbidden"]
        assert pod.scaler.status()["api"] == "ok"
        server.trouble.clear()
        await until(lambda: server.objects[SLICE_PATH]["endpoints"])
        await until(lambda: pod.scaler.status()["complaints"] == [])
        pod.consensus.may_serve = False

    assert server.objects[GENESIS_PATH]["data"]["cluster_id"] == bytes(16).hex()
    assert server.objects[SLICE_PATH]["endpoints"][0]["addresses"] == ["10.0.0.2"]
    assert len([line for line in lines if "EndpointSlice cannot" in line["event"]]) == 1


async def test_scaler_names_a_record_of_another_cluster(make, server) -> None:
    """Nobody writes over it: the log and an Event name both ids and the way out."""
    server.put(GENESIS_PATH, {"data": {"cluster_id": (bytes(15) + b"x").hex()}})
    pod = make(genesis_config_map=GENESIS)
    pod.consensus.may_serve = True
    await until(lambda: server.events)
    pod.consensus.may_serve = False

    assert server.events[0]["reason"] == "ForeignGenesisRecord"
    assert bytes(16).hex() in server.events[0]["message"]


async def test_scaler_writes_a_record_again_that_was_emptied(make, server, monkeypatch) -> None:
    """Somebody replaced the ConfigMap as a whole: it is what keeps a wiped pod from forming a second cluster."""
    monkeypatch.setattr(scaling, "RECORD_AGAIN_S", 0.02)
    pod = make(genesis_config_map=GENESIS)
    pod.consensus.may_serve = True
    await until(lambda: "data" in server.objects[GENESIS_PATH])
    server.put(GENESIS_PATH, {"metadata": {"name": GENESIS}})
    await until(lambda: "data" in server.objects[GENESIS_PATH])
    pod.consensus.may_serve = False


async def test_scaler_asks_for_no_pods_where_the_size_cannot_be_read(make, server) -> None:
    """With a server that hangs each further call would take as long, and a leader that is to stop waits for all."""
    server.scale(1)
    pod = make()
    pod.consensus.contacts.seat_age_s = lambda _peer, _now: 60.0
    pod.consensus.may_serve = True
    await until(lambda: ("GET", pod_path("kv-0")) in server.requests or ("GET", pod_path("kv-1")) in server.requests)
    server.trouble[STATEFULSET_PATH] = 500
    await until(lambda: pod.api.errors["server"] > 0)
    asked = len([path for _, path in server.requests if "/pods/" in path])
    await until(lambda: pod.api.errors["server"] > 3)
    pod.consensus.may_serve = False

    assert len([path for _, path in server.requests if "/pods/" in path]) == asked


async def test_scaler_takes_a_silent_api_server_for_a_restart(make, server, monkeypatch) -> None:
    """It asks for a while and then gives up; a pod is never kept from stopping by somebody else's outage."""
    monkeypatch.setattr(rules, "PATIENCE_S", 0.3)
    server.scale(2)
    pod = make()
    await until(lambda: pod.scaler.status()["desired_replicas"] == 2)
    server.trouble[STATEFULSET_PATH] = "hang"

    assert await pod.scaler.stopping() is False
    assert pod.consensus.changes == []
    assert pod.api.errors["unreachable"] > 0


async def test_scaler_whose_role_is_gone_stops_at_once(make, server, monkeypatch) -> None:
    """Uninstalling takes the Role along with the pods: nobody waits for an answer that cannot come."""
    monkeypatch.setattr(rules, "PATIENCE_S", 3600.0)
    pod = make()
    await until(lambda: pod.scaler.status()["desired_replicas"] == 3)
    server.trouble["*"] = 403

    async with asyncio.timeout(120):
        assert await pod.scaler.stopping() is False


async def test_scaler_asks_for_its_removal_until_its_time_is_up(make, server, monkeypatch) -> None:
    """No quorum, no removal: it asks again and again, and stops as a member before it is killed."""
    monkeypatch.setattr(scaling, "LEAVE_S", 2.0)
    server.scale(2)
    pod = make()
    pod.consensus.grants = False
    await until(lambda: pod.scaler.status()["desired_replicas"] == 2)

    assert await pod.scaler.stopping() is False
    assert len(pod.consensus.changes) > 1
    assert pod.scaler.status()["state"] == ScaleState.LEAVING


async def test_scaler_believes_the_leader_that_it_is_removed(make, server, monkeypatch) -> None:
    """The word of the removal may never come back over a link that is closed by it."""
    monkeypatch.setattr(scaling, "TOLD_S", 0.1)
    server.scale(2)
    pod = make()

    async def change(_change, _timeout_s):
        return Outcome(ok=True, text="removed")

    pod.consensus.change = change

    assert await pod.scaler.stopping() is True


async def test_scaler_ends_the_process_of_a_removed_node_that_is_wanted(make, server) -> None:
    """The container starts again, and then on an empty directory; a node that is not wanted just waits."""
    pod, other = make(), None
    pod.consensus.removed = True
    await until(lambda: pod.failures)
    assert isinstance(pod.failures[0], StartupError)
    assert "wanted again" in str(pod.failures[0])

    server.scale(2)
    other = make()
    other.consensus.removed = True
    await until(lambda: other.scaler.status()["desired_replicas"] == 2)
    await until(lambda: other.scaler.status()["reason"] == "the cluster has removed this node")
    assert other.failures == []
    assert await other.scaler.stopping() is True


async def test_scaler_says_what_is_wrong_with_the_api(make, server) -> None:
    """The status page and the metrics show a Role that is too small."""
    server.trouble["*"] = 403
    pod = make()
    await until(lambda: pod.scaler.status()["api"] == "forbidden")
    (errors,) = [metric for metric in pod.scaler.metrics() if metric.name == "kvorum_k8s_api_errors_total"]
    assert {labels["reason"]: count for labels, count in errors.samples}["forbidden"] > 0

    server.trouble.clear()
    await until(lambda: pod.scaler.status()["api"] == "ok")


@pytest.mark.parametrize("content", [None, "many", ""])
async def test_scaler_without_a_readable_file_knows_no_size(make, tmp_path, content) -> None:
    """A file that is not mounted, or not a number, says nothing; the pod runs on and stops as always."""
    file = tmp_path / "replicas"
    if content is not None:
        file.write_text(content)
    pod = make(api=False, replicas_file=str(file))
    await until(lambda: pod.scaler.status()["reason"] != "nothing was looked at yet")

    assert pod.scaler.status()["desired_replicas"] is None
    file.write_text("5\n")
    await until(lambda: pod.scaler.status()["desired_replicas"] == 5)
    file.write_text("1")
    assert await pod.scaler.stopping() is False


async def test_scaler_that_is_broken_ends_the_process(make, monkeypatch) -> None:
    """A defect in the task is not swallowed."""
    seen = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context["exception"]))
    pod = make()
    pod.consensus.contacts = None
    await until(lambda: seen)

    assert isinstance(seen[0], AttributeError)
    assert await pod.scaler.stopping() is False


async def test_scaler_metrics_are_those_of_the_page(make) -> None:
    """The page on metrics has a row for each, with its labels and every state and reason."""
    pod = make()
    await until(lambda: pod.scaler.status()["desired_replicas"] == 3)
    exported = {
        (metric.name, metric.kind, ", ".join(f"`{label}`" for label in metric.samples[0][0]))
        for metric in pod.scaler.metrics()
    }
    section = PAGE.read_text(encoding="utf-8").partition("## On Kubernetes")[2].partition("\n## ")[0]

    assert exported == set(re.findall(r"^\| `(kvorum_\w+)` \| (\w+) \| (.*?) \|", section, re.MULTILINE))
    assert [word for word in (*SCALE_STATES, *REASONS) if f"`{word}`" not in section] == []
