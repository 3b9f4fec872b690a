"""
Events for ``kubectl describe``: what happened to the membership, in one sentence each.

Best effort: they are bounded in number, none is told twice in a while, and nothing waits for one or depends on it.
"""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from kvorum.discovery.kubernetes_api import Failure, Notice

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvorum.discovery.kubernetes_api import KubernetesApi

WAITING_MAX: Final = 16
BURST: Final = 10
REFILL_S: Final = 30.0
"""So many Events at once, and then one in so many seconds: the API server has better things to do."""

REPEAT_S: Final = 600.0
KNOWN_MAX: Final = 256


class Notices:
    """Takes what there is to say at any time; `send` says it."""

    def __init__(
        self,
        api: KubernetesApi,
        statefulset: str,
        pod: str,
        clock: Callable[[], float],
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """
        Say nothing yet.

        Args:
            api: Where Events go.
            statefulset: What they are about.
            pod: Who tells them.
            clock: Monotonic seconds.
            wall_s: Seconds since 1970.
        """
        self._api = api
        self._statefulset = statefulset
        self._pod = pod
        self._clock = clock
        self._wall_s = wall_s
        self._waiting: deque[tuple[str, str, bool]] = deque(maxlen=WAITING_MAX)
        self._told: dict[tuple[str, str], float] = {}
        self._tokens = float(BURST)
        self._refilled = clock()
        self._number = 0

    def add(self, reason: str, text: str, *, warning: bool = False) -> None:
        """Have something to say, unless it was said a short while ago; the oldest gives way."""
        now = self._clock()
        for known in [known for known, at in self._told.items() if now - at >= REPEAT_S]:
            del self._told[known]
        if (reason, text) in self._told or len(self._told) >= KNOWN_MAX:
            return
        self._told[reason, text] = now
        self._waiting.append((reason, text, warning))

    async def send(self, uid: str) -> None:
        """Say the next thing, if it is time; one that cannot be sent is dropped."""
        now = self._clock()
        self._tokens = min(BURST, self._tokens + (now - self._refilled) / REFILL_S)
        self._refilled = now
        if not self._waiting or not uid or self._tokens < 1:
            return
        self._tokens -= 1
        reason, text, warning = self._waiting.popleft()
        self._number += 1
        wall_s = self._wall_s()
        answer = await self._api.emit_event(
            Notice(
                name=f"{self._pod}.{int(wall_s * 1000):x}.{self._number:x}",
                kind="StatefulSet",
                involved=self._statefulset,
                uid=uid,
                reason=reason,
                text=text,
                warning=warning,
                time=datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                reporter=self._pod,
            )
        )
        if isinstance(answer, Failure):
            # May be said again: another reason, or the same one once the API server is back.
            self._told.pop((reason, text), None)
