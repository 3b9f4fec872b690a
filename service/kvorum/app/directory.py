"""Which data directory a node starts on, when the one in its place was removed from the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from kvorum.core.errors import StartupError
from kvorum.storage.data_directory import DataDirectory

if TYPE_CHECKING:
    from kvorum.config.settings import Settings

log = structlog.get_logger("kvorum.app")


def open_directory(settings: Settings) -> DataDirectory:
    """
    Open the data directory of a node.

    A directory that the cluster has removed never serves again. Under Kubernetes its pod was scaled away and has come
    back on the same volume: the directory is set aside, kept until the new one votes, and the pod joins anew
    (operations L5). An empty directory that is not wanted just waits, so nobody has to be asked first.

    Raises:
        StartupError: It cannot be used; the text says what to do.
    """
    directory = DataDirectory.open(settings.data_directory)
    if not directory.removed:
        return directory
    if settings.pod is not None:
        aside = directory.set_aside()
        log.warning(
            "the cluster had removed this data directory: it is set aside, the pod joins anew", aside=str(aside)
        )
        return DataDirectory.open(settings.data_directory)
    directory.close()
    msg = (
        f"the cluster has removed this node: the data directory {settings.data_directory} may hold no seat "
        "again. To let the node join anew, remove the directory, add the node (kvorum member add) and start it"
    )
    raise StartupError(msg)
