"""Methods a node answers alone and at once: ping, diagnostics, status, faults, and those kept for compatibility."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, cast

from kvorum import __version__
from kvorum.core.errors import ErrorCode
from kvorum.thrift import diagnostics
from kvorum.thrift.adapter.call import Call
from kvorum.thrift.adapter.validation import checked_family, must_have, refuse
from kvorum.thrift.protocol.codec import Fields, encode_reply, optional_bytes, optional_int, payload, raw_name

if TYPE_CHECKING:
    from collections.abc import Mapping


class LocalCall(Call):
    """A request answered from this node alone."""

    __slots__ = ()
    required: tuple[str, ...] = ()

    def start(self) -> None:
        """Judge and answer."""
        fields = must_have(cast("Fields | None", self.fields), self.required)
        self.finish(encode_reply(self.method.name, self.seqid, self.answer(fields)))

    @abstractmethod
    def answer(self, fields: Mapping[str, object]) -> Mapping[str, object]:
        """Make the fields of the reply."""


class PingCall(LocalCall):
    """ping: echo, and the server's wall clock in microseconds. An absent request is an empty one."""

    __slots__ = ()

    def start(self) -> None:
        """Answer."""
        fields = cast("Fields | None", self.fields) or {"message": None, "timestamp": None}
        self.finish(encode_reply(self.method.name, self.seqid, self.answer(fields)))

    def answer(self, fields: Mapping[str, object]) -> Mapping[str, object]:
        """Echo."""
        message = optional_bytes(fields["message"])
        return {
            "message": b"pong" if message is None else message,
            "timestamp": optional_int(fields["timestamp"]) or 0,
            "server_timestamp": int(self.connection.edge.wall() * 1_000_000),
        }


class CommittedVersionCall(LocalCall):
    """getCommittedVersion: version of the last client commit applied here."""

    __slots__ = ()

    def answer(self, fields: Mapping[str, object]) -> Mapping[str, object]:  # noqa: ARG002 - an empty request
        """Take it from the applied state."""
        return {"version": self.connection.edge.state.last_commit_version, "success": True}


class ReadConflictCall(LocalCall):
    """addReadConflict: kept for compatibility only."""

    __slots__ = ()
    required: tuple[str, ...] = ("key",)

    def answer(self, fields: Mapping[str, object]) -> Mapping[str, object]:
        """Refuse, once well-formed."""
        checked_family(raw_name(fields["column_family"]))
        refuse(
            ErrorCode.UNSUPPORTED,
            f"{self.method.name} is not supported: a connection carries many transactions. "
            "Pass conflict keys and ranges with atomicCommit",
        )


class ReadConflictRangeCall(ReadConflictCall):
    """addReadConflictRange: likewise."""

    __slots__ = ()
    required = ("start_key", "end_key")


class FaultCall(LocalCall):
    """setFaultInjection, for tests of clients."""

    __slots__ = ()
    required = ("fault_type",)

    def start(self) -> None:
        """Replace the setting of this node or say why not."""
        fields = must_have(cast("Fields | None", self.fields), self.required)
        probability = fields["probability"]
        refusal = self.connection.edge.faults.configure(
            raw_name(fields["fault_type"]).decode(errors="replace"),
            probability if isinstance(probability, float) else 0.0,
            optional_int(fields["duration_ms"]) or 0,
            raw_name(fields["target_operation"]).decode(errors="replace"),
        )
        if refusal is None:
            self.finish(encode_reply(self.method.name, self.seqid, self.answer(fields)))
        else:
            self.fail(refusal)

    def answer(self, fields: Mapping[str, object]) -> Mapping[str, object]:  # noqa: ARG002 - nothing to say
        """Say that it is set."""
        return {"success": True}


class ClusterHealthCall(LocalCall):
    """getClusterHealth: one row per configured member."""

    __slots__ = ()

    def answer(self, fields: Mapping[str, object]) -> Mapping[str, object]:  # noqa: ARG002 - the token is ignored
        """Ask routing."""
        edge = self.connection.edge
        health = diagnostics.cluster_health(edge.routing.report(), edge.wall())
        return {"success": True, "cluster_health": payload("ClusterHealth", health)}


class DatabaseStatsCall(LocalCall):
    """getDatabaseStats: counters of this node since its start, and the engine's estimates."""

    __slots__ = ()

    def answer(self, fields: Mapping[str, object]) -> Mapping[str, object]:
        """Ask the engine and the counters."""
        edge = self.connection.edge
        detailed = fields["include_detailed_stats"] is True
        stats = diagnostics.database_stats(edge.methods, edge.engine_statistics(), edge.recent, detailed=detailed)
        return {"success": True, "database_stats": payload("DatabaseStats", stats)}


class NodeInfoCall(LocalCall):
    """getNodeInfo: the row of one member; absent id means the node asked."""

    __slots__ = ()

    def answer(self, fields: Mapping[str, object]) -> Mapping[str, object]:
        """Ask routing."""
        edge = self.connection.edge
        report = edge.routing.report()
        wanted = optional_int(fields["node_id"])
        node_id = report.node_id if wanted is None else wanted
        member = next((m for m in report.members if m.node_id == node_id), None)
        if member is None:
            known = ", ".join(str(m.node_id) for m in report.members)
            refuse(ErrorCode.INVALID_ARGUMENT, f"no node {node_id} in the configuration; known: {known}")
        status = diagnostics.node_status(report, member, edge.wall())
        return {"success": True, "node_info": payload("NodeStatus", status)}


class StatusCall(LocalCall):
    """getStatus: the answering node about itself."""

    __slots__ = ()

    def answer(self, fields: Mapping[str, object]) -> Mapping[str, object]:  # noqa: ARG002 - the token is ignored
        """Ask routing."""
        status = diagnostics.status(self.connection.edge.routing.report())
        return {"success": True, "server_version": __version__, **status}
