"""Range reads: getRange and snapshotGetRange, scanned and encoded in slices so that others get their turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from kvorum.core.errors import ErrorCode, Refusal
from kvorum.statemachine.ranges import RangeQuery
from kvorum.thrift.adapter.call import DEFECT, ReadCall
from kvorum.thrift.adapter.points import LEVELS, check_family_exists
from kvorum.thrift.adapter.validation import bounded, check_version, checked_family, checked_level, must_have
from kvorum.thrift.faults import FaultTarget
from kvorum.thrift.protocol.codec import Fields, optional_bytes, optional_int, raw_name
from kvorum.thrift.protocol.replies import RANGE_TEMPLATES, encode_pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kvorum.core.ids import Index
    from kvorum.statemachine.ranges import RangeResult

ENCODE_PAIRS_MAX: Final = 4096
"""Pairs encoded in one turn of the loop: about two milliseconds."""

_LATE: Final = Refusal(ErrorCode.TIMEOUT, "the scan was not finished in time; ask for a smaller range")


class RangeCall(ReadCall):
    """getRange: pairs of a range at a consistency level."""

    __slots__ = ("chunks", "deadline", "query", "scan", "template", "version")

    def start(self) -> None:
        """Judge and ask routing."""
        fields = must_have(cast("Fields | None", self.fields), ())
        edge = self.connection.edge
        if edge.faults.armed and self.struck(FaultTarget.RANGE, optional_int(fields["deadline_ms"])):
            return
        self.version: Index | None = None
        self._judge(fields)
        consistency = raw_name(fields["consistency"])
        routing = edge.routing
        level = (LEVELS.get(consistency) or checked_level(consistency)) if consistency else routing.default_level
        if routing.read(level, self, self.received, self.deadline):
            self.permitted()

    def _judge(self, fields: Mapping[str, object]) -> None:
        edge = self.connection.edge
        self.deadline = bounded(self.received, edge.timeout_s, optional_int(fields["deadline_ms"]))
        self.query = RangeQuery(
            family=checked_family(raw_name(fields["column_family"])),
            begin=optional_bytes(fields["begin_key"]),
            begin_or_equal=fields["begin_or_equal"] is not False,
            end=optional_bytes(fields["end_key"]),
            end_or_equal=fields["end_or_equal"] is True,
            end_offset=optional_int(fields["end_offset"]) or 0,
            offset=optional_int(fields["begin_offset"]) or 0,
            limit=cast("int", fields["limit"]),
            reverse=fields["reverse"] is True,
            bytes_max=edge.settings.response_bytes_max,
        )
        self.fields = None
        self.template = RANGE_TEMPLATES[self.method.name]

    def read(self) -> None:
        """Scan in slices; the rest follows when others had their turn."""
        self.scan: Iterator[RangeResult | None] = self.connection.edge.state.scan(self.query, self.version)
        self._scan_on()

    def _scan_on(self) -> None:
        result = next(self.scan)
        if result is None:
            self._later(self._scan_on)
            return
        self.chunks = [self.template.head(self.seqid, len(result.pairs))]
        self._encode_on(result, 0)

    def _encode_on(self, result: RangeResult, done: int) -> None:
        pairs = result.pairs
        self.chunks.append(encode_pairs(pairs[done : done + ENCODE_PAIRS_MAX]))
        done += ENCODE_PAIRS_MAX
        if done < len(pairs):
            self._later(lambda: self._encode_on(result, done))
            return
        self.chunks.append(self.template.tail(result.next_key if result.has_more else None))
        self.finish(b"".join(self.chunks))

    def _later(self, step: Callable[[], None]) -> None:
        """Go on in another turn of the loop, unless it is too late or nobody waits any more."""
        edge = self.connection.edge
        if self.connection.closed:
            self.drop()
        elif edge.clock() >= self.deadline:
            self.fail(_LATE)
        else:
            edge.later(0.0, lambda: self._guarded(step))

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as defect:  # noqa: BLE001 - as in `begin`
            self.connection.edge.on_defect(self.method.name, defect)
            self.fail(DEFECT)


class SnapshotRangeCall(RangeCall):
    """snapshotGetRange: the same at a version the client names."""

    __slots__ = ()

    def start(self) -> None:
        """Judge and ask routing."""
        fields = must_have(cast("Fields | None", self.fields), ("read_version",))
        edge = self.connection.edge
        if edge.faults.armed and self.struck(FaultTarget.RANGE, optional_int(fields["deadline_ms"])):
            return
        version = optional_int(fields["read_version"]) or 0
        check_version(version)
        self.version = version
        self._judge(fields)
        if edge.routing.read_at(version, self, self.received, self.deadline):
            self.permitted()

    def read(self) -> None:
        """Check the family, then scan."""
        assert self.version is not None
        family = self.query.family
        check_family_exists(self.connection.edge.state.family_exists_at(family, self.version), family, self.version)
        super().read()
