"""
Snapshots between nodes: offers and streams on the sending side, staging and install on the receiving one.

A follower that needs entries which are gone gets an offer, draws a stream of the sender's applied state over a
connection of its own, builds the next store beside its present one, and switches (docs/decisions/0015). Either side
takes a slice of the loop at a time, and writes go on on both until the short switch, during which the receiver is
silent and deaf like a paused node.
"""

from __future__ import annotations

import asyncio
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from kvorum.consensus import frames
from kvorum.core.entries import Entry, EntryKind
from kvorum.core.errors import RemoteError, StorageFailedError, WriteStalledError
from kvorum.core.machine import Role, SnapshotInstalled, SnapshotSent
from kvorum.core.snapshot import Manifest
from kvorum.observe.histogram import LatencyHistogram
from kvorum.statemachine.transfer import Export, Import

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    import structlog

    from kvorum.consensus.applier import Applier
    from kvorum.consensus.proposals import Proposals
    from kvorum.consensus.reads import Reads
    from kvorum.core.ids import Index, NodeId
    from kvorum.core.machine import Event, Machine
    from kvorum.core.ports import PeerLinks, StagingArea, StorageEngine
    from kvorum.statemachine.executor import KvStoreExecutor

STREAMS_MAX: Final = 2
"""Streams that a node sends at once: two followers at a time keep a cluster of five going."""

PAUSE_S: Final = 0.001
"""Pause between two slices, each of which takes about as long: a stream gets at most half of a busy loop."""

OFFER_S: Final = 5.0
"""An offer that nobody takes up in this time is over."""

INSTALL_S: Final = 60.0
"""From the end of the stream, the receiver has this long to install and say so; also how long a broken one is kept."""

RESUMES_MAX: Final = 5
RETRY_S: Final = 1.0
"""A broken stream is gone on with this often, after this pause; a failed attempt is reported after the same pause."""

_OFFER: Final = struct.Struct(">BQ")
_DONE: Final = struct.Struct(">BQ")


class Host(Protocol):
    """What snapshots need of their ConsensusManager."""

    machine: Machine | None
    node_id: NodeId
    cluster_id: bytes | None
    applier: Applier
    proposals: Proposals
    reads: Reads
    installing: bool

    @property
    def leader(self) -> NodeId | None:
        """Known leader."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether this node is on its way out."""
        ...

    @property
    def applied_time_ms(self) -> int:
        """Time of the last applied entry; 0 if it is not known any more."""
        ...

    def clock(self) -> float:
        """Monotonic seconds."""
        ...

    def send(self, peer: NodeId, kind: int, parts: list[bytes]) -> bool:
        """Give one frame to a peer."""
        ...

    def feed(self, event: Event) -> None:
        """Give the machine one event."""
        ...

    def reset_log(self, manifest: Manifest, done: Callable[[], None]) -> None:
        """Reset the log to a snapshot; call back once that is durable, before anything else is fed."""
        ...

    def snapshot_installed(self, manifest: Manifest) -> None:
        """The state machine shows the snapshot now."""
        ...

    def create_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside everything else, as long as this process lives; what it raises ends the process."""
        ...


@dataclass(slots=True)
class _Offer:
    """A follower that was offered a snapshot; the machine waits for `SnapshotSent`."""

    expires: float


@dataclass(slots=True)
class _Outgoing:
    """A stream to one receiver, under way or broken."""

    export: Export
    connection: object | None = None
    """Stands for the connection that draws it now; a newer one takes its place, for the old one may be dead."""
    idle_since: float = 0.0


class Snapshots:
    """See the module text. Everything runs on the loop."""

    def __init__(
        self,
        host: Host,
        links: PeerLinks | None,
        executor: KvStoreExecutor,
        staging: StagingArea,
        logger: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._host = host
        self._links = links
        self._executor = executor
        self._staging = staging
        self._logger = logger
        self._offers: dict[NodeId, _Offer] = {}
        self._outgoing: dict[NodeId, _Outgoing] = {}
        self._streams: set[object] = set()
        self._receiving: asyncio.Task[None] | None = None
        self._committed = False
        self.durations = {step: LatencyHistogram(0.1, 12) for step in ("send", "receive", "install")}
        """Of what succeeded; whoever sends waits for whoever receives."""
        self.sent_total = 0
        self.sent_bytes_total = 0
        self.received_bytes_total = 0
        self.installed_total = 0
        self.failed_total = 0
        self.resumed_total = 0

    # --- sending ---

    def manifest(self) -> Manifest:
        """What a snapshot of the state applied now would be."""
        host, index = self._host, self._executor.applied_index
        machine = host.machine
        assert machine is not None
        term = machine.term_at(index)
        assert term >= 0, "the log holds the applied index, or begins right behind it"
        configuration_index, configuration = machine.configuration_at(index)
        # Term and time of a configuration describe nothing; the entry itself may have left the log long ago.
        configuration_term = max(machine.term_at(configuration_index), 0)
        entry = Entry.create(
            configuration_index, configuration_term, EntryKind.CONFIGURATION, 0, configuration.encode()
        )
        return Manifest(host.cluster_id or bytes(16), index, term, host.applied_time_ms, entry)

    @property
    def needed_index(self) -> Index | None:
        """Lowest index behind which receivers of open streams will want the log."""
        return min((outgoing.export.manifest.index for outgoing in self._outgoing.values()), default=None)

    def offer(self, peer: NodeId) -> None:
        """Carry out `SendSnapshot`."""
        self._logger.info("a follower needs a snapshot", peer=peer)
        self._offers[peer] = _Offer(self._host.clock() + OFFER_S)
        self._host.send(peer, frames.SNAPSHOT_OFFER, [_OFFER.pack(frames.VERSION, self._executor.applied_index)])

    def done_received(self, peer: NodeId, payload: bytes) -> None:
        """A receiver installed a snapshot, or (index 0) gave up."""
        self._outgoing.pop(peer, None)
        self._settle_offer(peer, _unpack(_DONE, payload))

    def _settle_offer(self, peer: NodeId, index: Index) -> None:
        host = self._host
        if self._offers.pop(peer, None) is not None and host.machine is not None and host.machine.role == Role.LEADER:
            host.feed(SnapshotSent(peer, index))

    async def serve(self, peer: NodeId, request: bytes) -> AsyncIterator[bytes]:
        """
        Answer a receiver's fetch with the stream, or with what is left of it.

        Raises:
            RemoteError: Too many streams already, nothing to go on with, or no request.
        """
        outgoing, chunks = self._find(peer, _decode_request(request))
        me = outgoing.connection = object()
        self._streams.add(me)
        began = self._host.clock()
        try:
            for chunk in chunks:
                if chunk is not None:
                    self.sent_bytes_total += len(chunk)
                    yield chunk
                await asyncio.sleep(PAUSE_S)
                if outgoing.connection is not me:
                    msg = "the snapshot is drawn over another connection now"
                    raise RemoteError(msg)
            self.sent_total += 1
            self.durations["send"].observe(self._host.clock() - began)
            self._logger.info(
                "snapshot sent", peer=peer, index=outgoing.export.manifest.index, rows=outgoing.export.rows
            )
        finally:
            self._streams.discard(me)
            if outgoing.connection is me:
                outgoing.connection = None
                outgoing.idle_since = self._host.clock()
                if peer in self._offers:
                    self._offers[peer].expires = outgoing.idle_since + INSTALL_S

    def _find(self, peer: NodeId, request: dict[str, Any]) -> tuple[_Outgoing, Iterator[bytes | None]]:
        known = self._outgoing.get(peer)
        if known is not None:
            # Who asks again has given up the connection of before, whether this side has noticed or not.
            self._streams.discard(known.connection)
            known.connection = None
            known.idle_since = self._host.clock()
        if len(self._streams) >= STREAMS_MAX:
            msg = f"busy with {len(self._streams)} other snapshots; ask again later"
            raise RemoteError(msg)
        after = bytes.fromhex(request.get("after", ""))
        if not after:
            if self._host.machine is None:
                msg = "this node has no state to give yet"
                raise RemoteError(msg)
            outgoing = self._outgoing[peer] = _Outgoing(Export(self._executor.view(), self.manifest()))
            return outgoing, outgoing.export.chunks()
        if known is None or known.export.manifest.index != request.get("index"):
            msg = "that snapshot is not kept any more; begin a new one"
            raise RemoteError(msg)
        self.resumed_total += 1
        return known, known.export.chunks_after(after)

    async def save(self) -> AsyncIterator[bytes]:
        """
        Draw a snapshot of the state applied now, for a file.

        Raises:
            RemoteError: Not born yet, or too many streams already.
        """
        if self._host.machine is None or len(self._streams) >= STREAMS_MAX:
            msg = "this node has no state yet, or is busy with other snapshots; try again later"
            raise RemoteError(msg)
        me = object()
        self._streams.add(me)
        try:
            for chunk in Export(self._executor.view(), self.manifest()).chunks():
                if chunk is not None:
                    self.sent_bytes_total += len(chunk)
                    yield chunk
                await asyncio.sleep(PAUSE_S)
        finally:
            self._streams.discard(me)

    def tick(self, now: float) -> None:
        """A few times a second: end what nobody goes on with."""
        for peer, outgoing in list(self._outgoing.items()):
            if outgoing.connection is not None:
                if peer in self._offers:
                    self._offers[peer].expires = now + OFFER_S
            elif now - outgoing.idle_since > INSTALL_S:
                del self._outgoing[peer]
        for peer, offer in list(self._offers.items()):
            if now >= offer.expires:
                self._settle_offer(peer, 0)

    # --- receiving ---

    def offer_received(self, peer: NodeId, payload: bytes) -> None:
        """The leader offers a snapshot: fetch it, one at a time."""
        _unpack(_OFFER, payload)
        host = self._host
        if self._receiving is None and peer == host.leader and peer != host.node_id and not host.stopping:
            self._receiving = host.create_task(self._receive(peer))

    async def _receive(self, peer: NodeId) -> None:
        host, index = self._host, 0
        try:
            index = await self._fetch_and_install(peer)
        except (RemoteError, StorageFailedError) as error:
            # Safety: behind the commit the new store counts, so nobody may go on as if the install had failed.
            if self._committed:
                raise
            self._logger.warning("no snapshot this time", peer=peer, reason=str(error))
        except asyncio.CancelledError:
            if not self._committed:
                await self._give_up()
            raise
        if not index:
            await self._give_up()
            self.failed_total += 1
            await asyncio.sleep(RETRY_S)
        self._committed = False
        self._receiving = None
        host.send(peer, frames.SNAPSHOT_DONE, [_DONE.pack(frames.VERSION, index)])

    async def _give_up(self) -> None:
        """Nothing was committed: go on with the present store."""
        self._host.installing = False
        self._host.applier.go_on()
        await self._staging.abandon()

    async def _fetch_and_install(self, peer: NodeId) -> Index:
        """Returns the index of the installed snapshot, 0 if it would not help any more."""
        host = self._host
        began = host.clock()
        engine = await self._staging.begin()
        manifest = await self._fetch(peer, engine)
        await self._staging.seal()
        if not self._helps(manifest):
            return 0
        received = host.clock()
        self.durations["receive"].observe(received - began)
        # From here on silent and deaf: nothing may be promised that the new log would not hold.
        host.installing = True
        host.applier.pause()
        while host.applier.flushing:  # noqa: ASYNC110 - the flush reports to the applier, and it is rare
            await asyncio.sleep(PAUSE_S)
        if not self._helps(manifest):
            return 0
        self._committed = True
        await self._staging.commit(manifest)
        switched: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def switch() -> None:
            self._switch(manifest, engine)
            if not switched.done():
                switched.set_result(None)

        host.reset_log(manifest, switch)
        await switched
        await self._staging.settle()
        self.durations["install"].observe(host.clock() - received)
        return manifest.index

    def _helps(self, manifest: Manifest) -> bool:
        machine = self._host.machine
        assert machine is not None
        return machine.role != Role.LEADER and machine.accepts_snapshot(manifest.index, manifest.term)

    async def _fetch(self, peer: NodeId, engine: StorageEngine) -> Manifest:
        """Fill an engine from a peer's stream, going on where it broke."""
        assert self._links is not None
        incoming = Import(engine)
        check = incoming.check
        for attempt in range(RESUMES_MAX + 1):
            try:
                async for chunk in self._links.fetch(peer, _encode_request(check.manifest, check.last_key)):
                    await self._store(incoming, chunk)
                    if check.manifest is not None and not check.rows:
                        self._must_be_wanted(check.manifest)
                if check.finished:
                    assert check.manifest is not None
                    return check.manifest
            except RemoteError as error:
                if not check.rows or attempt == RESUMES_MAX:
                    raise
                self._logger.info("snapshot interrupted, going on", peer=peer, rows=check.rows, reason=str(error))
            if not check.rows:
                break
            await asyncio.sleep(RETRY_S)
        msg = "the stream of the snapshot ended too early"
        raise RemoteError(msg)

    def _must_be_wanted(self, manifest: Manifest) -> None:
        host = self._host
        if host.stopping:
            msg = "this node is shutting down"
            raise RemoteError(msg)
        if host.cluster_id is not None and manifest.cluster_id != host.cluster_id:
            msg = f"the snapshot is of cluster {manifest.cluster_id.hex()}, this node of {host.cluster_id.hex()}"
            raise RemoteError(msg)
        if not self._helps(manifest):
            msg = f"the snapshot ends at index {manifest.index}, which this node does not need any more"
            raise RemoteError(msg)

    async def _store(self, incoming: Import, chunk: bytes) -> None:
        self.received_bytes_total += len(chunk)
        steps = incoming.take(chunk)
        while True:
            try:
                for _ in steps:
                    await asyncio.sleep(PAUSE_S)
            except WriteStalledError:
                await asyncio.sleep(10 * PAUSE_S)
                steps = incoming.rest()
            else:
                return

    def _switch(self, manifest: Manifest, engine: StorageEngine) -> None:
        """Store and log are durable: show them. Called by the manager, with nothing else in between."""
        host = self._host
        self._outgoing.clear()
        self._executor.replace(engine)
        host.applier.restart(manifest.index)
        host.installing = False
        self.installed_total += 1
        self._logger.info("snapshot installed", index=manifest.index, term=manifest.term)
        entry = manifest.configuration
        host.feed(
            SnapshotInstalled(manifest.index, manifest.term, entry.index, manifest.members, time_ms=manifest.time_ms)
        )
        host.snapshot_installed(manifest)

    async def stop(self) -> None:
        """Give up what is being received, unless the switch has begun; that is waited for."""
        receiving = self._receiving
        if receiving is None:
            return
        if not self._committed:
            receiving.cancel()
        await asyncio.wait([receiving])


def _unpack(form: struct.Struct, payload: bytes) -> int:
    try:
        version, index = form.unpack(payload)
    except struct.error as error:
        msg = f"snapshot frame does not parse: {error}"
        raise RemoteError(msg) from error
    if version != frames.VERSION:
        msg = f"snapshot frame of version {version}; this release speaks {frames.VERSION}"
        raise RemoteError(msg)
    return int(index)


def _encode_request(manifest: Manifest | None, last_key: bytes) -> bytes:
    """What to fetch: a new snapshot, or the rest of one behind the last row that arrived."""
    if manifest is None or not last_key:
        return json.dumps({"stream": "snapshot"}).encode()
    return json.dumps({"stream": "snapshot", "index": manifest.index, "after": last_key.hex()}).encode()


def _decode_request(request: bytes) -> dict[str, Any]:
    try:
        wanted = json.loads(request)
        if wanted["stream"] != "snapshot":
            msg = f"no stream is called {wanted['stream']!r}"
            raise RemoteError(msg)
        bytes.fromhex(wanted.get("after", ""))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"the request for a stream does not parse: {error}"
        raise RemoteError(msg) from error
    return dict(wanted)
