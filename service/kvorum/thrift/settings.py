"""What the edge takes from the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from kvorum.core import limits


@dataclass(frozen=True, slots=True)
class ThriftSettings:
    """Port, bounds and switches of the client edge (contract sections 1.3, 8, 9, 12); times in seconds."""

    port: int = 9090
    """0 takes any free port; `ThriftServer.port` tells which."""
    request_timeout_s: float = 10.0
    key_bytes_max: int = limits.KEY_BYTES_MAX
    value_bytes_max: int = limits.VALUE_BYTES_MAX
    transaction_bytes_max: int = limits.TRANSACTION_BYTES_MAX
    transaction_operations_max: int = limits.TRANSACTION_OPERATIONS_MAX
    conflict_items_max: int = limits.CONFLICT_ITEMS_MAX
    message_bytes_max: int = limits.MESSAGE_BYTES_MAX
    response_bytes_max: int = limits.RESPONSE_BYTES_MAX
    connections_max: int = limits.CONNECTIONS_MAX
    connection_idle_s: float = 600.0
    """Idle time after which a connection may be closed in favour of a new one, only when the table is full."""
    faults_enabled: bool = False
