"""What a pod of a StatefulSet has beside what every node has: birth, scaler, and a way to the Kubernetes API."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Final

import structlog

from kvorum.app.scaling import Scaler
from kvorum.consensus.founding import PodBirth
from kvorum.discovery.genesis import GenesisRecord
from kvorum.discovery.kubernetes_api import KubernetesApi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvorum.config.pod import Pod
    from kvorum.config.settings import Settings
    from kvorum.consensus.manager import ConsensusManager
    from kvorum.observe.metrics import Metric
    from kvorum.storage.data_directory import DataDirectory

ASIDE_CHECK_S: Final = 10.0
"""How often a node looks whether it votes, and needs the directory that was set aside no more."""

log = structlog.get_logger("kvorum.kubernetes")


class PodLife:
    """`birth` before there is a consensus, then `attach`, `start`, `part` at SIGTERM, `stop`."""

    def __init__(self, settings: Settings, pod: Pod, directory: DataDirectory, loop: asyncio.AbstractEventLoop) -> None:
        """Put together what the birth needs; nothing is asked yet."""
        discovery = settings.discovery
        self._settings = settings
        self._pod = pod
        self._directory = directory
        self._loop = loop
        self._api = KubernetesApi(loop, pod.namespace, pod.statefulset) if discovery.api else None
        self._genesis = (
            GenesisRecord(self._api, discovery.genesis_config_map, pod.name, loop, random.Random(), log)
            if self._api is not None and discovery.genesis_config_map is not None
            else None
        )
        self.birth = PodBirth(pod.member(pod.ordinal), directory.incarnation, pod.birth_id, self._genesis)
        self._scaler: Scaler | None = None
        self._consensus: ConsensusManager | None = None
        self._aside_timer: asyncio.TimerHandle | None = None
        self._removing: asyncio.Future[bool] | None = None

    def attach(self, consensus: ConsensusManager, fail: Callable[[BaseException], None]) -> None:
        """Say whose membership is to follow the StatefulSet."""
        self._consensus = consensus
        self._scaler = Scaler(
            self._settings, self._pod, consensus, self._api, log, self._loop, time.monotonic, random.Random(), fail
        )

    @property
    def scaler(self) -> Scaler:
        """Once attached."""
        assert self._scaler is not None, "it is attached first"
        return self._scaler

    def start(self) -> None:
        """Begin to follow the StatefulSet."""
        self.scaler.start()
        if self._directory.aside.exists():
            self._aside_timer = self._loop.call_later(ASIDE_CHECK_S, self._look_at_aside)

    async def drain(self) -> None:
        """Serve on for the moment that Services need to notice that this pod is unready."""
        await asyncio.sleep(self._settings.discovery.drain_seconds)

    async def part(self) -> None:
        """This pod is told to stop: leave the cluster if it is scaled away."""
        await self.scaler.stopping()

    async def stop(self) -> None:
        """End everything that was begun here."""
        if self._aside_timer is not None:
            self._aside_timer.cancel()
        if self._removing is not None:
            await asyncio.wait([self._removing])
        await self.scaler.stop()
        if self._genesis is not None:
            self._genesis.close()
        if self._api is not None:
            await self._api.close()

    def status(self) -> dict[str, Any]:
        """For the status page."""
        return self.scaler.status()

    def metrics(self) -> Iterable[Metric]:
        """The source of this room's metrics."""
        return self.scaler.metrics()

    def _look_at_aside(self) -> None:
        """
        A directory that was removed is kept until the one in its place votes: it may be somebody's last hope.

        But not at the price of the new one: on a disk that cannot hold both it would never come to vote.
        """
        self._aside_timer = None
        consensus = self._consensus
        if consensus is not None and (consensus.standing == "voter" or not consensus.has_space):
            self._removing = self._loop.run_in_executor(None, self._directory.remove_aside)
            self._removing.add_done_callback(_aside_removed)
        else:
            self._aside_timer = self._loop.call_later(ASIDE_CHECK_S, self._look_at_aside)


def _aside_removed(removed: asyncio.Future[bool]) -> None:
    error = removed.exception()
    if error is None:
        log.info("the directory that was set aside is deleted: this node votes, or its disk is full")
    else:
        log.warning("the directory that was set aside cannot be deleted", error=str(error))
