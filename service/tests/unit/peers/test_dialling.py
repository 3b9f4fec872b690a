"""Dialling by name, on the loop that the service runs on."""

from __future__ import annotations

import asyncio
import gc
import socket

import pytest
import uvloop

from kvorum.peers.dialling import dial

NO_NAME = "no such host"
"""The resolver refuses it without asking anybody."""


def on_uvloop(work):
    """Run a coroutine on uvloop; returns what reached the loop's exception handler."""
    heard = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
        await work(asyncio.get_running_loop())

    uvloop.run(main())
    return heard


def test_dial_given_up_before_the_resolver_failed_leaves_nothing():
    """A lookup that fails after nobody waits for it any more is nobody's error: it must not end the process."""

    async def work(loop):
        for _ in range(8):
            dialling = asyncio.create_task(dial(loop, asyncio.Protocol, NO_NAME, 1))
            await asyncio.sleep(0)
            dialling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dialling
            # Lookups leave the pool of threads about in order: this one's end says that the others have ended.
            with pytest.raises(socket.gaierror):
                await dial(loop, asyncio.Protocol, NO_NAME, 1)
            gc.collect()

    assert on_uvloop(work) == []


def test_dial_goes_on_to_the_next_address():
    """Where the first address of a name refuses, the second one is tried; the last one's error is told."""
    tried = []

    class Loop:
        async def getaddrinfo(self, host, port, *, type):  # noqa: A002 - asyncio calls it so
            return [(0, 0, 0, "", (address, port)) for address in addresses]

        async def create_connection(self, _, host, port):
            tried.append((host, port))
            if host != "10.0.0.2":
                raise OSError(host)
            return host, None

    addresses = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert asyncio.run(dial(Loop(), asyncio.Protocol, "peer", 7)) == ("10.0.0.2", None)
    assert tried == [("10.0.0.1", 7), ("10.0.0.2", 7)]
    addresses = ["10.0.0.1", "10.0.0.3"]
    with pytest.raises(OSError, match=r"10\.0\.0\.3"):
        asyncio.run(dial(Loop(), asyncio.Protocol, "peer", 7))
