"""Opening a connection to a peer by name."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

P = TypeVar("P", bound="asyncio.BaseProtocol")


async def dial(
    loop: asyncio.AbstractEventLoop, new_protocol: Callable[[], P], host: str, port: int
) -> tuple[asyncio.BaseTransport, P]:
    """
    Resolve a name, try its addresses in turn, and return what `create_connection` returns.

    Raises:
        OSError: No address, or none that can be reached; the last one's error.

    Cancel:
        Leaves nothing. Safety: uvloop's own `create_connection` does not, with a name. It leaves the lookup behind, and
        where DNS answers an error later than the caller waits, that reaches the loop's exception handler, which ends
        the process.
    """
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    problem: OSError | None = None
    for *_, address in addresses:
        try:
            return await loop.create_connection(new_protocol, str(address[0]), port)
        except OSError as failure:
            problem = failure
    raise problem or OSError(f"{host} has no address")
