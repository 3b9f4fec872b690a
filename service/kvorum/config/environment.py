"""What a pod's environment says of the pod (the downward API of Kubernetes)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kvorum.config.pod import Pod
from kvorum.core.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvorum.config.settings import Discovery

_POD_NAME: Final = re.compile(r"(.+)-(0|[1-9][0-9]{0,8})")
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


def find_pod(discovery: Discovery, environment: Mapping[str, str], client_port: int, peer_port: int) -> Pod:
    """
    Work out which pod this is.

    Raises:
        StartupError: The environment does not say it, or it contradicts the configuration.
    """
    name = environment.get("POD_NAME") or environment.get("HOSTNAME", "")
    found = _POD_NAME.fullmatch(name)
    if found is None:
        msg = (
            f'[discovery] method = "kubernetes" needs the name of the pod, which ends in its ordinal, in POD_NAME; '
            f'it is "{name}". Set it from metadata.name (the Helm chart does), and run kvorum in a StatefulSet'
        )
        raise StartupError(msg)
    statefulset = discovery.statefulset or found[1]
    if statefulset != found[1]:
        msg = f"[discovery] statefulset is {statefulset}, but pod {name} belongs to {found[1]}"
        raise StartupError(msg)
    namespace = discovery.namespace or environment.get("POD_NAMESPACE", "")
    if not namespace:
        msg = "the namespace of the pod is not known: set POD_NAMESPACE from metadata.namespace (the Helm chart does)"
        raise StartupError(msg)
    domain = discovery.cluster_domain.strip(".")
    service = discovery.service or f"{statefulset}-headless"
    for what, said in (
        ("statefulset", statefulset),
        ("service", service),
        ("namespace", namespace),
        ("cluster_domain", domain),
    ):
        if not _NAME.fullmatch(said):
            msg = f'[discovery] {what} "{said}" is no DNS name'
            raise StartupError(msg)
    ip = environment.get("POD_IP") or None
    return Pod(statefulset, int(found[2]), service, namespace, domain, client_port, peer_port, ip)
