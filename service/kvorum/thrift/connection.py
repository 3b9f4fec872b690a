"""
One client connection: bytes to calls, calls started in order, replies in request order.

Requests of one kind (reads, or writes) may be under way together; a request of another kind starts when everything
before it is decided. Replies leave oldest first, joined into one write per group. A connection that outruns the server
or does not read its replies is simply read more slowly.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from kvorum.core.errors import ErrorCode, Refusal
from kvorum.thrift.adapter.call import AbsentRequestCall, Call, ReadCall, UnknownMethodCall
from kvorum.thrift.adapter.edge import Order
from kvorum.thrift.adapter.methods import CALL_TYPES, shaped
from kvorum.thrift.protocol import codec
from kvorum.thrift.protocol.fast import FAST_DECODERS
from kvorum.thrift.protocol.scanner import Malformed, MalformedError, Progress, Scanner

if TYPE_CHECKING:
    from typing import Protocol

    from kvorum.thrift.adapter.edge import Edge, Method
    from kvorum.thrift.protocol.fast import FastDecoder
    from kvorum.thrift.protocol.scanner import ListRules

    class Host(Protocol):
        """What a connection needs of its server."""

        edge: Edge
        routes: Routes

        @property
        def loop(self) -> asyncio.AbstractEventLoop:
            """Where everything runs."""
            ...

        def opened(self, connection: Connection) -> bool:
            """Take a connection into the table; False if there is no room."""
            ...

        def lost(self, connection: Connection) -> None:
            """Forget a connection."""
            ...

        def malformed(self, connection: Connection, reason: str) -> None:
            """Count and log bytes that are no message."""
            ...

        def mark(self, connection: Connection) -> None:
            """Call `Connection.flush` at the end of this group of completions."""
            ...


BACKLOG_CALLS_MAX: Final = 1024
"""Unanswered requests of one connection; beyond it the connection is read more slowly."""

BACKLOG_BYTES_MAX: Final = 16 * 1024 * 1024
"""Bytes of its large unanswered requests, for the same reason: one more may always be read."""

TURN_CALLS_MAX: Final = 512
"""Requests taken from one connection before others get a turn: about four milliseconds."""

SCAN_STEPS: Final = 10_000
"""Values scanned before others get a turn: two to three milliseconds."""

HEAVY_BYTES: Final = 4096
"""Requests and replies above this count towards the bytes a connection may have under way."""

WRITE_CHUNK_BYTES: Final = 256 * 1024
"""Replies are handed to the socket at least this often, so that a client that does not read is noticed."""


_LATE_WRITE: Final = Refusal(
    ErrorCode.UNAVAILABLE, "requests before it on this connection took all its time; it was not proposed, retry"
)
_LATE_READ: Final = Refusal(
    ErrorCode.TIMEOUT, "requests before it on this connection took all its time; use several connections"
)


class Routes:
    """Where a message goes, by its name; made once per server."""

    __slots__ = ("by_name", "fast", "message_bytes_max", "rules", "unknown")

    def __init__(self, edge: Edge, rules: dict[bytes, ListRules]) -> None:
        self.by_name = {name.encode(): (edge.methods[name], CALL_TYPES[name]) for name in codec.METHODS}
        self.fast: dict[int, tuple[FastDecoder, Method, type[Call]]] = {
            len(name): (decoder, edge.methods[name], CALL_TYPES[name]) for name, decoder in FAST_DECODERS.items()
        }
        assert len(self.fast) == len(FAST_DECODERS), "hot method names must differ in length"
        self.unknown = edge.unknown_method
        self.rules = rules
        self.message_bytes_max = edge.settings.message_bytes_max


class Connection(asyncio.Protocol):
    """See the module text. One object per client; attributes without underscore are for its calls and its server."""

    __slots__ = (
        "_busy",
        "_calls",
        "_choked",
        "_draining",
        "_eof",
        "_host",
        "_loop",
        "_order",
        "_partial",
        "_paused",
        "_rest",
        "_routes",
        "_scanner",
        "_transport",
        "_waiting",
        "_weight",
        "address",
        "closed",
        "edge",
        "marked",
        "received",
        "running",
    )

    def __init__(self, host: Host) -> None:
        self._host = host
        self.edge = host.edge
        self._routes = host.routes
        self._loop = host.loop
        self._transport: asyncio.Transport | None = None
        self._calls: deque[Call] = deque()
        """Unanswered requests, oldest first."""
        self._waiting: deque[Call] = deque()
        """The youngest of them, which may not start yet."""
        self._order = Order.READ
        self._weight = 0
        self._scanner: Scanner | None = None
        self._partial = bytearray()
        """The beginning of a message that is not complete."""
        self._rest = b""
        """Complete bytes that are not looked at yet: the backlog is full, or the scanner is tired."""
        self._paused = self._choked = self._draining = self._eof = self._busy = False
        self.marked = False
        """No further `Host.mark` is needed: a flush will come, is under way, or is pointless."""
        self.running = 0
        self.closed = False
        self.received = 0.0
        """When bytes last came, on the edge's clock."""
        self.address = ""

    # --- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Enter the table, or leave at once if it is full."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_CHUNK_BYTES)
        self.received = self.edge.clock()
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        if not self._host.opened(self):
            self._draining = self.marked = True
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - a reset is a way to leave
        """Forget everything that was not begun; what was proposed is decided without us."""
        if (self._partial or self._rest) and not self._draining:
            self._host.malformed(self, Malformed.CUT_SHORT)
        self.closed = self.marked = True
        for call in self._waiting:
            call.drop()
        for call in self._calls:
            if call.ready and call.reply is None:
                call.drop()
        self._waiting.clear()
        self._calls.clear()
        self._partial = bytearray()
        self._rest = b""
        self._transport = None
        self._host.lost(self)

    def eof_received(self) -> bool:
        """Answer what is due, then close; an end inside a message is counted."""
        self._eof = True
        if not self._rest:
            self._ended()
        return self._transport is not None and bool(self._calls or self._rest)

    def pause_writing(self) -> None:
        """The client does not read: stop reading and answering."""
        self._choked = True
        self._pause()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._choked = False
        self.flush(self.edge.clock())

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        self.received = self.edge.clock()
        if self._draining:
            return
        if self._rest:
            self._rest += data
            return
        if self._partial:
            self._partial += data
            self._scan_partial()
        else:
            self._parse(bytes(data), 0)

    # --- bytes to calls ---------------------------------------------------------------------------------------------

    def _parse(self, data: bytes, at: int) -> None:
        """Make calls of all complete messages from ``at`` on; keep the rest."""
        routes = self._routes
        size = len(data)
        fast = routes.fast if size <= routes.message_bytes_max else {}
        replies: list[bytes] = []
        answered: list[Method] = []
        calls = self._calls
        turn = TURN_CALLS_MAX
        unsent = 0
        reason = ""
        while at < size:
            if not turn or self._choked or len(calls) >= BACKLOG_CALLS_MAX or self._weight > BACKLOG_BYTES_MAX:
                self._rest = data[at:]
                self._pause()
                break
            turn -= 1
            route = fast.get(data[at + 7]) if size - at > 7 else None
            decoded = route[0](data, at) if route is not None else None
            if decoded is None or route is None:
                if replies:
                    replies, answered, unsent = self._answer_now(replies, answered)
                try:
                    at = self._parse_any(data, at)
                except MalformedError as malformed:
                    reason = malformed.reason
                    break
                continue
            start, at = at, decoded[0]
            call = route[2](self, route[1], decoded[1], self.received, decoded[2])
            if calls:
                self._admit(call, at - start)
                continue
            # The hot path: nothing stands before this call, and its answer may be at hand.
            method = route[1]
            method.started += 1
            self._order = method.order
            self.running += 1
            call.begin()
            if call.reply is None:
                call.queued = True
                calls.append(call)
                if at - start > HEAVY_BYTES:
                    self._add_weight(call, at - start)
            else:
                replies.append(call.reply)
                answered.append(method)
                unsent += len(call.reply)
            if replies and (calls or unsent > WRITE_CHUNK_BYTES):
                replies, answered, unsent = self._answer_now(replies, answered)
        if replies:
            self._answer_now(replies, answered)
        if reason:
            self._reject(reason)
        elif self.marked or not turn:
            self.flush(self.edge.clock())
        elif self._eof and not self._rest:
            self._ended()

    def _answer_now(self, replies: list[bytes], answered: list[Method]) -> tuple[list[bytes], list[Method], int]:
        """Write replies of calls that never had to wait; gives fresh lists and their size."""
        self._write(replies)
        elapsed = self.edge.clock() - self.received
        for method in answered:
            method.latency.observe(elapsed)
        return [], [], 0

    def _parse_any(self, data: bytes, at: int) -> int:
        """Take one message of any shape at ``at``; gives where the next begins, or the end if it is not complete."""
        scanner = self._scanner
        if scanner is None:
            scanner = self._scanner = Scanner(self._routes.message_bytes_max, self._routes.rules)
        else:
            scanner.reset()
        progress = scanner.scan(data, at, SCAN_STEPS)
        if progress == Progress.DONE:
            self._take(data, at, scanner)
            return at + scanner.end
        self._partial += data[at:]
        if progress == Progress.TIRED:
            self._yield()
        return len(data)

    def _scan_partial(self) -> None:
        """Go on with the message that came in pieces; what follows it is parsed as usual."""
        scanner = self._scanner
        assert scanner is not None
        if len(self._partial) < scanner.need or self._busy:
            return
        try:
            progress = scanner.scan(self._partial, 0, SCAN_STEPS)
        except MalformedError as malformed:
            self._reject(malformed.reason)
            return
        if progress == Progress.TIRED:
            self._yield()
        elif progress == Progress.DONE:
            data = bytes(self._partial)
            self._partial = bytearray()
            self._take(data, 0, scanner)
            self._parse(data, scanner.end)

    def _yield(self) -> None:
        """Go on when others had their turn."""
        self._pause()
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._busy = False
        if self.closed or self._draining:
            return
        if self._rest:
            rest, self._rest = self._rest, b""
            self._parse(rest, 0)
        elif self._partial:
            self._scan_partial()
        self._resume()

    def _take(self, data: bytes, at: int, scanner: Scanner) -> None:
        """Make a call of a message the scanner has passed."""
        route = self._routes.by_name.get(scanner.name)
        end = at + scanner.end
        if route is None:
            self._admit(UnknownMethodCall(self, self._routes.unknown, scanner.seqid, self.received, scanner.name), 0)
            return
        method, call_type = route
        cuts = [(at + start, at + stop) for start, stop in scanner.cuts]
        fields = codec.decode_request(method.name, data, at + scanner.body, end, cuts)
        if fields is None and method.name != "ping":
            self._admit(AbsentRequestCall(self, method, scanner.seqid, self.received, None), 0)
            return
        if fields is not None:
            for field_id in scanner.oversized:
                fields[method.field_names[field_id]] = codec.OVERSIZED
        shape = shaped(method.name, fields) if fields is not None else None
        self._admit(call_type(self, method, scanner.seqid, self.received, shape), scanner.end)

    def _reject(self, reason: str) -> None:
        """The bytes are no message: answer what is due, then close without a word."""
        self._partial = bytearray()
        self._rest = b""
        self._host.malformed(self, reason)
        self.drain()

    def _ended(self) -> None:
        """The client will send nothing more."""
        if self._partial:
            self._reject(Malformed.CUT_SHORT)
        else:
            self.drain()

    # --- order --------------------------------------------------------------------------------------------------------

    def _admit(self, call: Call, size: int) -> None:
        """Give a call its place in the order of replies, and start it if it may."""
        method = call.method
        method.started += 1
        if size > HEAVY_BYTES:
            self._add_weight(call, size)
        self._calls.append(call)
        if self._waiting or (self.running and (method.order != self._order or method.order == Order.ALONE)):
            call.queued = True
            self._waiting.append(call)
        else:
            self._start(call)

    def _start(self, call: Call) -> None:
        """Begin a call whose turn it is; a reply that is at hand leaves with the next flush."""
        self._order = call.method.order
        self.running += 1
        call.begin()
        call.queued = True
        if not self.marked and (call.reply is not None or call.ready) and self._calls[0] is call:
            self._mark()

    def _start_waiting(self) -> None:
        """Start the calls that may run now."""
        waiting = self._waiting
        now = self.edge.clock()
        while waiting:
            call = waiting[0]
            order = call.method.order
            if self.running and (order != self._order or order == Order.ALONE):
                return
            waiting.popleft()
            if now >= call.received + self.edge.timeout_s:
                self.running += 1
                call.fail(_LATE_WRITE if order == Order.WRITE else _LATE_READ)
            else:
                self._start(call)

    def is_next(self, call: Call) -> bool:
        """Whether nothing unanswered stands before this call, which is being started."""
        calls = self._calls
        return not calls or calls[0] is call

    def wake(self, call: Call) -> None:
        """A queued call was decided, or may read now."""
        if not self.marked and self._calls[0] is call:
            self._mark()

    def _mark(self) -> None:
        self.marked = True
        self._host.mark(self)

    # --- replies ------------------------------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Answer what is decided, oldest first, start what may start now, and read on."""
        if self.closed:
            return
        self.marked = True
        calls = self._calls
        while True:
            replies: list[bytes] = []
            size = 0
            while calls and not self._choked and size < WRITE_CHUNK_BYTES:
                call = calls[0]
                if call.reply is None and call.ready:
                    cast("ReadCall", call).read_now()
                reply = call.reply
                if reply is None:
                    break
                calls.popleft()
                self._weight -= call.weight
                call.method.latency.observe(now - call.received)
                replies.append(reply)
                size += len(reply)
            if replies:
                self._write(replies)
            if self._waiting:
                self._start_waiting()
            if self._choked or not calls or (calls[0].reply is None and not calls[0].ready):
                break
        self.marked = False
        if self._draining:
            self._close_if_done()
        else:
            self._resume()

    def _write(self, replies: list[bytes]) -> None:
        if self._transport is not None:
            self._transport.write(replies[0] if len(replies) == 1 else b"".join(replies))

    def _add_weight(self, call: Call, size: int) -> None:
        call.weight = size
        self._weight += size

    # --- flow and end -------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing is under way in either direction."""
        return not self._calls and not self._partial and not self._rest

    def _pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        """Read on, or first parse what was kept, if there is room again."""
        if self._choked or self._draining or self.closed or self._busy:
            return
        if self._rest:
            if len(self._calls) <= BACKLOG_CALLS_MAX // 2 and self._weight <= BACKLOG_BYTES_MAX:
                self._yield()
        elif self._eof:
            self._ended()
        elif self._paused:
            self._paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def drain(self) -> None:
        """Take no further request, answer what is under way, then close."""
        if self.closed:
            return
        self._draining = True
        self._partial = bytearray()
        self._rest = b""
        self._pause()
        self._close_if_done()

    def _close_if_done(self) -> None:
        if not self._calls and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close without answering."""
        if self._transport is not None:
            self._draining = True
            self._transport.abort()
