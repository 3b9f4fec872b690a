"""A node as a pod of a StatefulSet: who it is, and what its peers are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvorum.config.load import Flags, load_settings
from kvorum.core.cluster import Member
from kvorum.core.errors import StartupError

POD = {"KVORUM_DISCOVERY__METHOD": "kubernetes", "POD_NAME": "kv-2", "POD_NAMESPACE": "shop", "POD_IP": "10.0.0.7"}


def load(environment=(), flags=None):
    settings, warnings = load_settings(
        config_file=None, environment={**POD, **dict(environment)}, flags=flags or Flags()
    )
    assert not warnings
    return settings


def test_pod_is_the_node_of_its_ordinal_and_knows_the_names_of_all_pods():
    """Names come from StatefulSet, ordinal, headless Service, namespace and cluster domain; nothing is resolved."""
    settings = load()
    assert (settings.node_id, settings.multi_node) == (2, True)
    assert (settings.client_port, settings.peer_port, settings.http_port) == (9090, 7090, 8090)
    assert settings.advertise_endpoint == "kv-2.kv-headless.shop.svc.cluster.local:9090"
    assert settings.pod is not None
    assert settings.pod.member(0) == Member(
        0, "kv-0.kv-headless.shop.svc.cluster.local:9090", "kv-0.kv-headless.shop.svc.cluster.local.:7090"
    )
    assert settings.data_directory == Path("data/kvorum/node_2")


def test_pod_names_follow_the_configured_service_and_domain():
    """A StatefulSet whose own name ends in a number, another Service and another cluster domain."""
    said = {
        "POD_NAME": "kv-7-10",
        "KVORUM_DISCOVERY__SERVICE": "peers",
        "KVORUM_DISCOVERY__CLUSTER_DOMAIN": "corp.example.",
        "KVORUM_DISCOVERY__NAMESPACE": "other",
    }
    settings = load(said)
    assert settings.node_id == 10
    assert settings.advertise_endpoint == "kv-7-10.peers.other.svc.corp.example:9090"


def test_pods_of_one_set_share_a_birth_id_and_others_do_not():
    """Two releases in one namespace never take each other for empty nodes of the same cluster."""
    ids = [
        load({"POD_NAME": name}).pod.birth_id  # type: ignore[union-attr]
        for name in ("kv-0", "kv-1", "other-0")
    ]
    assert ids[0] == ids[1] != ids[2]


def test_pod_without_log_files_writes_to_standard_error_alone():
    """A read-only root file system has no place for log files."""
    assert load(flags=Flags(log_dir=Path("-"))).log_directory is None


@pytest.mark.parametrize(
    ("said", "flags", "complaint"),
    [
        ({"POD_NAME": "kv"}, None, "in POD_NAME; it is"),
        ({"POD_NAME": "kv-01"}, None, "in POD_NAME; it is"),
        ({"POD_NAMESPACE": ""}, None, "POD_NAMESPACE"),
        ({"KVORUM_DISCOVERY__STATEFULSET": "db"}, None, "belongs to kv"),
        ({"KVORUM_DISCOVERY__SERVICE": "no such"}, None, "no DNS name"),
        ({"KVORUM_DEPLOYMENT__REPLICA_ENDPOINTS": "a:1,b:2"}, None, "exclude each other"),
        ({"THRIFT_PORT": "2000"}, None, "must be above 2000"),
        ({}, Flags(node_id=1), "leave it out"),
    ],
)
def test_pod_that_contradicts_itself_does_not_start(said, flags, complaint):
    """One error that names what is wrong and what to do."""
    with pytest.raises(StartupError, match=complaint):
        load(said, flags)
