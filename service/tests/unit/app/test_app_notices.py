"""Events: few, never the same twice in a while, and nothing depends on them."""

from __future__ import annotations

import pytest

from kvorum.app import notices as module
from kvorum.app.notices import BURST, REFILL_S, REPEAT_S, WAITING_MAX, Notices
from kvorum.discovery.kubernetes_api import Failure, Reason


class FakeApi:
    def __init__(self):
        self.sent = []
        self.fails = False

    async def emit_event(self, notice):
        if self.fails:
            return Failure(Reason.FORBIDDEN, "no")
        self.sent.append(notice)
        return None


class World:
    def __init__(self):
        self.now = 0.0
        self.api = FakeApi()
        self.notices = Notices(self.api, "kv", "kv-1", lambda: self.now, lambda: 1_700_000_000 + self.now)

    async def send_all(self):
        for _ in range(WAITING_MAX + 1):
            await self.notices.send("uid-1")
        return [notice.text for notice in self.api.sent]


@pytest.fixture
def world():
    return World()


async def test_notice_is_an_event_about_the_statefulset(world) -> None:
    """Names are unique, the time is the wall's, the teller is the pod."""
    world.notices.add("Added", "one")
    world.notices.add("Added", "two", warning=True)

    assert await world.send_all() == ["one", "two"]
    first, second = world.api.sent
    assert first.name != second.name
    assert (first.involved, first.uid, first.reporter) == ("kv", "uid-1", "kv-1")
    assert first.time == "2023-11-14T22:13:20Z"
    assert (first.warning, second.warning) == (False, True)


async def test_notice_is_not_repeated_for_a_while(world) -> None:
    """A condition that lasts is told once in ten minutes."""
    world.notices.add("Blocked", "no quorum")
    world.notices.add("Blocked", "no quorum")
    assert await world.send_all() == ["no quorum"]
    world.now = REPEAT_S
    world.notices.add("Blocked", "no quorum")

    assert await world.send_all() == ["no quorum", "no quorum"]


async def test_notices_are_bounded_in_number_and_in_time(world) -> None:
    """A burst, then one at a time; of too many that wait the oldest are dropped."""
    for number in range(WAITING_MAX + 4):
        world.notices.add("Added", str(number))

    assert await world.send_all() == [str(number) for number in range(4, 4 + BURST)]
    world.now += REFILL_S
    assert len(await world.send_all()) == BURST + 1


async def test_notices_that_are_known_are_bounded(world, monkeypatch) -> None:
    """Texts that are always new fill no memory."""
    monkeypatch.setattr(module, "KNOWN_MAX", 3)
    for number in range(9):
        world.notices.add("Added", str(number))

    assert len(await world.send_all()) == 3


async def test_notice_waits_until_the_statefulset_was_read(world) -> None:
    """Without the uid of what it is about nobody would find it."""
    world.notices.add("Added", "one")
    await world.notices.send("")
    assert world.api.sent == []

    assert await world.send_all() == ["one"]


async def test_notice_that_cannot_be_sent_may_be_said_again(world) -> None:
    """It is dropped, not kept: but the next time that it holds it is news once more."""
    world.api.fails = True
    world.notices.add("Blocked", "no quorum")
    await world.send_all()
    world.api.fails = False
    world.notices.add("Blocked", "no quorum")

    assert await world.send_all() == ["no quorum"]
