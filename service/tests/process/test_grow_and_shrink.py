"""Real nodes whose cluster changes under load: growing, shrinking, lost disks, planned stops."""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from kvorum.cli.local_cluster import find_free_ports
from tests.process.harness import Cluster, Node, Writers, eventually
from tests.process.wire import set_key

if TYPE_CHECKING:
    from collections.abc import Callable


def post(node: Node, action: str, content: dict[str, object]) -> dict[str, Any]:
    """Ask a node's admin page for a change."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{node.port - 1000}/admin/{action}",
        json.dumps(content).encode(),
        {"Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        found: dict[str, Any] = json.load(response)
    return found


async def ask(node: Node, action: str, **content: object) -> dict[str, Any]:
    """The same, beside the load."""
    return await asyncio.to_thread(post, node, action, content)


def page(node: Node) -> dict[str, Any]:
    """A node's status page."""
    found: dict[str, Any] = json.loads(node.http("/status")[1])
    return found


async def voters(node: Node, wanted: set[int]) -> None:
    """Wait until a node sees exactly these voters and no learners."""

    async def so() -> bool:
        members = (await asyncio.to_thread(page, node))["members"]
        return {member["node_id"] for member in members} == wanted and all(member["voter"] for member in members)

    await eventually(so, f"{node} sees the voters {wanted}")


def newcomers(cluster: Cluster, count: int) -> list[Node]:
    """Nodes whose file lists the running ones and themselves."""
    ports = [node.port for node in cluster.nodes] + find_free_ports(count)
    first = len(cluster.nodes)
    endpoints = json.dumps([f"127.0.0.1:{port}" for port in ports])
    config = cluster.folder / "grown.toml"
    config.write_text(
        f"[deployment]\nreplica_endpoints = {endpoints}\n\n"
        f"[database]\nbase_path = {json.dumps(str(cluster.folder / 'data'))}\n"
    )
    nodes = []
    for number, port in enumerate(ports[first:], first):
        arguments = ["--config", str(config), "--node-id", str(number)]
        nodes.append(Node(cluster.folder, port, [*arguments, "--log-dir", str(cluster.folder / f"logs{number}")]))
    cluster.nodes += nodes
    return nodes


async def test_three_nodes_become_five_and_three_again_under_load(make_cluster: Callable[..., Cluster]) -> None:
    """Learners join and are promoted by themselves, the leader is removed too; no acknowledged write is lost."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()
    old = list(cluster.nodes)
    async with Writers(old[:1], 3) as writers:
        await writers.acknowledged(100)
        for node in newcomers(cluster, 2):
            node.start()
            number = cluster.nodes.index(node)
            endpoints = {"client_endpoint": node.endpoint, "peer_endpoint": f"127.0.0.1:{node.port - 2000}"}
            reply = await ask(old[1], "members/add", node_id=number, **endpoints)
            assert reply, reply
            await voters(leader, set(range(number + 1)))
        await writers.acknowledged(100)
        leader = await cluster.leader()
        gone = [leader, next(node for node in old[1:] if node is not leader)]
        stays = [node for node in cluster.nodes if node not in gone]
        for node in gone:
            await ask(stays[-1], "members/remove", node_id=cluster.nodes.index(node))
            await eventually(lambda node=node: _is(node, "removed"), f"{node} knows that it is removed")  # type: ignore[misc]
            assert node.running
            assert node.stop() == 0
        await voters(stays[-1], {cluster.nodes.index(node) for node in stays})
    gone[0].start()
    assert gone[0].wait() == 1
    assert "remove the directory" in gone[0].last_words
    cluster.nodes = stays
    outcomes = writers.outcomes
    await cluster.holds(outcomes.acknowledged)


async def _is(node: Node, standing: str) -> bool:
    return bool((await asyncio.to_thread(page, node))["membership"] == standing)


async def test_two_disks_wiped_one_after_the_other_nothing_is_lost(make_cluster: Callable[..., Cluster]) -> None:
    """A node with an empty disk comes back by itself as a learner and becomes a voter; then the next one may."""
    cluster = make_cluster()
    cluster.start()
    await cluster.ready()
    async with Writers(cluster.nodes[2:], 3) as writers:
        await writers.acknowledged(200)
        for number in (0, 1):
            node = cluster.nodes[number]
            before = page(node)["incarnation"]
            node.kill()
            shutil.rmtree(cluster.data_directory(number))
            await writers.acknowledged(50)
            node.start()
            await eventually(lambda node=node: _is(node, "voter"), f"{node} votes again")  # type: ignore[misc]
            assert page(node)["incarnation"] != before
            await voters(cluster.nodes[2], {0, 1, 2})
            await writers.acknowledged(50)
    await cluster.holds(writers.outcomes.acknowledged)


async def test_planned_stop_of_the_leader_under_load_fails_no_write(make_cluster: Callable[..., Cluster]) -> None:
    """Leadership moves first, so that writers on the other nodes hear of no failure and hardly of a pause."""
    cluster = make_cluster()
    cluster.start()
    leader = await cluster.ready()
    others = [node for node in cluster.nodes if node is not leader]
    async with Writers(others, 4) as writers, Writers([leader], 2, b"leader") as own:
        await writers.acknowledged(200)
        assert leader.stop() == 0
        await writers.acknowledged(200)
        outcomes = writers.outcomes
        own_outcomes = own.outcomes
        leader.start()
    assert "leadership handed over" in leader.text
    assert not outcomes.refused
    assert not outcomes.unknown
    assert not own_outcomes.refused
    assert len(own_outcomes.unknown) <= 2, "at most what each client sent into a connection that was closing"
    await cluster.holds(outcomes.acknowledged | own_outcomes.acknowledged)


@pytest.mark.parametrize("restarted", [False, True])
async def test_newcomer_that_nobody_added_is_not_born_beside_the_cluster(
    make_cluster: Callable[..., Cluster], *, restarted: bool
) -> None:
    """Three empty nodes with a longer file wait to be added, though they are a majority of their own file."""
    cluster = make_cluster(2)
    cluster.start()
    await cluster.ready()
    nodes = newcomers(cluster, 3)
    for node in nodes:
        node.start()
    for node in nodes:
        await eventually(lambda node=node: _waits(node), f"{node} waits")  # type: ignore[misc]
    if restarted:
        nodes[0].kill()
        nodes[0].start()
        await eventually(lambda: _waits(nodes[0]), "it waits again")
    assert (await cluster.nodes[0].call(set_key(b"k", b"v"))).ok
    for node in nodes:
        assert page(node)["membership"] == "unborn"


async def _waits(node: Node) -> bool:
    return "kvorum member add" in node.last_words
