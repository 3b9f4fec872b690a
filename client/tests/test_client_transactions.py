"""Transactions against a node that keeps versions and decides conflicts as the contract says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import kvorum_idl
from kvorum_client import (
    ConflictError,
    InvalidRequestError,
    KvorumClient,
    OutcomeUnknownError,
    TransactionClosedError,
    UnreadableError,
)


class VersionedStore:
    """The state of one node: every version of every key, and the conflict rule."""

    def __init__(self) -> None:
        self.version = 1
        self.rows: dict[tuple[str, bytes], list[tuple[int, bytes | None]]] = {}
        self.families = {"default": 0}
        self.page_pairs = 3
        self.commits: list[Any] = []

    def put(self, key: bytes, value: bytes | None, family: str = "default") -> None:
        self.version += 1
        self._write(family, key, value)

    def _write(self, family: str, key: bytes, value: bytes | None) -> None:
        self.families.setdefault(family, self.version)
        self.rows.setdefault((family, key), []).append((self.version, value))

    def value(self, family: str, key: bytes, version: int) -> bytes | None:
        return next((value for at, value in reversed(self.rows.get((family, key), [])) if at <= version), None)

    def newest(self, key: bytes, family: str = "default") -> bytes | None:
        return self.value(family, key, self.version)

    def read_version(self, _: Any) -> dict[str, Any]:
        return {"read_version": self.version, "success": True}

    def unknown(self, family: str, version: int) -> bool:
        return self.families.get(family, version + 1) > version

    def get(self, request: Any) -> dict[str, Any]:
        family = request.column_family or "default"
        if self.unknown(family, request.read_version):
            return {"value": b"", "found": False, "error": f"no {family}", "error_code": "INVALID_ARGUMENT"}
        value = self.value(family, request.key, request.read_version)
        return {"value": value or b"", "found": value is not None}

    def get_range(self, request: Any) -> dict[str, Any]:
        family = request.column_family or "default"
        if self.unknown(family, request.read_version):
            return {"key_values": [], "success": False, "error": f"no {family}", "error_code": "INVALID_ARGUMENT"}
        keys = sorted(
            key
            for at, key in self.rows
            if at == family and request.begin_key <= key < request.end_key
            and self.value(family, key, request.read_version) is not None
        )  # fmt: skip
        if request.reverse:
            keys.reverse()
        shown = keys[: min(self.page_pairs, request.limit)]
        pairs = [kvorum_idl.KeyValue(key=key, value=self.value(family, key, request.read_version)) for key in shown]
        more = len(keys) > len(shown)
        return {"key_values": pairs, "success": True, "has_more": more} | (
            {"next_key": keys[len(shown)]} if more else {}
        )

    def commit(self, request: Any) -> dict[str, Any]:
        self.commits.append(request)
        spans = [("default", key, key + b"\x00") for key in request.read_conflict_keys]
        for item in request.read_conflict_ranges or ():
            assert item.begin_key < item.end_key
            spans.append((item.column_family or "default", item.begin_key, item.end_key))
        for family, begin, end in spans:
            for (at, key), history in self.rows.items():
                if at == family and begin <= key < end and history[-1][0] > request.read_version:
                    return {"success": False, "error": "conflict", "error_code": "CONFLICT"}
        self.version += 1
        generated: dict[str, list[bytes]] = {"generated_keys": [], "generated_values": []}
        ordinal = 0
        for operation in request.operations:
            key, value = operation.key, operation.value
            stamp = self.version.to_bytes(8, "big") + ordinal.to_bytes(2, "big")
            if operation.type == "SET_VERSIONSTAMPED_KEY":
                key = key[:-10] + stamp
                generated["generated_keys"].append(key)
                ordinal += 1
            elif operation.type == "SET_VERSIONSTAMPED_VALUE":
                value = value[:-10] + stamp
                generated["generated_values"].append(value)
                ordinal += 1
            self._write(operation.column_family or "default", key, None if operation.type == "delete" else value)
        return {"success": True, "committed_version": self.version} | {
            name: items for name, items in generated.items() if items
        }


@pytest.fixture
def store(nodes):
    """The leader's state."""
    made = VersionedStore()
    nodes[0].on("getReadVersion", made.read_version)
    nodes[0].on("snapshotGet", made.get)
    nodes[0].on("snapshotGetRange", made.get_range)
    nodes[0].on("atomicCommit", made.commit)
    return made


@pytest.fixture
async def client(nodes):
    """A client of the node that keeps the store."""
    async with KvorumClient([nodes[0].endpoint], timeout_s=30.0) as made:
        yield made


async def test_transaction_reads_show_its_own_writes_and_one_version(client, store):
    """Own writes are seen at once; writes of others after the read version are not."""
    store.put(b"a", b"1")
    store.put(b"b", b"2")
    transaction = client.transaction()
    assert await transaction.get(b"a") == b"1"
    store.put(b"b", b"other")
    transaction.set(b"c", b"3")
    transaction.delete(b"a")

    assert await transaction.get(b"a") is None
    assert await transaction.get(b"c") == b"3"
    assert [(b"b", b"2"), (b"c", b"3")] == await transaction.get_range()
    assert [(b"c", b"3"), (b"b", b"2")] == await transaction.snapshot.get_range(reverse=True)


async def test_commit_without_writes_sends_nothing(client, store, nodes):
    """A read-only transaction is right as it stands: no commit round."""
    store.put(b"a", b"1")
    async with client.transaction() as transaction:
        await transaction.get(b"a")

    assert nodes[0].count("atomicCommit") == 0
    assert transaction.closed


async def test_commit_blind_writes_need_no_read_version(client, store, nodes):
    """Writes that depend on nothing are one round trip."""
    transaction = client.transaction()
    transaction.set(b"a", b"1")
    version = await transaction.commit()

    assert store.version == version == transaction.committed_version
    assert nodes[0].count("getReadVersion") == 0
    assert store.commits[0].read_conflict_ranges is None


@pytest.mark.parametrize("touched", [b"a", b"ab"])
async def test_commit_conflicts_with_a_write_to_what_was_read(client, store, touched):
    """A key read, found or not, conflicts when somebody writes it in between."""
    store.put(b"a", b"1")
    transaction = client.transaction()
    await transaction.get(b"a")
    await transaction.get(b"ab")
    transaction.set(b"z", b"")
    store.put(touched, b"2")

    with pytest.raises(ConflictError) as caught:
        await transaction.commit()
    assert caught.value.retry_transaction
    assert store.newest(b"z") is None


@pytest.mark.parametrize(
    ("touched", "conflict"), [(b"b", True), (b"bb", True), (b"c", True), (b"cc", False), (b"d", False)]
)
async def test_commit_limited_range_depends_on_the_part_read(client, store, touched, conflict):
    """A range cut by its limit depends on everything up to the last pair returned, and on nothing behind it."""
    for key in (b"a", b"b", b"c", b"d"):
        store.put(key, b"")
    transaction = client.transaction()
    assert [b"b", b"c"] == [pair.key for pair in await transaction.get_range(b"b", b"z", limit=2)]
    transaction.set(b"out", b"")
    store.put(touched, b"new")

    if conflict:
        with pytest.raises(ConflictError):
            await transaction.commit()
    else:
        await transaction.commit()


@pytest.mark.parametrize(
    ("touched", "conflict"), [(b"a", False), (b"bb", False), (b"c", True), (b"y", True), (b"z", False)]
)
async def test_commit_limited_reverse_range_depends_on_the_part_read(client, store, touched, conflict):
    """Backwards, the part read lies between the last pair returned and the end."""
    for key in (b"a", b"b", b"c", b"d"):
        store.put(key, b"")
    transaction = client.transaction()
    assert [b"d", b"c"] == [pair.key for pair in await transaction.get_range(b"a", b"z", limit=2, reverse=True)]
    transaction.set(b"out", b"")
    store.put(touched, b"new")

    if conflict:
        with pytest.raises(ConflictError):
            await transaction.commit()
    else:
        await transaction.commit()


async def test_commit_snapshot_reads_and_own_keys_never_conflict(client, store):
    """Snapshot reads, and reads answered by the transaction's own writes, add nothing to the conflict set."""
    store.put(b"a", b"1")
    transaction = client.transaction()
    await transaction.snapshot.get(b"a")
    await transaction.snapshot.get_range()
    transaction.set(b"b", b"2")
    await transaction.get(b"b")
    store.put(b"a", b"x")
    store.put(b"b", b"x")

    await transaction.commit()

    assert not store.commits[0].read_conflict_keys
    assert store.commits[0].read_conflict_ranges is None


async def test_commit_other_family_key_becomes_a_range_of_one_key(client, store):
    """A key of another family conflicts as the range that holds only it; the default family is not touched."""
    store.put(b"k", b"1", "f")
    transaction = client.transaction()
    assert await transaction.get(b"k", family="f") == b"1"
    assert await transaction.get(b"k") is None
    transaction.add_read_conflict_key(b"m", family="f")
    transaction.set(b"k", b"2", family="f")
    store.put(b"k\x00", b"neighbour", "f")
    await transaction.commit()

    request = store.commits[0]
    assert [b"k"] == request.read_conflict_keys
    assert [("f", b"k", b"k\x00"), ("f", b"m", b"m\x00")] == [
        (item.column_family, item.begin_key, item.end_key) for item in request.read_conflict_ranges
    ]


async def test_transaction_family_that_does_not_exist_is_empty_and_conflicts_with_its_creation(client, store):
    """A family nobody created yet reads as empty, and its creation in between is a conflict."""
    transaction = client.transaction()
    assert await transaction.get(b"k", family="new") is None
    assert await transaction.get_range(family="new") == []
    transaction.set(b"x", b"")
    store.put(b"k", b"1", "new")

    with pytest.raises(ConflictError):
        await transaction.commit()


async def test_transaction_versionstamps_are_unreadable_before_and_returned_after(client, store):
    """Stamped keys and values are known only by the commit, which returns them in order."""
    transaction = client.transaction()
    transaction.set_versionstamped_key(b"log/" + bytes(10), b"v")
    transaction.set_versionstamped_value(b"k", b"at " + bytes(10))
    with pytest.raises(UnreadableError):
        await transaction.get(b"k")
    with pytest.raises(UnreadableError):
        await transaction.get_range(b"log/", b"log0")
    with pytest.raises(InvalidRequestError, match="at least 10 bytes"):
        transaction.set_versionstamped_key(b"short", b"v")
    version = await transaction.commit()

    stamp = version.to_bytes(8, "big")
    assert (b"log/" + stamp + b"\x00\x00",) == transaction.generated_keys
    assert (b"at " + stamp + b"\x00\x01",) == transaction.generated_values


async def test_transaction_after_its_commit_refuses_everything(client, store):
    """A transaction is used once."""
    transaction = client.transaction()
    transaction.set(b"a", b"")
    await transaction.commit()

    with pytest.raises(TransactionClosedError):
        transaction.set(b"a", b"")
    with pytest.raises(TransactionClosedError):
        await transaction.get(b"a")
    with pytest.raises(TransactionClosedError):
        await transaction.commit()


async def test_transaction_block_that_raises_commits_nothing(client, store):
    """Leaving the block by an exception drops the writes."""

    async def fail_inside() -> None:
        async with client.transaction() as transaction:
            transaction.set(b"a", b"")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail_inside()

    assert not store.commits


async def test_run_many_incrementers_lose_no_increment(client, store):
    """Conflicting transactions are repeated until each took effect exactly once."""

    async def increment(transaction):
        count = int(await transaction.get(b"counter") or b"0")
        await asyncio.sleep(0)
        transaction.set(b"counter", b"%d" % (count + 1))
        return count

    results = await asyncio.gather(*(client.run(increment, attempts=100) for _ in range(20)))

    assert store.newest(b"counter") == b"20"
    assert list(range(20)) == sorted(results)
    assert len(store.commits) > 20


async def test_run_conflict_every_time_gives_up_after_the_attempts(client, store, nodes):
    """The helper is bounded."""
    nodes[0].on("atomicCommit", {"success": False, "error": "conflict", "error_code": "CONFLICT"})
    attempts = []

    async def body(transaction):
        attempts.append(transaction)
        transaction.set(b"a", b"")

    with pytest.raises(ConflictError):
        await client.run(body, attempts=3)
    assert len(attempts) == 3


async def test_run_unknown_commit_is_raised_unless_allowed(store, nodes):
    """Without an identity a commit that may have been done is not repeated behind the caller's back."""
    lost = {"success": False, "error": "lost", "error_code": "TIMEOUT"}
    attempts = []

    async def body(transaction):
        attempts.append(transaction)
        transaction.set(b"a", b"1")

    async with KvorumClient([nodes[0].endpoint], timeout_s=30.0, exactly_once=False) as client:
        nodes[0].on("atomicCommit", [lost, store.commit])
        with pytest.raises(OutcomeUnknownError):
            await client.run(body)
        assert len(attempts) == 1

        nodes[0].on("atomicCommit", [lost, store.commit])
        await client.run(body, retry_unknown=True)
        assert store.newest(b"a") == b"1"


async def test_commit_refused_certainly_is_sent_again(client, store, nodes):
    """A commit that certainly was not done is repeated as it is."""
    busy = {"success": False, "error": "no leader", "error_code": "UNAVAILABLE"}
    nodes[0].on("atomicCommit", [busy, store.commit])
    transaction = client.transaction()
    transaction.set(b"a", b"1")

    assert await transaction.commit() == store.version
