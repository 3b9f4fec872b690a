"""A data directory that the first release wrote opens with this one, shows the same, and goes on."""

from __future__ import annotations

import asyncio
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvorum.cli.local_cluster import find_free_ports
from kvorum_client import KvorumClient
from tests.process.harness import Node
from tests.process.wire import get_read_version, set_key, snapshot_get

if TYPE_CHECKING:
    from collections.abc import Iterator

FIXTURE = Path(__file__).parents[1] / "fixtures" / "first_release"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A standalone node on a copy of the old directory, started."""
    with tarfile.open(FIXTURE / "standalone.tar.xz") as archive:
        archive.extractall(tmp_path / "data", filter="data")
    arguments = ["--db-path", str(tmp_path / "data"), "--log-dir", str(tmp_path / "logs")]
    (port,) = find_free_ports(1)
    node = Node(tmp_path, port, [*arguments, "--port", str(port)])
    node.start()
    yield node
    node.end()


async def _ready(node: Node) -> None:
    for _ in range(300):
        if await node.accepts():
            return
        assert node.running, node.last_words
        await asyncio.sleep(0.05)
    pytest.fail(node.last_words)


async def _assert_snapshots_are_as_they_were(node: Node) -> None:
    keys = sorted({*EXPECTED["first"], *EXPECTED["last"]})
    for moment in ("first", "last"):
        version = EXPECTED["versions"][moment]
        async with await node.connect() as connection:
            calls = [connection.submit(snapshot_get(bytes.fromhex(key), version)) for key in keys]
            for key, reply in zip(keys, await asyncio.gather(*calls), strict=True):
                wanted = EXPECTED[moment].get(key)
                found = None if reply.value is None else reply.value.hex()
                assert (reply.error, found) == (None, wanted), (moment, key, reply)


async def test_directory_of_the_first_release_opens_and_goes_on(node: Node) -> None:
    """Both read versions show what they showed, families too; new writes follow, also after a SIGKILL."""
    await _ready(node)
    await _assert_snapshots_are_as_they_were(node)
    async with KvorumClient([node.endpoint]) as client:
        accounts = await client.get_range(family="accounts")
        assert {pair.key.hex(): pair.value.hex() for pair in accounts} == EXPECTED["accounts"]
        await client.set(b"written by", b"a later release")
        assert await client.get_read_version() > EXPECTED["versions"]["last"]
    node.kill()
    node.start()
    await _ready(node)
    await _assert_snapshots_are_as_they_were(node)
    assert (await node.call(set_key(b"and", b"on"))).ok
    assert (await node.call(get_read_version())).ok
