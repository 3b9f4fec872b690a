"""
Finds where a Thrift message ends, in any number of fragments, and refuses bytes that must not reach a decoder.

thriftpy2 allocates what a length says before the bytes are there, skips unknown wire types as nothing, reads a negative
size as empty and a list of the wrong element type as an empty list. So every length, type and depth is judged here,
once, in a walk that never looks at a byte twice: a client may send every primitive in its own TCP segment.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

CALL: Final = 1
DEPTH_MAX: Final = 64
"""Nesting allowed, the argument struct included; thriftpy2 stops at the same depth."""
NAME_BYTES_MAX: Final = 256

BOOL: Final = 2
BYTE: Final = 3
DOUBLE: Final = 4
I16: Final = 6
I32: Final = 8
I64: Final = 10
STRING: Final = 11
STRUCT: Final = 12
MAP: Final = 13
SET: Final = 14
LIST: Final = 15

_VARIABLE: Final = 0
_NO_TYPE: Final = -1
_FIXED: Final = {BOOL: 1, BYTE: 1, DOUBLE: 8, I16: 2, I32: 4, I64: 8}
_WIDTH: Final = tuple(_FIXED.get(t, _VARIABLE if STRING <= t <= LIST else _NO_TYPE) for t in range(256))
"""Bytes of a value by wire type; 0 for those that say their own length, -1 for types that do not exist."""
_LEAST: Final = tuple({STRING: 4, STRUCT: 1, MAP: 6, SET: 5, LIST: 5}.get(t, width) for t, width in enumerate(_WIDTH))
"""Fewest bytes one element of this type takes, to judge an element count before anything is read."""

_IN_STRUCT: Final = 0
_NONE: Final = -1
_ZERO_RUN: Final = 65_536
_i32: Final = struct.Struct(">i").unpack_from


class Malformed:
    """Reasons for closing a connection; label values of the metric (contract section 1.2)."""

    START: Final = "bad_start"
    MESSAGE_TYPE: Final = "message_type"
    NAME: Final = "method_name"
    LENGTH: Final = "length"
    WIRE_TYPE: Final = "wire_type"
    NESTING: Final = "nesting"
    CUT_SHORT: Final = "cut_short"


MALFORMED_REASONS: Final = (
    Malformed.START,
    Malformed.MESSAGE_TYPE,
    Malformed.NAME,
    Malformed.LENGTH,
    Malformed.WIRE_TYPE,
    Malformed.NESTING,
    Malformed.CUT_SHORT,
)


class MalformedError(Exception):
    """The bytes are no message of this protocol; the connection cannot be kept in step."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ListRule(NamedTuple):
    """What a list field of a request must look like."""

    element: int
    count_max: int


ListRules = dict[int, ListRule]
"""By field id of the request struct."""


class Progress:
    """What `Scanner.scan` says."""

    DONE: Final = 0
    """The message is complete; see `Scanner.end`."""
    STARVED: Final = 1
    """More bytes are needed."""
    TIRED: Final = 2
    """The step budget is spent; go on later with the same bytes."""


class Scanner:
    """
    One walk over one message; `reset` before the next.

    Positions are relative to the start of the message, so the bytes may move between calls as long as none is lost.
    After DONE: ``name``, ``seqid``, ``body`` (where the argument struct begins), ``end``; ``cuts`` are the byte ranges
    a decoder must not see (lists of a wrong element type or with too many elements), ``oversized`` the field ids of
    the latter.
    """

    __slots__ = (
        "_bytes_max",
        "_cut_from",
        "_field",
        "_frame",
        "_judging",
        "_left",
        "_name_end",
        "_need",
        "_pending",
        "_position",
        "_rules",
        "_rules_by_name",
        "_stack",
        "body",
        "cuts",
        "end",
        "name",
        "oversized",
        "seqid",
    )

    def __init__(self, bytes_max: int, rules_by_name: dict[bytes, ListRules]) -> None:
        self._bytes_max = bytes_max
        self._rules_by_name = rules_by_name
        self.reset()

    def reset(self) -> None:
        """Forget the message walked last."""
        self._need = 1
        self._position = 0
        self._name_end = 0
        self._stack: list[tuple[int, int]] = []
        self._frame = _IN_STRUCT
        self._left = 0
        self._pending = 0
        self._field = 0
        self._cut_from = _NONE
        self._judging = False
        self._rules: ListRules = {}
        self.name = b""
        self.seqid = b""
        self.body = 0
        self.end = 0
        self.cuts: list[tuple[int, int]] = []
        self.oversized: set[int] = set()

    @property
    def need(self) -> int:
        """Bytes of the message that must be there before another `scan` can get further."""
        return self._need

    def scan(self, data: bytes | bytearray, base: int, steps: int) -> int:
        """
        Walk on over the message that begins at ``data[base]``.

        Args:
            data: Everything received of the message so far, and possibly more behind it.
            base: Where the message begins.
            steps: How many values to look at before giving others a turn.

        Returns:
            One of `Progress`.

        Raises:
            MalformedError: Close the connection; the reason is a label of the metric.
        """
        if len(data) - base < self._need:
            return Progress.STARVED
        if not self.body and not self._header(data, base):
            return Progress.STARVED
        return self._walk(data, base, steps)

    def _header(self, data: bytes | bytearray, base: int) -> bool:
        """Judge version, type and name as soon as each is there; True when the walk may begin."""
        size = len(data) - base
        if data[base] != 0x80 or (size > 1 and data[base + 1] != 0x01):
            raise MalformedError(Malformed.START)
        if size >= 4 and data[base + 3] != CALL:
            raise MalformedError(Malformed.MESSAGE_TYPE)
        if size < 8:
            self._need = size + 1
            return False
        (name_bytes,) = _i32(data, base + 4)
        if not 0 <= name_bytes <= NAME_BYTES_MAX:
            raise MalformedError(Malformed.NAME)
        name_end = 8 + name_bytes
        if size < name_end + 4:
            self._need = name_end + 4
            return False
        self.name = bytes(data[base + 8 : base + name_end])
        try:
            self.name.decode()
        except UnicodeDecodeError:
            raise MalformedError(Malformed.NAME) from None
        self.seqid = bytes(data[base + name_end : base + name_end + 4])
        self._rules = self._rules_by_name.get(self.name, {})
        self.body = self._position = name_end + 4
        self._need = self.body + 1
        return True

    def _walk(self, data: bytes | bytearray, base: int, steps: int) -> int:
        """Walk values until the argument struct ends; the state lives in local variables, for speed."""
        size = len(data) - base
        position, frame, left, pending = self._position, self._frame, self._left, self._pending
        stack = self._stack
        need = 0
        while steps:
            steps -= 1
            # What comes next: a value whose head did not fit last time, a field, the end of a container, an element.
            if pending:
                kind, pending = pending, 0
            elif frame == _IN_STRUCT:
                kind = data[base + position] if position < size else 0
                if position + (3 if kind else 1) > size:
                    need = position + 1 + (2 if kind else 0)
                    break
                if kind == 0:
                    position += 1
                    if stack:
                        frame, left = stack.pop()
                        continue
                    self.end = position
                    break
                self._field = data[base + position + 1] << 8 | data[base + position + 2]
                position += 3
            elif left == 0:
                frame, left = stack.pop()
                if self._cut_from >= 0 and len(stack) == 1:
                    self._cut(position)
                continue
            else:
                kind = frame if frame <= LIST else (frame & 0xFF if left & 1 else frame >> 8)
                left -= 1
            # The value itself; its length is believed, for the next thing read must lie behind it.
            width = _WIDTH[kind]
            if width > 0:
                position += width
            elif kind == STRING:
                if position + 4 > size:
                    pending, need = kind, position + 4
                    break
                (length,) = _i32(data, base + position)
                position += 4 + length
                if length < 0:
                    raise MalformedError(Malformed.LENGTH)
            else:
                self._position, self._frame, self._left = position, frame, left
                need = self._open(kind, data, base)
                position, frame, left = self._position, self._frame, self._left
                if need:
                    pending = kind
                    break
        if position > self._bytes_max or need > self._bytes_max:
            raise MalformedError(Malformed.LENGTH)
        if self.end:
            return Progress.DONE
        self._position, self._frame, self._left, self._pending = position, frame, left, pending
        self._need = need
        return Progress.STARVED if need else Progress.TIRED

    def _open(self, kind: int, data: bytes | bytearray, base: int) -> int:
        """Enter a struct or container; gives the bytes needed if its head is not complete, else 0."""
        if _WIDTH[kind] < 0:
            raise MalformedError(Malformed.WIRE_TYPE)
        stack = self._stack
        if len(stack) + 2 > DEPTH_MAX:
            raise MalformedError(Malformed.NESTING)
        if kind == STRUCT:
            if not stack:
                self._judging = self._field == 1
                self.oversized.clear()
            elif self._frame == STRUCT:
                self._skip_empty_structs(data, base)
            stack.append((self._frame, self._left))
            self._frame = _IN_STRUCT
            return 0
        head = 6 if kind == MAP else 5
        start = self._position
        if start + head > len(data) - base:
            return start + head
        first = data[base + start]
        last = data[base + start + head - 5]
        (count,) = _i32(data, base + start + head - 4)
        if _WIDTH[first] < 0 or _WIDTH[last] < 0:
            raise MalformedError(Malformed.WIRE_TYPE)
        least = _LEAST[first] + _LEAST[last] if kind == MAP else _LEAST[last]
        if count < 0 or start + head + count * least > self._bytes_max:
            raise MalformedError(Malformed.LENGTH)
        if kind == LIST and self._judging and len(stack) == 1 and self._frame == _IN_STRUCT:
            self._judge_list(start - 3, last, count)
        self._position = start + head
        if _WIDTH[first] and _WIDTH[last]:
            # Elements of fixed width are passed at once, nothing is entered.
            self._position += count * least
            if self._cut_from >= 0 and len(stack) == 1:
                self._cut(self._position)
            return 0
        stack.append((self._frame, self._left))
        self._frame = first << 8 | last if kind == MAP else last
        self._left = count * 2 if kind == MAP else count
        return 0

    def _skip_empty_structs(self, data: bytes | bytearray, base: int) -> None:
        """
        Pass a run of empty structs, but for one, at once.

        They are zero bytes, and 16 MiB of them must not take 16 million steps.
        """
        start = base + self._position
        run = data[start : start + min(self._left, _ZERO_RUN)]
        zeros = len(run) - len(run.lstrip(b"\0"))
        self._position += zeros
        self._left -= zeros

    def _judge_list(self, start: int, element: int, count: int) -> None:
        """Note a list of the request struct that no decoder must see."""
        rule = self._rules.get(self._field)
        if rule is None:
            return
        if element != rule.element:
            self._cut_from = start
        elif count > rule.count_max:
            self.oversized.add(self._field)
            self._cut_from = start

    def _cut(self, end: int) -> None:
        """End the range that began with the list field's header."""
        self.cuts.append((self._cut_from, end))
        self._cut_from = _NONE
