"""
The replicated state machine: what the log means, as rows in one ordered map.

Deterministic and pure over the `StorageEngine` port: no clock, no randomness, no configuration. Reading decides *what*
the answer is; *when* a read is legal is routing's business. Start with `executor` (the one door), then `layout` (every
row, docs/formats/store.md), `group` (apply), `conflicts`, `ranges`, `hashing` and `sweep`. DESIGN.md says why.
"""
