"""Times and sizes of the links, each with the sentence that justifies it; nobody needs to configure them."""

from __future__ import annotations

from typing import Final

CONNECT_TIMEOUT_S: Final = 3.0
"""Name resolution and TCP connect; longer than one lost SYN (1 s) and its repetition."""

HANDSHAKE_TIMEOUT_S: Final = 3.0
"""From the first byte to the answer; a stopped process accepts connections but never answers."""

BACKOFF_S_MIN: Final = 0.05
"""First pause before a new dial, so that a restarted peer is found at once."""

BACKOFF_S_MAX: Final = 1.0
"""Longest pause: a peer that comes back waits at most this long, and a dead one costs one dial a second."""

STEADY_S: Final = 1.0
"""A link that stood this long starts again from the shortest pause; a flapping one does not."""

TICK_S: Final = 1.0
"""Pings go out and silence is counted once per tick."""

PING_TICKS_MAX: Final = 5
"""Ticks without a pong after which the peer counts as gone: above the longest pause an election survives."""

QUIET_TICKS_MAX: Final = 15
"""Ticks without a byte after which an incoming connection is dropped; its dialler pings every tick."""

GREETING_CONNECTIONS_MAX: Final = 64
"""Incoming connections that have not proved who they are yet; more than any cluster dials at once."""

RECEIVE_BUFFER_BYTES: Final = 256 * 1024
"""What one read can take: a dozen full groups, or a quarter of the largest usual frame."""

WRITE_HIGH_BYTES: Final = 512 * 1024
"""Bytes in the transport beyond which bulk frames wait in our own queue, where urgent ones can pass them."""

WRITE_LOW_BYTES: Final = 128 * 1024
"""Bytes in the transport below which waiting bulk frames go on."""

FRAME_OVERHEAD_BYTES: Final = 256
"""What a waiting frame costs beside its bytes, so that the byte bound also bounds the number of small frames."""

LOG_REPEAT_S: Final = 30.0
"""The same complaint is logged at most this often."""

LOG_SUBJECTS_MAX: Final = 256
"""Different complaints remembered for that; beyond it the memory starts afresh."""

STOP_FLUSH_S: Final = 0.5
"""How long `stop` lets written bytes leave before it cuts the connections."""

STREAMS_MAX: Final = 4
"""Streams this node serves at once; each costs reads of the store, and more followers at once would only share them."""

STREAM_REQUEST_BYTES_MAX: Final = 64 * 1024
"""A request names a state and a place in it: some bytes and at most one key."""

STREAM_IDLE_S: Final = 15.0
"""Who waits for an item this long gives up: a server that lives makes one within milliseconds."""

STREAM_STALL_S: Final = 60.0
"""A peer that takes nothing for this long is cut off; a store that stalls under an install recovers sooner."""

STREAM_WRITE_HIGH_BYTES: Final = 512 * 1024
"""Bytes in the transport of a stream beyond which the next item is not made yet: two usual items."""
