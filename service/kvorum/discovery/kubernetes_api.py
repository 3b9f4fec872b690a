"""
The door to the Kubernetes API: five questions about five named objects, each bounded, each answered with a value.

Of the `kubernetes` package only the configuration (service account or kubeconfig, certificates, a token that changes)
and its HTTP client are used, with plain JSON: its models check more than the API server promises, such as an
EndpointSlice without endpoints. It is large and synchronous, so it is imported and called in a thread of its own.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kvorum.discovery.scaling import Gone, Intent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

T = TypeVar("T")

CONNECT_S: Final = 3.0
READ_S: Final = 3.0
CALL_S: Final = 8.0
"""Until a call counts as lost, whatever its thread still does."""

CALLS_MAX: Final = 8
"""Calls that wait for the one thread; a node makes a few in a second."""

BODY_BYTES_MAX: Final = 4 * 1024 * 1024

CLUSTER_ID_KEY: Final = "cluster_id"
RECORDED_BY_KEY: Final = "recorded_by"
TERM_ANNOTATION: Final = "kvorum.io/leader-term"
CLUSTER_ANNOTATION: Final = "kvorum.io/cluster-id"
COMPONENT: Final = "kvorum"

_CLUSTER_ID_BYTES: Final = 16
_MISSING: Final = 404


class Reason:
    """Why a call failed; labels of a metric."""

    FORBIDDEN: Final = "forbidden"
    """The service account may not do this (401, 403)."""
    MISSING: Final = "missing"
    """The object does not exist and cannot be made here."""
    CONFLICT: Final = "conflict"
    """Somebody else wrote it since it was read."""
    INVALID: Final = "invalid"
    """The answer, or what was sent, does not fit."""
    SERVER: Final = "server"
    """The API server has trouble of its own, or asks to wait."""
    UNREACHABLE: Final = "unreachable"
    """No answer in time, or no connection."""
    CONFIGURATION: Final = "configuration"
    """There is neither a service account nor a kubeconfig, or no client to use it."""
    BUSY: Final = "busy"
    """Earlier calls hang."""


REASONS: Final = tuple(value for name, value in vars(Reason).items() if name.isupper())


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that did not work; nothing may be concluded from it."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Record:
    """The genesis record as it was read."""

    cluster_id: bytes | None
    version: str
    """A write is only taken while this is the version that stands there."""


@dataclass(frozen=True, slots=True)
class LeaderAddress:
    """What the leader's EndpointSlice says."""

    term: int
    ip: str
    port: int
    pod: str
    cluster_id: bytes
    """Terms of another cluster, which stood here before, say nothing."""


class SliceOutcome:
    """What became of the wish to stand in the EndpointSlice."""

    WRITTEN: Final = "written"
    UNCHANGED: Final = "unchanged"
    FENCED: Final = "fenced"
    """A later term stands there: this node leads no more."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One Event, for ``kubectl describe``."""

    name: str
    """Unique in the namespace."""
    kind: str
    involved: str
    uid: str
    reason: str
    text: str
    warning: bool
    time: str
    """RFC 3339, UTC."""
    reporter: str


class _Answer(Exception):  # noqa: N818 - travels from the thread to `KubernetesApi._call` and no further
    """A status that is no success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class KubernetesApi:
    """See the module text. Every method ends within `CALL_S` and returns a `Failure` instead of raising."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, namespace: str, statefulset: str, *, kubeconfig: Path | None = None
    ) -> None:
        """
        Remember where to ask; nothing is imported, read or connected yet.

        Args:
            loop: Answers arrive on it.
            namespace: Of all objects.
            statefulset: The one whose size counts.
            kubeconfig: Used instead of the pod's service account.
        """
        self._loop = loop
        self._namespace = namespace
        self._statefulset = statefulset
        self._kubeconfig = kubeconfig
        self._thread = ThreadPoolExecutor(1, "kubernetes-api")
        self._waiting = 0
        self._closed = False
        self._client: _Client | None = None
        self.errors: Counter[str] = Counter()
        """Failed calls, by reason."""

    async def read_statefulset(self) -> Intent | Gone | Failure:
        """How many pods are wanted; `Gone` only if the API server itself says that there is no such StatefulSet."""
        path = f"/apis/apps/v1/namespaces/{self._namespace}/statefulsets/{self._statefulset}"
        found = await self._call(lambda client: _found(client, path))
        if found is None:
            return Gone()
        return found if isinstance(found, Failure) else self._checked(lambda: _intent(found))

    async def read_pod_absent(self, name: str) -> bool | Failure:
        """Whether there is no pod of this name; one that is being deleted is there still."""
        found = await self._call(lambda client: _found(client, f"/api/v1/namespaces/{self._namespace}/pods/{name}"))
        return found if isinstance(found, Failure) else found is None

    async def read_record(self, name: str) -> Record | Failure:
        """What the genesis record holds."""
        found = await self._call(lambda client: client.request("GET", self._config_map(name)))
        return found if isinstance(found, Failure) else self._checked(lambda: _record(found))

    async def claim_record(self, name: str, cluster_id: bytes, version: str, recorder: str) -> Failure | None:
        """Write the genesis record, if it is what was read; `Reason.CONFLICT` says to read it again."""

        def claim(client: _Client) -> None:
            path = self._config_map(name)
            document = client.request("GET", path)
            if document["metadata"]["resourceVersion"] != version:
                raise _Answer(409, "the record has changed since it was read")
            data = document.get("data") or {}
            document["data"] = {**data, CLUSTER_ID_KEY: cluster_id.hex(), RECORDED_BY_KEY: recorder}
            client.request("PUT", path, document)

        return await self._call(claim)

    async def write_leader_slice(self, name: str, address: LeaderAddress) -> str | Failure:
        """
        Make the leader's EndpointSlice lead to this node: a `SliceOutcome`.

        A slice that a later term has written is left alone, and a write that crosses another one fails: so a leader
        that was cut off cannot come back over its successor. Whoever believes an old slice is refused by the node.
        """

        def write(client: _Client) -> str:
            path = f"/apis/discovery.k8s.io/v1/namespaces/{self._namespace}/endpointslices/{name}"
            document = client.request("GET", path)
            if _term(document, address.cluster_id) > address.term:
                return SliceOutcome.FENCED
            wanted = _led_to(document, address, self._namespace)
            if wanted == document:
                return SliceOutcome.UNCHANGED
            client.request("PUT", path, wanted)
            return SliceOutcome.WRITTEN

        return await self._call(write)

    async def emit_event(self, notice: Notice) -> Failure | None:
        """Tell whoever looks with kubectl."""
        body = _event(notice, self._namespace)
        sent = await self._call(
            lambda client: client.request("POST", f"/api/v1/namespaces/{self._namespace}/events", body)
        )
        return sent if isinstance(sent, Failure) else None

    async def close(self) -> None:
        """Take no more calls; one that hangs ends by its own time-outs."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    def _config_map(self, name: str) -> str:
        return f"/api/v1/namespaces/{self._namespace}/configmaps/{name}"

    async def _call(self, work: Callable[[_Client], T]) -> T | Failure:
        """Do something with the client in the thread, and wait for it so long and no longer."""
        if self._closed or self._waiting >= CALLS_MAX:
            return self._failed(Reason.BUSY, f"{self._waiting} calls of the Kubernetes API hang")
        self._waiting += 1
        call = self._loop.run_in_executor(self._thread, self._answer, work)
        call.add_done_callback(self._called)
        await asyncio.wait((call,), timeout=CALL_S)
        if not call.done():
            return self._failed(Reason.UNREACHABLE, f"the Kubernetes API did not answer within {CALL_S:g} s")
        if call.cancelled():
            return self._failed(Reason.BUSY, "this node goes away")
        answer = call.result()
        return self._failed(answer.reason, answer.text) if isinstance(answer, Failure) else answer

    def _called(self, call: asyncio.Future[Any]) -> None:
        self._waiting -= 1
        if not call.cancelled():
            call.exception()  # looked at by `_call`, unless that has given up waiting

    def _failed(self, reason: str, text: str) -> Failure:
        self.errors[reason] += 1
        return Failure(reason, text)

    def _checked(self, read: Callable[[], T]) -> T | Failure:
        try:
            return read()
        except (KeyError, TypeError, ValueError) as error:
            return self._failed(Reason.INVALID, f"the API server's answer does not fit: {error!r}")

    def _answer(self, work: Callable[[_Client], T]) -> T | Failure:
        """In the thread: what came of it, whatever it was; a door has no exceptions to hand on but defects."""
        try:
            if self._client is None:
                self._client = _connected(self._kubeconfig)
            return work(self._client)
        except _Unconfigured as error:
            return Failure(Reason.CONFIGURATION, str(error))
        except _Answer as answer:
            return Failure(_reason(answer.status), f"HTTP {answer.status}: {answer}")
        except (KeyError, TypeError, ValueError) as error:
            return Failure(Reason.INVALID, f"the API server's answer does not fit: {error!r}")
        except OSError as error:
            return Failure(Reason.UNREACHABLE, str(error))


class _Unconfigured(Exception):  # noqa: N818 - as `_Answer`
    """No way to the API server is known."""


class _Client:
    """JSON in, JSON out; used in the thread alone."""

    def __init__(self, configuration: Any, rest: Any, failures: tuple[type[Exception], ...]) -> None:
        self._configuration = configuration
        self._rest = rest
        self._failures = failures

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """
        Make one call.

        Raises:
            _Answer: The server says no.
            OSError: It says nothing.
            ValueError: It says something that is no JSON object.
        """
        headers = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": COMPONENT}
        try:
            for setting in self._configuration.auth_settings().values():  # reads the token again when it is due
                if setting["in"] == "header" and setting["value"]:
                    headers[setting["key"]] = setting["value"]
            response = self._rest.request(
                method,
                self._configuration.host + path,
                headers=headers,
                body=body,
                _request_timeout=(CONNECT_S, READ_S),
            )
            content = response.response.read(BODY_BYTES_MAX + 1, decode_content=True)
            response.response.release_conn()
        except self._failures as error:
            raise OSError(str(error)) from error
        if len(content) > BODY_BYTES_MAX:
            msg = f"more than {BODY_BYTES_MAX} bytes"
            raise ValueError(msg)
        if not 200 <= response.status < 300:
            raise _Answer(response.status, _message(content))
        document = json.loads(content)
        if not isinstance(document, dict):
            msg = "no JSON object"
            raise TypeError(msg)
        return document

    def close(self) -> None:
        self._rest.pool_manager.clear()


def _connected(kubeconfig: Path | None) -> _Client:
    """
    Import the client, and find the way to the API server.

    Raises:
        _Unconfigured: There is none.
    """
    try:
        # Imported here: it costs 0.3 s and 30 MB, and only a node that asks the API pays for it.
        from kubernetes import config  # noqa: PLC0415
        from kubernetes.client import ApiException, Configuration  # noqa: PLC0415
        from kubernetes.client.rest import RESTClientObject  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415
    except ImportError as error:
        msg = f"the Kubernetes client is not installed ({error}): install kvorum[k8s], or set [discovery] api = false"
        raise _Unconfigured(msg) from error
    configuration = Configuration()
    configuration.retries = False
    try:
        if kubeconfig is None:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            config.load_kube_config(  # type: ignore[no-untyped-call]
                str(kubeconfig), client_configuration=configuration, persist_config=False
            )
    except (config.ConfigException, OSError) as error:
        msg = f"{error}; mount the service account's token, or set [discovery] api = false"
        raise _Unconfigured(msg) from error
    return _Client(configuration, RESTClientObject(configuration), (ApiException, HTTPError, config.ConfigException))


def _found(client: _Client, path: str) -> dict[str, Any] | None:
    """The object, or None if the server says that there is none."""
    try:
        return client.request("GET", path)
    except _Answer as answer:
        if answer.status != _MISSING:
            raise
        return None


def _reason(status: int) -> str:
    if status in (401, 403):
        return Reason.FORBIDDEN
    if status == _MISSING:
        return Reason.MISSING
    if status == 409:
        return Reason.CONFLICT
    return Reason.INVALID if 400 <= status < 500 and status != 429 else Reason.SERVER


def _message(content: bytes) -> str:
    """What a Status object says, or the beginning of whatever came."""
    try:
        return str(json.loads(content)["message"])
    except (KeyError, TypeError, ValueError):
        return content[:200].decode(errors="replace")


def _intent(document: Mapping[str, Any]) -> Intent:
    metadata, spec, status = document["metadata"], document["spec"], document.get("status") or {}
    replicas = spec.get("replicas")
    return Intent(
        replicas=1 if replicas is None else int(replicas),  # the API server's own default
        first_ordinal=int((spec.get("ordinals") or {}).get("start") or 0),
        deleting=metadata.get("deletionTimestamp") is not None,
        generation=int(metadata["generation"]),
        observed_generation=int(status.get("observedGeneration") or 0),
        uid=str(metadata["uid"]),
    )


def _record(document: Mapping[str, Any]) -> Record:
    spelt = (document.get("data") or {}).get(CLUSTER_ID_KEY)
    cluster_id = bytes.fromhex(spelt) if spelt else None
    if cluster_id is not None and len(cluster_id) != _CLUSTER_ID_BYTES:
        msg = f"{CLUSTER_ID_KEY} is not {_CLUSTER_ID_BYTES} bytes in hexadecimal"
        raise ValueError(msg)
    return Record(cluster_id, str(document["metadata"]["resourceVersion"]))


def _term(document: Mapping[str, Any], cluster_id: bytes) -> int:
    """The term of this cluster that wrote a slice; one nobody wrote, or scribbled on, counts as the first."""
    annotations = document["metadata"].get("annotations") or {}
    if annotations.get(CLUSTER_ANNOTATION, cluster_id.hex()) != cluster_id.hex():
        return 0
    spelt = str(annotations.get(TERM_ANNOTATION, "0"))
    return int(spelt) if spelt.isascii() and spelt.isdigit() else 0


def _led_to(document: Mapping[str, Any], address: LeaderAddress, namespace: str) -> dict[str, Any]:
    """The same slice, with this leader in it; it keeps its version, so that a write that crosses another one fails."""
    metadata = dict(document["metadata"])
    wrote = {TERM_ANNOTATION: str(address.term), CLUSTER_ANNOTATION: address.cluster_id.hex()}
    metadata["annotations"] = {**(metadata.get("annotations") or {}), **wrote}
    endpoint = {
        "addresses": [address.ip],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "targetRef": {"kind": "Pod", "name": address.pod, "namespace": namespace},
    }
    ports = document.get("ports") or [{"name": "client", "port": address.port, "protocol": "TCP"}]
    return {**document, "metadata": metadata, "endpoints": [endpoint], "ports": ports}


def _event(notice: Notice, namespace: str) -> dict[str, Any]:
    group = "v1" if notice.kind == "Pod" else "apps/v1"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": notice.name, "namespace": namespace},
        "involvedObject": {
            "apiVersion": group,
            "kind": notice.kind,
            "name": notice.involved,
            "namespace": namespace,
            "uid": notice.uid,
        },
        "reason": notice.reason,
        "message": notice.text[:1024],
        "type": "Warning" if notice.warning else "Normal",
        "firstTimestamp": notice.time,
        "lastTimestamp": notice.time,
        "count": 1,
        "source": {"component": COMPONENT, "host": notice.reporter},
        "reportingComponent": COMPONENT,
        "reportingInstance": notice.reporter,
    }
