"""Reads that wait: one question for many, answers that may be lost, the own apply, and bounds in time."""

from __future__ import annotations

from kvorum.consensus import frames
from kvorum.consensus.reads import Reads
from kvorum.core.errors import ErrorCode, Refusal

WAIT_S = 4.0


class Reader:
    """Notes what it is told; being told twice is a failure of the subject."""

    def __init__(self) -> None:
        self.told: object = None

    def serve(self) -> None:
        assert self.told is None
        self.told = "served"

    def refused(self, refusal: Refusal) -> None:
        assert self.told is None
        self.told = refusal.code


class FakeHost:
    """A ConsensusManager that does nothing but remember."""

    node_id = 0
    leader: int | None = None
    may_serve = False
    applied_index = 0
    now = 0.0

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.sent: list[tuple[int, int, bytes]] = []
        self.link = True

    def ask_machine(self, request: int) -> None:
        self.asked.append(request)

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


def ask(reads: Reads, count: int, *, confirm: bool = True, received: float = 0.0) -> list[Reader]:
    readers = [Reader() for _ in range(count)]
    for reader in readers:
        reads.ask(reader, received, received + 10, confirm=confirm)
    reads.flush()
    return readers


def build() -> tuple[FakeHost, Reads]:
    host = FakeHost()
    return host, Reads(host, leader_wait_s=WAIT_S)


def told(readers: list[Reader]) -> set[object]:
    return {reader.told for reader in readers}


def test_reads_of_one_turn_share_one_question():
    """A thousand reads cost the leader one round."""
    host, reads = build()
    host.leader, host.applied_index = 0, 5
    readers = ask(reads, 1000)
    (request,) = host.asked
    reads.confirmed([request], 5)

    assert {"served"} == told(readers)


def test_read_waits_for_the_own_apply():
    """A confirmed index that is not applied here yet is waited for, never served early."""
    host, reads = build()
    host.leader, host.applied_index = 0, 5
    readers = ask(reads, 1)
    reads.confirmed(host.asked, 7)
    reads.applied(6)
    assert {None} == told(readers)
    reads.applied(7)

    assert {"served"} == told(readers)


def test_follower_asks_the_leader_and_serves_at_the_named_index():
    """On a follower the leader names the index; the follower serves when it shows it."""
    host, reads = build()
    host.leader, host.applied_index = 1, 5
    readers = ask(reads, 3)
    ((peer, kind, data),) = host.sent
    assert (1, frames.READ_INDEX) == (peer, kind)
    number, confirm = frames.decode_read(data)
    assert confirm
    reads.answer_received(b"".join(frames.encode_read_reply(number, 5)))

    assert {"served"} == told(readers)


def test_answer_to_a_process_before_this_one_serves_nothing_here():
    """A restarted node numbers its questions from elsewhere: a late answer must not serve a newer read too old."""
    former = Reads(FakeHost(), leader_wait_s=WAIT_S, first_request=7)
    restarted_host = FakeHost()
    restarted = Reads(restarted_host, leader_wait_s=WAIT_S, first_request=1007)
    former._host.leader = restarted_host.leader = 1
    ask(former, 1)
    number, _ = frames.decode_read(former._host.sent[0][2])
    readers = ask(restarted, 1)
    restarted.answer_received(b"".join(frames.encode_read_reply(number, 0)))

    assert {None} == told(readers)


def test_lost_answer_is_asked_again_after_a_new_link():
    """A question whose answer may be lost is repeated; the late answer to the first one is ignored."""
    host, reads = build()
    host.leader = 1
    readers = ask(reads, 1)
    reads.ask_again()
    reads.flush()
    first, second = (frames.decode_read(data)[0] for _, _, data in host.sent)
    reads.answer_received(b"".join(frames.encode_read_reply(first, 0)))
    assert {None} == told(readers)
    reads.answer_received(b"".join(frames.encode_read_reply(second, 0)))

    assert {"served"} == told(readers)


def test_lost_answer_on_a_standing_link_is_asked_again():
    """The answer travels on the leader's own link, which may break alone."""
    host, reads = build()
    host.leader = 1
    readers = ask(reads, 1)
    reads.expire(0.4)
    reads.flush()
    assert 1 == len(host.sent)
    reads.expire(0.5)
    reads.flush()
    reads.answer_received(b"".join(frames.encode_read_reply(frames.decode_read(host.sent[1][2])[0], 0)))

    assert {"served"} == told(readers)


def test_dropped_reads_of_a_deposed_leader_go_to_the_next():
    """Losing leadership loses no read."""
    host, reads = build()
    host.leader = 0
    readers = ask(reads, 1)
    host.leader = 1
    reads.dropped(host.asked)
    reads.flush()
    number, _ = frames.decode_read(host.sent[0][2])
    reads.answer_received(b"".join(frames.encode_read_reply(number, 0)))

    assert {"served"} == told(readers)


def test_remote_question_is_answered_with_the_confirmed_index_or_none():
    """A leader answers followers by the same rounds; a deposed one says so."""
    host, reads = build()
    host.leader = 0
    reads.question_received(2, b"".join(frames.encode_read(9, confirm=True)))
    reads.question_received(2, b"".join(frames.encode_read(10, confirm=True)))
    reads.confirmed(host.asked[:1], 42)
    reads.dropped(host.asked[1:])

    answers = [frames.decode_read_reply(data) for _, _, data in host.sent]
    assert [(9, 42), (10, None)] == answers


def test_question_to_a_follower_is_answered_with_none():
    """A node that does not lead names no index."""
    host, reads = build()
    host.leader = 1
    reads.question_received(2, b"".join(frames.encode_read(9, confirm=True)))

    assert [(9, None)] == [frames.decode_read_reply(data) for _, _, data in host.sent]


def test_read_without_leader_is_unavailable_after_the_leader_wait():
    """Nobody waits longer for a leader than configured, asked or not."""
    host, reads = build()
    readers = ask(reads, 2)
    reads.expire(WAIT_S - 0.1)
    assert {None} == told(readers)
    reads.expire(WAIT_S)

    assert {ErrorCode.UNAVAILABLE} == told(readers)

    host.leader = 0
    asked = ask(reads, 1)
    reads.expire(WAIT_S)

    assert {ErrorCode.UNAVAILABLE} == told(asked)


def test_leader_level_is_served_at_the_leaders_applied_index_without_a_round():
    """Level `leader` costs no quorum round, and waits while the new leader may not serve yet."""
    host, reads = build()
    host.leader, host.applied_index = 0, 3
    readers = ask(reads, 1, confirm=False)
    assert {None} == told(readers)
    host.may_serve = True
    reads.flush()

    assert {"served"} == told(readers)
    assert [] == host.asked


def test_wait_applied_refuses_at_its_own_bound():
    """A read at a version not applied here ends with the refusal that its caller gave."""
    _, reads = build()
    reader = Reader()
    reads.wait_applied(9, reader, 2.0, Refusal(ErrorCode.FUTURE_VERSION, "later"))
    reads.expire(1.9)
    assert reader.told is None
    reads.expire(2.0)

    assert ErrorCode.FUTURE_VERSION == reader.told


def test_shut_down_refuses_everybody_once():
    """A stopping node leaves nobody waiting."""
    host, reads = build()
    host.leader = 0
    readers = ask(reads, 1)
    reader = Reader()
    reads.wait_applied(9, reader, 99.0, Refusal(ErrorCode.TIMEOUT, ""))
    reads.shut_down()

    assert {ErrorCode.UNAVAILABLE} == told([*readers, reader])


def test_times_of_questions_are_counted_once_each_when_answered():
    """A confirmed question on the leader and an answered one on a follower count; dropped and repeated ones do not."""
    host, reads = build()
    host.leader = 0
    ask(reads, 10)
    host.now = 0.5
    reads.confirmed([host.asked[-1]], 0)
    assert (reads.index_times.count, reads.index_times.sum_s) == (1, 0.5)

    ask(reads, 1)
    reads.dropped([host.asked[-1]])
    reads.confirmed([host.asked[-1]], 0)
    ask(reads, 1)
    reads.ask_again()
    reads.confirmed([host.asked[-1]], 0)
    assert reads.index_times.count == 1

    host.leader = 1
    reads.flush()
    number, _ = frames.decode_read(host.sent[-1][2])
    host.now = 0.75
    reads.answer_received(b"".join(frames.encode_read_reply(number, 0)))
    assert (reads.index_times.count, reads.index_times.sum_s) == (2, 0.75)
