"""The contract's tables at the edge: order of checks, codes, required texts, exact shapes of replies."""

from __future__ import annotations

import struct

import pytest

from kvorum.core.codec import decode_operation
from kvorum.core.errors import ErrorCode, Refusal
from kvorum.core.operations import APPLIED, AtomicCommit, KeyRange, Mutation, MutationKind
from kvorum_idl import ConflictRange, Operation

STAMP = bytes(10)


async def code_of(line, method: str, **fields) -> str | None:
    response = await line.call(method, **fields)
    assert (response.error is None) == (response.error_code is None)
    assert response.error != ""
    return response.error_code


# --- success --------------------------------------------------------------------------------------------------------


async def test_contract_set_get_delete(line) -> None:
    """The plain life of a key; not found is no error."""
    assert (await line.call("setKey", key=b"k", value=b"v")).success
    found = await line.call("get", key=b"k")
    assert (True, b"v", None, None) == (found.found, found.value, found.error, found.error_code)
    assert (await line.call("deleteKey", key=b"k")).success
    assert (await line.call("deleteKey", key=b"k")).success
    gone = await line.call("get", key=b"k")
    assert (False, b"", None, None) == (gone.found, gone.value, gone.error, gone.error_code)


async def test_contract_stored_empty_value_is_found(line) -> None:
    """An empty value is a value."""
    await line.call("setKey", key=b"k", value=b"")
    found = await line.call("get", key=b"k")

    assert (True, b"") == (found.found, found.value)


async def test_contract_families_are_isolated_and_default_has_two_names(line) -> None:
    """The same key in two families is two keys; `default`, empty and absent are one family."""
    await line.call("setKey", key=b"k", value=b"plain", column_family="default")
    await line.call("setKey", key=b"k", value=b"other", column_family="other")

    assert b"plain" == (await line.call("get", key=b"k")).value
    assert b"plain" == (await line.call("get", key=b"k", column_family="")).value
    assert b"other" == (await line.call("get", key=b"k", column_family="other")).value
    assert not (await line.call("get", key=b"k", column_family="unknown")).found
    assert [] == (await line.call("getRange", column_family="unknown")).key_values


async def test_contract_versions(line) -> None:
    """Read versions and commit versions are log indexes; the reply of a commit holds its own."""
    await line.call("setKey", key=b"k", value=b"v")
    read_version = (await line.call("getReadVersion")).read_version
    commit = await line.call(
        "atomicCommit",
        read_version=read_version,
        operations=[Operation(type="set", key=b"a", value=b"1"), Operation(type="delete", key=b"k")],
        read_conflict_keys=[b"k"],
    )

    assert (1, 2, True) == (read_version, commit.committed_version, commit.success)
    assert (None, None) == (commit.generated_keys, commit.generated_values)
    assert 2 == (await line.call("getCommittedVersion")).version
    assert b"v" == (await line.call("snapshotGet", key=b"k", read_version=1)).value
    assert b"v" == (await line.call("snapshotRead", key=b"k", read_version=1)).value
    assert not (await line.call("snapshotGet", key=b"k", read_version=2)).found
    assert (await line.call("setReadVersion", version=2)).success
    assert [b"k"] == [p.key for p in (await line.call("snapshotGetRange", read_version=1)).key_values]
    assert [b"a"] == [p.key for p in (await line.call("getRange")).key_values]


async def test_contract_empty_commit_succeeds(line) -> None:
    """No operations and no conflict set: a version is consumed, and any read version will do."""
    commit = await line.call("atomicCommit", read_version=-5, operations=[], read_conflict_keys=[])

    assert (True, 1) == (commit.success, commit.committed_version)


async def test_contract_versionstamps(line) -> None:
    """Stamps are the commit version and the ordinal, in the last ten bytes, in list order."""
    key = await line.call("setVersionstampedKey", key_prefix=b"user_" + STAMP, value=b"v")
    value = await line.call("setVersionstampedValue", key=b"k", value_prefix=b"aaa" + b"\x01" * 10)
    both = await line.call(
        "atomicCommit",
        read_version=0,
        operations=[
            Operation(type="set", key=b"p", value=b"v"),
            Operation(type="SET_VERSIONSTAMPED_KEY", key=b"a/" + STAMP, value=b""),
            Operation(type="SET_VERSIONSTAMPED_VALUE", key=b"q", value=STAMP),
            Operation(type="SET_VERSIONSTAMPED_KEY", key=b"a/" + STAMP, value=b"w"),
        ],
        read_conflict_keys=[],
    )

    assert b"user_" + struct.pack(">QH", 1, 0) == key.generated_key
    assert b"aaa" + struct.pack(">QH", 2, 0) == value.generated_value
    assert [b"a/" + struct.pack(">QH", 3, 0), b"a/" + struct.pack(">QH", 3, 2)] == both.generated_keys
    assert [struct.pack(">QH", 3, 1)] == both.generated_values
    assert b"w" == (await line.call("get", key=both.generated_keys[1])).value


async def test_contract_range_parameters_reach_the_scan(line) -> None:
    """One row of the worked example per parameter."""
    for key in (b"a", b"b", b"b\0", b"c", b"d", b"\xff\x01"):
        await line.call("setKey", key=key, value=key)

    async def keys(**fields):
        response = await line.call("getRange", **fields)
        assert response.success
        return [pair.key for pair in response.key_values], response.has_more, response.next_key

    everything = [b"a", b"b", b"b\0", b"c", b"d"]
    assert (everything, False, None) == await keys()
    assert (everything, False, None) == await keys(limit=-10)
    assert (everything, False, None) == await keys(limit=5)
    assert ([b"b\0", b"c", b"d"], False, None) == await keys(begin_key=b"b", begin_or_equal=False)
    assert ([b"a", b"b", b"b\0", b"c"], False, None) == await keys(begin_key=b"a", end_key=b"c", end_or_equal=True)
    assert ([b"a", b"b", b"b\0"], False, None) == await keys(begin_key=b"a", end_key=b"d", end_offset=-1)
    assert ([b"a", b"b"], True, b"b\0") == await keys(limit=2)
    assert ([b"a"], True, b"b") == await keys(begin_offset=-3, limit=1)
    assert ([b"b\0", b"c"], True, b"d") == await keys(begin_offset=2, limit=2)
    assert ([b"d", b"c"], True, b"b\0") == await keys(reverse=True, limit=2)
    assert ([], False, None) == await keys(end_key=b"")
    assert ([b"\xff\x01"], False, None) == await keys(begin_key=b"\xff", end_key=b"\xff\xff")
    assert ([*everything, b"\xff\x01"], False, None) == await keys(begin_key=b"a", end_key=b"b", end_offset=2147483647)


async def test_contract_large_range_is_scanned_and_encoded_in_turns(edge, line, wire) -> None:
    """Ten thousand pairs come complete, and other connections are served meanwhile."""
    other = edge.line()
    for n in range(10_000):
        edge.routing.apply(b"\x01\x00\x00\x00\x00\x04" + struct.pack(">I", n))
    line.send(wire.message("getRange", limit=0))
    assert b"" == line.transport.sent
    assert not (await other.call("get", key=b"x")).found

    (reply,) = await line.replies(1)
    assert [struct.pack(">I", n) for n in range(10_000)] == [pair.key for pair in reply.response.key_values]


async def test_contract_range_past_its_deadline_is_a_timeout(edge, line, wire) -> None:
    """A scan observes the deadline and gives no partial list."""
    for n in range(1000):
        edge.routing.apply(b"\x01\x00\x00\x00\x00\x04" + struct.pack(">I", n))
    line.send(wire.message("getRange", limit=0, deadline_ms=100))
    edge.now += 0.1
    (reply,) = await line.replies(1)

    assert (ErrorCode.TIMEOUT, [], False) == (
        reply.response.error_code,
        reply.response.key_values,
        reply.response.has_more,
    )


async def test_contract_response_size_is_bounded(make_edge) -> None:
    """A range reply is cut at the limit and says where to go on."""
    line = make_edge(response_bytes_max=100).line()
    for key in (b"a", b"b", b"c"):
        await line.call("setKey", key=key, value=bytes(49))
    response = await line.call("getRange")

    assert (2, True, b"c") == (len(response.key_values), response.has_more, response.next_key)


# --- consistency, deadlines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "level"),
    [
        (None, "read_index"),
        ("", "read_index"),
        ("STRONG", "read_index"),
        ("Linearizable", "read_index"),
        ("leader", "leader"),
        ("stale", "local"),
        ("eventual", "local"),
        ("local", "local"),
    ],
)
@pytest.mark.parametrize("method", ["get", "getRange", "getReadVersion"])
async def test_contract_consistency_names(edge, line, method: str, given: str | None, level: str) -> None:
    """The request's level wins over the configured one, in any case and by any alias."""
    fields = {"key": b"k"} if method == "get" else {}
    if given is not None:
        fields["consistency"] = given
    assert await code_of(line, method, **fields) is None

    assert [level] == edge.routing.levels


@pytest.mark.parametrize("method", ["get", "getRange", "getReadVersion"])
async def test_contract_unknown_consistency_is_refused(edge, line, method: str) -> None:
    """An unknown level reads nothing."""
    fields = {"key": b"k"} if method == "get" else {}

    assert ErrorCode.INVALID_ARGUMENT == await code_of(line, method, consistency="weak", **fields)
    assert [] == edge.routing.levels


@pytest.mark.parametrize(("deadline_ms", "seconds"), [(None, 10.0), (250, 0.25), (3_600_000, 10.0)])
async def test_contract_deadline_only_shortens(edge, line, deadline_ms: int | None, seconds: float) -> None:
    """The request's deadline shortens the configured one and never extends it."""
    for method, fields in (
        ("get", {"key": b"k"}),
        ("setKey", {"key": b"k", "value": b"v"}),
        ("deleteKey", {"key": b"k"}),
        ("getReadVersion", {}),
        ("getRange", {}),
        ("snapshotGet", {"key": b"k", "read_version": 0}),
        ("setVersionstampedKey", {"key_prefix": STAMP, "value": b""}),
        ("atomicCommit", {"read_version": 0, "operations": [], "read_conflict_keys": []}),
    ):
        if deadline_ms is not None:
            fields["deadline_ms"] = deadline_ms
        await line.call(method, **fields)
        assert edge.now + seconds == pytest.approx(edge.routing.deadlines.pop()), method


@pytest.mark.parametrize(("timeout_seconds", "seconds"), [(60, 10.0), (2, 2.0), (0, 10.0), (-1, 10.0)])
async def test_contract_commit_timeout_only_shortens(edge, line, timeout_seconds: int, seconds: float) -> None:
    """`timeout_seconds` works alike; zero and below is no bound of its own."""
    await line.call(
        "atomicCommit", read_version=0, operations=[], read_conflict_keys=[], timeout_seconds=timeout_seconds
    )

    assert [edge.now + seconds] == edge.routing.deadlines


# --- refusals -------------------------------------------------------------------------------------------------------

SET = {"key": b"k", "value": b"v"}
COMMIT = {"read_version": 0, "operations": [], "read_conflict_keys": []}
TEN = b"0123456789"

REFUSALS = [
    ("get", {}, ErrorCode.BAD_REQUEST, "key"),
    ("setKey", {"key": b"k"}, ErrorCode.BAD_REQUEST, "value"),
    ("setKey", {"value": b"k"}, ErrorCode.BAD_REQUEST, "key"),
    ("deleteKey", {}, ErrorCode.BAD_REQUEST, "key"),
    ("snapshotGet", {"key": b"k"}, ErrorCode.BAD_REQUEST, "read_version"),
    ("snapshotGetRange", {}, ErrorCode.BAD_REQUEST, "read_version"),
    ("setReadVersion", {}, ErrorCode.BAD_REQUEST, "version"),
    ("addReadConflict", {}, ErrorCode.BAD_REQUEST, "key"),
    ("addReadConflictRange", {"start_key": b"a"}, ErrorCode.BAD_REQUEST, "end_key"),
    ("setFaultInjection", {}, ErrorCode.BAD_REQUEST, "fault_type"),
    ("setVersionstampedKey", {"value": b""}, ErrorCode.BAD_REQUEST, "key_prefix"),
    ("setVersionstampedValue", {"key": b"k"}, ErrorCode.BAD_REQUEST, "value_prefix"),
    ("atomicCommit", {"operations": [], "read_conflict_keys": []}, ErrorCode.BAD_REQUEST, "read_version"),
    ("atomicCommit", {"read_version": 0, "read_conflict_keys": []}, ErrorCode.BAD_REQUEST, "operations"),
    ("atomicCommit", {"read_version": 0, "operations": []}, ErrorCode.BAD_REQUEST, "read_conflict_keys"),
    (
        "atomicCommit",
        {**COMMIT, "operations": [Operation(type="delete", key=b"k"), Operation(key=b"k")]},
        ErrorCode.BAD_REQUEST,
        "operations[1].type",
    ),
    (
        "atomicCommit",
        {**COMMIT, "read_conflict_ranges": [ConflictRange(begin_key=b"a")]},
        ErrorCode.BAD_REQUEST,
        "read_conflict_ranges[0].end_key",
    ),
    ("get", {"key": b"k", "column_family": "f" * 256}, ErrorCode.INVALID_ARGUMENT, "255"),
    ("setKey", {**SET, "column_family": b"\xff"}, ErrorCode.INVALID_ARGUMENT, "UTF-8"),
    ("getRange", {"column_family": b"\xff"}, ErrorCode.INVALID_ARGUMENT, "UTF-8"),
    ("get", {"key": b"k", "deadline_ms": 0}, ErrorCode.INVALID_ARGUMENT, "deadline_ms"),
    ("setKey", {**SET, "deadline_ms": -1}, ErrorCode.INVALID_ARGUMENT, "deadline_ms"),
    ("setKey", {**SET, "client_id": bytes(16)}, ErrorCode.INVALID_ARGUMENT, "together"),
    ("deleteKey", {"key": b"k", "request_id": 1}, ErrorCode.INVALID_ARGUMENT, "together"),
    ("setKey", {**SET, "client_id": bytes(15), "request_id": 1}, ErrorCode.INVALID_ARGUMENT, "16"),
    ("setKey", {**SET, "client_id": bytes(16), "request_id": -1}, ErrorCode.INVALID_ARGUMENT, "request_id"),
    ("snapshotGet", {"key": b"k", "read_version": -1}, ErrorCode.INVALID_ARGUMENT, "negative"),
    ("snapshotGet", {"key": b"", "read_version": -1}, ErrorCode.INVALID_ARGUMENT, "negative"),
    ("snapshotGet", {"key": b"k", "read_version": 0, "column_family": "nope"}, ErrorCode.INVALID_ARGUMENT, "nope"),
    ("snapshotGetRange", {"read_version": 0, "column_family": "nope"}, ErrorCode.INVALID_ARGUMENT, "nope"),
    ("snapshotGet", {"key": b"k", "read_version": 77}, ErrorCode.FUTURE_VERSION, ""),
    ("setReadVersion", {"version": -1}, ErrorCode.INVALID_ARGUMENT, "version"),
    ("setReadVersion", {"version": 77}, ErrorCode.FUTURE_VERSION, ""),
    ("get", {"key": b""}, ErrorCode.INVALID_KEY, "key cannot be empty"),
    ("get", {"key": bytes(10_241)}, ErrorCode.INVALID_KEY, "10240"),
    ("setKey", {"key": b"", "value": b"v"}, ErrorCode.INVALID_KEY, "empty"),
    ("setKey", {"key": bytes(10_241), "value": b"v"}, ErrorCode.INVALID_KEY, "10240"),
    ("deleteKey", {"key": b""}, ErrorCode.INVALID_KEY, "empty"),
    ("snapshotRead", {"key": b"", "read_version": 0}, ErrorCode.INVALID_KEY, "empty"),
    ("setVersionstampedValue", {"key": b"", "value_prefix": TEN}, ErrorCode.INVALID_KEY, "empty"),
    ("setVersionstampedKey", {"key_prefix": bytes(10_241), "value": b""}, ErrorCode.INVALID_KEY, "10240"),
    ("setVersionstampedKey", {"key_prefix": b"", "value": b""}, ErrorCode.INVALID_OPERATION, "at least 10 bytes"),
    ("setVersionstampedKey", {"key_prefix": bytes(9), "value": b""}, ErrorCode.INVALID_OPERATION, "at least 10 bytes"),
    (
        "setVersionstampedValue",
        {"key": b"k", "value_prefix": bytes(9)},
        ErrorCode.INVALID_OPERATION,
        "at least 10 bytes",
    ),
    ("setKey", {"key": b"k", "value": bytes(4 * 1024 * 1024 + 1)}, ErrorCode.TOO_LARGE, "value"),
    ("addReadConflict", {"key": b"k"}, ErrorCode.UNSUPPORTED, "atomicCommit"),
    ("addReadConflictRange", {"start_key": b"a", "end_key": b"b"}, ErrorCode.UNSUPPORTED, "atomicCommit"),
    ("getNodeInfo", {"node_id": 7}, ErrorCode.INVALID_ARGUMENT, "7"),
    ("getNodeInfo", {"node_id": -1}, ErrorCode.INVALID_ARGUMENT, "-1"),
]


@pytest.mark.parametrize(("method", "fields", "code", "text"), REFUSALS)
async def test_contract_refusal_has_its_code_and_text(edge, line, method, fields, code, text) -> None:
    """A refused request names the cause, and nothing is proposed."""
    response = await line.call(method, **fields)

    assert code == response.error_code
    assert text in response.error
    assert [] == edge.routing.proposed
    if hasattr(response, "success"):
        assert response.success is False
    if hasattr(response, "found"):
        assert (False, b"") == (response.found, response.value)
    for name in ("generated_key", "generated_value"):
        assert getattr(response, name, b"") == b""


def op(kind: str, key: bytes = b"k", value: bytes | None = None, family: str | None = None) -> Operation:
    return Operation(type=kind, key=key, value=value, column_family=family)


COMMIT_REFUSALS = [
    ([op("upsert", b"k", b"v")], {}, ErrorCode.INVALID_OPERATION, "operations[0]"),
    ([op("SET", b"k", b"v")], {}, ErrorCode.INVALID_OPERATION, "unknown"),
    ([op("CLEAR_RANGE", b"", b"")], {}, ErrorCode.INVALID_OPERATION, "unknown"),
    ([op("ADD", b"k", b"1")], {}, ErrorCode.INVALID_OPERATION, "unknown"),
    ([op("delete"), op("set")], {}, ErrorCode.INVALID_OPERATION, "operations[1]: missing value"),
    ([op("SET_VERSIONSTAMPED_KEY", TEN)], {}, ErrorCode.INVALID_OPERATION, "missing value"),
    ([op("SET_VERSIONSTAMPED_VALUE", b"k")], {}, ErrorCode.INVALID_OPERATION, "missing value prefix"),
    ([op("SET_VERSIONSTAMPED_KEY", b"", b"v")], {}, ErrorCode.INVALID_OPERATION, "at least 10 bytes"),
    ([op("SET_VERSIONSTAMPED_VALUE", b"k", b"short")], {}, ErrorCode.INVALID_OPERATION, "at least 10 bytes"),
    ([op("set", b"", b"v")], {}, ErrorCode.INVALID_KEY, "operations[0].key"),
    ([op("upsert", b"")], {}, ErrorCode.INVALID_KEY, "operations[0].key"),
    ([op("delete", bytes(10_241))], {}, ErrorCode.INVALID_KEY, "operations[0].key"),
    ([], {"read_conflict_keys": [b"a", b""]}, ErrorCode.INVALID_KEY, "read_conflict_keys[1]"),
    ([], {"read_conflict_keys": [b"a"], "read_version": -1}, ErrorCode.INVALID_ARGUMENT, "negative"),
    ([op("set", b"", b"v", "f" * 256)], {}, ErrorCode.INVALID_ARGUMENT, "255"),
    (
        [],
        {"read_conflict_ranges": [ConflictRange(begin_key=b"b", end_key=b"b")]},
        ErrorCode.INVALID_ARGUMENT,
        "read_conflict_ranges[0]",
    ),
    ([op("set", b"k", bytes(4 * 1024 * 1024 + 1))], {}, ErrorCode.TOO_LARGE, "operations[0].value"),
    ([op("set", b"k%d" % n, bytes(4 * 1024 * 1024 - 9)) for n in range(3)], {}, ErrorCode.TOO_LARGE, "transaction"),
    ([op("delete")] * 10_001, {}, ErrorCode.TOO_LARGE, "10000"),
    ([op("upsert")] * 10_001, {}, ErrorCode.TOO_LARGE, "10000"),
    ([], {"read_conflict_keys": [b"k"] * 100_001}, ErrorCode.TOO_LARGE, "100000"),
    ([], {"read_conflict_keys": [b"k"] * 100_001, "read_version": -1}, ErrorCode.INVALID_ARGUMENT, "negative"),
    (
        [],
        {
            "read_conflict_keys": [b"k"] * 99_999,
            "read_conflict_ranges": [ConflictRange(begin_key=b"a", end_key=b"b")] * 2,
        },
        ErrorCode.TOO_LARGE,
        "100000",
    ),
]


@pytest.mark.parametrize(("operations", "fields", "code", "text"), COMMIT_REFUSALS)
async def test_contract_commit_is_refused_whole(edge, line, operations, fields, code, text) -> None:
    """One bad item refuses the transaction, in the contract's order of checks."""
    response = await line.call("atomicCommit", **{**COMMIT, "operations": operations, **fields})

    assert (False, code) == (response.success, response.error_code)
    assert text in response.error
    assert response.committed_version is None
    assert [] == edge.routing.proposed


async def test_contract_commit_carries_everything(edge, line) -> None:
    """Operations, families and the conflict set arrive in the log entry as they were sent."""
    await line.call(
        "atomicCommit",
        read_version=0,
        operations=[op("set", b"a", b"1"), op("delete", b"b", b"ignored", "f"), op("SET_VERSIONSTAMPED_KEY", TEN, b"")],
        read_conflict_keys=[b"x", b"y"],
        read_conflict_ranges=[ConflictRange(begin_key=b"", end_key=b"z", column_family="g")],
    )

    assert decode_operation(edge.routing.proposed[0]) == AtomicCommit(
        read_version=0,
        mutations=(
            Mutation(MutationKind.SET, b"", b"a", b"1"),
            Mutation(MutationKind.DELETE, b"f", b"b"),
            Mutation(MutationKind.VERSIONSTAMPED_KEY, b"", TEN, b""),
        ),
        conflict_keys=(b"x", b"y"),
        conflict_ranges=(KeyRange(b"g", b"", b"z"),),
        existing_style=True,
    )


async def test_contract_commit_with_identity_is_not_existing_style(edge, line) -> None:
    """Only clients that know the appended fields can be told TRANSACTION_TOO_OLD."""
    assert await code_of(line, "atomicCommit", **COMMIT, client_id=bytes(16), request_id=0) is None

    assert not decode_operation(edge.routing.proposed[0]).existing_style


async def test_contract_stale_conflict_key_conflicts(line) -> None:
    """The decision of apply reaches the client with code and text."""
    await line.call("setKey", key=b"k", value=b"1")
    response = await line.call("atomicCommit", read_version=0, operations=[], read_conflict_keys=[b"k"])

    assert (False, ErrorCode.CONFLICT, None) == (response.success, response.error_code, response.committed_version)
    assert response.error


@pytest.mark.parametrize("mistyped", ["string", "i64", "missing"])
async def test_contract_mistyped_operations_are_missing(edge, line, wire, mistyped: str) -> None:
    """A list of another element type never becomes a successful empty commit."""
    elements = {
        "string": b"\x0f\0\x02\x0b" + struct.pack(">i", 1) + b"\0\0\0\x01a",
        "i64": b"\x0f\0\x02\x0a" + struct.pack(">i", 1) + bytes(8),
        "missing": b"",
    }[mistyped]
    body = b"\x0c\0\x01" + b"\x0a\0\x01" + bytes(8) + elements + b"\x0f\0\x03\x0b" + bytes(4) + b"\0\0"
    line.send(wire.raw("atomicCommit", body) + wire.message("ping"))
    refused, _ = await line.replies(2)

    assert ErrorCode.BAD_REQUEST == refused.response.error_code
    assert "operations" in refused.response.error
    assert [] == edge.routing.proposed


@pytest.mark.parametrize("method", ["get", "setKey", "deleteKey", "getReadVersion", "atomicCommit", "getNodeInfo"])
async def test_contract_absent_request_is_a_bad_request(line, wire, method: str) -> None:
    """A call without its argument is refused; the connection stays in step."""
    line.send(wire.raw(method, b"\0", 3) + wire.message("ping", 4))
    refused, pong = await line.replies(2)

    assert (3, ErrorCode.BAD_REQUEST) == (refused.seqid, refused.response.error_code)
    assert "request" in refused.response.error
    assert 4 == pong.seqid


async def test_contract_unknown_fields_and_wrong_types_are_skipped(line, wire) -> None:
    """Unknown ids are skipped at any depth; a known id of another type counts as missing; the last of two wins."""
    unknown = b"\x0d\0\x63\x0b\x0f" + struct.pack(">i", 1) + b"\0\0\0\x01a" + b"\x0c" + struct.pack(">i", 2) + b"\0\0"
    twice = b"\x0b\0\x01\0\0\0\x01a" + b"\x0b\0\x01\0\0\0\x01b"
    line.send(wire.message("setKey", key=b"b", value=b"v"))
    line.send(wire.raw("get", b"\x0c\0\x01" + unknown + twice + b"\0\0"))
    line.send(wire.raw("get", b"\x0c\0\x01" + b"\x0a\0\x01" + bytes(8) + b"\0\0"))
    _, found, refused = await line.replies(3)

    assert b"v" == found.response.value
    assert ErrorCode.BAD_REQUEST == refused.response.error_code


@pytest.mark.parametrize(
    ("method", "fields"),
    [("get", {"key": b"k"}), ("setKey", SET), ("getReadVersion", {}), ("getRange", {}), ("atomicCommit", COMMIT)],
)
async def test_contract_leader_hint_is_passed_on(edge, line, method: str, fields) -> None:
    """Id and endpoint come together on a refusal that has them."""
    edge.routing.refusal = Refusal(ErrorCode.NOT_LEADER, "ask 10.0.0.9:9090", 2, "10.0.0.9:9090")
    refused = await line.call(method, **fields)
    edge.routing.refusal = Refusal(ErrorCode.UNAVAILABLE, "no leader")
    unknown = await line.call(method, **fields)

    assert (ErrorCode.NOT_LEADER, 2, "10.0.0.9:9090") == (
        refused.error_code,
        refused.leader_id,
        refused.leader_endpoint,
    )
    assert "10.0.0.9:9090" in refused.error
    assert (ErrorCode.UNAVAILABLE, None, None) == (unknown.error_code, unknown.leader_id, unknown.leader_endpoint)


async def test_contract_success_shares_one_outcome(edge, line, wire) -> None:
    """A plain write is acknowledged from the shared outcome value."""
    edge.routing.hold_writes = True
    line.send(wire.message("deleteKey", 9, key=b"k"))
    edge.routing.writes[0][1].decided(5, APPLIED)

    (reply,) = await line.replies(1)
    assert (9, True) == (reply.seqid, reply.response.success)
