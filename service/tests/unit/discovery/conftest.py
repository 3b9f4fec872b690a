"""A fake API server, and the real client that talks to it."""

from __future__ import annotations

import asyncio

import pytest

from kvorum.discovery import kubernetes_api
from kvorum.discovery.kubernetes_api import KubernetesApi
from tests.unit.discovery.fake_api import NAMESPACE, STATEFULSET, FakeApi


@pytest.fixture
def server():
    fake = FakeApi()
    yield fake
    fake.stop()


@pytest.fixture
async def api(server, tmp_path, monkeypatch):
    for name in ("CONNECT_S", "READ_S"):
        monkeypatch.setattr(kubernetes_api, name, 0.5)
    kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig")
    found = KubernetesApi(asyncio.get_running_loop(), NAMESPACE, STATEFULSET, kubeconfig=kubeconfig)
    yield found
    await found.close()
