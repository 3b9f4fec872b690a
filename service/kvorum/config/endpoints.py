"""Endpoints as text, ``host:port``; a host is a name or an address and is never resolved here."""

from __future__ import annotations

PORT_MAX = 65_535


def split_endpoint(text: str) -> tuple[str, int]:
    """
    Cut ``host:port`` or ``[address]:port`` into its two parts.

    Raises:
        ValueError: There is no host, no port, or the port is not between 1 and 65535.
    """
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        msg = "an IPv6 address stands in brackets: [::1]:9090"
        raise ValueError(msg)
    if not colon or not host or not port.isascii() or not port.isdigit():
        msg = "must be host:port, for example localhost:9090"
        raise ValueError(msg)
    if not 1 <= int(port) <= PORT_MAX:
        msg = f"the port must be between 1 and {PORT_MAX}"
        raise ValueError(msg)
    return host, int(port)


def join_endpoint(host: str, port: int) -> str:
    """Inverse of `split_endpoint`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
