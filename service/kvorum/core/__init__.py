"""
The vocabulary every room shares: ids, log entries, operations, errors, limits and ports.

Standard library only, no clock, no randomness, no I/O. Start with `entries` (what the log holds), `operations` (what
clients ask for), then `machine` (the shape of a consensus algorithm) and `ports` (what the outside world must offer).
"""
