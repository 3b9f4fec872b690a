"""
From file, environment and flags to one `Settings`.

Who wins: flags, then environment, then file, then default; only the client port has an order of its own, because the
predecessor's tools set ``THRIFT_PORT`` (contract section 12).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvorum.config.endpoints import PORT_MAX, join_endpoint, split_endpoint
from kvorum.config.environment import find_pod
from kvorum.config.settings import Flags, Settings
from kvorum.config.sources import Value, Values, bad_value, build_sections, read_environment, read_file
from kvorum.core.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Flags", "Settings", "load_settings"]

DEFAULT_PORT: Final = 9090
PEER_PORT_DISTANCE: Final = 2000
HTTP_PORT_DISTANCE: Final = 1000
NO_LOG_FILES: Final = Path("-")


def load_settings(
    *, config_file: Path | None, environment: Mapping[str, str], flags: Flags
) -> tuple[Settings, list[str]]:
    """
    Read everything a node is told and work out who it is.

    Returns:
        The settings, and one sentence for each thing that was ignored or looks wrong; the caller logs them.

    Raises:
        StartupError: A file that cannot be read, a known key with a bad value, or settings that contradict each other.
    """
    warnings: list[str] = []
    values: Values = read_file(config_file, warnings) if config_file else {}
    values.update(read_environment(environment, warnings))
    if flags.verbose:
        values["logging", "log_level"] = Value("debug", "flag --verbose")
    if flags.http_port is not None:
        values["http", "port"] = Value(flags.http_port, "flag --http-port")
        values["http", "enabled"] = Value(value=True, source="flag --http-port")
    sections: dict[str, Any] = dict(build_sections(values, warnings))
    settings = _Resolver(Settings(**sections), values, environment, flags, warnings).resolve()
    _check_limits(settings, values)
    return settings, warnings


class _Resolver:
    """Works out node id, endpoints, ports and directories; each method reads what the ones before it found."""

    def __init__(
        self, given: Settings, values: Values, environment: Mapping[str, str], flags: Flags, warnings: list[str]
    ) -> None:
        self._given = given
        self._values = values
        self._environment = environment
        self._flags = flags
        self._warnings = warnings
        self._endpoints = given.deployment.replica_endpoints
        if given.consensus.algorithm == "mock":
            warnings.append(f"{self._source('consensus', 'algorithm')}: algorithm mock is taken as raft")

    def _source(self, section: str, key: str) -> str:
        said = self._values.get((section, key))
        return said.source if said else "defaults"

    def resolve(self) -> Settings:
        if self._given.discovery.method == "kubernetes":
            return self._resolved_pod()
        parsed = self._parsed("deployment", "replica_endpoints", self._endpoints)
        node_id = self._node_id(len(parsed))
        port = self._client_port(parsed[node_id][1] if parsed else None)
        advertise = self._advertise(parsed[node_id][0] if parsed else "localhost", port)
        database = Path(self._given.database.base_path)
        peers = self._peers(parsed) if parsed else ()
        settings = self._given.model_copy(
            update={
                "node_id": node_id,
                "multi_node": bool(parsed),
                "client_port": port,
                "advertise_endpoint": advertise,
                "client_endpoints": tuple(join_endpoint(*pair) for pair in parsed) or (advertise,),
                "peer_endpoints": tuple(join_endpoint(*pair) for pair in peers),
                "http_port": self._http_port(port, multi_node=bool(parsed)),
                "data_directory": self._flags.db_path or database / f"node_{node_id}",
                "log_directory": self._log_directory(),
            }
        )
        self._check_own_ports(settings)
        return settings

    def _log_directory(self) -> Path | None:
        return None if self._flags.log_dir == NO_LOG_FILES else self._flags.log_dir or Path("logs")

    def _resolved_pod(self) -> Settings:
        """A pod of a StatefulSet: its own name says which one, and all other names follow from it."""
        if self._endpoints is not None:
            msg = (
                f"{self._source('deployment', 'replica_endpoints')}: replica_endpoints and [discovery] method = "
                '"kubernetes" exclude each other: remove one of them'
            )
            raise StartupError(msg)
        port = self._client_port(None)
        pod = find_pod(self._given.discovery, self._environment, port, self._pod_peer_port(port))
        for said, source in (
            (self._flags.node_id, "flag --node-id"),
            (self._given.deployment.instance_id, "instance_id"),
        ):
            if said not in (None, pod.ordinal):
                msg = f"{source} {said}: pod {pod.name} is node {pod.ordinal}; leave it out"
                raise StartupError(msg)
        advertise = self._advertise(pod.host(pod.ordinal), port)
        settings = self._given.model_copy(
            update={
                "node_id": pod.ordinal,
                "multi_node": True,
                "client_port": port,
                "advertise_endpoint": advertise,
                "client_endpoints": (advertise,),
                "pod": pod,
                "http_port": self._http_port(port, multi_node=True),
                "data_directory": self._flags.db_path or Path(self._given.database.base_path) / f"node_{pod.ordinal}",
                "log_directory": self._log_directory(),
            }
        )
        self._check_own_ports(settings)
        return settings

    def _pod_peer_port(self, client_port: int) -> int:
        if client_port <= PEER_PORT_DISTANCE:
            msg = (
                f"the peer port would be {client_port} - {PEER_PORT_DISTANCE}; under Kubernetes the client port must "
                f"be above {PEER_PORT_DISTANCE}"
            )
            raise StartupError(msg)
        return client_port - PEER_PORT_DISTANCE

    def _parsed(self, section: str, key: str, endpoints: tuple[str, ...] | None) -> list[tuple[str, int]]:
        if endpoints is None:
            return []
        source = self._source(section, key)
        if not endpoints:
            raise bad_value(source, section, key, [], 'a list with at least one "host:port", or absent')
        found: list[tuple[str, int]] = []
        for text in endpoints:
            try:
                pair = split_endpoint(text)
            except ValueError as error:
                msg = f'{source}: [{section}] {key} holds "{text}"; {error}'
                raise StartupError(msg) from None
            if pair in found:
                msg = f'{source}: [{section}] {key} names "{text}" twice; each node needs an endpoint of its own'
                raise StartupError(msg)
            found.append(pair)
        return found

    def _node_id(self, nodes: int) -> int:
        flag, instance = self._flags.node_id, self._given.deployment.instance_id
        mode = self._given.deployment.mode
        if nodes == 0:
            if mode == "replicated":
                self._warn_of_mode("replicated", "without replica_endpoints this node is standalone")
            if flag:
                msg = f"flag --node-id {flag}: without [deployment] replica_endpoints there is only node 0"
                raise StartupError(msg)
            if instance:
                source = self._source("deployment", "instance_id")
                self._warnings.append(f"{source}: instance_id {instance} is ignored, a standalone node is node 0")
            return 0
        if mode == "standalone":
            self._warn_of_mode("standalone", "replica_endpoints is present, so this node has peers")
        if flag is None and instance is None and nodes > 1:
            msg = (
                f"{self._source('deployment', 'replica_endpoints')} names {nodes} nodes but not which one this is; "
                f"set [deployment] instance_id or --node-id to a number from 0 to {nodes - 1}"
            )
            raise StartupError(msg)
        node_id = flag if flag is not None else instance or 0
        if not 0 <= node_id < nodes:
            source = "flag --node-id" if flag is not None else self._source("deployment", "instance_id")
            raise bad_value(source, "deployment", "instance_id", node_id, f"a whole number from 0 to {nodes - 1}")
        return node_id

    def _warn_of_mode(self, mode: str, why: str) -> None:
        self._warnings.append(f'{self._source("deployment", "mode")}: mode = "{mode}" is ignored: {why}')

    def _client_port(self, own: int | None) -> int:
        said = self._environment.get("THRIFT_PORT")
        if said is not None:
            word = said.strip()
            if not (word.isascii() and word.isdigit() and 1 <= int(word) <= PORT_MAX):
                msg = f'environment variable THRIFT_PORT = "{said}" is not a port; it must be from 1 to {PORT_MAX}'
                raise StartupError(msg)
            port, source = int(word), "environment variable THRIFT_PORT"
        elif self._flags.port is not None:
            port, source = self._flags.port, "flag --port"
            if not 1 <= port <= PORT_MAX:
                msg = f"flag --port {port} is not a port; it must be from 1 to {PORT_MAX}"
                raise StartupError(msg)
        else:
            return own or DEFAULT_PORT
        if own is not None and port != own:
            self._warnings.append(f"{source}: listening on port {port}, though replica_endpoints tells others {own}")
        return port

    def _advertise(self, host: str, port: int) -> str:
        said = self._given.deployment.advertise_endpoint
        if said is None:
            return join_endpoint(host, port)
        ((said_host, said_port),) = self._parsed("deployment", "advertise_endpoint", (said,))
        if said_host in ("0.0.0.0", "::"):
            source = self._source("deployment", "advertise_endpoint")
            raise bad_value(source, "deployment", "advertise_endpoint", said, "an address that clients can reach")
        return join_endpoint(said_host, said_port)

    def _peers(self, clients: list[tuple[str, int]]) -> list[tuple[str, int]]:
        given = self._given.consensus.endpoints
        if given is not None:
            peers = self._parsed("consensus", "endpoints", given)
            if len(peers) != len(clients):
                source = self._source("consensus", "endpoints")
                must_be = f"as many peer endpoints as replica_endpoints has nodes ({len(clients)})"
                raise bad_value(source, "consensus", "endpoints", list(given), must_be)
            return peers
        for host, port in clients:
            if port <= PEER_PORT_DISTANCE:
                msg = (
                    f"{self._source('deployment', 'replica_endpoints')}: the peer port of {join_endpoint(host, port)} "
                    f"would be {port} - {PEER_PORT_DISTANCE}; with a client port of {PEER_PORT_DISTANCE} or below, "
                    "[consensus] endpoints must be given"
                )
                raise StartupError(msg)
        return [(host, port - PEER_PORT_DISTANCE) for host, port in clients]

    def _http_port(self, client_port: int, *, multi_node: bool) -> int | None:
        http = self._given.http
        wanted = http.enabled if http.enabled is not None else multi_node or http.port is not None
        if not wanted:
            return None
        if http.port is not None:
            return http.port
        if client_port <= HTTP_PORT_DISTANCE:
            msg = (
                f"the HTTP port would be {client_port} - {HTTP_PORT_DISTANCE}; with a client port of "
                f"{HTTP_PORT_DISTANCE} or below, [http] port must be given, or [http] enabled = false"
            )
            raise StartupError(msg)
        return client_port - HTTP_PORT_DISTANCE

    @staticmethod
    def _check_own_ports(settings: Settings) -> None:
        ports = {"client": settings.client_port, "peer": settings.peer_port, "HTTP": settings.http_port}
        taken: dict[int, str] = {}
        for use, port in ports.items():
            if port is None:
                continue
            if port in taken:
                msg = (
                    f"port {port} is meant for {taken[port]} and for {use} connections; "
                    "give [http] port or [consensus] endpoints another one"
                )
                raise StartupError(msg)
            taken[port] = use


def _said(values: Values, section: str, key: str, value: object) -> str:
    said = values.get((section, key))
    return f"[{section}] {key} = {value} ({said.source if said else 'default'})"


def _check_limits(settings: Settings, values: Values) -> None:
    limits = settings.limits
    key_and_value = limits.max_key_bytes + limits.max_value_bytes

    def said(key: str) -> str:
        return _said(values, "limits", key, getattr(limits, key))

    for key in ("max_transaction_bytes", "max_response_bytes"):
        if limits.max_message_bytes <= getattr(limits, key):
            msg = f"{said('max_message_bytes')} must be above {said(key)}, or one message cannot carry it"
            raise StartupError(msg)
    if limits.max_response_bytes < key_and_value:
        msg = (
            f"{said('max_response_bytes')} must hold one largest pair: {said('max_key_bytes')} "
            f"plus {said('max_value_bytes')}"
        )
        raise StartupError(msg)
