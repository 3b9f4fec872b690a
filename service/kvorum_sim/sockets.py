"""
TCP between clients and nodes without sockets: asyncio transports over a simulated network on virtual time.

Bytes keep their order in each direction, and that is all that is promised: they arrive late and in pieces of any size,
a cut holds them back, a receiver that does not read stops its sender, and a connection may break at any byte. One end
may be gone while the other does not know it: when a machine lost its power, or when a reset was lost on its way.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from kvorum_sim.loop import SimulationError
from kvorum_sim.probes import Probe

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvorum.core.ids import NodeId
    from kvorum_sim.network import SimulatedNetwork
    from kvorum_sim.process import ProcessLoop

    Place: TypeAlias = str | NodeId
    """A client by its name, a node by its id."""

SERVICE: Final = "kvorum"
"""A name that leads to some node that listens, another one at every dial."""

WINDOWS: Final = (2_048, 65_536, 65_536, 262_144)
"""Bytes under way, or arrived and not read; drawn per connection."""

WRITE_BUFFER_HIGH: Final = 64 * 1024
BUFFER_BYTES_MAX: Final = 64 * 1024 * 1024
"""More than this waiting in one end means that a writer ignores `pause_writing`."""

DEAD_S: Final = 10.0
"""A cut as long as this ends the client's side of a connection: the client's TCP_USER_TIMEOUT."""

SILENT_S: Final = 11.0
"""So long after a machine lost its power the client's keep-alive gives up."""

SYN_AGAIN_S: Final = 1.0
SYN_TRIES: Final = 6


class _Kind:
    DATA: Final = "data"
    END: Final = "end"
    RESET: Final = "reset"


class _Segment(NamedTuple):
    due: float
    kind: str
    data: bytes
    whole: bool
    """Whether a write ends here."""


class Trap:
    """Breaks the next connection that has bytes under way in one direction, in the middle of them."""

    def __init__(self, *, to_client: bool) -> None:
        self.to_client = to_client
        self.sprung = False


class SimulatedSockets:
    """
    All connections between clients and nodes of a simulated world.

    Args:
        loop: Where time comes from.
        network: Says how long a passage takes.
        seed: Draws delays, pieces and windows.
        probes: Counts what was met.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, network: SimulatedNetwork, *, seed: int, probes: Counter[str]
    ) -> None:
        self.loop = loop
        self.chance = random.Random(f"sockets {seed}")
        self.probes = probes
        self.held = 0
        """Times that a cut held something back."""
        self._trap: Trap | None = None
        self._network = network
        self._cuts: Counter[tuple[Place, Place]] = Counter()
        self._listeners: dict[NodeId, tuple[ProcessLoop, Callable[[], asyncio.Protocol]]] = {}
        self._dark: set[NodeId] = set()
        """Machines without power: nobody answers there, not even to refuse."""
        self._ends: dict[End, None] = {}
        """All that are not gone; each refers to its peer."""

    # --- for nodes and clients ---

    def listen(self, node_id: NodeId, loop: ProcessLoop, factory: Callable[[], asyncio.Protocol]) -> None:
        """A process takes connections; what was left of those to its predecessor is refused by the machine."""
        assert node_id not in self._listeners, f"node {node_id} listens already"
        self._listeners[node_id] = (loop, factory)
        if node_id in self._dark:
            self._dark.discard(node_id)
            for end in self._at(node_id, peers=True):
                self.loop.call_later(self.chance.uniform(0, 5.0), end.lost, _reset_error())

    async def connect(
        self, place: str, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        """
        What a `kvorum_client.Connector` does, for a client at a place.

        Raises:
            OSError: Nobody listens there, or it cannot be reached.
        """
        del port  # every node has a name of its own
        node_id = self._resolve(host)
        for _ in range(SYN_TRIES):
            await asyncio.sleep(self.delay())
            if not self._passes(place, node_id):
                self.held += 1
            elif node_id not in self._dark:
                break
            await asyncio.sleep(SYN_AGAIN_S)
        else:
            raise TimeoutError(errno.ETIMEDOUT, "connection timed out")
        listener = self._listeners.get(node_id)
        if listener is None:
            await asyncio.sleep(self.delay())
            raise ConnectionRefusedError(errno.ECONNREFUSED, "connection refused")
        client = self._join(place, node_id, *listener)
        try:
            await asyncio.sleep(self.delay())
        except asyncio.CancelledError:
            client.abort()
            raise
        if client.gone:
            raise _reset_error()
        return client, client.serve(factory)

    def _resolve(self, host: str) -> NodeId:
        if host == SERVICE:
            there = sorted(self._listeners)
            if not there:
                raise OSError(errno.EHOSTUNREACH, "no node is ready")
            return self.chance.choice(there)
        return int(host.removeprefix("node-"))

    def _join(self, place: str, node_id: NodeId, loop: ProcessLoop, factory: Callable[[], asyncio.Protocol]) -> End:
        client = End(self, place, self.loop, _at_once)
        server = End(self, node_id, loop, loop.now_or_held)
        window = self.chance.choice(WINDOWS)
        client.joined(server, window)
        server.joined(client, window)
        self._ends[client] = self._ends[server] = None
        loop.now_or_held(server.serve, factory)
        return client

    # --- for a nemesis ---

    def cut(self, sender: Place, receiver: Place) -> None:
        """From now on nothing passes in this one direction, until as many `heal` it as have cut it."""
        self._cuts[sender, receiver] += 1
        if self._cuts[sender, receiver] == 1:
            self.loop.call_later(DEAD_S, self._give_up, sender, receiver)

    def heal(self, sender: Place, receiver: Place) -> None:
        """Take one cut back; what it held arrives."""
        self._cuts[sender, receiver] -= 1
        if self._cuts[sender, receiver] <= 0:
            del self._cuts[sender, receiver]
            for end in self._all(sender, receiver):
                end.outgoing.go_on()

    def _give_up(self, sender: Place, receiver: Place) -> None:
        if (sender, receiver) in self._cuts:
            for end in (*self._all(sender, receiver), *self._all(receiver, sender)):
                if isinstance(end.place, str):
                    end.lost(TimeoutError(errno.ETIMEDOUT, "no acknowledgement came"))

    def close(self, node_id: NodeId) -> None:
        """A process takes no more connections; those that stand go on."""
        self._listeners.pop(node_id, None)

    def crash(self, node_id: NodeId, *, power: bool) -> None:
        """A process is gone; its machine says so to its clients, if it still has power."""
        self._listeners.pop(node_id, None)
        for end in self._at(node_id):
            end.vanish(silent=not power)
        if not power:
            self._dark.add(node_id)
            for end in self._at(node_id, peers=True):
                self.loop.call_later(SILENT_S, end.lost, TimeoutError(errno.ETIMEDOUT, "the peer is silent"))

    def set_trap(self, *, to_client: bool) -> Trap | None:
        """Break the next connection that has bytes under way in a direction, in the middle of them; one at a time."""
        if self._trap is not None:
            return None
        self._trap = Trap(to_client=to_client)
        return self._trap

    def spring(self, segment: _Segment, *, to_client: bool) -> bool:
        """Whether these bytes shall be torn."""
        trap = self._trap
        if trap is None or trap.to_client != to_client or len(segment.data) < 2:
            return False
        trap.sprung = True
        self._trap = None
        return True

    def clear_trap(self, trap: Trap) -> None:
        """Nothing fell into it."""
        if self._trap is trap:
            self._trap = None

    def reset_one(self) -> bool:
        """Break some connection, at whatever it does; False if there is none."""
        clients = [end for end in self._ends if isinstance(end.place, str) and not end.peer.gone]
        if not clients:
            return False
        self.break_both(self.chance.choice(clients))
        return True

    def break_both(self, end: End) -> None:
        """Both sides of a connection are told that it is broken."""
        end.lost(_reset_error())
        end.peer.lost(_reset_error())

    # --- what is there ---

    def open_at(self, place: Place) -> int:
        """Connections that an end at this place holds for open."""
        return len(self._at(place))

    def clients_of(self, node_id: NodeId) -> list[str]:
        """Names of the clients that are connected to a node."""
        return sorted({end.peer.place for end in self._at(node_id) if isinstance(end.peer.place, str)})

    # --- for ends ---

    def delay(self) -> float:
        """Time of one passage."""
        return self.chance.uniform(self._network.delay_s_min, self._network.delay_s_max)

    def is_cut(self, sender: Place, receiver: Place) -> bool:
        """Whether nothing passes in this direction."""
        return (sender, receiver) in self._cuts

    def is_dark(self, place: Place) -> bool:
        """Whether the machine is without power."""
        return place in self._dark

    def forget(self, end: End) -> None:
        """This end is gone."""
        self._ends.pop(end, None)

    def _passes(self, one: Place, other: Place) -> bool:
        return not self.is_cut(one, other) and not self.is_cut(other, one)

    def _at(self, place: Place, *, peers: bool = False) -> list[End]:
        return [end for end in self._ends if (end.peer if peers else end).place == place]

    def _all(self, sender: Place, receiver: Place) -> list[End]:
        """Every end at one place whose peer is at another, and the gone ones that still have something under way."""
        found: dict[End, None] = {}
        for end in self._ends:
            for one in (end, end.peer):
                if one.place == sender and one.peer.place == receiver:
                    found[one] = None
        return list(found)


class _Flow:
    """One direction of a connection, from what was written to what has arrived."""

    def __init__(self, sender: End, receiver: End, window: int) -> None:
        self._sockets = sender.sockets
        self.sender = sender
        self.receiver = receiver
        self._window = window
        self._waiting: deque[bytes] = deque()
        self.waiting_bytes = 0
        self._flying: deque[_Segment] = deque()
        self._flying_bytes = 0
        self._last_due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.torn = False
        """Whether the receiver has the beginning of a write and not its end."""

    def write(self, data: bytes) -> None:
        self._waiting.append(data)
        self.waiting_bytes += len(data)
        if self.waiting_bytes > BUFFER_BYTES_MAX:
            msg = f"{self.waiting_bytes} bytes wait at {self.sender.place!r}: it does not heed pause_writing"
            raise SimulationError(msg)
        self.pump()

    def forget_waiting(self) -> None:
        self._waiting.clear()
        self.waiting_bytes = 0

    def pump(self) -> None:
        """Send as much as the window allows, in pieces of any size."""
        while self._waiting:
            room = self._window - self._flying_bytes - len(self.receiver.unread)
            if room <= 0:
                break
            data = self._waiting.popleft()
            size = min(room, self._piece(len(data)))
            self._fly(_Kind.DATA, data[:size], whole=size == len(data))
            self._flying_bytes += size
            self.waiting_bytes -= size
            if size < len(data):
                self._waiting.appendleft(data[size:])
        self.sender.drained()

    def _piece(self, size: int) -> int:
        drawn = self._sockets.chance.random()
        if drawn < 0.85 or size == 1:
            return size
        return 1 if drawn < 0.88 else self._sockets.chance.randrange(1, size)

    def say(self, kind: str) -> None:
        """Let an end or a reset follow what is under way."""
        self._fly(kind, b"", whole=True)

    def _fly(self, kind: str, data: bytes, *, whole: bool) -> None:
        self._last_due = max(self._last_due, self._sockets.loop.time() + self._sockets.delay())
        self._flying.append(_Segment(self._last_due, kind, data, whole))
        self._arm(self._flying[0].due)

    def _arm(self, due: float) -> None:
        if self._timer is None:
            self._timer = self._sockets.loop.call_at(due, self._arrive)

    def go_on(self) -> None:
        """A cut is healed."""
        if self._flying and not self._sockets.is_cut(self.sender.place, self.receiver.place):
            self._arm(max(self._flying[0].due, self._sockets.loop.time() + self._sockets.delay()))

    def _arrive(self) -> None:
        self._timer = None
        sockets, flying = self._sockets, self._flying
        if sockets.is_cut(self.sender.place, self.receiver.place):
            sockets.held += 1
            return
        now = sockets.loop.time()
        data = b""
        last = _Kind.DATA
        while flying and flying[0].due <= now and last == _Kind.DATA:
            segment = flying.popleft()
            last = segment.kind
            if last == _Kind.DATA:
                if self._springs(segment):
                    data += segment.data[: sockets.chance.randrange(1, len(segment.data))]
                    self.torn = True
                    self.receiver.take(data)
                    sockets.break_both(self.receiver)
                    return
                data += segment.data
                self.torn = not segment.whole
                self._flying_bytes -= len(segment.data)
        if flying:
            self._arm(flying[0].due)
        if data:
            self.receiver.take(data)
        if last == _Kind.END:
            self.receiver.take_end()
        elif last == _Kind.RESET:
            self.receiver.lost(_reset_error())

    def _springs(self, segment: _Segment) -> bool:
        if self.receiver.gone or self.sender.gone:
            return False
        return self._sockets.spring(segment, to_client=isinstance(self.receiver.place, str))


class End(asyncio.Transport):
    """
    One end of a connection, as its protocol sees it.

    Args:
        sockets: All connections.
        place: Where it is.
        loop: The loop of whoever it belongs to.
        run: Calls something on behalf of its owner: at once, or when that no longer stands still.
    """

    outgoing: _Flow
    incoming: _Flow
    peer: End

    def __init__(
        self,
        sockets: SimulatedSockets,
        place: Place,
        loop: asyncio.AbstractEventLoop,
        run: Callable[..., None],
    ) -> None:
        super().__init__()
        self.sockets = sockets
        self.place = place
        self._loop = loop
        self._run = run
        self._protocol: asyncio.Protocol | None = None
        self.unread = bytearray()
        self.gone = False
        self._reading = True
        self._ended = False
        """The peer sends nothing more."""
        self._end_told = False
        self._closing = False
        self._high = WRITE_BUFFER_HIGH
        self._choked = False

    def __repr__(self) -> str:
        return f"<end at {self.place!r}, other at {self.peer.place!r}>"

    def joined(self, peer: End, window: int) -> None:
        """Know the other end."""
        self.peer = peer
        self.outgoing = _Flow(self, peer, window)
        if hasattr(peer, "outgoing"):
            self.incoming, peer.incoming = peer.outgoing, self.outgoing

    def serve(self, factory: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
        """Give it its protocol; what has come meanwhile is read in a moment, also that it broke."""
        protocol = self._protocol = factory()
        protocol.connection_made(self)
        if self.gone:
            self._loop.call_soon(protocol.connection_lost, _reset_error())
        else:
            self._loop.call_soon(self._read)
        return protocol

    # --- asyncio.Transport ---

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The peer's name; there is no socket."""
        return (str(self.peer.place), 4242) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """From how many waiting bytes on the protocol is told to pause."""
        del low
        self._high = WRITE_BUFFER_HIGH if high is None else high

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, in order; what is written after the end is dropped, as asyncio does."""
        assert getattr(self._loop, "alive", True), f"{self!r}: a dead process writes"
        if self._closing or self.gone or not data:
            return
        self.outgoing.write(bytes(data))
        if not self._choked and self.outgoing.waiting_bytes > self._high:
            self._choked = True
            assert self._protocol is not None
            self._protocol.pause_writing()

    def is_closing(self) -> bool:
        """Whether `close` or `abort` was called."""
        return self._closing or self.gone

    def is_reading(self) -> bool:
        """Whether data is handed to the protocol."""
        return self._reading and not self.is_closing()

    def pause_reading(self) -> None:
        """Hand over nothing more."""
        self._reading = False

    def resume_reading(self) -> None:
        """Hand over what has come and what comes."""
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self._read)

    def close(self) -> None:
        """Send what waits, then end; nothing more is read."""
        if not self._closing:
            self._closing = True
            self.drained()

    def abort(self) -> None:
        """End now: with a reset if something is unread, which may get lost, else with an end."""
        if not self.gone:
            unread = bool(self.unread)
            self.outgoing.forget_waiting()
            self._leave(None)
            if not unread:
                self.outgoing.say(_Kind.END)
            elif self.sockets.chance.random() < 0.7:
                self.outgoing.say(_Kind.RESET)

    # --- for flows and sockets ---

    def take(self, data: bytes) -> None:
        """Bytes arrive."""
        if self.gone:
            if not self.sockets.is_dark(self.place):
                self.outgoing.say(_Kind.RESET)
            return
        self.unread += data
        self._run(self._read)

    def take_end(self) -> None:
        """The peer sends nothing more."""
        self._ended = True
        if not self.gone:
            self._note_torn()
            self._run(self._read)

    def lost(self, error: OSError) -> None:
        """The network says that the connection is broken."""
        if not self.gone:
            self.outgoing.forget_waiting()
            self._note_torn()
            self._leave(error)

    def _note_torn(self) -> None:
        if self.incoming.torn and isinstance(self.place, str):
            self.sockets.probes[Probe.REPLY_TORN] += 1

    def vanish(self, *, silent: bool) -> None:
        """Its process is gone; the system says so, with an end or a reset, unless it is gone as well."""
        self.gone = True
        self.sockets.forget(self)
        self.outgoing.forget_waiting()
        if not silent:
            self.outgoing.say(_Kind.RESET if self.unread or self.sockets.chance.random() < 0.3 else _Kind.END)

    def drained(self) -> None:
        """Something was sent."""
        waiting = self.outgoing.waiting_bytes
        if self._closing and not waiting and not self.gone:
            self._leave(None)
            self.outgoing.say(_Kind.END)
        elif self._choked and waiting <= self._high // 4:
            self._choked = False
            if self._protocol is not None and not self.is_closing():
                self._loop.call_soon(self._protocol.resume_writing)

    def _leave(self, error: OSError | None) -> None:
        self.gone = True
        self.unread.clear()
        self.sockets.forget(self)
        if self._protocol is not None:
            self._loop.call_soon(self._protocol.connection_lost, error)

    def _read(self) -> None:
        """Hand over what has come."""
        if not self.is_reading() or self._protocol is None:
            return
        if self.unread:
            data = bytes(self.unread)
            self.unread.clear()
            self.incoming.pump()
            self._protocol.data_received(data)
        if self._ended and not self.unread and not self._end_told and self.is_reading():
            self._end_told = True
            if not self._protocol.eof_received():
                self.close()


def _at_once(callback: Callable[..., object], *args: object) -> None:
    callback(*args)


def _reset_error() -> OSError:
    return ConnectionResetError(errno.ECONNRESET, "connection reset by peer")
