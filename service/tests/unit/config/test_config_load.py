"""What a node is told: file, environment, flags, and what follows from them (contract section 12)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from kvorum.config.load import Flags, Settings, load_settings
from kvorum.core.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Load = Callable[..., tuple[Settings, list[str]]]

SEED_FILE = """
[deployment]
mode = "replicated"
instance_id = 0  # Node ID (0, 1, or 2)
replica_endpoints = ["localhost:9090", "localhost:9091", "localhost:9092"]

[consensus]
algorithm = "raft"
election_timeout_ms = 5000
heartbeat_interval_ms = 1000
max_batch_size = 100
max_outstanding_proposals = 1000

[reads]
consistency_level = "local"
allow_stale_reads = true
max_staleness_ms = 1000

[database]
base_path = "./data/replicated"

[rocksdb]
write_buffer_size_mb = 64
max_write_buffer_number = 4
block_cache_size_mb = 512
"""

THREE = '[deployment]\nreplica_endpoints = ["a:9090", "b:9091", "c:9092"]\n'


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load settings from the text of a file."""

    def from_text(
        text: str | None = None, environment: Mapping[str, str] | None = None, **flags: object
    ) -> tuple[Settings, list[str]]:
        path = None
        if text is not None:
            path = tmp_path / "kvorum.toml"
            path.write_text(text)
        return load_settings(config_file=path, environment=environment or {}, flags=Flags(**flags))

    return from_text


def test_load_nothing_given_is_standalone(load: Load) -> None:
    """Without file, environment and flags a node is standalone on 9090, without peer and HTTP port."""
    settings, warnings = load()

    assert warnings == []
    assert not settings.multi_node
    assert (settings.node_id, settings.client_port, settings.http_port) == (0, 9090, None)
    assert (settings.peer_port, settings.peer_endpoints) == (None, ())
    assert (settings.client_endpoints, settings.advertise_endpoint) == (("localhost:9090",), "localhost:9090")
    assert settings.data_directory == Path("data/kvorum/node_0")
    assert settings.log_directory == Path("logs")
    assert settings.consensus.election_timeout_ms == 1000
    assert (settings.heartbeat_interval_ms, settings.consensus.max_batch_size) == (100, 1024)
    assert settings.reads.consistency_level == "read_index"
    assert (settings.request_timeout_s, settings.leader_wait_s, settings.future_version_wait_s) == (10, 4, 2)


def test_load_predecessors_file_starts_a_node(load: Load) -> None:
    """A file of the predecessor loads unchanged and without a warning."""
    settings, warnings = load(SEED_FILE)

    assert warnings == []
    assert settings.multi_node
    assert settings.client_endpoints == ("localhost:9090", "localhost:9091", "localhost:9092")
    assert settings.peer_endpoints == ("localhost:7090", "localhost:7091", "localhost:7092")
    assert (settings.client_port, settings.peer_port, settings.http_port) == (9090, 7090, 8090)
    assert settings.consensus.election_timeout_ms == 5000
    assert settings.reads.consistency_level == "local"
    assert settings.rocksdb.block_cache_size_mb == 512
    assert settings.data_directory == Path("data/replicated/node_0")


def test_load_heartbeat_is_cut_to_staleness_and_timeout(load: Load) -> None:
    """The configured heartbeat is an upper bound: a third of the staleness, a fifth of the election timeout."""
    assert load(SEED_FILE)[0].heartbeat_interval_ms == 333
    assert load("[consensus]\nelection_timeout_ms = 100")[0].heartbeat_interval_ms == 20


@pytest.mark.parametrize(
    ("environment", "flags", "port"),
    [
        ({"THRIFT_PORT": "5000"}, {"port": 6000}, 5000),
        ({}, {"port": 6000}, 6000),
        ({}, {}, 9091),
    ],
)
def test_load_client_port_has_its_order(
    load: Load, environment: dict[str, str], flags: dict[str, int], port: int
) -> None:
    """THRIFT_PORT beats the flag, the flag beats the own entry; a port others are not told of is worth a warning."""
    settings, warnings = load(THREE, environment, node_id=1, **flags)

    assert (settings.client_port, settings.http_port) == (port, port - 1000)
    assert settings.advertise_endpoint == f"b:{port}"
    assert [w for w in warnings if "9091" in w] == warnings
    assert len(warnings) == (port != 9091)


@pytest.mark.parametrize("said", ["", "http", "0", "65536", "tcp://10.0.0.1:9090"])
def test_load_thrift_port_that_is_no_port_is_refused(load: Load, said: str) -> None:
    """A THRIFT_PORT that is not a port number ends the start."""
    with pytest.raises(StartupError, match="THRIFT_PORT"):
        load(environment={"THRIFT_PORT": said})


def test_load_sources_win_in_order(load: Load) -> None:
    """Flags win over the environment, the environment over the file, the file over defaults."""
    text = f'{THREE}instance_id = 0\n[logging]\nlog_level = "error"\n[reads]\nmax_staleness_ms = 30\n'
    environment = {"KVORUM_DEPLOYMENT__INSTANCE_ID": "1", "KVORUM_LOGGING__LOG_LEVEL": "warn"}

    assert load(text)[0].node_id == 0
    assert load(text, environment)[0].node_id == 1
    assert load(text, environment)[0].logging.log_level == "warning"
    assert load(text, environment, node_id=2, verbose=True)[0].node_id == 2
    assert load(text, environment, node_id=2, verbose=True)[0].logging.log_level == "debug"
    assert load(text, environment)[0].reads.max_staleness_ms == 30
    assert load(text, {"KVORUM_READS__ALLOW_STALE_READS": "off"})[0].reads.allow_stale_reads is False


def test_load_endpoints_from_the_environment(load: Load) -> None:
    """A list in a variable is separated by commas."""
    environment = {"KVORUM_DEPLOYMENT__REPLICA_ENDPOINTS": "a:9090, [::1]:9090", "KVORUM_DEPLOYMENT__INSTANCE_ID": "1"}

    settings, warnings = load(environment=environment)

    assert warnings == []
    assert settings.client_endpoints == ("a:9090", "[::1]:9090")
    assert settings.peer_endpoints == ("a:7090", "[::1]:7090")


def test_load_unknown_names_are_one_warning_each(load: Load) -> None:
    """Unknown keys, sections and variables are warned of once and do no harm."""
    text = '[reads]\nlevel = "x"\n[weather]\nsun = true\n'
    environment = {
        "KVORUM_READS__COLOUR": "red",
        "KVORUM_PORT": "tcp://10.0.0.1:9090",
        "KVORUM_SERVICE_HOST": "10.0.0.1",
    }

    _, warnings = load(text, environment)

    assert len(warnings) == 3
    for word, warning in zip(("level", "weather", "KVORUM_READS__COLOUR"), warnings, strict=True):
        assert word in warning


def test_load_storage_tuning_is_never_an_error(load: Load) -> None:
    """Tuning sections of existing files are ignored with one line where the engine has no such knob."""
    text = """
        [rocksdb]
        write_buffer_size_mb = "big"
        max_write_buffer_number = 3
        target_file_size_mb = 64
        [bloom_filter]
        enabled = true
        bits_per_key = 10
        [compression]
        levels = ["none", 7]
    """
    settings, warnings = load(text)

    assert settings.rocksdb.write_buffer_size_mb == 64
    assert settings.rocksdb.max_write_buffer_number == 3
    assert len(warnings) == 4
    assert "bits_per_key" in "".join(warnings)


@pytest.mark.parametrize(
    ("section", "key", "value", "allowed"),
    [
        ("consensus", "election_timeout_ms", '"soon"', "whole number from 50 to 600000"),
        ("consensus", "election_timeout_ms", '"5000"', "whole number from 50 to 600000"),
        ("consensus", "max_batch_size", "0", "whole number from 1"),
        ("consensus", "max_batch_size", "true", "whole number from 1"),
        ("consensus", "algorithm", '"zab"', '"raft"'),
        ("reads", "consistency_level", '"maybe"', "one of local, leader, read_index"),
        ("reads", "allow_stale_reads", "1", "true or false"),
        ("routing", "follower_writes", '"drop"', '"forward" or "redirect"'),
        ("http", "port", "70000", "whole number from 1 to 65535"),
        ("limits", "max_transaction_operations", "65537", "to 65536"),
        ("logging", "log_level", '"loud"', "one of debug, info, warning, error"),
        ("discovery", "method", '"gossip"', '"static" or "kubernetes"'),
        ("deployment", "mode", '"cluster"', '"standalone" or "replicated"'),
        ("deployment", "replica_endpoints", '"a:9090"', "list of"),
        ("deployment", "replica_endpoints", "[]", "at least one"),
    ],
)
def test_load_bad_value_names_everything(load: Load, section: str, key: str, value: str, allowed: str) -> None:
    """A known key with a bad value is one error with file, section, key, value and what is allowed."""
    with pytest.raises(StartupError) as caught:
        load(f"[{section}]\n{key} = {value}\n")

    text = str(caught.value)
    for part in ("kvorum.toml", f"[{section}]", key, value, allowed):
        assert part in text
    assert "\n" not in text


def test_load_bad_variable_names_the_variable(load: Load) -> None:
    """A bad value from the environment is blamed on its variable."""
    with pytest.raises(StartupError, match="KVORUM_CONSENSUS__MAX_BATCH_SIZE.*many"):
        load(environment={"KVORUM_CONSENSUS__MAX_BATCH_SIZE": "many"})


@pytest.mark.parametrize("endpoint", ["localhost", ":9090", "a:b", "a:0", "a:70000", "::1:9090", "a:９０"])
def test_load_bad_endpoint_is_refused(load: Load, endpoint: str) -> None:
    """An endpoint that is not host:port is refused by name."""
    with pytest.raises(StartupError, match="replica_endpoints"):
        load(f'[deployment]\ninstance_id = 0\nreplica_endpoints = ["a:9090", "{endpoint}"]')


def test_load_same_endpoint_twice_is_refused(load: Load) -> None:
    """Two nodes cannot share an endpoint."""
    with pytest.raises(StartupError, match="twice"):
        load('[deployment]\ninstance_id = 0\nreplica_endpoints = ["a:9090", "a:9090"]')


def test_load_node_id_is_needed_with_peers(load: Load) -> None:
    """More than one endpoint and no id: the error says what to set."""
    with pytest.raises(StartupError, match="instance_id or --node-id.*from 0 to 2"):
        load(THREE)


@pytest.mark.parametrize("node_id", [-1, 3])
def test_load_node_id_out_of_range_is_refused(load: Load, node_id: int) -> None:
    """A node id outside the list ends the start."""
    with pytest.raises(StartupError, match="from 0 to 2"):
        load(THREE, node_id=node_id)


def test_load_single_endpoint_needs_no_node_id(load: Load) -> None:
    """A list of one is node 0, and is a cluster: its peer and HTTP ports are open for more to come."""
    settings, _ = load('[deployment]\nreplica_endpoints = ["a:9090"]')

    assert (settings.node_id, settings.multi_node, settings.peer_port, settings.http_port) == (0, True, 7090, 8090)


def test_load_mode_that_contradicts_is_a_warning(load: Load) -> None:
    """The presence of endpoints decides; a mode that says otherwise is warned of."""
    alone, alone_warnings = load('[deployment]\nmode = "replicated"\ninstance_id = 2')
    three, three_warnings = load(f'{THREE}mode = "standalone"', node_id=0)

    assert (alone.multi_node, alone.node_id, len(alone_warnings)) == (False, 0, 2)
    assert (three.multi_node, len(three_warnings)) == (True, 1)


def test_load_node_id_flag_without_endpoints_is_refused(load: Load) -> None:
    """A standalone node cannot be node 1."""
    with pytest.raises(StartupError, match="node 0"):
        load(node_id=1)


def test_load_low_client_port_needs_peer_endpoints(load: Load) -> None:
    """At 2000 or below the peer port cannot be derived and must be given."""
    text = '[deployment]\nreplica_endpoints = ["a:2000"]\n'
    with pytest.raises(StartupError, match="endpoints must be given"):
        load(text)

    settings, _ = load(f'{text}[consensus]\nendpoints = ["a:7000"]')
    assert settings.peer_port == 7000


def test_load_peer_endpoints_must_match_in_number(load: Load) -> None:
    """A list of peers of another length than the list of nodes is refused."""
    with pytest.raises(StartupError, match=r"\(3\)"):
        load(f'{THREE}instance_id = 0\n[consensus]\nendpoints = ["a:1", "b:1"]')


def test_load_http_port_follows_its_rules(load: Load) -> None:
    """On with peers, off standalone unless set in any way, never derived below 1001."""
    assert load(http_port=8000)[0].http_port == 8000
    assert load("[http]\nport = 8001")[0].http_port == 8001
    assert load("[http]\nenabled = true")[0].http_port == 8090
    assert load("[http]\nadmin = false")[0].http.admin is False
    assert load(f"{THREE}[http]\nenabled = false", node_id=0)[0].http_port is None
    with pytest.raises(StartupError, match=r"\[http\] port must be given"):
        load("[http]\nenabled = true", port=1000)


def test_load_one_port_for_two_uses_is_refused(load: Load) -> None:
    """A port cannot serve clients and HTTP."""
    with pytest.raises(StartupError, match="9090"):
        load(http_port=9090)


def test_load_db_path_is_used_as_it_is(load: Load) -> None:
    """--db-path is the data directory; without it nodes that share a file get one each."""
    assert load(THREE, node_id=1, db_path=Path("/data/x"))[0].data_directory == Path("/data/x")
    assert load(f'{THREE}[database]\nbase_path = "/data"', node_id=1)[0].data_directory == Path("/data/node_1")


@pytest.mark.parametrize("endpoint", ["0.0.0.0:9090", "[::]:9090", "node"])
def test_load_advertised_wildcard_is_refused(load: Load, endpoint: str) -> None:
    """Clients must never be told an address that means every address."""
    with pytest.raises(StartupError, match="advertise_endpoint"):
        load(f'[deployment]\nadvertise_endpoint = "{endpoint}"')


@pytest.mark.parametrize(
    "text",
    [
        "max_message_bytes = 10485760",
        "max_message_bytes = 8388608\nmax_transaction_bytes = 1048576",
        "max_response_bytes = 4194304",
        "max_value_bytes = 8388608",
    ],
)
def test_load_contradictory_limits_are_refused(load: Load, text: str) -> None:
    """A message must carry a transaction and a response, and a response one largest pair."""
    with pytest.raises(StartupError, match=r"\[limits\] max_"):
        load(f"[limits]\n{text}")


def test_load_waits_never_exceed_the_deadline(load: Load) -> None:
    """Leader wait and future-version wait are cut to the request deadline."""
    settings, _ = load("[limits]\nrequest_timeout_ms = 1500")

    assert (settings.leader_wait_s, settings.future_version_wait_s) == (1.5, 1.5)


def test_load_tls_is_refused_rather_than_ignored(load: Load) -> None:
    """A node that cannot encrypt must not pretend."""
    with pytest.raises(StartupError, match="tls"):
        load('[tls]\nclient_cert = "x"')


def test_load_mock_algorithm_is_raft_with_a_warning(load: Load) -> None:
    """The predecessor's mock engine is taken as raft."""
    _, warnings = load('[consensus]\nalgorithm = "mock"')

    assert len(warnings) == 1


def test_load_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file and bad TOML are one clear error each."""
    bad = tmp_path / "bad.toml"
    bad.write_text("[reads\n")

    with pytest.raises(StartupError, match="absent.toml"):
        load_settings(config_file=tmp_path / "absent.toml", environment={}, flags=Flags())
    with pytest.raises(StartupError, match="bad.toml is not valid TOML.*line 1"):
        load_settings(config_file=bad, environment={}, flags=Flags())


def test_load_section_that_is_no_table_is_refused(load: Load) -> None:
    """`reads = 3` is refused, not skipped."""
    with pytest.raises(StartupError, match=r"\[reads\]"):
        load("reads = 3")


def test_settings_cannot_be_changed(load: Load) -> None:
    """Settings are frozen, sections included."""
    settings, _ = load()

    with pytest.raises(ValidationError):
        settings.node_id = 1
    with pytest.raises(ValidationError):
        settings.reads.max_staleness_ms = 1
