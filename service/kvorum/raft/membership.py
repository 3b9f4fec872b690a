"""
Which changes of the configuration are single-server changes (Raft dissertation 4.1).

Two configurations that differ by one voter share a voter in any two majorities, so the one in force may be used from
its append on. A voter is a seat *and* the data directory that holds it: another directory has forgotten what the first
one acknowledged and voted, so it is another server (catalogue bugs 28 and 29).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvorum.core.cluster import Configuration, Member


def same_server(before: Member, after: Member) -> bool:
    """Whether a seat is held by the same data directory; recording one for the first time changes nothing."""
    return before.incarnation in (0, after.incarnation)


def change_flaw(current: Configuration, following: Configuration) -> str | None:
    """Why one configuration must not follow the other directly; None if it may."""
    if not following.voters:
        return "it has no voter"
    changed = set(current.voters) ^ set(following.voters)
    if len(changed) > 1:
        return f"it changes {len(changed)} voters at once: {', '.join(map(str, sorted(changed)))}"
    for after in following.members:
        before = current.member(after.node_id)
        if before is None or same_server(before, after):
            continue
        if after.voter:
            return f"the new data directory of node {after.node_id} must come in as a learner"
    return None
