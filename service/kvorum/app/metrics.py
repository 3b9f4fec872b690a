"""What /metrics says: the sources of all rooms, put together at scrape time (docs/operations/metrics.md)."""

from __future__ import annotations

import os
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
        [
            lambda: _identity(node),
            lambda: consensus_metrics(node.consensus),
            lambda: _storage(node),
            lambda: _links(node),
            lambda: edge_metrics(node.server),
            lambda: node.pod.metrics() if node.pod is not None else (),
        ]
    )


def _identity(node: Node) -> Iterable[Metric]:
    consensus = node.consensus
    own = consensus.members.member(consensus.node_id)
    labels = {
        "node_id": str(consensus.node_id),
        "member_id": f"{node.directory.incarnation:016x}",
        "member_name": own.client_endpoint if own is not None else "",
        "cluster_id": (consensus.cluster_id or b"").hex(),
    }
    yield Metric("kvorum_node_info", "gauge", "Always 1; the labels say which node this is.", [(labels, 1)])
    yield histogram("kvorum_gc_pause_seconds", "Time of one garbage collection.", node.pauses.histogram)


def _storage(node: Node) -> Iterable[Metric]:
    log = node.log.statistics()
    yield histogram("kvorum_wal_fsync_duration_seconds", "Time to sync one group.", node.log.fsync_histogram)
    yield counter("kvorum_wal_append_bytes_total", "Bytes appended to the log.", log["appended_bytes"])
    yield gauge("kvorum_wal_queued_appends", "Appends that wait for the log's thread.", log["queued_appends"])
    yield gauge("kvorum_wal_segments", "Segment files of the log.", log["segments"])
    yield gauge("kvorum_wal_size_bytes", "Bytes the log holds.", log["size_bytes"])
    yield gauge("kvorum_wal_first_index", "First entry the log holds.", log["first_index"])
    engine = node.engine.statistics()
    yield gauge("kvorum_backend_size_bytes", "Bytes of the store on disk.", engine.bytes_on_disk)
    yield gauge("kvorum_backend_keys", "Rows of the store, estimated.", engine.keys)
    yield gauge(
        "kvorum_backend_compaction_pending_bytes",
        "Bytes RocksDB still has to rewrite, estimated.",
        engine.compaction_pending_bytes,
    )
    yield gauge(
        "kvorum_backend_revision", "Version of the last write that took effect.", node.executor.last_commit_version
    )
    state = node.executor.statistics()
    yield gauge("kvorum_backend_compacted_revision", "Oldest readable version.", state.low_watermark)
    yield counter("kvorum_backend_swept_rows_total", "Rows removed because nobody can read them.", state.rows_swept)
    yield gauge("kvorum_sessions", "Clients whose latest writes are remembered.", state.sessions)
    yield counter("kvorum_dedup_hits_total", "Writes that had been decided before and changed nothing.", state.retries)
    volume = os.statvfs(node.directory.path)
    yield gauge("kvorum_volume_free_bytes", "Bytes the node may still use.", volume.f_bavail * volume.f_frsize)
    yield gauge("kvorum_volume_size_bytes", "Bytes of the data directory's volume.", volume.f_blocks * volume.f_frsize)


def _links(node: Node) -> Iterable[Metric]:
    if node.links is None:
        return
    peers = node.links.statistics()
    yield Metric(
        "kvorum_peer_link_up",
        "gauge",
        "1 while the link to a peer stands.",
        [({"peer": str(peer)}, figures["up"]) for peer, figures in peers.items()],
    )
    for name, key, text in (
        ("kvorum_peer_sent_bytes_total", "bytes_sent", "Bytes given to the link of a peer."),
        ("kvorum_peer_received_bytes_total", "bytes_received", "Bytes received from a peer."),
        ("kvorum_peer_send_failures_total", "frames_refused", "Frames that the link to a peer could not take."),
        ("kvorum_peer_dial_failures_total", "dials_failed", "Dials of a peer that led to no link."),
        ("kvorum_peer_links_lost_total", "links_lost", "Links to a peer that stood and broke."),
    ):
        samples = [({"peer": str(peer)}, figures[key]) for peer, figures in peers.items()]
        yield Metric(name, "counter", text, list(samples))
    yield Metric(
        "kvorum_peer_dns_failures_total",
        "counter",
        "Dials that failed because the name of a peer was not found, by reason.",
        [
            ({"peer": str(peer), "reason": reason}, count)
            for peer, reasons in node.links.dns_failures().items()
            for reason, count in reasons.items()
        ],
    )
    trips = [({"peer": str(peer)}, trip) for peer, trip in node.links.round_trips().items()]
    yield Metric("kvorum_peer_round_trip_seconds", "histogram", "Round trip of a ping.", list(trips))
