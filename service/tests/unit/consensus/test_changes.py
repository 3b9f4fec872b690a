"""What a change of the membership comes to, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvorum.consensus import frames
from kvorum.consensus.changes import Action, Change, Facts, plan
from kvorum.core.cluster import Configuration, Member
from kvorum.core.errors import RemoteError

THREE = Configuration.of(Member(i, f"n{i}:9090", f"n{i}:7090", incarnation=i + 10) for i in range(3))
LEARNER = Member(3, "n3:9090", "n3:7090", voter=False, incarnation=13)
PROMOTED = replace(LEARNER, voter=True)
FOUR = Configuration.of([*THREE.members, LEARNER])
TWO = Configuration(THREE.members[:2])
ALL = Facts(0, 5000, {1: 5000, 2: 5000, 3: 4500}, frozenset(range(4)))
TWO_UP = replace(ALL, reachable=frozenset({0, 1}))


@pytest.mark.parametrize(
    ("current", "change", "facts", "said"),
    [
        (THREE, Change(Action.ADD, 1, "x:1", "x:2"), ALL, "node 1 is already a member, at n1:9090"),
        (THREE, Change(Action.ADD, 3, "n1:9090", "x:2"), ALL, "already that of node 1"),
        (THREE, Change(Action.ADD, 3, "x:1", "n2:7090"), ALL, "already that of node 2"),
        (THREE, Change(Action.ADD, 3, "x", "x:2"), ALL, "client endpoint 'x'"),
        (THREE, Change(Action.ADD, 3, "x:1", "x:0"), ALL, "the port must be between"),
        (THREE, Change(Action.PROMOTE, 9), ALL, "node 9 is no member of this cluster; the members are 0, 1, 2"),
        (THREE, Change(Action.PROMOTE), ALL, "names no node"),
        (FOUR, Change(Action.PROMOTE, 3), replace(ALL, matches={3: 3999}), "1001 entries behind"),
        (FOUR, Change(Action.PROMOTE, 3), replace(ALL, reachable=frozenset({0, 1})), "only 2 can be reached"),
        (FOUR, Change(Action.REMOVE, 9), ALL, "node 9 is no member"),
        (Configuration(THREE.members[:1]), Change(Action.REMOVE, 0), ALL, "the last voter"),
        (THREE, Change(Action.REMOVE, 1), replace(ALL, reachable=frozenset({0, 1})), "the cluster would stop"),
        (THREE, Change(Action.REPLACE, 1), ALL, "node 1 is up"),
        (THREE, Change(Action.REPLACE, 0), ALL, "node 0 leads"),
        (THREE, Change(Action.REPLACE, 2, peer_endpoint="n1:7090"), TWO_UP, "already that of node 1"),
    ],
)
def test_plan_of_what_must_not_be_done_says_why(current, change, facts, said):
    """Nothing is proposed, and the text names the cause."""
    found = plan(current, change, facts)
    assert found.following is None
    assert not found.ok
    assert said in found.text


@pytest.mark.parametrize(
    ("current", "change", "facts", "following"),
    [
        (THREE, Change(Action.ADD, 3, "n3:9090", "n3:7090"), ALL, [*THREE.members, replace(LEARNER, incarnation=0)]),
        (THREE, Change(Action.ADD, None, "n3:9090", "n3:7090"), ALL, [*THREE.members, replace(LEARNER, incarnation=0)]),
        (FOUR, Change(Action.PROMOTE, 3), ALL, [*THREE.members, replace(LEARNER, voter=True)]),
        (FOUR, Change(Action.PROMOTE, 3, force=True), Facts(0, 9999, {}), [*TWO.members, THREE.members[2], PROMOTED]),
        (THREE, Change(Action.REMOVE, 2), TWO_UP, TWO.members),
        (THREE, Change(Action.REMOVE, 1, force=True), Facts(0, 0, {}), [THREE.members[0], THREE.members[2]]),
        (FOUR, Change(Action.REMOVE, 3), TWO_UP, THREE.members),
        (THREE, Change(Action.REPLACE, 2), TWO_UP, [*TWO.members, Member(2, "n2:9090", "n2:7090", voter=False)]),
        (THREE, Change(Action.REPLACE, 2, "a:1", "a:2"), TWO_UP, [*TWO.members, Member(2, "a:1", "a:2", voter=False)]),
    ],
)  # fmt: skip
def test_plan_of_what_may_be_done_gives_the_next_configuration(current, change, facts, following):
    """One member changes; endpoints and incarnations of the others stay."""
    assert Configuration.of(following) == plan(current, change, facts).following


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (Change(Action.ADD, 3, "n3:9090", "n3:7090"), False),
        (Change(Action.ADD, None, "n3:9090", "n3:7090"), False),
        (Change(Action.PROMOTE, 1), False),
        (Change(Action.REMOVE, 9), True),
    ],
)
def test_plan_of_what_is_done_already_is_a_success(change, again):
    """Whoever asks twice, because the answer was lost, hears that it is so."""
    found = plan(FOUR, change, ALL, again=again)
    assert found.ok
    assert found.following is None


def test_change_as_json_comes_back_and_nonsense_does_not():
    """Frames between releases carry JSON, which is checked."""
    change = Change(Action.REPLACE, 2, "a:1", "a:2", force=True)
    assert change == Change.of_json(change.as_json())
    wrong: tuple[dict[str, object], ...] = ({"node": -1}, {"node": True}, {"client": 1}, {"action": "divide"})
    for nonsense in ({}, *({"action": "add", **field} for field in wrong)):
        with pytest.raises(ValueError, match=r"."):
            Change.of_json(nonsense)


def test_membership_frames_come_back_and_damage_is_refused():
    """ADMIN and MEMBERS frames survive the way; what is cut or foreign is a RemoteError."""
    admin = b"".join(frames.encode_admin(7, {"action": "add"}))
    assert (7, {"action": "add"}) == frames.decode_admin(admin)
    members = frames.Members(b"c" * 16, 9, FOUR)
    encoded = b"".join(frames.encode_members(members))
    assert members == frames.decode_members(encoded)
    for damaged in (admin[:-1], admin[:5], b"", admin[:9] + b"[]", admin[:9] + b" " * frames.ADMIN_BYTES_MAX + b"{}"):
        with pytest.raises(RemoteError):
            frames.decode_admin(damaged)
    for damaged in (encoded[:-1], encoded[:9], b"\x02" + encoded[1:]):
        with pytest.raises(RemoteError):
            frames.decode_members(damaged)
