"""All seeded bugs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvorum_sim.teeth import durability, forwarding, log, membership, past, reads, snapshots, state, votes

if TYPE_CHECKING:
    from kvorum_sim.teeth.mutation import Bug

BUGS: Final[tuple[Bug, ...]] = (
    *votes.BUGS,
    *log.BUGS,
    *reads.BUGS,
    *membership.BUGS,
    *snapshots.BUGS,
    *durability.BUGS,
    *state.BUGS,
    *forwarding.BUGS,
    *past.BUGS,
)
assert len({bug.name for bug in BUGS}) == len(BUGS), "names are unique"
