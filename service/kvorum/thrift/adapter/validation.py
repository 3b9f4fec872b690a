"""
The checks that need nothing but the request (contract section 3.1, steps 1 and 4 to 7).

Texts name the cause and the next step and hold no key contents. Refusing raises; requests in order pay nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from kvorum.core.errors import ErrorCode, KvorumError, Refusal
from kvorum.core.limits import FAMILY_BYTES_MAX
from kvorum.core.operations import CONSISTENCY_ALIASES, DEFAULT_FAMILY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvorum.thrift.protocol.fast import Identity

STAMP_BYTES: Final = 10
CLIENT_ID_BYTES: Final = 16
_DEFAULT_NAME: Final = b"default"


class RequestRefusedError(KvorumError):
    """The request is refused before anything was done."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.refusal = Refusal(code, text)


def refuse(code: str, text: str) -> NoReturn:
    """Refuse the request."""
    raise RequestRefusedError(code, text)


def refuse_missing(path: str) -> NoReturn:
    """Refuse a request whose required field is absent or has another type."""
    refuse(ErrorCode.BAD_REQUEST, f"required field {path} is missing or has another type than the contract says")


def must_have(fields: Mapping[str, object] | None, names: Iterable[str], path: str = "") -> Mapping[str, object]:
    """Refuse a request without its required fields."""
    if fields is None:
        refuse_missing("request")
    for name in names:
        if fields[name] is None:
            refuse_missing(path + name)
    return fields


def checked_family(raw: bytes) -> bytes:
    """Give the family a name stands for; `default` and the empty name are the default family."""
    if not raw or raw == _DEFAULT_NAME:
        return DEFAULT_FAMILY
    if len(raw) > FAMILY_BYTES_MAX:
        refuse(ErrorCode.INVALID_ARGUMENT, f"column_family has {len(raw)} bytes, more than {FAMILY_BYTES_MAX}")
    try:
        raw.decode()
    except UnicodeDecodeError:
        refuse(ErrorCode.INVALID_ARGUMENT, "column_family is not UTF-8")
    return raw


def checked_level(raw: bytes) -> str:
    """Give the consistency level a non-empty name stands for."""
    level = CONSISTENCY_ALIASES.get(raw.decode(errors="replace").lower())
    if level is None:
        allowed = ", ".join(sorted(CONSISTENCY_ALIASES))
        refuse(ErrorCode.INVALID_ARGUMENT, f"unknown consistency level; allowed: {allowed}")
    return level


def bounded(received: float, timeout_s: float, deadline_ms: int | None) -> float:
    """Give the moment by which a request must be answered."""
    if deadline_ms is None:
        return received + timeout_s
    if deadline_ms <= 0:
        refuse(ErrorCode.INVALID_ARGUMENT, f"deadline_ms is {deadline_ms}; it must be positive, or absent")
    return received + min(timeout_s, deadline_ms / 1000)


def checked_identity(identity: Identity) -> tuple[bytes, int]:
    """Refuse half an idempotency pair or one out of shape."""
    client_id, request_id = identity
    if client_id is None or request_id is None:
        refuse(ErrorCode.INVALID_ARGUMENT, "client_id and request_id must be given together, or neither")
    if len(client_id) != CLIENT_ID_BYTES:
        text = f"client_id has {len(client_id)} bytes; it must have exactly {CLIENT_ID_BYTES}"
        refuse(ErrorCode.INVALID_ARGUMENT, text)
    if request_id < 0:
        refuse(ErrorCode.INVALID_ARGUMENT, "request_id is negative; it must be 0 or more")
    return client_id, request_id


def check_version(version: int, name: str = "read_version") -> None:
    """Refuse a negative version."""
    if version < 0:
        refuse(ErrorCode.INVALID_ARGUMENT, f"{name} is negative; take one from getReadVersion")


def check_key(key: bytes, bytes_max: int, path: str = "key") -> None:
    """Refuse an empty or overlong key."""
    if not key:
        refuse(ErrorCode.INVALID_KEY, f"{path}: key cannot be empty")
    if len(key) > bytes_max:
        refuse(ErrorCode.INVALID_KEY, f"{path}: key has {len(key)} bytes; at most {bytes_max} are allowed")


def check_value(value: bytes, bytes_max: int, path: str = "value") -> None:
    """Refuse a value that is too large."""
    if len(value) > bytes_max:
        refuse(ErrorCode.TOO_LARGE, f"{path}: value has {len(value)} bytes; at most {bytes_max} are allowed; split it")


def check_stamp(buffer: bytes, path: str) -> None:
    """Refuse a buffer that has no room for a versionstamp."""
    if len(buffer) < STAMP_BYTES:
        text = f"{path} has {len(buffer)} bytes; it needs at least {STAMP_BYTES} bytes, the last of which are stamped"
        refuse(ErrorCode.INVALID_OPERATION, text)
