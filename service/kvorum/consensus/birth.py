"""
The birth rule: what an empty data directory may do (architecture section 3; docs/decisions/0014).

With static endpoints every node derives the same first log entry. Writing it is safe only while nobody has data:
an empty directory in an old seat may have voted and acknowledged in a life that it forgot. So:

* a majority (this node included) has no data and no reachable peer has any: birth, once the others have had a moment
  to be reached. A peer that was born a moment ago, holds nothing but that first entry and has seen no election has no
  data yet; one that has voted has, for its vote may have elected the former life of this very directory;
* a peer has data: this node may still be a voter that simply starts late. That is so only if a *confirmed leader*
  says that the seat was never recorded with another data directory; then it is born late with the same first entry;
* a committed configuration names this very directory: it joins with an empty log, which the leader fills;
* the seat is recorded with another data directory: this disk was wiped or replaced. It waits until the leader has
  given the seat to this directory as a learner;
* a peer belongs to a cluster that was born otherwise: it waits to be added, and is never born beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvorum.core.machine import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvorum.consensus.frames import Report
    from kvorum.core.cluster import Configuration
    from kvorum.core.ids import Incarnation, NodeId


class Verdict(NamedTuple):
    """What to do with an empty directory: be born, join, refuse to start, or wait (none of them)."""

    born: bool = False
    joins: bool = False
    refuse: str | None = None
    waiting_for: str = ""


def judge(
    node_id: NodeId,
    incarnation: Incarnation,
    configuration: Configuration,
    reports: Mapping[NodeId, Report],
    *,
    clusters: Mapping[NodeId, bytes | None] | None = None,
    learned: Configuration | None = None,
    patient: bool = False,
) -> Verdict:
    """
    Decide from what the peers reached so far have said; pure, so that every case is a row in a table of tests.

    Args:
        node_id: This seat.
        incarnation: This directory's member id.
        configuration: The first configuration, derived from the file.
        reports: The newest report of each peer that a link stands to.
        clusters: Cluster id of each peer that a link stands to, None for a peer that belongs to none.
        learned: The newest committed configuration a peer has told.
        patient: A majority is not enough yet: a peer that was not reached so far may be the one that has data.
    """
    known = {peer: cluster for peer, cluster in (clusters or {}).items() if cluster is not None}
    if len(set(known.values())) > 1:
        told = ", ".join(f"node {peer} to {cluster.hex()}" for peer, cluster in sorted(known.items()))
        return Verdict(
            refuse=f"the peers of this node belong to different clusters ({told}); its configuration mixes two "
            "clusters: correct replica_endpoints or [consensus] endpoints"
        )
    seat = learned.member(node_id) if learned is not None else None
    if seat is not None and seat.incarnation == incarnation:
        return Verdict(joins=True)
    recorded = seat.incarnation if seat is not None else 0
    if recorded:
        return Verdict(waiting_for=_replacement(node_id, recorded))
    foreign = set(known.values()) - {configuration.birth_id()}
    if foreign or (learned is not None and seat is None):
        cluster = next(iter(foreign), configuration.birth_id()).hex()
        return Verdict(waiting_for=f"cluster {cluster} to take it in: add node {node_id} there (kvorum member add)")
    with_data = {peer: report for peer, report in reports.items() if report.has_data}
    for _, report in sorted(with_data.items()):
        if report.recorded_incarnation not in (0, incarnation):
            return Verdict(waiting_for=_replacement(node_id, report.recorded_incarnation))
    if with_data:
        if any(report.role == Role.LEADER and report.may_serve for report in with_data.values()):
            return Verdict(born=True)
        return Verdict(waiting_for="a leader among the nodes that already have data")
    silent = sorted(peer for peer in known if peer not in reports)
    if silent:
        # Members of a cluster that do not talk to this node: it has no seat there (any more), or in a moment they will.
        return Verdict(waiting_for=f"word from {', '.join(f'node {peer}' for peer in silent)}, which has a cluster")
    empty = 1 + sum(1 for peer, report in reports.items() if not report.has_data and peer in configuration.voters)
    if empty >= configuration.quorum:
        missing = sorted({*configuration.voters} - {node_id, *reports})
        if patient and missing:
            return Verdict(waiting_for=f"a moment for {', '.join(f'node {peer}' for peer in missing)} to be reached")
        return Verdict(born=True)
    return Verdict(waiting_for=f"{configuration.quorum - empty} more empty node(s) of {len(configuration.voters)}")


def judge_pod(
    node_id: NodeId,
    incarnation: Incarnation,
    expected: Configuration,
    reports: Mapping[NodeId, Report],
    *,
    founder: NodeId | None,
    wanted: int | None,
    clusters: Mapping[NodeId, bytes | None],
    learned: Configuration | None = None,
    patient: bool = False,
) -> Verdict:
    """
    Decide for the pods of a StatefulSet: one of them forms the cluster, everybody else is taken in.

    Nothing ends the process here: Kubernetes would only start it again, and nobody could read why it waits.

    Args:
        node_id: This seat, the ordinal of the pod.
        incarnation: This directory's member id.
        expected: The wanted pods.
        reports: The newest report of each peer that a link stands to.
        founder: The first ordinal; None as long as nobody has said how many pods are wanted.
        wanted: How many.
        clusters: Cluster id of each peer that a link stands to, None for a peer that belongs to none.
        learned: The newest committed configuration a peer has told.
        patient: A majority is not enough yet.
    """
    seat = learned.member(node_id) if learned is not None else None
    if seat is not None and seat.incarnation == incarnation:
        return Verdict(joins=True)
    known = {peer: cluster for peer, cluster in clusters.items() if cluster is not None}
    if len(set(known.values())) > 1:
        told = ", ".join(f"node {peer} to {cluster.hex()}" for peer, cluster in sorted(known.items()))
        return Verdict(waiting_for=f"one cluster to be left: the peers belong to different ones ({told})")
    if seat is not None and seat.incarnation:
        return Verdict(waiting_for=_replacement(node_id, seat.incarnation))
    if known or any(report.has_data for report in reports.values()):
        cluster = next(iter(known.values())).hex() if known else "of the peers"
        return Verdict(waiting_for=f"the leader of cluster {cluster} to take this pod in as a learner")
    if founder is None or wanted is None:
        return Verdict(waiting_for="word of how many pods the StatefulSet is to have")
    if node_id != founder:
        return Verdict(waiting_for=f"node {founder} to form the cluster and take this pod in")
    empty = 1 + sum(1 for peer in reports if peer != node_id and expected.member(peer) is not None)
    quorum = wanted // 2 + 1
    if empty < quorum:
        return Verdict(waiting_for=f"{quorum - empty} more empty pod(s) of {wanted}")
    missing = sorted({member.node_id for member in expected.members} - {node_id, *reports})
    if patient and missing:
        return Verdict(waiting_for=f"a moment for {', '.join(f'node {peer}' for peer in missing)} to be reached")
    return Verdict(born=True)


def _replacement(node_id: NodeId, recorded: Incarnation) -> str:
    return (
        f"the leader to give this empty directory the seat of node {node_id}, which is recorded with other data "
        f"(incarnation {recorded:016x}): it will come back as a learner"
    )
