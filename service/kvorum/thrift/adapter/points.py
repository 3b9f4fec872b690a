"""Reads of single keys and of versions: get, getReadVersion, snapshotRead, snapshotGet, setReadVersion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from kvorum.core.errors import ErrorCode
from kvorum.core.operations import CONSISTENCY_ALIASES
from kvorum.thrift.adapter.call import ReadCall
from kvorum.thrift.adapter.validation import (
    bounded,
    check_key,
    check_version,
    checked_family,
    checked_level,
    must_have,
    refuse,
    refuse_missing,
)
from kvorum.thrift.faults import FaultTarget
from kvorum.thrift.protocol.codec import Fields, encode_reply, optional_bytes, optional_int, raw_name
from kvorum.thrift.protocol.replies import GET_HEAD, GET_MISSING_TAIL, found_reply, version_reply

if TYPE_CHECKING:
    from kvorum.core.ids import Index
    from kvorum.thrift.protocol.fast import GetFields, VersionFields

LEVELS: Final = {name.encode(): level for name, level in CONSISTENCY_ALIASES.items()}
"""The usual spellings as they are on the wire."""


class GetCall(ReadCall):
    """get: the newest value at a consistency level; a missing key is no error."""

    __slots__ = ("family", "key")

    def start(self) -> None:
        """Judge and ask routing."""
        key, family, deadline_ms, consistency = cast("GetFields", self.fields)
        if key is None:
            refuse_missing("key")
        edge = self.connection.edge
        if edge.faults.armed and self.struck(FaultTarget.GET, deadline_ms):
            return
        routing = edge.routing
        received = self.received
        deadline = received + edge.timeout_s if deadline_ms is None else bounded(received, edge.timeout_s, deadline_ms)
        level = (LEVELS.get(consistency) or checked_level(consistency)) if consistency else routing.default_level
        self.family = checked_family(family) if family else b""
        self.key = key
        if not 0 < len(key) <= edge.key_bytes_max:
            check_key(key, edge.key_bytes_max)
        if routing.read(level, self, received, deadline):
            self.permitted()

    def read(self) -> None:
        """Look the key up."""
        value = self.connection.edge.state.get(self.family, self.key)
        if value is None:
            self.finish(GET_HEAD + self.seqid + GET_MISSING_TAIL)
        else:
            self.finish(found_reply(self.seqid, value))


class ReadVersionCall(ReadCall):
    """getReadVersion: the applied index at the consistency point."""

    __slots__ = ()

    def start(self) -> None:
        """Judge and ask routing."""
        deadline_ms, consistency = cast("VersionFields", self.fields)
        edge = self.connection.edge
        deadline = bounded(self.received, edge.timeout_s, deadline_ms)
        level = checked_level(consistency) if consistency else edge.routing.default_level
        if edge.routing.read(level, self, self.received, deadline):
            self.permitted()

    def read(self) -> None:
        """Take the applied index."""
        self.finish(version_reply(self.seqid, self.connection.edge.state.applied_index))


class SnapshotGetCall(ReadCall):
    """snapshotGet and snapshotRead: the value at a version the client names."""

    __slots__ = ("family", "key", "version")

    def start(self) -> None:
        """Judge and ask routing."""
        fields = must_have(cast("Fields | None", self.fields), ("key", "read_version"))
        edge = self.connection.edge
        if edge.faults.armed and self.struck(FaultTarget.GET, optional_int(fields["deadline_ms"])):
            return
        self.key = optional_bytes(fields["key"]) or b""
        self.version: Index = optional_int(fields["read_version"]) or 0
        self.family = checked_family(raw_name(fields["column_family"]))
        deadline = bounded(self.received, edge.timeout_s, optional_int(fields["deadline_ms"]))
        check_version(self.version)
        check_key(self.key, edge.key_bytes_max)
        if edge.routing.read_at(self.version, self, self.received, deadline):
            self.permitted()

    def read(self) -> None:
        """Look the key up at the version."""
        state = self.connection.edge.state
        check_family_exists(state.family_exists_at(self.family, self.version), self.family, self.version)
        value = state.read_at(self.family, self.key, self.version)
        fields = {"value": b"", "found": False} if value is None else {"value": value, "found": True}
        self.finish(encode_reply(self.method.name, self.seqid, fields))


def check_family_exists(exists: bool, family: bytes, version: Index) -> None:  # noqa: FBT001 - a plain fact
    """Refuse a snapshot read of a family that did not exist at its version."""
    if not exists:
        text = f"column family {family.decode()!r} does not exist at version {version}"
        refuse(ErrorCode.INVALID_ARGUMENT, text)


class SetReadVersionCall(ReadCall):
    """setReadVersion: whether a version is readable here; nothing is remembered."""

    __slots__ = ()

    def start(self) -> None:
        """Judge and ask routing."""
        fields = must_have(cast("Fields | None", self.fields), ("version",))
        edge = self.connection.edge
        version = optional_int(fields["version"]) or 0
        deadline = bounded(self.received, edge.timeout_s, optional_int(fields["deadline_ms"]))
        check_version(version, "version")
        if edge.routing.read_at(version, self, self.received, deadline):
            self.permitted()

    def read(self) -> None:
        """It is readable."""
        self.finish(encode_reply(self.method.name, self.seqid, {"success": True}))
