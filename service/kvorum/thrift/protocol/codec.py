"""
The only place that touches thriftpy2: fields of requests as plain dictionaries, replies from plain dictionaries.

thriftpy2's structs are untyped; here they become ``dict[str, object]``, and whoever uses a field narrows it. Decoding
expects a message that `scanner` has passed.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from thriftpy2 import protocol
from thriftpy2.thrift import TApplicationException
from thriftpy2.transport import TCyMemoryBuffer

import kvorum_idl
from kvorum.core.errors import LocalError
from kvorum.thrift.protocol.scanner import LIST, STRING, ListRule, ListRules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from kvorum.thrift.protocol.fast import DeleteFields, GetFields, Identity, SetFields, VersionFields

Fields: TypeAlias = dict[str, object]

OVERSIZED: Final = object()
"""Stands in a request for a list with too many elements, which was never made."""

_REPLY: Final = b"\x80\x01\x00\x02"
_EXCEPTION: Final = b"\x80\x01\x00\x03"
_u32: Final = struct.Struct(">I").pack
_BINARY: Final = 18
"""thriftpy2's own number for ``binary``; on the wire it is STRING."""

_binary_protocol: Final[Callable[[object], Any]] = protocol.TCyBinaryProtocol
"""The compiled reader and writer; a build of thriftpy2 without it must not start."""
_service: Final = kvorum_idl.load().TransactionalKV
METHODS: Final[tuple[str, ...]] = tuple(_service.thrift_services)
"""Every method the IDL declares."""
_ARGUMENTS: Final[dict[str, Any]] = {name: getattr(_service, f"{name}_args") for name in METHODS}
_RESULTS: Final[dict[str, Any]] = {name: getattr(_service, f"{name}_result") for name in METHODS}
_REQUESTS: Final[dict[str, Any]] = {name: _ARGUMENTS[name].thrift_spec[1][2] for name in METHODS}
_RESPONSES: Final[dict[str, Any]] = {name: _RESULTS[name].thrift_spec[0][2] for name in METHODS}


def _wire_type(kind: int) -> int:
    return STRING if kind == _BINARY else kind


def list_rules(method: str, count_max: int) -> ListRules:
    """What the scanner must know of a method's list fields, each with the same limit."""
    rules: ListRules = {}
    for field_id, spec in _REQUESTS[method].thrift_spec.items():
        if spec[0] == LIST:
            element = spec[2] if isinstance(spec[2], int) else spec[2][0]
            rules[field_id] = ListRule(_wire_type(element), count_max)
    return rules


def field_names(method: str) -> dict[int, str]:
    """Names of a method's request fields by id."""
    return {field_id: spec[1] for field_id, spec in _REQUESTS[method].thrift_spec.items()}


def required_fields(method: str) -> tuple[str, ...]:
    """Names of the request fields that must be there, in order of their ids."""
    return tuple(spec[1] for spec in _REQUESTS[method].thrift_spec.values() if spec[-1])


def required_fields_of(struct_name: str) -> tuple[str, ...]:
    """The same for a payload struct."""
    spec = getattr(kvorum_idl.load(), struct_name).thrift_spec
    return tuple(field[1] for field in spec.values() if field[-1])


def response_fields(method: str) -> frozenset[str]:
    """Names a reply of this method may carry."""
    return frozenset(spec[1] for spec in _RESPONSES[method].thrift_spec.values())


def decode_request(
    method: str, data: bytes, body: int, end: int, cuts: Iterable[tuple[int, int]] = ()
) -> Fields | None:
    """
    Decode the arguments of a call.

    Args:
        method: One of `METHODS`.
        data: Bytes that hold the message.
        body: Where the argument struct begins.
        end: Where the message ends.
        cuts: Ranges to leave out, ascending, in the same offsets.

    Returns:
        Field name to value, None where absent; structs in lists are dictionaries too. None if the request is absent.
    """
    parts = []
    for start, stop in cuts:
        parts.append(data[body:start])
        body = stop
    parts.append(data[body:end])
    arguments = _ARGUMENTS[method]()
    _binary_protocol(TCyMemoryBuffer(b"".join(parts))).read_struct(arguments)
    request = arguments.request
    return None if request is None else _plain(request)


def _plain(value: object) -> Fields:
    """Turn a request and the structs in its lists into dictionaries."""
    fields: Fields = vars(value)
    for name, item in fields.items():
        if isinstance(item, list) and item and hasattr(item[0], "thrift_spec"):
            fields[name] = [vars(element) for element in item]
    return fields


def encode_reply(method: str, seqid: bytes, fields: Mapping[str, object]) -> bytes:
    """
    Encode a reply; nested structs are given as `payload` values.

    Raises:
        LocalError: A required field of the reply is missing, which thriftpy2 would leave out in silence.
    """
    response = _RESPONSES[method](**fields)
    for spec in response.thrift_spec.values():
        if spec[-1] and getattr(response, spec[1]) is None:
            msg = f"reply of {method} lacks its required field {spec[1]}"
            raise LocalError(msg)
    name = method.encode()
    return _REPLY + _u32(len(name)) + name + seqid + _body(_RESULTS[method](success=response))


def encode_unknown_method(name: bytes, seqid: bytes) -> bytes:
    """Encode the exception for a method this server does not have."""
    failure = TApplicationException(TApplicationException.UNKNOWN_METHOD, f"Unknown method {name.decode()}")
    return _EXCEPTION + _u32(len(name)) + name + seqid + _body(failure)


def _body(value: object) -> bytes:
    buffer = TCyMemoryBuffer()
    _binary_protocol(buffer).write_struct(value)
    encoded: bytes = buffer.getvalue()
    return encoded


def payload(struct_name: str, fields: Mapping[str, object]) -> object:
    """Build a nested struct of a reply, e.g. ``NodeStatus``."""
    made: object = getattr(kvorum_idl.load(), struct_name)(**fields)
    return made


def key_value_encoder() -> Callable[[bytes, bytes], object]:
    """Constructor of KeyValue, looked up once, for long lists."""
    made: Callable[[bytes, bytes], object] = kvorum_idl.load().KeyValue
    return made


# --- the hot methods in the shape `fast` gives them -------------------------------------------------------------------


def raw_name(value: object) -> bytes:
    """Give a ``string`` field as raw bytes; thriftpy2 hands out str, or bytes if they are not UTF-8. Absent: empty."""
    if value is None:
        return b""
    return value.encode() if isinstance(value, str) else bytes(value) if isinstance(value, bytes) else b""


def optional_bytes(value: object) -> bytes | None:
    """Narrow a ``binary`` field."""
    return value if isinstance(value, bytes) else None


def optional_int(value: object) -> int | None:
    """Narrow an integer field."""
    return value if isinstance(value, int) else None


def identity_of(fields: Fields) -> Identity | None:
    """``client_id`` and ``request_id`` if either was sent."""
    client_id, request_id = optional_bytes(fields["client_id"]), optional_int(fields["request_id"])
    return None if client_id is None and request_id is None else (client_id, request_id)


def get_fields(fields: Fields) -> GetFields:
    """Fields of get as a tuple."""
    return (
        optional_bytes(fields["key"]),
        raw_name(fields["column_family"]),
        optional_int(fields["deadline_ms"]),
        raw_name(fields["consistency"]),
    )


def set_fields(fields: Fields) -> SetFields:
    """Fields of setKey as a tuple."""
    return (
        optional_bytes(fields["key"]),
        optional_bytes(fields["value"]),
        raw_name(fields["column_family"]),
        optional_int(fields["deadline_ms"]),
        identity_of(fields),
    )


def delete_fields(fields: Fields) -> DeleteFields:
    """Fields of deleteKey as a tuple."""
    return (
        optional_bytes(fields["key"]),
        raw_name(fields["column_family"]),
        optional_int(fields["deadline_ms"]),
        identity_of(fields),
    )


def version_fields(fields: Fields) -> VersionFields:
    """Fields of getReadVersion as a tuple."""
    return optional_int(fields["deadline_ms"]), raw_name(fields["consistency"])
