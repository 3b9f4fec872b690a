"""Proposals: order, forwarding in unbroken sequence, and outcomes that the log makes certain."""

from __future__ import annotations

import struct

import pytest

from kvorum.consensus import frames
from kvorum.consensus.proposals import Proposals
from kvorum.core.codec import TAG_BYTES, encode_set
from kvorum.core.entries import HEADER_BYTES, Entry, EntryKind
from kvorum.core.errors import ErrorCode, Refusal
from kvorum.core.limits import ENTRY_BYTES_MAX
from kvorum.core.operations import APPLIED

PREFIX = b"\x01" * 8 + b"\x02" * 8
WAIT_S = 4.0
DEADLINE_S = 10.0


class Waiter:
    """Notes what it is told; being told twice is a failure of the subject."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.told: list[tuple[int, object]] = []

    def decided(self, index: int, outcome: object) -> None:
        assert not self.told, f"{self.name} told twice"
        self.told.append((index, outcome))

    @property
    def code(self) -> str | None:
        """Error code it was told, None if applied or still waiting."""
        return self.told[0][1].code if self.told and isinstance(self.told[0][1], Refusal) else None


class FakeHost:
    """A ConsensusManager that does nothing but remember."""

    def __init__(self, node_id: int = 0) -> None:
        self.node_id = node_id
        self.term = 1
        self.leader: int | None = None
        self.free = 1000
        self.now = 0.0
        self.appended: list[bytes] = []
        self.sent: list[tuple[int, int, bytes]] = []
        self.link = True

    def room(self) -> int:
        return self.free

    def append(self, payloads: list[bytes]) -> None:
        self.free -= len(payloads)
        self.appended += payloads

    def send(self, peer: int, kind: int, parts: list[bytes]) -> bool:
        if self.link:
            self.sent.append((peer, kind, b"".join(parts)))
        return self.link

    def flush_soon(self) -> None:
        pass

    def clock(self) -> float:
        return self.now

    def unavailable(self, why: str) -> Refusal:
        return Refusal(ErrorCode.UNAVAILABLE, why)

    def forwards(self) -> list[frames.Forward]:
        """Forward frames sent so far, decoded, and forgotten."""
        sent, self.sent = self.sent, []
        return [frames.decode_forward(data) for _, kind, data in sent if kind == frames.FORWARD]

    def replies(self) -> list[frames.ForwardReply]:
        """Forward replies sent so far, decoded, and forgotten."""
        sent, self.sent = self.sent, []
        return [frames.decode_forward_reply(data) for _, kind, data in sent if kind == frames.FORWARD_REPLY]


def build(node_id: int = 0, *, first_position: int = 0) -> tuple[FakeHost, Proposals]:
    host = FakeHost(node_id)
    return host, Proposals(host, PREFIX, leader_wait_s=WAIT_S, outstanding_max=1000, first_position=first_position)


def propose(subject: Proposals, host: FakeHost, count: int) -> list[Waiter]:
    waiters = [Waiter(str(i)) for i in range(count)]
    for i, waiter in enumerate(waiters):
        subject.propose(encode_set(b"", b"k%d" % i, b"v"), waiter, host.now, host.now + DEADLINE_S)
    subject.flush()
    return waiters


def sequence_of(payload: bytes) -> int:
    return struct.unpack_from(">Q", payload, 16)[0]


def apply(subject: Proposals, payloads: list[bytes], term: int, first: int = 2) -> None:
    entries = [Entry.create(first + i, term, EntryKind.COMMAND, 0, p) for i, p in enumerate(payloads)]
    subject.applied(entries, [APPLIED] * len(entries))


def apply_noop(subject: Proposals, term: int, index: int) -> None:
    subject.applied([Entry.create(index, term, EntryKind.NOOP, 0, b"")], [None])


def test_propose_on_leader_appends_in_order_and_answers_on_apply():
    """A leader appends its clients' writes in arrival order and answers each from its own apply."""
    host, subject = build()
    host.leader = 0
    waiters = propose(subject, host, 3)

    assert [1, 2, 3] == [sequence_of(p) for p in host.appended]

    apply(subject, host.appended, term=1, first=5)

    assert [[(5, APPLIED)], [(6, APPLIED)], [(7, APPLIED)]] == [w.told for w in waiters]


def test_propose_of_an_entry_that_no_message_can_carry_is_refused_at_once():
    """It is never appended: a leader would try to send it for ever. The largest that can be sent is taken."""
    host, subject = build()
    host.leader = 0
    largest, larger = Waiter("largest"), Waiter("larger")
    room = ENTRY_BYTES_MAX - TAG_BYTES - HEADER_BYTES
    subject.propose(bytes(room), largest, host.now, host.now + DEADLINE_S)
    subject.propose(bytes(room + 1), larger, host.now, host.now + DEADLINE_S)
    subject.flush()

    assert ErrorCode.TOO_LARGE == larger.code
    assert [room + TAG_BYTES] == [len(payload) for payload in host.appended]


def test_propose_beyond_room_waits_in_order():
    """Writes beyond the outstanding bound wait and are appended when there is room again."""
    host, subject = build()
    host.leader = 0
    host.free = 2
    propose(subject, host, 5)
    host.free = 10
    subject.flush()

    assert [1, 2, 3, 4, 5] == [sequence_of(p) for p in host.appended]


def test_propose_without_leader_is_unavailable_after_the_leader_wait():
    """Nothing was sent, so the refusal is certain."""
    host, subject = build()
    (waiter,) = propose(subject, host, 1)
    host.now = WAIT_S - 0.1
    subject.expire(host.now)
    assert [] == waiter.told
    host.now = WAIT_S
    subject.expire(host.now)

    assert ErrorCode.UNAVAILABLE == waiter.code


def test_propose_after_its_deadline_is_refused_unproposed():
    """A request that waited behind others for longer than it may is certainly not done."""
    host, subject = build()
    host.leader = 0
    host.now = DEADLINE_S
    waiter = Waiter()
    subject.propose(encode_set(b"", b"k", b"v"), waiter, 0.0, DEADLINE_S)
    subject.flush()

    assert ErrorCode.UNAVAILABLE == waiter.code
    assert [] == host.appended


def test_propose_sent_and_undecided_is_timeout_at_its_deadline():
    """What may be in a log is never called unavailable."""
    host, subject = build()
    host.leader = 0
    (waiter,) = propose(subject, host, 1)
    host.leader = None
    host.now = DEADLINE_S
    subject.expire(host.now)

    assert ErrorCode.TIMEOUT == waiter.code


def test_later_term_applied_revives_the_dead_in_order():
    """An entry of a later term proves that what was not applied is dead; it is proposed again before younger writes."""
    host, subject = build()
    host.leader = 0
    first = propose(subject, host, 3)
    old = host.appended
    host.appended = []
    host.leader = None
    host.term = 2
    subject.leadership_changed()
    young = propose(subject, host, 1)
    host.leader = 0
    subject.flush()
    assert [] == host.appended, "nothing may enter term 2 while term 1 is undecided"

    apply(subject, old[:1], term=1)
    apply_noop(subject, term=2, index=3)
    subject.flush()

    assert [(2, APPLIED)] == first[0].told
    assert [2, 3, 4] == [sequence_of(p) for p in host.appended]

    apply(subject, host.appended, term=2, first=4)

    assert [4, 5, 6] == [w.told[0][0] for w in (*first[1:], *young)]


def test_later_term_applied_after_the_leader_wait_refuses_certainly():
    """A dead proposal whose leader wait is over is refused as certainly not applied."""
    host, subject = build()
    host.leader = 0
    (waiter,) = propose(subject, host, 1)
    host.now = WAIT_S + 1
    apply_noop(subject, term=2, index=2)

    assert ErrorCode.UNAVAILABLE == waiter.code


def test_forward_numbers_positions_within_the_term():
    """A follower's stream is unbroken: positions count up over frames."""
    host, subject = build()
    host.leader = 1
    propose(subject, host, 2)
    propose(subject, host, 1)

    assert [(0, 2), (2, 1)] == [(f.first, len(f.items)) for f in host.forwards()]


def test_forward_without_link_keeps_the_writes_unsent():
    """If the frame certainly did not leave, the write may still be refused as unavailable."""
    host, subject = build()
    host.leader = 1
    host.link = False
    (waiter,) = propose(subject, host, 1)
    host.now = WAIT_S
    subject.expire(host.now)

    assert ErrorCode.UNAVAILABLE == waiter.code


def test_link_restored_sends_the_undecided_again_and_the_leader_skips_what_it_took():
    """After a broken link nothing is lost, nothing is proposed twice, and order holds."""
    follower_host, follower = build(0)
    follower_host.leader = 1
    propose(follower, follower_host, 3)
    leader_host, leader = build(1)
    leader_host.leader = 1
    first = follower_host.sent.pop()[2]
    leader.forward_received(0, first)
    propose(follower, follower_host, 2)
    follower_host.sent.clear()  # lost with the link
    follower.link_restored(1)
    for _, _, data in follower_host.sent:
        leader.forward_received(0, data)
    follower_host.sent.clear()
    propose(follower, follower_host, 1)
    for _, _, data in follower_host.sent:
        leader.forward_received(0, data)

    assert [1, 2, 3, 4, 5, 6] == [sequence_of(p) for p in leader_host.appended]


def test_forward_received_with_a_gap_is_refused_until_resync():
    """A frame whose predecessor is missing is not taken: order would be lost."""
    follower_host, follower = build(0)
    follower_host.leader = 1
    waiters = propose(follower, follower_host, 1)
    propose(follower, follower_host, 1)
    leader_host, leader = build(1)
    leader_host.leader = 1
    leader.forward_received(0, follower_host.sent[1][2])
    (reply,) = leader_host.replies()
    assert (frames.GAP, 0) == (reply.kind, reply.position)
    assert [] == leader_host.appended

    follower_host.sent.clear()
    follower.forward_reply_received(1, b"".join(frames.encode_forward_reply(reply)))
    for _, _, data in follower_host.sent:
        leader.forward_received(0, data)

    assert [1, 2] == [sequence_of(p) for p in leader_host.appended]
    assert [] == waiters[0].told


def test_forward_received_in_another_term_is_refused_and_taken_back():
    """A leader of another term proposes nothing; the follower may then refuse with certainty."""
    follower_host, follower = build(0)
    follower_host.leader = 1
    (waiter,) = propose(follower, follower_host, 1)
    leader_host, leader = build(1)
    leader_host.leader = 1
    leader_host.term = 2
    leader.forward_received(0, follower_host.sent[0][2])
    (reply,) = leader_host.replies()
    follower.forward_reply_received(1, b"".join(frames.encode_forward_reply(reply)))
    follower_host.now = WAIT_S
    follower.expire(follower_host.now)

    assert [] == leader_host.appended
    assert ErrorCode.UNAVAILABLE == waiter.code


def test_forward_resent_once_is_never_taken_back_on_a_refusal():
    """An earlier copy may have been proposed, so only the log decides."""
    host, subject = build(0)
    host.leader = 1
    (waiter,) = propose(subject, host, 1)
    subject.link_restored(1)
    reply = frames.ForwardReply(frames.NOT_LEADER, 1, 0)
    subject.forward_reply_received(1, b"".join(frames.encode_forward_reply(reply)))
    host.now = DEADLINE_S
    subject.expire(host.now)

    assert ErrorCode.TIMEOUT == waiter.code


def test_forwards_waiting_on_a_deposed_leader_are_dropped():
    """They were never proposed; their own node revives them when the next term shows."""
    leader_host, leader = build(1)
    leader_host.leader = 1
    leader_host.free = 0
    follower_host, follower = build(0)
    follower_host.leader = 1
    propose(follower, follower_host, 2)
    leader.forward_received(0, follower_host.sent[0][2])
    assert 2 == leader.pending_count
    leader_host.leader = None
    leader.leadership_changed()

    assert 0 == leader.pending_count


def test_forward_waiting_too_long_on_the_leader_is_refused_to_its_origin():
    """The leader says so, and the origin answers its client with certainty."""
    leader_host, leader = build(1)
    leader_host.leader = 1
    leader_host.free = 0
    follower_host, follower = build(0)
    follower_host.leader = 1
    (waiter,) = propose(follower, follower_host, 1)
    leader.forward_received(0, follower_host.sent[0][2])
    leader_host.now = WAIT_S + 0.1
    leader.expire(leader_host.now)
    (reply,) = leader_host.replies()
    follower.forward_reply_received(1, b"".join(frames.encode_forward_reply(reply)))

    assert ErrorCode.UNAVAILABLE == waiter.code
    assert 0 == follower.pending_count


def test_forward_refused_for_a_process_before_this_one_refuses_nothing_here():
    """A restarted node counts from elsewhere: a late refusal of its former life must not deny what was proposed."""
    former_host, former = build(0, first_position=10)
    restarted_host, restarted = build(0, first_position=20)
    former_host.leader = restarted_host.leader = 1
    leader_host, leader = build(1)
    leader_host.leader = 1
    leader_host.free = 0
    propose(former, former_host, 1)
    leader.forward_received(0, former_host.sent[0][2])
    (waiter,) = propose(restarted, restarted_host, 1)
    leader_host.now = WAIT_S + 0.1
    leader.expire(leader_host.now)
    for _, _, data in leader_host.sent:
        restarted.forward_reply_received(1, data)

    assert 1 == len(leader_host.sent)
    assert [] == waiter.told
    apply(restarted, [decoded.items[0].payload for decoded in restarted_host.forwards()], term=1)
    assert [(2, APPLIED)] == waiter.told


def test_dead_proposal_older_than_an_applied_one_is_refused_and_not_revived():
    """The leader lost one and took the next: reviving the lost one would put it behind the younger."""
    host, subject = build(0)
    host.leader = 1
    (lost,) = propose(subject, host, 1)
    (taken,) = propose(subject, host, 1)
    apply(subject, [host.forwards()[1].items[0].payload], term=1)
    host.term = host.leader = 2
    apply_noop(subject, term=2, index=3)
    subject.flush()

    assert [(2, APPLIED)] == taken.told
    assert ErrorCode.UNAVAILABLE == lost.code
    assert [] == host.forwards()


def test_link_restored_to_another_node_does_not_let_the_leader_skip():
    """Only what was certainly sent again may be jumped over; a frame the leader did not hear is asked for."""
    host, subject = build(0)
    host.leader = 1
    propose(subject, host, 1)
    host.sent.clear()  # the leader did not listen
    subject.link_restored(2)
    propose(subject, host, 1)
    leader_host, leader = build(1)
    leader_host.leader = 1
    leader.forward_received(0, host.sent.pop()[2])

    assert [frames.GAP] == [reply.kind for reply in leader_host.replies()]
    assert [] == leader_host.appended


def test_the_same_leader_after_a_doubt_gets_the_undecided_again():
    """A link that came back while no leader was known resends nothing; knowing the leader again does."""
    host, subject = build(0)
    host.leader = 1
    propose(subject, host, 2)
    host.sent.clear()
    host.leader = None
    subject.leadership_changed()
    subject.link_restored(1)
    host.leader = 1
    subject.leadership_changed()

    assert [(0, 2)] == [(f.first, len(f.items)) for f in host.forwards()]


def test_resend_cut_off_by_a_full_link_leaves_nothing_to_be_taken_back():
    """Every undecided copy may be proposed already, also those that could not be sent a second time."""
    host, subject = build(0)
    host.leader = 1
    waiters = propose(subject, host, 1)
    waiters += propose(subject, host, 1)
    host.link = False
    subject.link_restored(1)
    reply = frames.ForwardReply(frames.NOT_LEADER, 1, 0)
    subject.forward_reply_received(1, b"".join(frames.encode_forward_reply(reply)))
    host.now = DEADLINE_S
    subject.expire(host.now)

    assert [ErrorCode.TIMEOUT] * 2 == [waiter.code for waiter in waiters]


def test_abandon_answers_what_was_revived_after_the_shut_down():
    """Nobody is left without an answer when the process ends."""
    host, subject = build()
    host.leader = 0
    (waiter,) = propose(subject, host, 1)
    subject.shut_down()
    host.leader = None
    apply_noop(subject, term=2, index=2)
    assert [] == waiter.told
    subject.abandon()

    assert ErrorCode.UNAVAILABLE == waiter.code


@pytest.mark.parametrize("cut", range(1, 24))
def test_forward_frame_cut_short_is_a_remote_error(cut):
    """Frames that do not fit are refused as the peer's fault and change nothing."""
    host, subject = build(1)
    host.leader = 1
    whole = b"".join(frames.encode_forward(1, 0, [frames.ForwardItem(5, b"x" * (TAG_BYTES + 3))], resync=True))
    with pytest.raises(frames.RemoteError):
        subject.forward_received(0, whole[:-cut])

    assert 0 == subject.pending_count
