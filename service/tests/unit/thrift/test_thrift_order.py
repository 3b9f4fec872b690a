"""One connection: calls start in order, replies leave in order, and everything is bounded."""

from __future__ import annotations

import asyncio
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvorum.core.errors import ErrorCode, Refusal
from kvorum.thrift.adapter.edge import CLIENT_GONE
from kvorum.thrift.connection import BACKLOG_CALLS_MAX
from kvorum.thrift.protocol.scanner import Malformed


async def test_order_local_read_is_answered_inside_data_received(line, wire) -> None:
    """A read that is legal at once needs no turn of the loop."""
    line.send(wire.message("get", 5, key=b"a"))

    (reply,) = wire.replies_in(line.transport.sent)
    assert (5, False) == (reply.seqid, reply.response.found)


async def test_order_pipelined_reads_leave_in_one_write(line, wire) -> None:
    """Replies of one group are joined."""
    line.send(b"".join(wire.message("get", n, key=b"a") for n in range(100)))

    assert list(range(100)) == [reply.seqid for reply in wire.replies_in(line.transport.sent)]
    assert 1 == line.transport.write_count


async def test_order_writes_are_proposed_together_and_answered_together(edge, line, wire) -> None:
    """Writes behind writes do not wait for each other; a group of completions is one write to the socket."""
    edge.routing.hold_writes = True
    line.send(b"".join(wire.message("setKey", n, key=b"k%d" % n, value=b"v") for n in range(50)))
    assert 50 == len(edge.routing.writes)

    edge.routing.release_writes()
    replies = await line.replies(50)

    assert [(n, True) for n in range(50)] == [(r.seqid, r.response.success) for r in replies]
    assert 1 == line.transport.write_count


async def test_order_writes_decided_backwards_are_answered_forwards(edge, line, wire) -> None:
    """The order of completions does not show in the order of replies."""
    edge.routing.hold_writes = True
    line.send(b"".join(wire.message("setKey", n, key=b"k", value=b"v") for n in range(3)))
    held = edge.routing.writes
    for number, (_, pending) in reversed(list(enumerate(held))):
        assert [] == await line.replies()
        pending.decided(0, Refusal(ErrorCode.OVERLOADED, f"number {number}"))

    assert ["number 0", "number 1", "number 2"] == [r.response.error for r in await line.replies(3)]


async def test_order_read_behind_a_write_is_executed_after_it(edge, line, wire) -> None:
    """A read behind an unanswered write is not even started before the write is decided, and then sees it."""
    edge.routing.hold_writes = True
    line.send(wire.message("setKey", 1, key=b"a", value=b"new") + wire.message("get", 2, key=b"a"))
    assert [] == edge.routing.levels

    edge.routing.release_writes()
    _, got = await line.replies(2)

    assert b"new" == got.response.value


async def test_order_write_behind_a_read_is_proposed_after_it(edge, line, wire) -> None:
    """A write behind an unserved read is not proposed before the read was served; the read does not see it."""
    edge.routing.hold_reads = True
    line.send(wire.message("get", 1, key=b"a") + wire.message("setKey", 2, key=b"a", value=b"new"))
    assert [] == edge.routing.proposed

    edge.routing.release_reads()
    got, was_set = await line.replies(2)

    assert (False, True) == (got.response.found, was_set.response.success)


async def test_order_local_method_behind_a_write_sees_it(edge, line, wire) -> None:
    """Methods answered by the node alone also run in their turn."""
    edge.routing.hold_writes = True
    line.send(wire.message("setKey", 1, key=b"a", value=b"v") + wire.message("getCommittedVersion", 2))
    edge.routing.release_writes()

    assert 1 == (await line.replies(2))[1].response.version


async def test_order_reads_of_one_connection_never_run_backwards(edge, line, wire) -> None:
    """A read that is legal at once still waits for an older one of its connection: it must not show an older state."""
    edge.routing.hold_reads = True
    line.send(wire.message("get", 1, key=b"a"))
    edge.routing.hold_reads = False
    line.send(wire.message("get", 2, key=b"a"))
    edge.routing.apply(b"\x01\x00\x00\x00\x00\x01anew")
    edge.routing.release_reads()

    assert [b"new", b"new"] == [r.response.value for r in await line.replies(2)]


async def test_order_deadline_passed_in_the_queue_is_answered_when_the_turn_comes(edge, line, wire) -> None:
    """What waited its whole time behind others is refused without being begun: certainly not proposed."""
    edge.routing.hold_reads = True
    line.send(
        wire.message("get", 1, key=b"a")
        + wire.message("setKey", 2, key=b"a", value=b"v")
        + wire.message("get", 3, key=b"a")
    )
    edge.now += 10.0
    edge.routing.reads[0].refused(Refusal(ErrorCode.TIMEOUT, "late"))
    codes = [reply.response.error_code for reply in await line.replies(3)]

    assert [ErrorCode.TIMEOUT, ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT] == codes
    assert [] == edge.routing.proposed


async def test_order_backlog_is_bounded_and_reading_goes_on_afterwards(edge, line, wire) -> None:
    """A connection that outruns the server is read more slowly and loses nothing."""
    edge.routing.hold_writes = True
    count = BACKLOG_CALLS_MAX * 3
    line.send(b"".join(wire.message("setKey", n, key=b"k%d" % n, value=b"v") for n in range(count)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert BACKLOG_CALLS_MAX == len(edge.routing.writes)
    assert not line.transport.reading

    edge.routing.hold_writes = False
    edge.routing.release_writes()
    replies = await line.replies(count)

    assert list(range(count)) == [reply.seqid for reply in replies]
    assert line.transport.reading


async def test_order_large_requests_fill_the_backlog_sooner(edge, line, wire) -> None:
    """Bytes count too: a handful of large values pauses the connection."""
    edge.routing.hold_writes = True
    for _ in range(6):
        if line.transport.reading:
            line.send(wire.message("setKey", key=b"k", value=bytes(4 * 1024 * 1024)))
            line.send(wire.message("ping"))
    assert not line.transport.reading

    edge.routing.release_writes()
    await line.replies()

    assert line.transport.reading


async def test_order_client_that_does_not_read_is_not_read_from(edge, line, wire) -> None:
    """Replies wait in their calls while the socket is full, and reads are not carried out meanwhile."""
    line.connection.pause_writing()
    assert not line.transport.reading
    line.send(wire.message("get", 1, key=b"a"))
    assert [] == edge.routing.levels

    line.connection.resume_writing()

    assert 1 == (await line.replies(1))[0].seqid
    assert line.transport.reading


async def test_order_every_byte_in_its_own_segment_is_understood(line, wire) -> None:
    """A client may send each primitive, even each byte, by itself."""
    data = wire.message("setKey", 1, key=b"a", value=b"v" * 50) + wire.message("get", 2, key=b"a")
    data += wire.message("getRange", 3) + wire.message("ping", 4, message=b"x")
    for n in range(len(data)):
        line.send(data[n : n + 1])

    was_set, got, listed, pong = await line.replies(4)
    assert was_set.response.success
    assert b"v" * 50 == got.response.value
    assert [b"a"] == [pair.key for pair in listed.response.key_values]
    assert b"x" == pong.response.message


async def test_order_unknown_method_keeps_the_connection_in_step(line, wire) -> None:
    """Its arguments are skipped, and the answer is exception 1 with the same name and sequence id."""
    body = b"\x0c\x00\x01\x0f\x00\x07\x0c" + struct.pack(">i", 2) + b"\0\0" + b"\x0b\x00\x09\x00\x00\x00\x01x\0\0"
    line.send(wire.raw("appendEntries", body, -7) + wire.message("ping", 8))
    unknown, pong = await line.replies(2)

    assert ("appendEntries", 3, -7, 1) == (unknown.name, unknown.kind, unknown.seqid, unknown.response.type)
    assert 8 == pong.seqid


async def test_order_malformed_input_closes_after_replies_that_are_due(edge, line, wire) -> None:
    """What was asked properly is answered; then the connection closes without a word and is counted."""
    edge.routing.hold_writes = True
    line.send(
        wire.message("get", 1, key=b"a") + wire.message("setKey", 2, key=b"a", value=b"v") + b"GET / HTTP/1.1\r\n"
    )
    assert not line.transport.closed

    edge.routing.release_writes()

    assert [1, 2] == [reply.seqid for reply in await line.replies(2)]
    assert line.transport.closed
    assert 1 == edge.server.malformed_counts[Malformed.START]


async def test_order_inline_reply_before_malformed_bytes_is_not_lost(line, wire) -> None:
    """Also a reply that was made in the same breath leaves before the end."""
    line.send(wire.message("get", 1, key=b"a") + b"\xff")

    assert [1] == [reply.seqid for reply in wire.replies_in(line.transport.sent)]
    assert line.transport.closed


async def test_order_end_at_a_message_boundary_is_quiet(edge, line, wire) -> None:
    """A client that half-closes gets its outstanding replies; nothing is counted as malformed."""
    edge.routing.hold_writes = True
    line.send(wire.message("setKey", 1, key=b"a", value=b"v"))
    assert line.connection.eof_received() is True
    edge.routing.release_writes()

    assert 1 == len(await line.replies(1))
    assert line.transport.closed
    assert 0 == sum(edge.server.malformed_counts.values())


@pytest.mark.parametrize("reset", [False, True])
async def test_order_end_inside_a_message_is_counted(edge, line, wire, reset) -> None:
    """EOF or reset in the middle of a message is malformed input."""
    line.send(wire.message("get", key=b"a")[:-1])
    if not reset:
        line.connection.eof_received()
    line.connection.connection_lost(ConnectionResetError() if reset else None)

    assert 1 == edge.server.malformed_counts[Malformed.CUT_SHORT]


async def test_order_client_gone_drops_what_was_not_begun(edge, line, wire) -> None:
    """Calls of a broken connection that were proposed are decided without it; the others never happen."""
    edge.routing.hold_writes = True
    line.send(wire.message("setKey", key=b"a", value=b"v") + wire.message("get", key=b"a"))
    line.connection.connection_lost(None)
    edge.routing.release_writes()
    methods = edge.server.edge.methods

    assert b"v" == edge.executor.get(b"", b"a")
    assert (1, 0) == (methods["setKey"].ok, methods["setKey"].in_flight)
    assert ({CLIENT_GONE: 1}, 0) == (methods["get"].failed, methods["get"].in_flight)


async def test_order_held_read_of_a_broken_connection_is_never_done(edge, line, wire) -> None:
    """Permission that comes too late reads nothing."""
    edge.routing.hold_reads = True
    line.send(wire.message("get", key=b"a"))
    line.connection.connection_lost(None)
    edge.routing.release_reads()

    assert 0 == edge.server.edge.methods["get"].in_flight
    assert 0 == edge.server.edge.methods["get"].ok


async def test_order_drain_answers_what_is_under_way_and_takes_no_more(edge, line, wire) -> None:
    """On shutdown outstanding calls are answered, later bytes are not looked at."""
    edge.routing.hold_writes = True
    line.send(wire.message("setKey", 1, key=b"a", value=b"v"))
    line.connection.drain()
    line.send(wire.message("get", 2, key=b"a"))
    edge.routing.release_writes()

    assert [1] == [reply.seqid for reply in await line.replies(1)]
    assert line.transport.closed


async def test_order_defect_is_answered_internal_and_harms_nothing_else(edge, line, wire, monkeypatch) -> None:
    """An exception in a handler becomes code INTERNAL; the connection lives on."""
    monkeypatch.setattr(edge.executor, "get", lambda _family, _key: 1 // 0)
    line.send(wire.message("get", 1, key=b"a") + wire.message("ping", 2))
    failed, pong = await line.replies(2)

    assert (ErrorCode.INTERNAL, False) == (failed.response.error_code, failed.response.found)
    assert 2 == pong.seqid
    assert [ZeroDivisionError] == [type(defect) for defect in edge.defects]


METHODS = ("get", "setKey", "deleteKey", "getReadVersion", "ping", "getRange", "nonsense")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(calls=st.lists(st.sampled_from(METHODS), max_size=40), cuts=st.lists(st.integers(1, 200)), chance=st.randoms())
async def test_order_any_mixture_in_any_fragments_is_answered_in_order(make_edge, wire, calls, cuts, chance) -> None:
    """Whatever is sent, cut and released in whatever order: one reply per call, in order, and each read true."""
    edge = make_edge()
    edge.routing.hold_writes = edge.routing.hold_reads = True
    line = edge.line()
    data, expected, stored = b"", [], None
    for seqid, method in enumerate(calls):
        if method == "nonsense":
            data += wire.raw(method, b"\0", seqid)
        else:
            fields = {"setKey": {"key": b"k", "value": b"%d" % seqid}, "get": {"key": b"k"}, "deleteKey": {"key": b"k"}}
            data += wire.message(method, seqid, **fields.get(method, {}))
        stored = b"%d" % seqid if method == "setKey" else None if method == "deleteKey" else stored
        expected.append((seqid, stored if method == "get" else None))
    for size in [*cuts, len(data)]:
        line.send(data[:size]) if data[:size] else None
        data = data[size:]
        if chance.random() < 0.5:
            edge.routing.release_writes()
            edge.routing.release_reads()
            await asyncio.sleep(0)
    replies = []
    while edge.routing.writes or edge.routing.reads or not line.connection.idle:
        edge.routing.release_reads()
        edge.routing.release_writes()
        replies += await line.replies()
    replies += await line.replies()

    assert expected == [(r.seqid, r.response.value if r.name == "get" and r.response.found else None) for r in replies]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    data=st.binary(max_size=200), prefix=st.sampled_from([b"", b"\x80\x01\x00\x01", b"\x80\x01\x00\x01\0\0\0\x03get"])
)
async def test_order_garbage_never_raises(make_edge, data: bytes, prefix: bytes) -> None:
    """No bytes get an exception out of the edge, or a reply that nobody asked for."""
    edge = make_edge()
    line = edge.line()
    line.send(prefix + data)
    for n in range(len(data)):
        line.send(data[n : n + 1])
    await asyncio.sleep(0)
    line.connection.connection_lost(None)

    assert [] == edge.defects
