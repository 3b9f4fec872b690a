"""
The birth rule: when an empty data directory may take part in forming a cluster (architecture section 3).

With static endpoints every node derives the same first log entry. Writing it is safe only while nobody has data:
an empty directory in an old seat may have voted and acknowledged in a life that it forgot. So:

* a majority (this node included) has no data and no reachable peer has any: birth. A peer that was born a moment
  ago and holds nothing but that first entry has no data yet: nothing was ever elected or acknowledged with it;
* a peer has data: this node may still be a voter that simply starts late. That is so only if a *confirmed leader*
  says that the seat was never recorded with another data directory; then it is born late with the same first entry;
* the seat is recorded with another data directory: this disk was wiped or replaced. Refuse to start and name the peer.
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
    """What to do with an empty directory: be born, wait (both None), or refuse to start."""

    born: bool = False
    refuse: str | None = None
    waiting_for: str = ""


def judge(
    node_id: NodeId,
    incarnation: Incarnation,
    configuration: Configuration,
    reports: Mapping[NodeId, Report],
) -> Verdict:
    """
    Decide from the reports of the peers reached so far; pure, so that every case is a row in a table of tests.

    Args:
        node_id: This seat.
        incarnation: This directory's member id.
        configuration: The first configuration, derived from the file.
        reports: The newest report of each peer that a link stands to.
    """
    with_data = {peer: report for peer, report in reports.items() if report.has_data}
    for peer, report in sorted(with_data.items()):
        if report.recorded_incarnation not in (0, incarnation):
            member = configuration.member(peer)
            where = member.client_endpoint if member else "?"
            return Verdict(
                refuse=f"the data directory is empty, but node {peer} at {where} knows seat {node_id} with other data "
                f"(incarnation {report.recorded_incarnation:016x}); an empty disk may not take the seat of a "
                "voter. Give node "
                f"{node_id} its old data directory back, or restore the cluster from a snapshot"
            )
    if with_data:
        if any(report.role == Role.LEADER and report.may_serve for report in with_data.values()):
            return Verdict(born=True)
        return Verdict(waiting_for="a leader among the nodes that already have data")
    empty = 1 + sum(1 for peer, report in reports.items() if not report.has_data and peer in configuration.voters)
    if empty >= configuration.quorum:
        return Verdict(born=True)
    return Verdict(waiting_for=f"{configuration.quorum - empty} more empty node(s) of {len(configuration.voters)}")
