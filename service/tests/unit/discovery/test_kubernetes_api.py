"""The door to the Kubernetes API, with the real client against a small server: every answer is a value."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

import pytest
from kubernetes.config import incluster_config

from kvorum.discovery import kubernetes_api
from kvorum.discovery.kubernetes_api import (
    CLUSTER_ANNOTATION,
    REASONS,
    TERM_ANNOTATION,
    Failure,
    KubernetesApi,
    LeaderAddress,
    Notice,
    Reason,
    Record,
    SliceOutcome,
)
from kvorum.discovery.scaling import Gone, Intent
from tests.unit.discovery.fake_api import (
    EVENTS_PATH,
    GENESIS,
    GENESIS_PATH,
    LEADER_SLICE,
    NAMESPACE,
    SLICE_PATH,
    STATEFULSET,
    STATEFULSET_PATH,
    pod_path,
)

OWN, OTHER = bytes(range(16)), bytes(16 * [7])
ADDRESS = LeaderAddress(term=5, ip="10.1.2.3", port=9090, pod="kv-0", cluster_id=b"this cluster 123")
NOTICE = Notice(
    name="kv.1",
    kind="StatefulSet",
    involved="kv",
    uid="uid-1",
    reason="Added",
    text="node 3 is a learner",
    warning=False,
    time="2026-01-02T03:04:05Z",
    reporter="kv-0",
)


# --- the size that is wanted ---


async def test_api_reads_the_size_of_the_statefulset(api, server) -> None:
    """What decides about joining and leaving comes out as one value."""
    server.scale(5, settled=False, ordinals={"start": 2})

    assert await api.read_statefulset() == Intent(
        replicas=5, first_ordinal=2, generation=2, observed_generation=1, uid="uid-1"
    )


async def test_api_reads_a_statefulset_that_is_being_deleted(api, server) -> None:
    """A deletion that waits for its pods shows."""
    server.scale(3, deletionTimestamp="2026-01-02T03:04:05Z")

    assert (await api.read_statefulset()).deleting


async def test_api_reads_what_a_statefulset_does_not_say_as_its_defaults(api, server) -> None:
    """Absent replicas mean 1 and an absent status has observed nothing."""
    server.put(STATEFULSET_PATH, {"metadata": {"uid": "u", "generation": 4}, "spec": {}})

    assert await api.read_statefulset() == Intent(replicas=1, generation=4, observed_generation=0, uid="u")


async def test_api_says_gone_only_when_the_server_does(api, server) -> None:
    """404 is an answer; whatever else happens is none."""
    del server.objects[STATEFULSET_PATH]

    assert await api.read_statefulset() == Gone()
    assert sum(api.errors.values()) == 0


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (403, Reason.FORBIDDEN),
        (401, Reason.FORBIDDEN),
        (429, Reason.SERVER),
        (500, Reason.SERVER),
        (503, Reason.SERVER),
        (400, Reason.INVALID),
        (b"<html>a proxy</html>", Reason.INVALID),
        (b"[]", Reason.INVALID),
        (b'{"metadata": {}}', Reason.INVALID),
        (b'{"metadata": {"uid": "u", "generation": 1}, "spec": {"replicas": "many"}}', Reason.INVALID),
        ("hang", Reason.UNREACHABLE),
    ],
)
async def test_api_tells_kinds_of_trouble_apart_and_counts_them(api, server, trouble, reason) -> None:
    """A failure is a value with its reason; the text says what the server said."""
    server.trouble[STATEFULSET_PATH] = trouble

    answer = await api.read_statefulset()

    assert isinstance(answer, Failure), answer
    assert reason == answer.reason
    assert reason in REASONS
    assert {reason: 1} == dict(api.errors)


async def test_api_that_refuses_connections_is_unreachable(api, server) -> None:
    """Nothing is concluded from a server that is down; and when it is back, it is asked again."""
    server.stop()

    answer = await api.read_statefulset()

    assert isinstance(answer, Failure)
    assert answer.reason == Reason.UNREACHABLE


async def test_api_bounds_the_calls_that_hang(api, server, monkeypatch) -> None:
    """One thread, few waiting calls: more of them are refused at once, and later ones work again."""
    monkeypatch.setattr(kubernetes_api, "CALL_S", 0.05)
    await api.read_statefulset()  # imports the client
    server.trouble["*"] = "hang"

    answers = await asyncio.gather(*(api.read_statefulset() for _ in range(kubernetes_api.CALLS_MAX + 3)))

    assert {Reason.UNREACHABLE, Reason.BUSY} == {answer.reason for answer in answers}
    assert api.errors[Reason.BUSY] == 3
    server.trouble.clear()
    server.released.set()
    monkeypatch.setattr(kubernetes_api, "CALL_S", 8.0)
    async with asyncio.timeout(120):
        while isinstance(await api.read_statefulset(), Failure):
            await asyncio.sleep(0.01)


async def test_api_without_a_way_to_the_server_says_what_to_do(tmp_path) -> None:
    """Outside of a pod, or without a token, each call fails and names the two ways out."""
    api = KubernetesApi(asyncio.get_running_loop(), NAMESPACE, STATEFULSET)

    answer = await api.read_statefulset()

    assert isinstance(answer, Failure)
    assert answer.reason == Reason.CONFIGURATION
    assert "api = false" in answer.text
    await api.close()


async def test_api_without_the_client_package_says_what_to_install(server, tmp_path, monkeypatch) -> None:
    """An image without the extra still runs, and says what it lacks."""
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    api = KubernetesApi(asyncio.get_running_loop(), NAMESPACE, STATEFULSET, kubeconfig=tmp_path / "none")

    answer = await api.read_statefulset()

    assert isinstance(answer, Failure)
    assert answer.reason == Reason.CONFIGURATION
    assert "kvorum[k8s]" in answer.text
    await api.close()


async def test_api_that_is_closed_answers_at_once(api, server) -> None:
    """After the end nothing is asked any more."""
    await api.close()

    assert (await api.read_statefulset()).reason == Reason.BUSY
    assert server.requests == []


# --- pods ---


async def test_api_knows_whether_a_pod_is_there(api, server) -> None:
    """A pod that is being deleted is there still; only 404 says absent."""
    server.put(pod_path("kv-3"), {"metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"}})

    assert await api.read_pod_absent("kv-3") is False
    assert await api.read_pod_absent("kv-4") is True


async def test_api_does_not_take_forbidden_for_absent(api, server) -> None:
    """A Role that is too small must not make members disappear."""
    server.trouble[pod_path("kv-3")] = 403

    assert (await api.read_pod_absent("kv-3")).reason == Reason.FORBIDDEN


# --- the genesis record ---


async def test_record_is_claimed_once(api, server) -> None:
    """An empty record takes an id and keeps everything else; what was read before is too old after that."""
    empty = await api.read_record(GENESIS)
    assert isinstance(empty, Record)
    assert empty.cluster_id is None

    assert await api.claim_record(GENESIS, OWN, empty.version, "kv-0") is None
    assert (await api.claim_record(GENESIS, OTHER, empty.version, "kv-1")).reason == Reason.CONFLICT

    assert (await api.read_record(GENESIS)).cluster_id == OWN
    assert server.objects[GENESIS_PATH]["metadata"]["labels"] == {"app": "kv"}
    assert server.objects[GENESIS_PATH]["data"] == {"cluster_id": OWN.hex(), "recorded_by": "kv-0"}


async def test_record_written_by_somebody_else_in_between_is_a_conflict(api, server) -> None:
    """Two writes that cross: the API server's version decides, not the order of reading."""
    empty = await api.read_record(GENESIS)
    server.before_put = lambda: server.put(GENESIS_PATH, {"data": {"cluster_id": OTHER.hex()}})

    assert (await api.claim_record(GENESIS, OWN, empty.version, "kv-0")).reason == Reason.CONFLICT
    assert (await api.read_record(GENESIS)).cluster_id == OTHER


@pytest.mark.parametrize("spelt", ["yes", "abcd", "00" * 17])
async def test_record_that_somebody_scribbled_on_is_no_record(api, server, spelt) -> None:
    """What cannot be read is never taken for empty."""
    server.put(GENESIS_PATH, {"data": {"cluster_id": spelt}})

    assert (await api.read_record(GENESIS)).reason == Reason.INVALID


async def test_record_that_does_not_exist_is_missing(api, server) -> None:
    """Without the object nothing is known; it is not an empty record."""
    del server.objects[GENESIS_PATH]

    assert (await api.read_record(GENESIS)).reason == Reason.MISSING


# --- the leader's EndpointSlice ---


async def test_slice_leads_to_the_leader(api, server) -> None:
    """The address, a reference to the pod, the port and the term stand in it."""
    assert await api.write_leader_slice(LEADER_SLICE, ADDRESS) == SliceOutcome.WRITTEN

    written = server.objects[SLICE_PATH]
    (endpoint,) = written["endpoints"]
    assert endpoint["addresses"] == ["10.1.2.3"]
    assert endpoint["conditions"]["ready"] is True
    assert endpoint["targetRef"] == {"kind": "Pod", "name": "kv-0", "namespace": NAMESPACE}
    assert written["ports"] == [{"name": "client", "port": 9090, "protocol": "TCP"}]
    assert written["metadata"]["annotations"] == {
        TERM_ANNOTATION: "5",
        CLUSTER_ANNOTATION: b"this cluster 123".hex(),
    }
    assert written["addressType"] == "IPv4"


async def test_slice_that_leads_here_already_is_not_written_again(api, server) -> None:
    """Looking costs a read and no write."""
    await api.write_leader_slice(LEADER_SLICE, ADDRESS)

    assert await api.write_leader_slice(LEADER_SLICE, ADDRESS) == SliceOutcome.UNCHANGED
    assert [method for method, _ in server.requests].count("PUT") == 1


async def test_slice_of_a_later_term_is_left_alone(api, server) -> None:
    """A leader that was cut off and comes back cannot take the address from its successor."""
    later = replace(ADDRESS, term=6, ip="10.1.2.4", pod="kv-1")
    await api.write_leader_slice(LEADER_SLICE, later)

    assert await api.write_leader_slice(LEADER_SLICE, ADDRESS) == SliceOutcome.FENCED
    assert server.objects[SLICE_PATH]["endpoints"][0]["addresses"] == ["10.1.2.4"]


async def test_slice_of_a_lost_cluster_is_taken_over_whatever_its_term(api, server) -> None:
    """A cluster formed anew, or restored, begins with low terms; the Service must not lead to the dead for ever."""
    await api.write_leader_slice(LEADER_SLICE, replace(ADDRESS, term=60, cluster_id=b"another cluster!"))

    assert await api.write_leader_slice(LEADER_SLICE, ADDRESS) == SliceOutcome.WRITTEN
    assert server.objects[SLICE_PATH]["endpoints"][0]["addresses"] == ["10.1.2.3"]


async def test_slice_written_by_the_successor_in_between_is_a_conflict(api, server) -> None:
    """The old leader has read before, and writes after, its successor: the write is not taken."""
    theirs = {"metadata": {"annotations": {TERM_ANNOTATION: "6"}}, "endpoints": [], "addressType": "IPv4"}
    server.before_put = lambda: server.put(SLICE_PATH, theirs)

    assert (await api.write_leader_slice(LEADER_SLICE, ADDRESS)).reason == Reason.CONFLICT
    assert server.objects[SLICE_PATH] == theirs


async def test_slice_with_a_term_that_is_no_number_is_taken_over(api, server) -> None:
    """An annotation that somebody broke does not lock the leader out."""
    server.objects[SLICE_PATH]["metadata"]["annotations"] = {TERM_ANNOTATION: "first"}

    assert await api.write_leader_slice(LEADER_SLICE, ADDRESS) == SliceOutcome.WRITTEN


# --- events ---


async def test_event_arrives_as_kubectl_describe_wants_it(api, server) -> None:
    """It names the object by its uid, for that is what kubectl asks by."""
    assert await api.emit_event(NOTICE) is None

    (event,) = server.events
    assert event["involvedObject"]["uid"] == "uid-1"
    assert event["involvedObject"]["kind"] == "StatefulSet"
    assert event["type"] == "Normal"
    assert event["message"] == "node 3 is a learner"
    assert ("POST", EVENTS_PATH) in server.requests


async def test_event_that_may_not_be_sent_is_a_failure_like_others(api, server) -> None:
    """Nothing depends on an Event."""
    server.trouble[EVENTS_PATH] = 403

    assert (await api.emit_event(NOTICE)).reason == Reason.FORBIDDEN


# --- the service account ---


async def test_api_uses_the_pods_service_account(server, tmp_path, monkeypatch) -> None:
    """In a pod the address comes from the environment, token and authority from the mounted files."""
    token, authority = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("mounted")
    authority.write_text("no certificate")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    client = kubernetes_api._connected(None)

    assert client._configuration.host == f"https://127.0.0.1:{server.port}"
    assert client._configuration.ssl_ca_cert == str(authority)
    assert client._configuration.auth_settings()["BearerToken"]["value"].lower() == "bearer mounted"
    # An authority that is no certificate is trouble like any other.
    api = KubernetesApi(asyncio.get_running_loop(), NAMESPACE, STATEFULSET)
    assert isinstance(await api.read_statefulset(), Failure)
    assert server.requests == []
    await api.close()
