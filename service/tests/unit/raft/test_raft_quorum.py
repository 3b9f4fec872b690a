"""Majorities, by brute force over all sizes that occur (catalogue bug 6)."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from kvorum.core.cluster import Configuration, Member
from kvorum.raft.quorum import agreed_index

SIZES = range(1, 10)


def configuration(voters: int, learners: int = 0) -> Configuration:
    return Configuration.of(Member(node, "c:1", "p:1", voter=node < voters) for node in range(voters + learners))


@pytest.mark.parametrize("size", SIZES)
def test_quorum_of_any_size_makes_all_majorities_intersect(size: int) -> None:
    """Two quorums share a voter, one voter less would not do, and learners change nothing."""
    quorum = configuration(size).quorum
    nodes = set(range(size))

    assert quorum == configuration(size, learners=3).quorum
    for one in combinations(nodes, quorum):
        assert len(nodes - set(one)) < quorum
    assert 2 * (quorum - 1) <= size


@pytest.mark.parametrize("size", SIZES)
def test_agreed_index_of_any_matches_equals_the_definition(size: int) -> None:
    """The agreed index is the highest that a quorum has reached, whatever the order of the acknowledgements."""
    quorum = configuration(size).quorum
    levels = 4 if size <= 5 else 2
    for matches in product(range(levels), repeat=size):
        expected = max(index for index in range(levels) if sum(match >= index for match in matches) >= quorum)
        assert expected == agreed_index(list(matches), quorum)
