"""A log that says the same thing at most once in a while, because a peer that is away would otherwise fill the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from kvorum.peers.limits import LOG_REPEAT_S, LOG_SUBJECTS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger


class QuietLog:
    """Warnings by subject: a new text is said at once, the same text again only every ``LOG_REPEAT_S``."""

    def __init__(self, node_id: int, clock: Callable[[], float]) -> None:
        self._log: FilteringBoundLogger = structlog.get_logger("kvorum.peers").bind(node=node_id)
        self._clock = clock
        self._said: dict[str, tuple[str, float, int]] = {}

    def info(self, event: str, **fields: object) -> None:
        """Say something that happens rarely."""
        self._log.info(event, **fields)

    def warning(self, event: str, *, subject: str, reason: str, **fields: object) -> None:
        """Complain about ``subject``, with the number of repetitions kept quiet since the last time."""
        now = self._clock()
        said, at, quiet = self._said.get(subject, ("", 0.0, 0))
        if said == reason and now < at + LOG_REPEAT_S:
            self._said[subject] = (said, at, quiet + 1)
            return
        if len(self._said) >= LOG_SUBJECTS_MAX:
            self._said.clear()
        self._said[subject] = (reason, now, 0)
        if quiet and said == reason:
            fields["repeated"] = quiet
        self._log.warning(event, reason=reason, **fields)

    def forget(self, subject: str) -> None:
        """The matter is settled; the next complaint is news again."""
        self._said.pop(subject, None)
