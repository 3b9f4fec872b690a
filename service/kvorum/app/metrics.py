"""What /metrics says: the sources of all rooms, put together at scrape time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvorum.consensus.metrics import consensus_metrics
from kvorum.observe.metrics import Metric, counter, gauge, histogram, render
from kvorum.thrift.metrics import edge_metrics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvorum.app.node import Node


def node_metrics(node: Node) -> bytes:
    """Prometheus text of one node."""
    return render(
        [lambda: consensus_metrics(node.consensus), lambda: _storage(node), lambda: edge_metrics(node.server)]
    )


def _storage(node: Node) -> Iterable[Metric]:
    log = node.log.statistics()
    yield histogram("kvorum_wal_fsync_duration_seconds", "Time to sync one group.", node.log.fsync_histogram)
    yield counter("kvorum_wal_append_bytes_total", "Bytes appended to the log.", log["appended_bytes"])
    yield gauge("kvorum_wal_segments", "Segment files of the log.", log["segments"])
    yield gauge("kvorum_wal_size_bytes", "Bytes the log holds.", log["size_bytes"])
    yield gauge("kvorum_wal_first_index", "First entry the log holds.", log["first_index"])
    alarm = [({"type": "nospace"}, float(not node.consensus.has_space))]
    yield Metric("kvorum_alarm_active", "gauge", "1 while the condition lasts.", list(alarm))
    engine = node.engine.statistics()
    yield gauge("kvorum_backend_size_bytes", "Bytes of the store on disk.", engine.bytes_on_disk)
    yield gauge("kvorum_backend_keys", "Rows of the store, estimated.", engine.keys)
    state = node.executor.statistics()
    yield gauge("kvorum_backend_compacted_revision", "Oldest readable version.", state.low_watermark)
    yield counter("kvorum_backend_swept_rows_total", "Rows removed because nobody can read them.", state.rows_swept)
    yield gauge("kvorum_sessions", "Clients whose latest writes are remembered.", state.sessions)
    yield counter("kvorum_dedup_hits_total", "Writes that had been decided before and changed nothing.", state.retries)
    if node.links is None:
        return
    peers = node.links.statistics()
    for name, key, text in (
        ("kvorum_peer_sent_bytes_total", "bytes_sent", "Bytes given to the link of a peer."),
        ("kvorum_peer_received_bytes_total", "bytes_received", "Bytes received from a peer."),
    ):
        samples = [({"peer": str(peer)}, figures.get(key, 0)) for peer, figures in peers.items()]
        yield Metric(name, "counter", text, list(samples))
    trips = [({"peer": str(peer)}, trip) for peer, trip in node.links.round_trips().items()]
    yield Metric("kvorum_peer_round_trip_seconds", "histogram", "Round trip of a ping.", list(trips))
