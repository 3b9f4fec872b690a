"""The command line without a cluster: help, usage errors, and what an unreachable node looks like."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import kvorum
from kvorum.cli.admin_client import http_endpoint
from kvorum.cli.commands import app
from kvorum.cli.local_cluster import LocalCluster, find_free_ports
from kvorum.cli.verify import Verdict

RUNNER = CliRunner()
COMMANDS = (
    "serve",
    "check-config",
    "check",
    "status",
    "verify",
    "get",
    "set",
    "delete",
    "range",
    "demo",
    "version",
    "wal",
)


def run(*arguments: str):
    return RUNNER.invoke(app, arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_is_there(command):
    """Each command explains itself, and the front page names it."""
    assert run(command, "--help").exit_code == 0
    assert command in run("--help").output


def test_version_is_the_packages_own():
    """One version everywhere."""
    assert kvorum.__version__ == run("version").output.strip()


@pytest.mark.parametrize(
    "arguments",
    [
        ("get",),
        ("get", r"bad\q"),
        ("get", "--hex", "xyz"),
        ("set", "k"),
        ("get", "k", "--endpoints", "nowhere"),
        ("get", "k", "--endpoints", ","),
        ("status", "-o", "yaml"),
        ("range", "--limit", "-1"),
        ("verify", "-e", "a:2000,b:2000", "--http-endpoints", "a:1000"),
        ("wal", "inspect", "/does/not/exist"),
        ("frobnicate",),
    ],
)
def test_usage_that_is_wrong_exits_with_2(arguments):
    """A wrong command line is told apart from a failed command."""
    assert run(*arguments).exit_code == 2


def test_get_unreachable_node_exits_with_1_and_names_it():
    """A failure names the node and comes within the given time."""
    (port,) = find_free_ports(1)
    result = run("get", "k", "--endpoints", f"127.0.0.1:{port}", "--timeout", "0.3")

    assert result.exit_code == 1
    assert f"127.0.0.1:{port}" in result.stderr


def test_status_unreachable_node_is_shown_and_exits_with_1():
    """A node that is down is a row of the table, and without a leader the exit code says so."""
    (port,) = find_free_ports(1)
    shown = run("status", "--endpoints", f"127.0.0.1:{port}")
    document = run("status", "--endpoints", f"127.0.0.1:{port}", "-o", "json")

    assert shown.exit_code == document.exit_code == 1
    assert "unreachable" in shown.output
    assert "no leader" in shown.output
    answer = json.loads(document.stdout)
    assert answer["leader"] is None
    assert answer["nodes"][0]["reachable"] is False


def test_check_config_says_what_a_node_would_be(tmp_path):
    """A good file: who the node is and its ports, and a warning for each key that means nothing."""
    file = tmp_path / "kvorum.toml"
    file.write_text('[deployment]\nreplica_endpoints = ["a:9090", "b:9090", "c:9090"]\n[reads]\nlevel = "local"\n')

    result = run("check-config", "--config", str(file), "--node-id", "2")

    assert result.exit_code == 0
    assert "good: node 2 at c:9090, ports client 9090, peer 7090, http 8090" in result.output
    assert "unknown key level in [reads]" in result.output


def test_check_config_bad_value_exits_with_1_and_names_file_key_and_choice(tmp_path):
    """A bad value is an error before anything is started."""
    file = tmp_path / "kvorum.toml"
    file.write_text('[reads]\nconsistency_level = "sometimes"\n')

    result = run("check-config", "--config", str(file))

    assert result.exit_code == 1
    assert f'{file}: [reads] consistency_level = "sometimes" is not allowed; it must be one of' in result.stderr


def test_wal_inspect_directory_without_segments_exits_with_1(tmp_path):
    """An empty directory is not mistaken for a log, and the right one is suggested."""
    (tmp_path / "log").mkdir()
    result = run("wal", "inspect", str(tmp_path))

    assert result.exit_code == 1
    assert "did you mean" in result.stderr


def test_command_line_starts_without_the_server():
    """A client command loads neither RocksDB nor uvloop nor the HTTP server: it starts fast."""
    code = "import sys; import kvorum.cli.commands, kvorum.cli.keys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert not {"rocksdict", "uvloop", "aiohttp", "pydantic", "structlog", "kvorum.app"} & set(loaded)


def test_local_cluster_ports_are_distinct_with_their_neighbours(tmp_path):
    """Client, peer and HTTP ports of all nodes differ."""
    cluster = LocalCluster(tmp_path)
    ports = [port for node in cluster.nodes for port in (node.port, node.port - 1000, node.port - 2000)]

    assert len(set(ports)) == 9
    assert all(f'"127.0.0.1:{node.port}"' in cluster.config.read_text() for node in cluster.nodes)


def test_verdict_one_different_hash_is_not_equal():
    """Equality means every node."""
    assert Verdict(5, {"a": "x", "b": "x"}).equal
    assert not Verdict(5, {"a": "x", "b": "y"}).equal
    assert http_endpoint("[::1]:9090") == "::1:8090"
