"""Writes of single keys: setKey, deleteKey, setVersionstampedKey, setVersionstampedValue."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from kvorum.core.codec import encode_delete, encode_operation, encode_set, identified, identify_set
from kvorum.core.operations import Mutation, MutationKind
from kvorum.thrift.adapter.call import WriteCall
from kvorum.thrift.adapter.validation import (
    bounded,
    check_key,
    check_stamp,
    check_value,
    checked_family,
    checked_identity,
    must_have,
    refuse_missing,
)
from kvorum.thrift.faults import FaultTarget
from kvorum.thrift.protocol.codec import Fields, encode_reply, identity_of, optional_bytes, optional_int, raw_name
from kvorum.thrift.protocol.replies import DELETE_HEAD, DELETE_TAIL, SET_HEAD, SET_TAIL

if TYPE_CHECKING:
    from kvorum.core.ids import Index
    from kvorum.core.operations import Applied
    from kvorum.thrift.protocol.fast import DeleteFields, SetFields


class SetCall(WriteCall):
    """setKey: a blind write."""

    __slots__ = ()

    def start(self) -> None:
        """Judge and hand to routing."""
        key, value, family, deadline_ms, identity = cast("SetFields", self.fields)
        if key is None:
            refuse_missing("key")
        if value is None:
            refuse_missing("value")
        edge = self.connection.edge
        if edge.faults.armed and self.struck(FaultTarget.SET, deadline_ms):
            return
        received = self.received
        deadline = received + edge.timeout_s if deadline_ms is None else bounded(received, edge.timeout_s, deadline_ms)
        if family:
            family = checked_family(family)
        if identity is not None:
            pair = checked_identity(identity)
        if not 0 < len(key) <= edge.key_bytes_max:
            check_key(key, edge.key_bytes_max)
        if len(value) > edge.value_bytes_max:
            check_value(value, edge.value_bytes_max)
        self.fields = None
        body = encode_set(family, key, value) if identity is None else identify_set(family, key, value, *pair)
        edge.routing.write(body, self, received, deadline)

    def success_reply(self, index: Index, applied: Applied) -> bytes:  # noqa: ARG002 - the reply carries neither
        """Encode success."""
        return SET_HEAD + self.seqid + SET_TAIL


class DeleteCall(WriteCall):
    """deleteKey: succeeds also for a missing key."""

    __slots__ = ()

    def start(self) -> None:
        """Judge and hand to routing."""
        key, family, deadline_ms, identity = cast("DeleteFields", self.fields)
        if key is None:
            refuse_missing("key")
        edge = self.connection.edge
        if edge.faults.armed and self.struck(FaultTarget.DELETE, deadline_ms):
            return
        deadline = bounded(self.received, edge.timeout_s, deadline_ms)
        if family:
            family = checked_family(family)
        if identity is not None:
            pair = checked_identity(identity)
        if not 0 < len(key) <= edge.key_bytes_max:
            check_key(key, edge.key_bytes_max)
        self.fields = None
        body = encode_delete(family, key)
        if identity is not None:
            body = identified(body, *pair)
        edge.routing.write(body, self, self.received, deadline)

    def success_reply(self, index: Index, applied: Applied) -> bytes:  # noqa: ARG002 - the reply carries neither
        """Encode success."""
        return DELETE_HEAD + self.seqid + DELETE_TAIL


class _StampCall(WriteCall):
    """What both versionstamped calls share."""

    __slots__ = ()

    def propose(self, kind: int, key_name: str, value_name: str) -> None:
        """Judge and hand to routing."""
        fields = must_have(cast("Fields | None", self.fields), (key_name, value_name))
        edge = self.connection.edge
        if edge.faults.armed and self.struck(FaultTarget.SET, optional_int(fields["deadline_ms"])):
            return
        key, value = optional_bytes(fields[key_name]) or b"", optional_bytes(fields[value_name]) or b""
        family = checked_family(raw_name(fields["column_family"]))
        deadline = bounded(self.received, edge.timeout_s, optional_int(fields["deadline_ms"]))
        identity = identity_of(dict(fields))
        if identity is not None:
            pair = checked_identity(identity)
        # A buffer without room for the stamp is an INVALID_OPERATION even if it is an empty key (contract section 3.6).
        if kind == MutationKind.VERSIONSTAMPED_KEY:
            check_stamp(key, key_name)
        check_key(key, edge.key_bytes_max, key_name)
        check_value(value, edge.value_bytes_max, value_name)
        if kind == MutationKind.VERSIONSTAMPED_VALUE:
            check_stamp(value, value_name)
        self.fields = None
        body = encode_operation(Mutation(kind, family, key, value))
        if identity is not None:
            body = identified(body, *pair)
        edge.routing.write(body, self, self.received, deadline)


class StampedKeyCall(_StampCall):
    """setVersionstampedKey: the last ten bytes of the key become the commit version and an ordinal."""

    __slots__ = ()

    def start(self) -> None:
        """Judge and hand to routing."""
        self.propose(MutationKind.VERSIONSTAMPED_KEY, "key_prefix", "value")

    def success_reply(self, index: Index, applied: Applied) -> bytes:  # noqa: ARG002 - the stamp holds the index
        """Encode the key that was stored."""
        fields = {"generated_key": applied.generated_keys[0], "success": True}
        return encode_reply(self.method.name, self.seqid, fields)


class StampedValueCall(_StampCall):
    """setVersionstampedValue: the same for the last ten bytes of the value."""

    __slots__ = ()

    def start(self) -> None:
        """Judge and hand to routing."""
        self.propose(MutationKind.VERSIONSTAMPED_VALUE, "key", "value_prefix")

    def success_reply(self, index: Index, applied: Applied) -> bytes:  # noqa: ARG002 - the stamp holds the index
        """Encode the value that was stored."""
        fields = {"generated_value": applied.generated_values[0], "success": True}
        return encode_reply(self.method.name, self.seqid, fields)
