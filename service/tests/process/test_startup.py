"""From exec to the first write, and every reason not to start."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvorum.cli.local_cluster import find_free_ports
from tests.process.harness import Cluster, Node, eventually
from tests.process.wire import ConnectionLost, get, get_cluster_health, get_read_version, ping, raw_connection, set_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GRACE_S = 30.0
"""What Kubernetes gives a pod to end, unless the chart says more."""
ENDLESS_ELECTION_TIMEOUT = "[consensus]\nelection_timeout_ms = 600000\n"
FILE_OF_THE_PREDECESSOR = "[consensus]\nelection_timeout_ms = 5000\nheartbeat_interval_ms = 1000\n"


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Make nodes that belong to no cluster; they end with the test."""
    made: list[Node] = []

    def make(port: int, *arguments: str, folder: Path | None = None, **environment: str) -> Node:
        made.append(Node(folder or tmp_path, port, arguments, environment))
        return made[-1]

    yield make
    for node in made:
        node.end()


def refusal(node: Node) -> str:
    """The node ends by itself with status 1; what it said."""
    status = node.wait()
    assert status == 1, f"exit status {status}: {node.last_words}"
    assert "Traceback" not in node.last_words
    return node.last_words


# --- from exec to service ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through", [0, 1, 2])
async def test_fresh_cluster_takes_its_first_write_without_an_election_timeout_through_any_node(
    make_cluster: Callable[..., Cluster], through: int
) -> None:
    """No birth waits for an election timeout: this one would outlast the test, and no clock need judge the speed."""
    cluster = make_cluster(settings=ENDLESS_ELECTION_TIMEOUT)
    cluster.start()
    node = cluster.nodes[through]
    await eventually(node.accepts, "the node listens", pause=0.01)

    async def written() -> bool:
        return (await node.call(set_key(b"first", b"write"))).ok

    await eventually(written, "the first write")


async def test_long_election_timeout_delays_failover_by_no_more_than_itself(
    make_cluster: Callable[..., Cluster],
) -> None:
    """With the 5,000 ms of existing files a failover takes less than 12 s; a busy machine gets two more to show it."""
    cluster = make_cluster(settings=FILE_OF_THE_PREDECESSOR)
    cluster.start()
    await cluster.ready()
    times: list[float] = []
    while not times or (min(times) >= 12 and len(times) < 3):
        cluster.start()
        leader = await cluster.leader()
        survivors = await cluster.followers()
        leader.kill()

        async def written(survivor: Node = survivors[0]) -> bool:
            return (await survivor.call(set_key(b"after", b"failover"))).ok

        times.append(await eventually(written, "a write through a survivor"))

    assert min(times) < 12


async def test_late_third_node_is_admitted(make_cluster: Callable[..., Cluster]) -> None:
    """Two nodes make a cluster; the third, first started after many writes, gets everything and serves."""
    cluster = make_cluster()
    first, second, third = cluster.nodes
    first.start()
    second.start()
    await cluster.ready()
    async with await first.connect() as connection:
        await asyncio.gather(*(connection.submit(set_key(b"k%d" % i, b"v")) for i in range(2000)))

    third.start()

    await cluster.ready()
    await cluster.same_state()
    assert (await third.call(get(b"k1999", "local"))).value == b"v"


async def test_connect_and_close_probes_during_start_do_no_harm(make_cluster: Callable[..., Cluster]) -> None:
    """Whoever knocks and leaves, at any moment, on any port, causes no warning and no delay."""
    cluster = make_cluster()
    cluster.start()
    until = time.monotonic() + 2
    while time.monotonic() < until:
        for node in cluster.nodes:
            for port in (node.port, node.port - 1000, node.port - 2000):
                with contextlib.suppress(OSError):
                    async with raw_connection(port):
                        pass

    await cluster.ready()
    assert all('"level": "error"' not in node.text for node in cluster.nodes)


async def test_standalone_node_needs_nothing_but_a_port(tmp_path: Path, alone: Callable[..., Node]) -> None:
    """THRIFT_PORT alone, in an empty directory, several at once: each serves, with its data below that directory."""
    nodes = []
    for number, port in enumerate(find_free_ports(3)):
        folder = tmp_path / f"standalone{number}"
        folder.mkdir()
        nodes.append(alone(port, folder=folder, THRIFT_PORT=str(port)))
    for node in nodes:
        node.start()
    for node in nodes:
        await eventually(node.accepts, "the node listens", pause=0.02)
        version = (await node.call(get_read_version())).number(1)
        written = await node.call(set_key(b"k", b"v"))
        health = await node.call(get_cluster_health())

        assert version > 0
        assert written.ok
        facts = health.fields[2]
        assert isinstance(facts, dict)
        assert (facts[2], facts[3], facts[5]) == (1, 1, b"healthy")
        assert {entry.name for entry in node.folder.iterdir()} >= {"data"}
        for distance in (1000, 2000):
            with pytest.raises(OSError, match="Connect"):
                await asyncio.open_connection("127.0.0.1", node.port - distance)
    for node in nodes:
        node.kill()
        node.start()
    for node in nodes:
        await eventually(node.accepts, "the node listens again", pause=0.02)
        assert (await node.call(get(b"k"))).value == b"v"


async def test_localhost_works_in_both_address_families(alone: Callable[..., Node]) -> None:
    """The client port is bound in IPv4 and IPv6."""
    (port,) = find_free_ports(1)
    node = alone(port, THRIFT_PORT=str(port))
    node.start()
    await eventually(node.accepts, "the node listens")
    for host in ("127.0.0.1", "::1") if Path("/proc/net/if_inet6").exists() else ("127.0.0.1",):
        async with raw_connection(port, host):
            pass


# --- stop ----------------------------------------------------------------------------------------------------------


async def test_sigterm_ends_every_node_cleanly(make_cluster: Callable[..., Cluster]) -> None:
    """Exit status 0 within the grace time, ports free at once, and a restart has everything."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()
    await leader.call(set_key(b"k", b"v"))

    for node in cluster.nodes:
        assert node.stop(GRACE_S) == 0, node.last_words

    cluster.start()
    await cluster.ready()
    await cluster.holds({b"k": b"v"})


async def test_sigterm_answers_what_is_in_flight_with_a_true_outcome(make_cluster: Callable[..., Cluster]) -> None:
    """500 writes are pipelined when SIGTERM arrives: each acknowledged one is there, each refused one is not."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()
    async with await leader.connect() as connection:
        futures = [connection.submit(set_key(b"k%03d" % number, b"v")) for number in range(500)]
        await futures[20]
        leader.process.terminate()  # type: ignore[union-attr]
        replies = await asyncio.gather(*futures, return_exceptions=True)
    assert leader.wait() == 0, leader.last_words

    leader.start()
    await cluster.ready()
    await cluster.same_state()
    for number, reply in enumerate(replies):
        there = (await leader.call(get(b"k%03d" % number, "local"))).value is not None
        if isinstance(reply, BaseException):
            assert isinstance(reply, ConnectionLost)
        elif reply.ok:
            assert there
        elif reply.code != "TIMEOUT":
            assert not there


async def test_sigkill_leaves_no_children_and_no_port(make_cluster: Callable[..., Cluster]) -> None:
    """One process per node: when it is gone everything of it is gone."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()
    children = [
        child
        for task in Path(f"/proc/{leader.pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]

    leader.kill()

    assert children == []
    assert not await leader.accepts()


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [0, 1000, 2000], ids=["client", "http", "peer"])
async def test_taken_port_ends_the_start_with_a_clear_error(
    make_cluster: Callable[..., Cluster], distance: int
) -> None:
    """The text names the port."""
    cluster = make_cluster()
    node = cluster.nodes[0]
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", node.port - distance)
    node.start()
    said = await asyncio.to_thread(refusal, node)
    server.close()

    assert str(node.port - distance) in said
    assert "use" in said or "taken" in said


async def test_second_server_on_a_running_nodes_port_is_refused(
    make_cluster: Callable[..., Cluster], alone: Callable[..., Node]
) -> None:
    """No SO_REUSEPORT: the running node keeps its port and goes on."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()
    second = alone(leader.port, THRIFT_PORT=str(leader.port))
    second.start()

    assert str(leader.port) in refusal(second)
    assert (await leader.call(ping(b"still here"))).fields[1] == b"still here"


async def test_second_process_in_a_data_directory_is_refused(
    make_cluster: Callable[..., Cluster], alone: Callable[..., Node]
) -> None:
    """The text names the directory and the process that has it."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()
    number = cluster.nodes.index(leader)
    (port,) = find_free_ports(1)
    second = alone(port, "--db-path", str(cluster.data_directory(number)), THRIFT_PORT=str(port))
    second.start()

    said = refusal(second)
    assert str(cluster.data_directory(number)) in said
    assert str(leader.pid) in said


async def test_same_node_id_twice_is_refused(make_cluster: Callable[..., Cluster], alone: Callable[..., Node]) -> None:
    """A second node 0, with its own data and client port, cannot take node 0's peer port."""
    cluster = make_cluster()
    cluster.start()
    await cluster.ready()
    (port,) = find_free_ports(1)
    first = cluster.nodes[0]
    elsewhere = str(cluster.folder / "elsewhere")
    second = alone(
        port, "--config", str(cluster.config), "--node-id", "0", "--db-path", elsewhere, THRIFT_PORT=str(port)
    )
    second.start()

    assert str(first.port - 2000) in refusal(second)
    assert (await first.call(set_key(b"k", b"v"))).ok


async def test_foreign_directory_is_refused_and_left_alone(tmp_path: Path, alone: Callable[..., Node]) -> None:
    """A non-empty directory that kvorum did not make may be the predecessor's."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "CURRENT").write_text("MANIFEST-000004\n")
    (port,) = find_free_ports(1)
    node = alone(port, "--db-path", str(foreign), THRIFT_PORT=str(port))
    node.start()

    assert str(foreign) in refusal(node)
    assert [entry.name for entry in foreign.iterdir()] == ["CURRENT"]


@pytest.mark.parametrize("value", ["none", "0", "70000", "9090x"])
def test_thrift_port_that_is_no_port_is_refused(alone: Callable[..., Node], value: str) -> None:
    """The text names the variable and the value."""
    node = alone(13999, THRIFT_PORT=value)
    node.start()

    said = refusal(node)
    assert "THRIFT_PORT" in said
    assert value in said


def test_bad_configuration_names_file_section_key_value_and_what_is_allowed(
    make_cluster: Callable[..., Cluster],
) -> None:
    """One clear error instead of a guess."""
    cluster = make_cluster(settings="[consensus]\nelection_timeout_ms = 'soon'\n")
    cluster.nodes[0].start()

    said = refusal(cluster.nodes[0])
    for part in (str(cluster.config), "consensus", "election_timeout_ms", "soon"):
        assert part in said
