"""
The life of one request: received, started in its turn, decided, answered in its place.

A call itself is what waits in routing (`core.ports.PendingWrite`, `PendingRead`): no task, no future, no closure. A
call is *started* when the order of its connection allows, and a read looks at the state only when it is the oldest
unanswered call: so reads of one connection never run backwards, and at most one of them holds a reply in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from kvorum.core.errors import ErrorCode, Refusal
from kvorum.thrift.adapter.edge import CLIENT_GONE
from kvorum.thrift.adapter.validation import RequestRefusedError, refuse_missing
from kvorum.thrift.protocol.codec import encode_unknown_method

if TYPE_CHECKING:
    from typing import Protocol

    from kvorum.core.ids import Index
    from kvorum.core.operations import Applied
    from kvorum.thrift.adapter.edge import Edge, Method

    class Owner(Protocol):
        """What a call needs of its connection."""

        edge: Edge
        running: int
        """Calls that are started and not decided."""
        closed: bool

        def is_next(self, call: Call) -> bool:
            """Whether this call is the oldest unanswered one."""
            ...

        def wake(self, call: Call) -> None:
            """Something happened to a call that had to wait."""
            ...


DEFECT: Final = Refusal(
    ErrorCode.INTERNAL, "a defect in this node; see its log. The outcome is unknown; retry like TIMEOUT"
)


class Call(ABC):
    """One request; subclasses say what starting it means. Bare attributes: the hot path makes millions of these."""

    __slots__ = ("connection", "fields", "method", "queued", "ready", "received", "reply", "seqid", "weight")

    def __init__(self, connection: Owner, method: Method, seqid: bytes, received: float, fields: object) -> None:
        self.connection = connection
        self.method = method
        self.seqid = seqid
        self.received = received
        self.fields = fields
        self.reply: bytes | None = None
        self.queued = False
        self.ready = False
        self.weight = 0

    @abstractmethod
    def start(self) -> None:
        """Judge the request and begin; exceptions become INTERNAL."""

    def begin(self) -> None:
        """Start, whatever happens."""
        try:
            self.start()
        except RequestRefusedError as refused:
            self.fail(refused.refusal)
        except Exception as defect:  # noqa: BLE001 - nothing a request causes may reach the wire or other connections
            self.connection.edge.on_defect(self.method.name, defect)
            self.fail(DEFECT)

    def finish(self, reply: bytes) -> None:
        """Answer with success."""
        if self.reply is not None:
            return
        self.reply = reply
        self.method.ok += 1
        connection = self.connection
        connection.running -= 1
        if self.queued:
            connection.wake(self)

    def fail(self, refusal: Refusal) -> None:
        """Answer with failure."""
        if self.reply is not None:
            return
        method = self.method
        self.reply = method.failure_reply(self.seqid, refusal)
        method.failed[refusal.code] = method.failed.get(refusal.code, 0) + 1
        connection = self.connection
        connection.running -= 1
        if self.queued:
            connection.wake(self)

    def drop(self) -> None:
        """The client is gone and nothing was or will be done."""
        self.method.failed[CLIENT_GONE] = self.method.failed.get(CLIENT_GONE, 0) + 1

    def struck(self, target: str, deadline_ms: int | None, timeout_s: float | None = None) -> bool:
        """Whether an injected fault answers this call; then nothing else must. It waits no longer than the call may."""
        edge = self.connection.edge
        strike = edge.faults.strike(target)
        if strike is None:
            return False
        bound_s = edge.timeout_s if timeout_s is None else timeout_s
        if deadline_ms is not None:
            bound_s = min(bound_s, deadline_ms / 1000)
        delay_s = min(strike.after_s, max(0.0, self.received + bound_s - edge.clock()))
        if delay_s > 0:
            edge.later(delay_s, lambda: self.fail(strike.refusal))
        else:
            self.fail(strike.refusal)
        return True


class WriteCall(Call):
    """A request that goes through the log; see `core.ports.PendingWrite`."""

    __slots__ = ()

    def decided(self, index: Index, outcome: Applied | Refusal) -> None:
        """The write was applied at ``index`` or refused."""
        if isinstance(outcome, Refusal):
            self.fail(outcome)
        else:
            self.finish(self.success_reply(index, outcome))

    @abstractmethod
    def success_reply(self, index: Index, applied: Applied) -> bytes:
        """Encode the reply to a write that took effect."""


class ReadCall(Call):
    """A request that looks at the applied state once that is legal; see `core.ports.PendingRead`."""

    __slots__ = ()

    @abstractmethod
    def read(self) -> None:
        """Look at the state now and answer."""

    def permitted(self) -> None:
        """Reading is legal right now: read if it is this call's turn, else when it comes."""
        if not self.queued and self.connection.is_next(self):
            self.read()
        else:
            self.ready = True

    def serve(self) -> None:
        """Reading became legal."""
        self.ready = True
        connection = self.connection
        if connection.closed:
            self.drop()
        elif self.queued:
            connection.wake(self)

    def refused(self, refusal: Refusal) -> None:
        """Reading did not become legal in time."""
        self.fail(refusal)

    def read_now(self) -> None:
        """Read, whatever happens."""
        self.ready = False
        try:
            self.read()
        except RequestRefusedError as refused:
            self.fail(refused.refusal)
        except Exception as defect:  # noqa: BLE001 - as in `begin`
            self.connection.edge.on_defect(self.method.name, defect)
            self.fail(DEFECT)


class UnknownMethodCall(Call):
    """A call of a method this server does not have: skipped, answered with UNKNOWN_METHOD, the connection in step."""

    __slots__ = ()

    def start(self) -> None:
        """Answer; ``fields`` is the name as sent."""
        assert isinstance(self.fields, bytes)
        method = self.method
        method.failed["UNKNOWN_METHOD"] = method.failed.get("UNKNOWN_METHOD", 0) + 1
        self.reply = encode_unknown_method(self.fields, self.seqid)
        self.connection.running -= 1


class AbsentRequestCall(Call):
    """A call without its one argument."""

    __slots__ = ()

    def start(self) -> None:
        """Refuse."""
        refuse_missing("request")
