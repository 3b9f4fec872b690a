"""atomicCommit: a transaction judged as a whole at the edge (contract sections 3.5 and 5.3), decided at apply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, cast

from kvorum.core.codec import encode_operation, identified
from kvorum.core.errors import ErrorCode
from kvorum.core.operations import AtomicCommit, KeyRange, Mutation, MutationKind
from kvorum.thrift.adapter.call import WriteCall
from kvorum.thrift.adapter.validation import (
    STAMP_BYTES,
    bounded,
    check_key,
    check_stamp,
    check_value,
    check_version,
    checked_family,
    checked_identity,
    must_have,
    refuse,
)
from kvorum.thrift.faults import FaultTarget
from kvorum.thrift.protocol.codec import (
    OVERSIZED,
    Fields,
    encode_reply,
    identity_of,
    optional_bytes,
    optional_int,
    raw_name,
    required_fields,
    required_fields_of,
)
from kvorum.thrift.protocol.replies import commit_reply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvorum.core.ids import Index
    from kvorum.core.operations import Applied
    from kvorum.thrift.settings import ThriftSettings

SET: Final = "set"
DELETE: Final = "delete"
STAMPED_KEY: Final = "SET_VERSIONSTAMPED_KEY"
STAMPED_VALUE: Final = "SET_VERSIONSTAMPED_VALUE"
CLEAR_RANGE: Final = "CLEAR_RANGE"

_KINDS: Final = {
    SET: MutationKind.SET,
    DELETE: MutationKind.DELETE,
    STAMPED_KEY: MutationKind.VERSIONSTAMPED_KEY,
    STAMPED_VALUE: MutationKind.VERSIONSTAMPED_VALUE,
}
_REQUIRED: Final = required_fields("atomicCommit")
_REQUIRED_OF_OPERATION: Final = required_fields_of("Operation")
_REQUIRED_OF_RANGE: Final = required_fields_of("ConflictRange")

_Structs: TypeAlias = "Sequence[Mapping[str, object]]"


class CommitCall(WriteCall):
    """atomicCommit: all operations at one version, if nothing of the conflict set was written since."""

    __slots__ = ()

    def start(self) -> None:
        """Judge and hand to routing."""
        fields = must_have(cast("Fields | None", self.fields), _REQUIRED)
        operations, ranges = _structs(fields["operations"]), _structs(fields["read_conflict_ranges"])
        for i, operation in enumerate(operations):
            must_have(operation, _REQUIRED_OF_OPERATION, f"operations[{i}].")
        for i, conflict_range in enumerate(ranges):
            must_have(conflict_range, _REQUIRED_OF_RANGE, f"read_conflict_ranges[{i}].")
        edge = self.connection.edge
        timeout_s = edge.timeout_s
        wanted_s = optional_int(fields["timeout_seconds"]) or 0
        if wanted_s > 0:
            timeout_s = min(timeout_s, wanted_s)
        deadline_ms = optional_int(fields["deadline_ms"])
        if edge.faults.armed and self.struck(FaultTarget.COMMIT, deadline_ms, timeout_s):
            return
        deadline = bounded(self.received, timeout_s, deadline_ms)
        body = encode_operation(judge_commit(fields, edge.settings))
        identity = identity_of(dict(fields))
        if identity is not None:
            body = identified(body, *checked_identity(identity))
        self.fields = None
        edge.routing.write(body, self, self.received, deadline)

    def success_reply(self, index: Index, applied: Applied) -> bytes:
        """Encode the commit version, for a known retry that of its first attempt, and the generated data."""
        index = applied.version or index
        if not applied.generated_keys and not applied.generated_values:
            return commit_reply(self.seqid, index)
        fields: dict[str, object] = {"success": True, "committed_version": index}
        if applied.generated_keys:
            fields["generated_keys"] = list(applied.generated_keys)
        if applied.generated_values:
            fields["generated_values"] = list(applied.generated_values)
        return encode_reply(self.method.name, self.seqid, fields)


def _structs(value: object) -> _Structs:
    return cast("_Structs", value) if isinstance(value, list) else ()


def judge_commit(fields: Mapping[str, object], settings: ThriftSettings) -> AtomicCommit:
    """
    Check a transaction whose required fields are there, in the contract's order, and make the operation.

    Raises:
        RequestRefusedError: The first check that failed.
    """
    operations = _structs(fields["operations"])
    read_version = optional_int(fields["read_version"]) or 0
    identity = identity_of(dict(fields))
    conflict_keys = (
        tuple(cast("list[bytes]", fields["read_conflict_keys"])) if _is_list(fields, "read_conflict_keys") else ()
    )
    conflict_ranges = tuple(_conflict_range(i, r) for i, r in enumerate(_structs(fields["read_conflict_ranges"])))
    families = [checked_family(raw_name(operation["column_family"])) for operation in operations]
    if identity is not None:
        checked_identity(identity)
    if conflict_keys or conflict_ranges or OVERSIZED in (fields["read_conflict_keys"], fields["read_conflict_ranges"]):
        check_version(read_version)
    _check_keys(operations, conflict_keys, settings)
    _check_sizes(fields, operations, conflict_keys, conflict_ranges, settings)
    mutations = tuple(_mutation(i, op, family) for i, (op, family) in enumerate(zip(operations, families, strict=True)))
    return AtomicCommit(read_version, mutations, conflict_keys, conflict_ranges, existing_style=identity is None)


def _is_list(fields: Mapping[str, object], name: str) -> bool:
    return isinstance(fields[name], list)


def _conflict_range(index: int, fields: Mapping[str, object]) -> KeyRange:
    begin, end = optional_bytes(fields["begin_key"]) or b"", optional_bytes(fields["end_key"]) or b""
    if begin >= end:
        refuse(ErrorCode.INVALID_ARGUMENT, f"read_conflict_ranges[{index}]: begin_key must be below end_key")
    return KeyRange(checked_family(raw_name(fields["column_family"])), begin, end)


def _check_keys(operations: _Structs, conflict_keys: tuple[bytes, ...], settings: ThriftSettings) -> None:
    for i, operation in enumerate(operations):
        kind, key = operation["type"], optional_bytes(operation["key"]) or b""
        # The bounds of a range are no keys, and a short stamp buffer is judged with the operations.
        if kind == CLEAR_RANGE or (kind == STAMPED_KEY and len(key) < STAMP_BYTES):
            continue
        if not 0 < len(key) <= settings.key_bytes_max:
            check_key(key, settings.key_bytes_max, f"operations[{i}].key")
    for i, key in enumerate(conflict_keys):
        if not 0 < len(key) <= settings.key_bytes_max:
            check_key(key, settings.key_bytes_max, f"read_conflict_keys[{i}]")


def _check_sizes(
    fields: Mapping[str, object],
    operations: _Structs,
    conflict_keys: tuple[bytes, ...],
    conflict_ranges: tuple[KeyRange, ...],
    settings: ThriftSettings,
) -> None:
    if fields["operations"] is OVERSIZED or len(operations) > settings.transaction_operations_max:
        text = f"more than {settings.transaction_operations_max} operations; split the transaction"
        refuse(ErrorCode.TOO_LARGE, text)
    items_max = settings.conflict_items_max
    oversized = OVERSIZED in (fields["read_conflict_keys"], fields["read_conflict_ranges"])
    if oversized or len(conflict_keys) + len(conflict_ranges) > items_max:
        refuse(ErrorCode.TOO_LARGE, f"more than {items_max} conflict keys and ranges; read less, or conflict on ranges")
    total = sum(map(len, conflict_keys)) + sum(len(r.begin) + len(r.end) for r in conflict_ranges)
    for i, operation in enumerate(operations):
        total += len(cast("bytes", operation["key"]))
        value = operation["value"]
        if isinstance(value, bytes) and operation["type"] != DELETE:
            check_value(value, settings.value_bytes_max, f"operations[{i}].value")
            total += len(value)
    if total > settings.transaction_bytes_max:
        text = f"the transaction has {total} bytes; at most {settings.transaction_bytes_max} are allowed; split it"
        refuse(ErrorCode.TOO_LARGE, text)


def _mutation(index: int, operation: Mapping[str, object], family: bytes) -> Mutation:
    name, key, value = operation["type"], cast("bytes", operation["key"]), optional_bytes(operation["value"])
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        text = f"operations[{index}]: unknown operation type; allowed: {', '.join(_KINDS)}"
        refuse(ErrorCode.INVALID_OPERATION, text)
    if kind == MutationKind.DELETE:
        return Mutation(kind, family, key)
    if value is None:
        what = "missing value prefix" if kind == MutationKind.VERSIONSTAMPED_VALUE else "missing value"
        refuse(ErrorCode.INVALID_OPERATION, f"operations[{index}]: {what}; {name} needs one")
    if kind == MutationKind.VERSIONSTAMPED_KEY:
        check_stamp(key, f"operations[{index}].key")
    elif kind == MutationKind.VERSIONSTAMPED_VALUE:
        check_stamp(value, f"operations[{index}].value")
    return Mutation(kind, family, key, value)
