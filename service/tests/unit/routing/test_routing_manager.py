"""Routing: what each consistency level and each write mode demands of this node (contract section 3.1)."""

from __future__ import annotations

from kvorum.core.errors import ErrorCode, Refusal
from kvorum.core.operations import Consistency
from kvorum.routing.manager import LOCAL_JUDGEMENT_S, RoutingManager, RoutingSettings


class FakeConsensus:
    """A ConsensusManager in whatever situation a test needs."""

    is_leader = False
    may_serve = False
    alone = False
    applied_index = 10
    age = 0.0
    hint: tuple[int, str] | None = (1, "n1:9090")

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def contact_age_s(self) -> float:
        return self.age

    def leader_hint(self) -> tuple[int, str] | None:
        return self.hint

    def unavailable(self, why: str) -> Refusal:
        return Refusal(ErrorCode.UNAVAILABLE, why)

    def propose(self, body: bytes, *_: object) -> None:
        self.calls.append(("propose", body))

    def read_index(self, *_: object, confirm: bool = True) -> None:
        self.calls.append(("read_index", confirm))

    def wait_applied(self, index: int, _: object, expires: float, refusal: Refusal) -> None:
        self.calls.append(("wait_applied", index, expires, refusal.code))


class FakeState:
    def check_readable(self, version: int) -> Refusal | None:
        return Refusal(ErrorCode.INVALID_ARGUMENT, "negative") if version < 0 else None


class Pending:
    code: str | None = None
    leader: tuple[int | None, str | None] = (None, None)

    def refused(self, refusal: Refusal) -> None:
        self.code = refusal.code
        self.leader = refusal.leader_id, refusal.leader_endpoint

    def decided(self, _: int, refusal: Refusal) -> None:
        self.refused(refusal)


def build(**settings: object) -> tuple[FakeConsensus, RoutingManager, Pending]:
    consensus = FakeConsensus()
    return consensus, RoutingManager(RoutingSettings(**settings), consensus, FakeState(), lambda: 100.0), Pending()


def test_local_read_in_contact_is_served_at_once():
    """Level local asks nobody."""
    consensus, routing, pending = build()

    assert routing.read(Consistency.LOCAL, pending, 100.0, 110.0)
    assert [] == consensus.calls


def test_local_read_out_of_contact_is_stale():
    """A node that has not heard a leader for longer than max_staleness refuses by code."""
    consensus, routing, pending = build(max_staleness_s=5.0)
    consensus.age = 5.1

    assert not routing.read(Consistency.LOCAL, pending, 100.0, 110.0)
    assert ErrorCode.STALE == pending.code


def test_local_read_of_a_paused_node_is_judged_again():
    """One judgement serves a few milliseconds; a process that slept past them asks its clock."""
    consensus, routing, pending = build(max_staleness_s=5.0)
    assert routing.read(Consistency.LOCAL, pending, 100.0, 110.0)
    consensus.age = 60.0
    assert routing.read(Consistency.LOCAL, pending, 100.0 + LOCAL_JUDGEMENT_S / 2, 110.0)

    assert not routing.read(Consistency.LOCAL, pending, 160.0, 170.0)
    assert ErrorCode.STALE == pending.code


def test_local_read_on_a_follower_is_stale_where_stale_reads_are_off():
    """allow_stale_reads = false: only the leader serves level local, and each read is judged."""
    consensus, routing, pending = build(allow_stale_reads=False)
    consensus.is_leader = True
    assert routing.read(Consistency.LOCAL, pending, 100.0, 110.0)
    consensus.is_leader = False

    assert not routing.read(Consistency.LOCAL, pending, 100.0, 110.0)
    assert ErrorCode.STALE == pending.code


def test_local_read_before_anything_is_applied_waits():
    """A node serves only after its first own entry is applied."""
    consensus, routing, pending = build()
    consensus.applied_index = 0

    assert not routing.read(Consistency.LOCAL, pending, 100.0, 110.0)
    assert [("wait_applied", 1, 104.0, ErrorCode.UNAVAILABLE)] == consensus.calls


def test_read_index_always_asks_unless_alone():
    """Leader or not, a quorum confirms; a cluster of one is its own quorum."""
    consensus, routing, pending = build()
    assert not routing.read(Consistency.READ_INDEX, pending, 100.0, 110.0)
    assert [("read_index", True)] == consensus.calls
    consensus.alone = True

    assert routing.read(Consistency.READ_INDEX, pending, 100.0, 110.0)


def test_leader_level_is_served_on_the_leader_and_asked_for_on_a_follower():
    """Level leader costs no round; a follower asks the leader for its index."""
    consensus, routing, pending = build()
    assert not routing.read(Consistency.LEADER, pending, 100.0, 110.0)
    assert [("read_index", False)] == consensus.calls
    consensus.is_leader = consensus.may_serve = True

    assert routing.read(Consistency.LEADER, pending, 100.0, 110.0)


def test_redirect_mode_names_the_leader():
    """Writes and level-leader reads on a follower answer NOT_LEADER with id and endpoint."""
    consensus, routing, pending = build(follower_writes="redirect")
    routing.write(b"body", pending, 100.0, 110.0)
    assert (ErrorCode.NOT_LEADER, (1, "n1:9090")) == (pending.code, pending.leader)
    reader = Pending()
    assert not routing.read(Consistency.LEADER, reader, 100.0, 110.0)

    assert ErrorCode.NOT_LEADER == reader.code
    assert [] == consensus.calls


def test_redirect_mode_without_a_leader_waits_for_one():
    """Where nobody can be named, the write waits inside its leader wait."""
    consensus, routing, pending = build(follower_writes="redirect")
    consensus.hint = None
    routing.write(b"body", pending, 100.0, 110.0)

    assert [("propose", b"body")] == consensus.calls


def test_read_at_waits_for_a_future_version_up_to_its_bound():
    """Version window: negative refused, applied served, future waited for, then FUTURE_VERSION."""
    consensus, routing, pending = build(future_version_wait_s=2.0)
    assert routing.read_at(10, pending, 100.0, 110.0)
    assert not routing.read_at(-1, pending, 100.0, 110.0)
    assert ErrorCode.INVALID_ARGUMENT == pending.code

    assert not routing.read_at(11, pending, 100.0, 110.0)
    assert [("wait_applied", 11, 102.0, ErrorCode.FUTURE_VERSION)] == consensus.calls
