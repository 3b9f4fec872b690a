"""What a pod does with the directory that was set aside for a new one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from kvorum.app import kubernetes
from kvorum.app.directory import open_directory
from kvorum.app.kubernetes import PodLife
from kvorum.config.load import Flags, load_settings
from kvorum.storage.data_directory import DataDirectory

POD = {"KVORUM_DISCOVERY__METHOD": "kubernetes", "POD_NAME": "kv-4", "POD_NAMESPACE": "shop"}
NO_API = {"KVORUM_DISCOVERY__API": "false"}


@pytest.fixture
async def pod(tmp_path, monkeypatch):
    """A pod that has come back on the volume of a removed member."""
    monkeypatch.setattr(kubernetes, "ASIDE_CHECK_S", 0.01)
    environment = {**POD, **NO_API, "KVORUM_DATABASE__BASE_PATH": str(tmp_path)}
    settings, _ = load_settings(config_file=None, environment=environment, flags=Flags())
    before = DataDirectory.open(settings.data_directory)
    before.set_removed()
    before.close()
    directory = open_directory(settings)
    life = PodLife(settings, settings.pod, directory, asyncio.get_running_loop())
    life._consensus = SimpleNamespace(standing="learner", has_space=True)
    life._scaler = SimpleNamespace(start=lambda: None, stop=lambda: asyncio.sleep(0))
    life.start()
    yield SimpleNamespace(consensus=life._consensus, aside=directory.aside)
    await life.stop()
    directory.close()


async def gone(path):
    async with asyncio.timeout(120):
        while path.exists():
            await asyncio.sleep(0.005)


async def test_directory_set_aside_is_kept_while_the_new_one_catches_up_and_deleted_when_it_votes(pod):
    """It goes only when there is something better in its place."""
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert pod.aside.exists()
    pod.consensus.standing = "voter"
    await gone(pod.aside)


async def test_directory_set_aside_makes_room_on_a_full_disk(pod):
    """Both do not fit: the learner, which waits for space, would wait for ever."""
    pod.consensus.has_space = False
    await gone(pod.aside)
