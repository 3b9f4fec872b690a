"""One call from beginning to end: choose a node, try, judge the reply by the error table, pause, try again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from thriftpy2.thrift import TDecodeException

from kvorum_client.connection import ConnectionLostError
from kvorum_client.errors import (
    InvalidRequestError,
    KvorumError,
    OutcomeUnknownError,
    ProtocolViolationError,
    ReadTimeoutError,
    UnavailableError,
)
from kvorum_client.leader import LeaderTracker
from kvorum_client.pool import NodePool, connect_tcp
from kvorum_client.results import Member, NodeStatus
from kvorum_client.retry import Backoff, CallKind, Deadline, Retry, error_of, rule_of
from kvorum_client.sessions import Sessions, random_client_id
from kvorum_client.wire import Method

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from kvorum_client.connection import Connection
    from kvorum_client.pool import Connector

ATTEMPTS_MAX: Final = 100
"""Attempts of one call, whatever its budget: back-off reaches a second long before."""

_DECIDED_BY_APPLY: Final = frozenset({"CONFLICT", "TRANSACTION_TOO_OLD", "FUTURE_VERSION"})
"""Refusals of a write that only the log can give: they stand for the whole request, whatever its attempts said."""

_CONFIGURED_REST: Final = Backoff(first_s=0.05, longest_s=2.0)
_LEARNED_REST: Final = Backoff(first_s=2.0, longest_s=60.0)
"""An endpoint learned from a hint may not be reachable from here at all; trying it often would cost every call."""
_PAUSE: Final = Backoff(first_s=0.02, longest_s=1.0)

_READ: Final = CallKind.READ
_METHODS: Final = {
    "getReadVersion": ("GetReadVersion", _READ),
    "get": ("Get", _READ),
    "getRange": ("GetRange", _READ),
    "snapshotGet": ("SnapshotGet", CallKind.SNAPSHOT),
    "snapshotGetRange": ("SnapshotGetRange", CallKind.SNAPSHOT),
    "setKey": ("Set", CallKind.WRITE),
    "deleteKey": ("Delete", CallKind.WRITE),
    "atomicCommit": ("AtomicCommit", CallKind.WRITE),
    "setVersionstampedKey": ("SetVersionstampedKey", CallKind.WRITE),
    "setVersionstampedValue": ("SetVersionstampedValue", CallKind.WRITE),
    "getClusterHealth": ("GetClusterHealth", CallKind.LOCAL),
    "getStatus": ("GetStatus", CallKind.LOCAL),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How a client behaves; see `KvorumClient` for what each one means."""

    timeout_s: float
    attempt_timeout_s: float
    connect_timeout_s: float
    status_timeout_s: float
    connections_max: int
    in_flight_max: int
    leader_refresh_s: float
    discovery_interval_s: float
    exactly_once: bool = True


class Caller:
    """Carries calls out over the pools of all nodes."""

    def __init__(
        self,
        endpoints: Sequence[str],
        settings: Settings,
        *,
        connector: Connector | None,
        random: Random,
        new_client_id: Callable[[], bytes] = random_client_id,
    ) -> None:
        self.settings = settings
        self._sessions = Sessions(new_client_id) if settings.exactly_once else None
        self.random = random
        self._connector = connector or connect_tcp
        self._methods = {name: (Method(name, stem), kind) for name, (stem, kind) in _METHODS.items()}
        self._closed = False
        self.nodes = LeaderTracker(
            endpoints,
            make_pool=self._make_pool,
            ask_status=self.status,
            random=random,
            refresh_s=settings.leader_refresh_s,
            discovery_interval_s=settings.discovery_interval_s,
        )

    def _make_pool(self, endpoint: str, learned: bool) -> NodePool:  # noqa: FBT001 - a callback's only flag
        return NodePool(
            endpoint,
            connections_max=self.settings.connections_max,
            in_flight_max=self.settings.in_flight_max,
            connect_timeout_s=self.settings.connect_timeout_s,
            connector=self._connector,
            random=self.random,
            backoff=_LEARNED_REST if learned else _CONFIGURED_REST,
        )

    async def close(self) -> None:
        """Close every connection; calls in flight fail."""
        self._closed = True
        await self.nodes.close()

    # --- calls that any node may answer -----------------------------------------------------------------------------

    async def call(
        self,
        name: str,
        fields: dict[str, object],
        *,
        timeout_s: float | None = None,
        prefer_leader: bool = True,
        retry_unknown: bool = False,
    ) -> Any:
        """
        Make a call at whichever node can do it, and return the successful reply struct.

        A write carries the same identity in all its attempts and so takes effect once at most, unless the client was
        told to go without.

        Raises:
            KvorumError: As the error table says; `OutcomeUnknownError` for a write that may have been done when its
                time is over, or, without an identity and without ``retry_unknown``, at once.
        """
        method, kind = self._methods[name]
        deadline = Deadline(self.settings.timeout_s if timeout_s is None else timeout_s)
        if kind is not CallKind.WRITE or self._sessions is None:
            return await self._call(
                method, kind, fields, deadline, prefer_leader=prefer_leader, repeatable=retry_unknown
            )
        lane, request_id = await self._sessions.acquire(deadline)
        try:
            fields = fields | {"client_id": lane.client_id, "request_id": request_id}
            return await self._call(method, kind, fields, deadline, prefer_leader=prefer_leader, repeatable=True)
        finally:
            self._sessions.release(lane, request_id)

    async def _call(
        self,
        method: Method,
        kind: CallKind,
        fields: dict[str, object],
        deadline: Deadline,
        *,
        prefer_leader: bool,
        repeatable: bool,
    ) -> Any:
        """All attempts of one call; a write that may have been done is tried again only if it is ``repeatable``."""
        only_once = kind is CallKind.WRITE and not repeatable
        attempt_s = deadline.remaining if only_once else self.settings.attempt_timeout_s
        avoid: set[str] = set()
        problem: KvorumError | None = None
        unknown = False
        pauses = 0
        for _ in range(ATTEMPTS_MAX):
            if len(avoid) >= len(self.nodes.pools) and not self.nodes.take_spares():
                avoid.clear()
                pauses += 1
                await self._pause(pauses, deadline)
            if deadline.remaining <= 0:
                break
            pool = await self.nodes.choose(avoid, deadline, prefer_leader=prefer_leader)
            if pool.rest_s > 0:
                await self._sleep(pool.rest_s, deadline)
            if deadline.remaining <= 0:
                break
            try:
                return await self._attempt(pool, method, kind, fields, deadline=deadline, attempt_s=attempt_s)
            except KvorumError as failure:
                problem = failure
            retry = self._judge(problem, kind, pool)
            if retry is Retry.UNKNOWN:
                # A peer that does not speak the contract will not learn it within the budget.
                if not repeatable or self._closed or isinstance(problem, ProtocolViolationError):
                    raise _as_unknown(problem) from problem
                unknown = True
                retry = Retry.ELSEWHERE
            if retry is Retry.FAIL:
                break
            if retry is not Retry.AT_LEADER:
                avoid.add(pool.endpoint)
            if retry is Retry.PAUSE:
                pauses += 1
                await self._pause(pauses, deadline)
        if "client_id" in fields and problem is not None and problem.code in _DECIDED_BY_APPLY:
            unknown = False
        raise _final(problem, method.name, kind, unknown=unknown)

    def _judge(self, problem: KvorumError, kind: CallKind, pool: NodePool) -> Retry:
        """Say what to do about a failed attempt, and note what it teaches about the leader."""
        write = kind is CallKind.WRITE
        if problem.code is None:
            self.nodes.doubt(pool.endpoint)
            if write and not problem.outcome_known:
                return Retry.UNKNOWN
            if self._closed or not isinstance(problem, UnavailableError | ConnectionLostError):
                return Retry.FAIL
            return Retry.ELSEWHERE
        rule = rule_of(problem.code)
        retry = rule.write if write else rule.read
        if problem.code in {"NOT_LEADER", "UNAVAILABLE"}:
            hint = problem.leader_endpoint
            self.nodes.doubt(pool.endpoint)
            if hint is not None and hint != pool.endpoint:
                self.nodes.lead_by(hint)
            elif retry is Retry.AT_LEADER:
                return Retry.PAUSE
        return retry

    async def _attempt(
        self,
        pool: NodePool,
        method: Method,
        kind: CallKind,
        fields: dict[str, object],
        *,
        deadline: Deadline,
        attempt_s: float,
    ) -> Any:
        connection = await pool.acquire(deadline)
        budget = max(0.001, min(deadline.remaining, attempt_s))
        if kind is not CallKind.LOCAL:
            # The server must give up first, so that its answer, and not our silence, says what happened.
            fields = fields | {"deadline_ms": max(1, int((budget - min(0.75, budget / 4)) * 1000))}
        reply = await self._exchange(pool, connection, method, method.request(fields), kind=kind, budget=budget)
        code = reply.error_code
        if code is None and (reply.error or getattr(reply, "success", True) is False):
            code = "INTERNAL"
        if code is not None:
            raise error_of(
                code,
                reply.error or "no text",
                pool.endpoint,
                kind=kind,
                leader_endpoint=getattr(reply, "leader_endpoint", None),
            )
        return reply

    async def _exchange(
        self, pool: NodePool, connection: Connection, method: Method, request: object, *, kind: CallKind, budget: float
    ) -> Any:
        """Send and wait; a node that stays silent rests and its connection is retired."""
        try:
            future = connection.call(method, request)
        except TDecodeException as problem:
            text = f"the request cannot be written: {problem}"
            raise InvalidRequestError(text) from problem
        try:
            async with asyncio.timeout(budget):
                reply = await future
        except TimeoutError:
            pool.note_failure()
            pool.retire(connection)
            text = f"{pool.endpoint} did not answer {method.name} within {budget:.1f} s"
            if kind is CallKind.WRITE:
                raise OutcomeUnknownError(text, endpoint=pool.endpoint) from None
            raise ReadTimeoutError(text, endpoint=pool.endpoint) from None
        finally:
            if connection.retired:
                connection.retire()
        pool.note_success()
        return reply

    async def _pause(self, count: int, deadline: Deadline) -> None:
        await self._sleep(_PAUSE.pause(count, self.random), deadline)

    @staticmethod
    async def _sleep(seconds: float, deadline: Deadline) -> None:
        await asyncio.sleep(max(0.0, min(seconds, deadline.remaining)))

    # --- calls about one node ---------------------------------------------------------------------------------------

    async def call_node(self, endpoint: str, name: str, fields: dict[str, object], timeout_s: float) -> Any:
        """Ask one node, once."""
        method, kind = self._methods[name]
        pool = self.nodes.pools.get(endpoint)
        if pool is None:
            text = f"{endpoint} is not an endpoint of this client"
            raise InvalidRequestError(text)
        return await self._attempt(pool, method, kind, fields, deadline=Deadline(timeout_s), attempt_s=timeout_s)

    async def status(self, endpoint: str) -> NodeStatus:
        """Ask one node for its status, once and briefly."""
        reply = await self.call_node(endpoint, "getStatus", {}, self.settings.status_timeout_s)
        return NodeStatus(
            endpoint=endpoint,
            node_id=reply.node_id or 0,
            role=reply.role or "unknown",
            term=reply.term or 0,
            leader_id=reply.leader_id,
            leader_endpoint=reply.leader_endpoint,
            commit_index=reply.commit_index or 0,
            applied_index=reply.applied_index or 0,
            low_watermark=reply.low_watermark or 0,
            members=tuple(
                Member(member.node_id, member.kv_endpoint, member.peer_endpoint, member.voter, member.last_contact_ms)
                for member in reply.members or ()
            ),
            server_version=reply.server_version or "",
            uptime_seconds=reply.uptime_seconds or 0,
        )


def _as_unknown(problem: KvorumError) -> OutcomeUnknownError:
    if isinstance(problem, OutcomeUnknownError):
        return problem
    return OutcomeUnknownError(f"the write may have been done: {problem}", code=problem.code, endpoint=problem.endpoint)


def _final(problem: KvorumError | None, name: str, kind: CallKind, *, unknown: bool) -> KvorumError:
    """The error that the caller sees when no attempt succeeded."""
    if problem is None:
        return UnavailableError(f"{name} ran out of time before a node could be asked")
    if unknown:
        return _as_unknown(problem)
    if isinstance(problem, ConnectionLostError):
        lost = ReadTimeoutError if kind is not CallKind.WRITE else OutcomeUnknownError
        return lost(str(problem), endpoint=problem.endpoint)
    return problem
