"""
The state hash: one number for what a store means, not for what lies in it.

Logical content (architecture section 3.3): families, sessions, watermark, last commit version, and per key the newest
value at the watermark and every later version. Rows that only wait for the sweep do not count, so two replicas at one
applied index have the same hash wherever their sweeps stand. Both row spaces are read: a store whose `current` and
`history` disagree with a peer's shows it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from kvorum.statemachine.journal import session_content
from kvorum.statemachine.layout import (
    CHANGES,
    CURRENT,
    FAMILY_PREFIX,
    FAMILY_PREFIX_END,
    FLAG_TOMBSTONE,
    HISTORY,
    HISTORY_SUFFIX_BYTES,
    KIND_SET,
    SESSIONS_MAX_KEY,
    STATE_KEY,
    StateRow,
    history_version,
    pack_state,
    pack_u32,
    row_version,
    unpack_state,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvorum.core.ids import Index
    from kvorum.core.ports import View

HASH_VERSION: Final = b"kvorum state 2"
"""Begins the hashed bytes; another rule of what counts needs another version, or nodes of two releases would differ."""

SLICE_ROWS: Final = 512
"""Rows hashed between two yields: about a millisecond."""


def hash_state(view: View) -> Iterator[tuple[Index, str] | None]:
    """Hash a view that does not change: yields None between slices, then the applied index and the hash in hex."""
    digest = hashlib.sha256(HASH_VERSION)
    state = unpack_state(view.get(STATE_KEY) or pack_state(*StateRow()))
    digest.update(pack_state(0, state.last_commit_version, state.low_watermark))
    for count, found in enumerate(_content(view, state.low_watermark), 1):
        if found is None:
            yield None
            continue
        key, row = found
        digest.update(pack_u32(len(key)) + key + pack_u32(len(row)) + row)
        if count % SLICE_ROWS == 0:
            yield None
    yield state.applied_index, digest.hexdigest()


def _content(view: View, low_watermark: Index) -> Iterator[tuple[bytes, bytes] | None]:
    """All rows that count, sessions as rows of format 1; None where the caller may pause."""
    yield from view.iterate(FAMILY_PREFIX, FAMILY_PREFIX_END)
    yield from session_content(view)
    bound = view.get(SESSIONS_MAX_KEY)
    if bound is not None:
        yield SESSIONS_MAX_KEY, bound
    for key, row in view.iterate(CURRENT, HISTORY):
        if row[0] != FLAG_TOMBSTONE or row_version(row) > low_watermark:
            yield key, row
    newest_at_watermark: tuple[bytes, bytes] | None = None
    for key, value in view.iterate(HISTORY, CHANGES):
        if newest_at_watermark is not None:
            older, _ = newest_at_watermark
            same = older[:-HISTORY_SUFFIX_BYTES] == key[:-HISTORY_SUFFIX_BYTES]
            if (not same or history_version(key) > low_watermark) and older[-1:] == KIND_SET:
                yield newest_at_watermark
            newest_at_watermark = None
        if history_version(key) > low_watermark:
            yield key, value
        else:
            newest_at_watermark = key, value
    if newest_at_watermark is not None and newest_at_watermark[0][-1:] == KIND_SET:
        yield newest_at_watermark
