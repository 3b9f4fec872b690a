"""Tasks of the links: what goes wrong in them is heard."""

from __future__ import annotations

import asyncio
import random

from kvorum.core.ports import Greeting
from kvorum.peers.tcp import TcpPeerLinks


class FailingHandler:
    """Admits everybody and breaks when a link goes down."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        self.linked = asyncio.Event()

    def greet(self) -> Greeting:
        return Greeting(b"c" * 16, b"b" * 16, self.node_id, 1, "node:9090", "0.1.0")

    def admit(self, _: Greeting) -> str | None:
        return None

    def turned_away(self, _peer: int, _reason: str) -> None:
        return

    def link_up(self, _peer: int, _greeting: Greeting) -> None:
        self.linked.set()

    def link_down(self, _peer: int, _reason: str) -> None:
        msg = "a broken invariant"
        raise AssertionError(msg)

    def frame_received(self, *_: object) -> None:
        pass


def test_handler_that_fails_on_a_broken_link_reaches_the_exception_handler_of_the_loop():
    """Else the dialling task is gone, the link stays dead, and nobody knows (catalogue bug 79)."""
    heard: list[object] = []

    async def story() -> None:
        failed = asyncio.Event()

        def hear(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
            heard.append(context.get("exception"))
            failed.set()

        asyncio.get_running_loop().set_exception_handler(hear)
        endpoints: dict[int, str] = {}
        there = TcpPeerLinks(1, 0, {}, chance=random.Random(1))
        there.start(FailingHandler(1))
        endpoints[1] = f"127.0.0.1:{there.port}"
        here = TcpPeerLinks(0, 0, endpoints, chance=random.Random(2))
        handler = FailingHandler(0)
        here.start(handler)
        await asyncio.wait_for(handler.linked.wait(), 120)
        await there.stop()
        await asyncio.wait_for(failed.wait(), 120)
        await here.stop()

    asyncio.run(story())

    assert ["a broken invariant"] == [str(error) for error in heard]
