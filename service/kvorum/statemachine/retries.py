"""What an identified write is known by, and what its repetition gets (contract section 5.4)."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from kvorum.core.codec import IDENTIFIED, IDENTITY_BYTES
from kvorum.core.errors import ErrorCode, Refusal
from kvorum.core.operations import Applied, AtomicCommit, MutationKind
from kvorum.statemachine.layout import OUTCOME_CODE_AT, OUTCOME_DIGEST_AT, pack_u64, stamped, unpack_outcome

if TYPE_CHECKING:
    from kvorum.core.operations import WriteOperation
    from kvorum.statemachine.journal import Session

new_digest: Final = blake2b(digest_size=15).copy
"""The hash of a body at its beginning: a copy costs a fifth less than a new one."""


def digest_of(record: bytes, opcode_at: int) -> bytes:
    """Digest of an identified operation, which ends the record: its opcode and 15 bytes of the BLAKE2b of its body."""
    body = record[opcode_at + 1 + IDENTITY_BYTES :]
    digest = new_digest()
    digest.update(body)
    return bytes((record[opcode_at] & ~IDENTIFIED,)) + digest.digest()


def known_outcome(
    session: Session, request_id: int, digest: bytes, operation: WriteOperation
) -> Applied | Refusal | None:
    """What a request gets without being applied: its first outcome, or a refusal if it cannot be told; None if new."""
    assert session.outcomes is not None
    row = session.outcomes.get(request_id)
    if row is None:
        if request_id > session.forgotten:
            return None
        text = (
            f"request {request_id} of this client_id is no longer remembered (everything up to {session.forgotten} "
            "is forgotten, but for what is kept); read what it should have done, then use a higher request_id"
        )
        return Refusal(ErrorCode.INVALID_ARGUMENT, text)
    if row[OUTCOME_DIGEST_AT:OUTCOME_CODE_AT] != digest:
        text = f"request {request_id} of this client_id was another operation; use a new request_id for each operation"
        return Refusal(ErrorCode.INVALID_ARGUMENT, text)
    first = unpack_outcome(row)
    if first.code:
        text = f"this repeats request {request_id}, which version {first.version} refused with {first.code}"
        return Refusal(first.code, text)
    keys: list[bytes] = []
    values: list[bytes] = []
    version = pack_u64(first.version)
    mutations = operation.mutations if isinstance(operation, AtomicCommit) else (operation,)
    for kind, _, key, value in mutations:
        if kind == MutationKind.VERSIONSTAMPED_KEY:
            keys.append(stamped(key, version, len(keys) + len(values)))
        elif kind == MutationKind.VERSIONSTAMPED_VALUE:
            values.append(stamped(value, version, len(keys) + len(values)))
    return Applied(tuple(keys), tuple(values), first.version)
