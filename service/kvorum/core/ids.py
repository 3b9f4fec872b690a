"""Names for the integers that travel everywhere; aliases and not classes: the hot path makes millions of them."""

from typing import TypeAlias

NodeId: TypeAlias = int
"""Ordinal of a node in the configuration: 0, 1, 2 ..."""

Incarnation: TypeAlias = int
"""Member id: 64 random bits drawn once per data directory. 0 means "not known yet"."""

Term: TypeAlias = int
Index: TypeAlias = int
"""Position in the replicated log, from 1. The index of a write is its commit version."""

Ticket: TypeAlias = int
"""Number of a `Persist` effect, from 1, strictly increasing within one process life. 0 means "nothing to wait for"."""

NO_INDEX: Index = 0
NO_TERM: Term = 0
