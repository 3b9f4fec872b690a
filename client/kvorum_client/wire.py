"""
The one facade over the untyped Thrift library: structs out of the IDL, calls to bytes, bytes to replies.

`MessageScanner` finds where a message ends before anything is decoded, because the compiled reader neither notices
that bytes are missing nor that a length is absurd.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from thriftpy2.protocol.cybin import TCyBinaryProtocol  # type: ignore[attr-defined]
from thriftpy2.thrift import TApplicationException, TMessageType
from thriftpy2.transport.memory import TCyMemoryBuffer  # type: ignore[attr-defined]

import kvorum_idl
from kvorum_client.errors import ProtocolViolationError

MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Largest reply accepted: far above what any server limit allows, so that a broken length cannot eat the memory."""

_NESTING_MAX: Final = 64
_ENCODER_BYTES: Final = 4096
_ENCODER_BYTES_KEPT: Final = 1024 * 1024

_STRUCT: Final = 12
_SET: Final = 14
_LIST: Final = 15
_STRING: Final = 11
_FIXED: Final = {2: 1, 3: 1, 4: 8, 6: 2, 8: 4, 10: 8}
_IN_STRUCT: Final = -1
_VERSION: Final = 0x8001
_u32: Final = struct.Struct(">I").unpack_from
_HEADER_BYTES: Final = 8
_SEQUENCE_BYTES: Final = 4


def new_struct(name: str, **fields: object) -> Any:
    """Build a struct of the IDL; fields that are None stay absent."""
    return getattr(kvorum_idl, name)(**fields)


class Method:
    """One method of the service: its name on the wire and its structs."""

    __slots__ = ("_arguments", "_request", "_result", "name")

    def __init__(self, name: str, stem: str) -> None:
        service = kvorum_idl.TransactionalKV
        self.name = name
        self._request: Any = getattr(kvorum_idl, stem + "Request")
        self._arguments: Any = getattr(service, name + "_args")
        self._result: Any = getattr(service, name + "_result")

    def request(self, fields: dict[str, object]) -> Any:
        """Build the request struct."""
        return self._request(**fields)

    def encode(self, request: object, sequence: int) -> bytes:
        """Bytes of one call."""
        return _encoder.encode(self.name, TMessageType.CALL, sequence, self._arguments(request=request))

    def decode(self, message: bytes, sequence: int) -> Any:
        """
        Read a whole reply.

        Raises:
            ProtocolViolationError: Not the reply to this call, or the method is unknown to the server.
        """
        protocol = TCyBinaryProtocol(TCyMemoryBuffer(message, max(64, len(message))))
        name, kind, answered = protocol.read_message_begin()
        if answered != sequence or name != self.name:
            text = f"expected the reply to {self.name} number {sequence}, got {name!r} number {answered}"
            raise ProtocolViolationError(text)
        if kind == TMessageType.EXCEPTION:
            problem = TApplicationException()
            protocol.read_struct(problem)
            text = f"the server cannot do {self.name}: {problem.message or 'unknown application error'}"
            raise ProtocolViolationError(text)
        if kind != TMessageType.REPLY:
            text = f"expected a reply, got message type {kind}"
            raise ProtocolViolationError(text)
        result = self._result()
        protocol.read_struct(result)
        if result.success is None:
            text = f"the reply to {self.name} is empty"
            raise ProtocolViolationError(text)
        return result.success


class _Encoder:
    """One reused output buffer: growing a fresh one costs more than the call itself."""

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._buffer = TCyMemoryBuffer(b"", _ENCODER_BYTES)
        self._protocol = TCyBinaryProtocol(self._buffer)

    def encode(self, name: str, kind: int, sequence: int, body: object) -> bytes:
        """Bytes of one message; nothing is left in the buffer, also after a failure."""
        self._protocol.write_message_begin(name, kind, sequence)
        try:
            self._protocol.write_struct(body)
            message: bytes = self._buffer.getvalue()
        finally:
            self._buffer.clean()
        if len(message) > _ENCODER_BYTES_KEPT:
            self._renew()
        return message


_encoder: Final = _Encoder()


class MessageScanner:
    """
    Walks one message in a growing buffer and remembers where it stands, so that each byte is looked at once.

    Offsets count from the first byte of the message.
    """

    __slots__ = ("_position", "_stack")

    def __init__(self) -> None:
        self._position = 0
        self._stack: list[list[int]] = []

    def find_end(self, data: bytes | bytearray, start: int) -> int:
        """
        Offset behind the message that begins at ``data[start]``, or 0 while bytes are missing.

        After an offset was returned the scanner is ready for the next message.

        Raises:
            ProtocolViolationError: These bytes are no message.
        """
        if not self._position and not self._read_header(data, start):
            return 0
        end = self._walk(data, start)
        if end:
            self._position = 0
            self._stack.clear()
        return end

    def _read_header(self, data: bytes | bytearray, start: int) -> bool:
        available = len(data) - start
        if available >= 2 and (data[start] << 8 | data[start + 1]) != _VERSION:
            text = "the peer does not speak the strict Thrift binary protocol; is it a kvorum client port?"
            raise ProtocolViolationError(text)
        if available < _HEADER_BYTES:
            return False
        (name_bytes,) = _u32(data, start + 4)
        if name_bytes > 256:
            text = f"a method name of {name_bytes} bytes is no kvorum reply"
            raise ProtocolViolationError(text)
        header = _HEADER_BYTES + name_bytes + _SEQUENCE_BYTES
        if available < header:
            return False
        self._position = header
        self._stack.append([_IN_STRUCT, 0])
        return True

    def _walk(self, data: bytes | bytearray, start: int) -> int:
        stack = self._stack
        at = start + self._position
        size = len(data)
        while stack:
            top = stack[-1]
            if top[0] == _IN_STRUCT:
                if at >= size:
                    break
                kind = data[at]
                if kind == _STRING and at + 7 <= size:
                    # Nearly every field of a long reply; the general way below costs twice as much.
                    (length,) = _u32(data, at + 3)
                    if at + 7 + length <= size:
                        at += 7 + length
                        continue
                elif not kind:
                    at += 1
                    stack.pop()
                    continue
                after = self._skip_value(kind, data, at + 3, size)
                if not after:
                    break
                at = after
            elif top[1]:
                after = self._skip_value(top[0], data, at, size)
                if not after:
                    break
                at = after
                top[1] -= 1
            else:
                stack.pop()
        self._position = at - start
        if self._position > MESSAGE_BYTES_MAX:
            self._refuse(self._position)
        return 0 if stack else at

    def _skip_value(self, kind: int, data: bytes | bytearray, at: int, size: int) -> int:
        """Offset behind a value, or behind the head of a container that is now on the stack; 0 if bytes are missing."""
        if kind == _STRING:
            if at + 4 > size:
                return 0
            (length,) = _u32(data, at)
            if length > MESSAGE_BYTES_MAX:
                self._refuse(length)
            end: int = at + 4 + length
            return end if end <= size else 0
        fixed = _FIXED.get(kind)
        if fixed is not None:
            return at + fixed if at + fixed <= size else 0
        if len(self._stack) >= _NESTING_MAX:
            text = "the reply is nested too deeply"
            raise ProtocolViolationError(text)
        if kind == _STRUCT:
            if at > size:
                return 0
            self._stack.append([_IN_STRUCT, 0])
            return at
        if kind in (_LIST, _SET):
            if at + 5 > size:
                return 0
            element = data[at]
            (count,) = _u32(data, at + 1)
            if count > MESSAGE_BYTES_MAX:
                self._refuse(count)
            self._stack.append([element, count])
            return at + 5
        text = f"the reply holds a value of type {kind}, which the contract does not use"
        raise ProtocolViolationError(text)

    @staticmethod
    def _refuse(length: int) -> None:
        text = f"the reply claims {length} bytes or elements; the limit is {MESSAGE_BYTES_MAX}"
        raise ProtocolViolationError(text)
