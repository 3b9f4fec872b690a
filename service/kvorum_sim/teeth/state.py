"""Bugs in the state machine: determinism, conflicts, sessions, retention."""

from __future__ import annotations

from typing import Final

from kvorum_sim.teeth.mutation import Bug, edit

BUGS: Final = (
    Bug(
        "conflicts inside a group missed",
        73,
        "The conflict check does not see what earlier entries of the same group have written.",
        (edit("statemachine.conflicts:ConflictCheck.refusal", ("    self._overlay.catch_up()\n", "")),),
    ),
    Bug(
        "conflict window one short",
        73,
        "A write right behind the read version is no conflict.",
        (
            edit(
                "statemachine.conflicts:ConflictCheck._keys_written",
                ("self._last_commit_version > read_version", "self._last_commit_version > read_version + 1"),
                ("row_version(row) > read_version", "row_version(row) > read_version + 1"),
                ("versions.get(key, 0) > read_version", "versions.get(key, 0) > read_version + 1"),
            ),
        ),
    ),
    Bug(
        "read versions below the watermark pass",
        73,
        "A commit that read before the history kept is checked against what the sweep has left.",
        (
            edit(
                "statemachine.conflicts:ConflictCheck.refusal",
                ("if read_version < self.low_watermark:", "if False:"),
            ),
        ),
        tests=("unit/statemachine/test_conflict_rule.py",),
    ),
    Bug(
        "retries applied again",
        67,
        "A request whose first reply was lost takes effect a second time.",
        (
            edit(
                "statemachine.group:ApplyGroup.stage_other",
                ("if known is not None:", "if False:"),
            ),
        ),
    ),
    Bug(
        "sessions in memory only",
        69,
        "Which requests were applied is not written to the store, so a restarted node applies retries again.",
        (
            edit(
                "statemachine.sessions:Sessions._stage_uses",
                ("self._batch.put(USES_PREFIX", "(lambda *_: None)(USES_PREFIX"),
            ),
            edit(
                "statemachine.sessions:Sessions._put_session",
                ("self._batch.put(SESSION_PREFIX", "(lambda *_: None)(SESSION_PREFIX"),
                ("self._batch.put(RING_PREFIX", "(lambda *_: None)(RING_PREFIX"),
            ),
        ),
    ),
    Bug(
        "journal of sessions cut too far",
        69,
        "The journal is cut behind the first session whose rows are written, not before the oldest that is behind.",
        (
            edit(
                "statemachine.sessions:Sessions._catch_up",
                ("self._cut = len(journal) if current else cut", "self._cut = len(journal)"),
            ),
        ),
        tests=("unit/statemachine/test_journal.py",),
    ),
    Bug(
        "journal of sessions not replayed",
        69,
        "A start reads the rows of sessions, but not the uses since they were written.",
        (
            edit(
                "statemachine.journal:Replay.run",
                ("        index = int.from_bytes(", "        break\n        index = int.from_bytes("),
            ),
        ),
        tests=("unit/statemachine/test_journal.py",),
    ),
    Bug(
        "forgotten session comes back",
        69,
        "The end of a session is not in the journal, which still holds its uses: after a start it is there again.",
        (
            edit(
                "statemachine.sessions:Sessions._forget_oldest",
                (
                    "if used is not None or (self._journal and session.last_index >= self._journal[0].first):",
                    "if False:",
                ),
            ),
        ),
        tests=("unit/statemachine/test_journal.py",),
    ),
    Bug(
        "uses replayed twice",
        69,
        "A replay does not pass over the uses that the rows of a session have already.",
        (edit("statemachine.journal:Replay._take", ("if use.entry <= covered:", "if False:")),),
        tests=("unit/statemachine/test_journal.py",),
    ),
    Bug(
        "retry taken for new on the short way",
        67,
        "A plain set with an identity is not looked for among the outcomes of its session.",
        (
            edit(
                "statemachine.group:ApplyGroup.stage_identified",
                ("if request_id <= outcomes.highest and request_id in outcomes:", "if False:"),
            ),
        ),
        tests=("unit/statemachine/test_sessions.py",),
    ),
    Bug(
        "outcome kept in the wrong slot",
        69,
        "A session that keeps as many outcomes as it may overwrites another one than the oldest.",
        (
            edit(
                "statemachine.journal:Session.note",
                (
                    "begin = recorded % OUTCOMES_KEPT * SLOT_BYTES",
                    "begin = (recorded + 1) % OUTCOMES_KEPT * SLOT_BYTES",
                ),
            ),
        ),
        tests=("unit/statemachine/test_journal.py",),
    ),
    Bug(
        "apply depends on the grouping",
        70,
        "Versionstamps count the changes of the group, and nodes group the same entries differently.",
        (
            edit(
                "statemachine.group:ApplyGroup._stage_mutations",
                (
                    "final = stamped(buffer, version, len(keys) + len(values))",
                    "final = stamped(buffer, version, len(self._changes))",
                ),
            ),
        ),
    ),
    Bug(
        "parts of a commit become visible",
        71,
        "Each mutation of a commit is written by itself, and others are served in between.",
        (
            edit(
                "statemachine.group:ApplyGroup._stage_mutations",
                (
                    "        self._put_rows(entry.index, version, family, key, newest)\n",
                    (
                        "        self._put_rows(entry.index, version, family, key, newest)\n"
                        "        self._engine.write(self._batch)\n"
                        "        self._batch = self._engine.batch()\n"
                        "        self._put = self._batch.put\n"
                        "        yield\n"
                    ),
                ),
            ),
        ),
    ),
    Bug(
        "sweep drops the newest row",
        73,
        "The sweep removes the newest row of a key at the watermark, a value like a tombstone.",
        (edit("statemachine.sweep:_settle", ("if newest[-1:] != KIND_DELETE:", "if False:")),),
        tests=("unit/statemachine/test_hash_and_sweep.py",),
    ),
    Bug(
        "tombstone swept over a newer value",
        73,
        "With an old tombstone the sweep removes the current row of its key, whatever it holds by now.",
        (
            edit(
                "statemachine.sweep:_settle",
                (
                    "if row is None or row[:ROW_HEAD_BYTES] != TOMBSTONE + newest[-HISTORY_SUFFIX_BYTES + 1 : -1]:",
                    "if row is None:",
                ),
            ),
        ),
        tests=("unit/statemachine/test_hash_and_sweep.py",),
    ),
    Bug(
        "tombstone dropped early",
        73,
        "The sweep takes tombstones above the watermark as well.",
        (
            edit(
                "statemachine.sweep:_sweep_slice",
                (
                    "if key[-HISTORY_SUFFIX_BYTES:-1] > watermark:",
                    "if key[-HISTORY_SUFFIX_BYTES:-1] > watermark and key[-1:] != KIND_DELETE:",
                ),
            ),
        ),
        tests=("unit/statemachine/test_hash_and_sweep.py",),
    ),
    Bug(
        "entry applied twice",
        66,
        "A group that repeats entries already applied is applied again.",
        (
            edit(
                "statemachine.executor:KvStoreExecutor._check_sequence",
                ("if first != self.applied_index + 1 or", "if"),
            ),
            edit(
                "statemachine.executor:KvStoreExecutor._finish",
                ("if entries[0].index != self.applied_index + 1:", "if False:"),
            ),
        ),
        tests=("unit/statemachine/test_apply.py",),
    ),
)
