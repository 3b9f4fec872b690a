"""
The record of the cluster's birth in a ConfigMap (docs/decisions/0016), as `consensus.founding.Genesis`.

The chart makes the object without data; who forms a cluster writes its id there once, and nobody writes over it. It
goes with the release, while volumes may stay: then whoever leads writes it again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from kvorum.discovery.kubernetes_api import Failure, Reason

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    import structlog

    from kvorum.discovery.kubernetes_api import KubernetesApi

RETRY_S_MIN: Final = 0.5
RETRY_S_MAX: Final = 10.0


class GenesisRecord:
    """One claim at a time; `close` ends it."""

    def __init__(
        self,
        api: KubernetesApi,
        name: str,
        recorder: str,
        loop: asyncio.AbstractEventLoop,
        randomness: random.Random,
        logger: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """
        Remember where the record is.

        Args:
            api: The way to it.
            name: Of the ConfigMap.
            recorder: The pod that would write it, for people.
            loop: Claims run, and are answered, on it.
            randomness: Keeps several pods from trying again in step.
            logger: Says why a claim has to wait.
        """
        self._api = api
        self._name = name
        self._recorder = recorder
        self._loop = loop
        self._randomness = randomness
        self._logger = logger
        self._task: asyncio.Task[None] | None = None

    def claim(self, cluster_id: bytes, decided: Callable[[bytes], None]) -> None:
        """See `consensus.founding.Genesis`."""
        assert self._task is None or self._task.done(), "one claim at a time"
        self._task = self._loop.create_task(self._claim(cluster_id, decided), name="genesis claim")
        self._task.add_done_callback(self._ended)

    def close(self) -> None:
        """Give an unanswered claim up; ``decided`` is not called any more."""
        if self._task is not None:
            self._task.cancel()

    async def settle(self, cluster_id: bytes) -> bytes | Failure:
        """Try once: what the record holds now, which may be the id that was just written into it."""
        record = await self._api.read_record(self._name)
        if isinstance(record, Failure):
            return record
        if record.cluster_id is not None:
            return record.cluster_id
        failure = await self._api.claim_record(self._name, cluster_id, record.version, self._recorder)
        return cluster_id if failure is None else failure

    async def _claim(self, cluster_id: bytes, decided: Callable[[bytes], None]) -> None:
        pause_s = RETRY_S_MIN
        while True:
            held = await self.settle(cluster_id)
            if not isinstance(held, Failure):
                self._logger.info("genesis record", config_map=self._name, cluster_id=held.hex())
                decided(held)
                return
            if held.reason != Reason.CONFLICT:
                self._logger.warning(
                    "the genesis record cannot be had; the cluster is not formed before",
                    config_map=self._name,
                    reason=held.reason,
                    error=held.text,
                    next_step=_next_step(held, self._name),
                )
            await asyncio.sleep(pause_s * self._randomness.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, RETRY_S_MAX)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._loop.call_exception_handler({"message": "the genesis claim failed", "exception": error})


def _next_step(failure: Failure, name: str) -> str:
    if failure.reason == Reason.FORBIDDEN:
        return f"let the service account get and update the ConfigMap {name} (the chart's Role does)"
    if failure.reason == Reason.MISSING:
        return f"create the ConfigMap {name} without data (the chart does)"
    if failure.reason == Reason.INVALID:
        return f"look at the ConfigMap {name}: cluster_id must be 32 hexadecimal digits, or absent"
    return "none: it is tried again"
