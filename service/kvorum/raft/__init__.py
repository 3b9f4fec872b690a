"""
Raft as a pure machine: events in, ordered effects out; no clock, no chance, no I/O.

Start with `messages` (what nodes say to each other) and `machine` (which event goes where). `state` is what all parts
share; `elections`, `replication` (the leader's side) and `following` (the follower's side) act on it; `log_view`,
`durability`, `progress`, `quorum` and `reads` are the bookkeeping below them. DESIGN.md beside this file says why.
"""
