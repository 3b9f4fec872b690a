"""Constants that bound something, each with the sentence that justifies it. Configurable ones live in `config`."""

KEY_BYTES_MAX = 10_240
"""Default for the longest key, after stamping (contract section 9)."""

KEY_BYTES_CEILING = 65_536
"""No configuration may allow longer keys: an end key moved beyond this many ff bytes counts as above every key."""

VALUE_BYTES_MAX = 4 * 1024 * 1024
"""Default for the largest value, after stamping (contract section 9)."""

TRANSACTION_BYTES_MAX = 10 * 1024 * 1024
"""Default for keys, values, conflict keys and range bounds of one commit together (contract section 9)."""

TRANSACTION_OPERATIONS_MAX = 10_000
"""Default for the operations of one commit (contract section 9)."""

TRANSACTION_OPERATIONS_CEILING = 65_536
"""The ordinal of a versionstamp has two bytes, so no configuration may allow more operations than this."""

CONFLICT_ITEMS_MAX = 100_000
"""Default for conflict keys plus conflict ranges of one commit (contract section 9)."""

FAMILY_BYTES_MAX = 255
"""Longest family name: its length is one byte in the log."""

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
"""Default for one client message or frame; larger ones close the connection (contract section 1.2)."""

RESPONSE_BYTES_MAX = 8 * 1024 * 1024
"""Default for keys plus values of one range reply (contract section 3.3)."""

CONNECTIONS_MAX = 10_000
"""Default for open client connections (contract section 9)."""

ENTRY_BYTES_MAX = 32 * 1024 * 1024
"""Largest log record: twice the largest client message, so whatever the edge accepts fits; refused at proposal."""

CACHED_ENTRY_BYTES_MAX = 32 * 1024 * 1024
"""Recent entries a node keeps in memory for its followers; older ones are read from segments."""

APPEND_BYTES_MAX = 1024 * 1024
"""Entries of one append message: a few milliseconds of network, so heartbeats never queue long behind it."""

APPENDS_IN_FLIGHT_MAX = 64
"""Unacknowledged append messages per follower in the replicate state."""

INFLIGHT_BYTES_MAX = 16 * 1024 * 1024
"""Unacknowledged entry bytes per follower; bounds what a slow follower can pin in the send buffers."""

UNCOMMITTED_BYTES_MAX = 256 * 1024 * 1024
"""Own proposals a leader may hold uncommitted; the caller pushes back earlier, so passing it is a defect."""

APPLY_ENTRIES_MAX = 256
"""Entries of one applied group: about 3 ms of work, inside the 5 ms slice."""

APPLY_BYTES_MAX = 1024 * 1024
"""Entry bytes of one applied group, for the same reason."""

WAITING_PROPOSAL_BYTES_MAX = 64 * 1024 * 1024
"""Proposals waiting for admission on one node; beyond it writes are refused with OVERLOADED."""

PEER_FRAME_BYTES_MAX = ENTRY_BYTES_MAX + APPEND_BYTES_MAX
"""Largest frame a peer accepts: one oversized entry plus what the batch already held."""

PEER_QUEUE_BYTES_MAX = 64 * 1024 * 1024
"""Bytes waiting to leave for one peer; a peer that is slower loses its link, not the leader's memory."""
