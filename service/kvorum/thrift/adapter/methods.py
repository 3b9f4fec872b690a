"""The table of all methods: which class carries a call, and how its fields come out of the general decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from kvorum.thrift.adapter.commits import CommitCall
from kvorum.thrift.adapter.local import (
    ClusterHealthCall,
    CommittedVersionCall,
    DatabaseStatsCall,
    FaultCall,
    NodeInfoCall,
    PingCall,
    ReadConflictCall,
    ReadConflictRangeCall,
    StatusCall,
)
from kvorum.thrift.adapter.points import GetCall, ReadVersionCall, SetReadVersionCall, SnapshotGetCall
from kvorum.thrift.adapter.ranges import RangeCall, SnapshotRangeCall
from kvorum.thrift.adapter.writes import DeleteCall, SetCall, StampedKeyCall, StampedValueCall
from kvorum.thrift.protocol.codec import (
    METHODS,
    Fields,
    delete_fields,
    field_names,
    get_fields,
    list_rules,
    set_fields,
    version_fields,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvorum.thrift.adapter.call import Call
    from kvorum.thrift.protocol.scanner import ListRules
    from kvorum.thrift.settings import ThriftSettings

CallType: TypeAlias = "type[Call]"

CALL_TYPES: Final[dict[str, CallType]] = {
    "getReadVersion": ReadVersionCall,
    "snapshotRead": SnapshotGetCall,
    "atomicCommit": CommitCall,
    "get": GetCall,
    "setKey": SetCall,
    "deleteKey": DeleteCall,
    "getRange": RangeCall,
    "snapshotGet": SnapshotGetCall,
    "snapshotGetRange": SnapshotRangeCall,
    "addReadConflict": ReadConflictCall,
    "addReadConflictRange": ReadConflictRangeCall,
    "setReadVersion": SetReadVersionCall,
    "getCommittedVersion": CommittedVersionCall,
    "setVersionstampedKey": StampedKeyCall,
    "setVersionstampedValue": StampedValueCall,
    "setFaultInjection": FaultCall,
    "ping": PingCall,
    "getClusterHealth": ClusterHealthCall,
    "getDatabaseStats": DatabaseStatsCall,
    "getNodeInfo": NodeInfoCall,
    "getStatus": StatusCall,
}
assert set(CALL_TYPES) == set(METHODS), "the IDL and the table of methods differ"

_TUPLES: Final[dict[str, Callable[[Fields], object]]] = {
    "get": get_fields,
    "setKey": set_fields,
    "deleteKey": delete_fields,
    "getReadVersion": version_fields,
}


def shaped(method: str, fields: Fields) -> object:
    """Give the fields the shape their call expects; the hot methods take tuples."""
    shape = _TUPLES.get(method)
    return fields if shape is None else shape(fields)


def list_rules_by_name(settings: ThriftSettings) -> dict[bytes, ListRules]:
    """Limits of the lists in requests, by method name as on the wire."""
    rules = list_rules("atomicCommit", settings.conflict_items_max)
    for field_id, name in field_names("atomicCommit").items():
        if name == "operations":
            rules[field_id] = rules[field_id]._replace(count_max=settings.transaction_operations_max)
    return {b"atomicCommit": rules}
