"""Bugs in snapshots and in cutting the log."""

from __future__ import annotations

from typing import Final

from kvorum_sim.teeth.mutation import Bug, edit

BUGS: Final = (
    Bug(
        "install keeps a conflicting tail",
        51,
        "Entries behind an installed snapshot stay, although they do not follow it.",
        (
            edit(
                "raft.state:RaftState.install",
                (
                    "self.log = LogView(self.reader, (index, event.term), index, ())",
                    (
                        "if index < self.log.last_index:\n        self.log.cut(index)\n    else:\n"
                        "        self.log = LogView(self.reader, (index, event.term), index, ())"
                    ),
                ),
            ),
        ),
    ),
    Bug(
        "older snapshot installed",
        52,
        "A snapshot is installed although it ends before what is committed here.",
        (
            edit(
                "raft.state:RaftState.accepts_snapshot",
                ("and index > self.commit_index", ""),
                ("and self.log.term_at(index) != term", ""),
            ),
        ),
    ),
    Bug(
        "entries applied during an install",
        53,
        "The state machine goes on applying while its store is being replaced.",
        (
            edit("consensus.snapshots:Snapshots._fetch_and_install", ("host.applier.pause()", "pass")),
            edit("consensus.applier:Applier.restart", ("self._queue.clear()\n", "pass\n")),
        ),
        tests=("unit/consensus/test_applier.py",),
    ),
    Bug(
        "install does not clear old rows",
        54,
        "Rows of the present store stay in the one that a snapshot built.",
        (
            edit(
                "statemachine.executor:KvStoreExecutor.replace",
                (
                    "    self._attach(engine)",
                    (
                        "    batch = engine.batch()\n"
                        "    for key, value in self._engine.iterate(*EVERYTHING):\n"
                        "        if engine.get(key) is None:\n"
                        "            batch.put(key, value)\n"
                        "    engine.write(batch)\n"
                        "    self._attach(engine)"
                    ),
                ),
            ),
        ),
        tests=("unit/statemachine/test_transfer.py",),
    ),
    Bug(
        "log cut beyond the durable state",
        56,
        "The log is cut up to what was applied, not up to what of it is durable.",
        (
            edit(
                "consensus.compaction:LogCutter.cut",
                ("durable = host.applier.durable_index", "durable = host.machine.applied_index"),
            ),
        ),
        tests=("sim/test_snapshot_crashes.py::test_log_is_not_cut_beyond_what_a_power_cut_leaves",),
    ),
    Bug(
        "old configuration in a snapshot",
        49,
        "A snapshot carries the oldest configuration that the log knows, not the one in force.",
        (edit("raft.state:RaftState.configuration_at", ("reversed(self.configurations)", "self.configurations")),),
        kinds=("churn",),
    ),
    Bug(
        "configuration lost by an install",
        49,
        "A node that installs a snapshot keeps the members it knew before.",
        (
            edit(
                "raft.state:RaftState.install",
                (
                    "[(event.configuration_index, event.configuration)]",
                    "self.configurations[:1] or [(event.configuration_index, event.configuration)]",
                ),
            ),
        ),
        tests=(
            "sim/test_member_changes.py::test_member_behind_the_log_takes_the_snapshot_of_a_leader_it_never_heard_of",
        ),
    ),
    Bug(
        "configuration lost with a cut",
        49,
        "Cutting the log drops the configuration in force when its entry lies below the cut.",
        (
            edit(
                "raft.state:RaftState.cut_log",
                (
                    "while len(configurations) > 1 and configurations[1][0] <= index:",
                    "while configurations and configurations[0][0] <= index:",
                ),
            ),
        ),
        kinds=("churn",),
    ),
    Bug(
        "sessions missing in a snapshot",
        68,
        "A snapshot leaves out which requests were applied, so a retry is applied again after an install.",
        (
            edit(
                "statemachine.transfer:Export._rows_from",
                (
                    "    parts: list[bytes] = []\n",
                    (
                        "    from kvorum.statemachine.layout import RING_PREFIX, SESSION_PREFIX, USES_PREFIX\n"
                        "    parts: list[bytes] = []\n"
                    ),
                ),
                (
                    "        parts += (_pack_u32(len(key))",
                    (
                        "        if key.startswith((SESSION_PREFIX, RING_PREFIX, USES_PREFIX)):\n            continue\n"
                        "        parts += (_pack_u32(len(key))"
                    ),
                ),
            ),
        ),
        kinds=("power cut",),
    ),
    Bug(
        "snapshot not verified",
        57,
        "The end of a stream is believed without comparing count and digest of its rows.",
        (
            edit(
                "statemachine.transfer:StreamCheck._take_end",
                ("if rows != self.rows or digest != self._digest.digest():", "if False:"),
            ),
        ),
        tests=("unit/statemachine/test_transfer.py",),
    ),
    Bug(
        "install not finished after a crash",
        56,
        "A restart between the switch of the store and the reset of the log leaves the log as it was.",
        (
            edit(
                "storage.wal.segmented_log:SegmentedLog.open",
                ("if installed is not None and recovery.state.base_index < installed.index:", "if False:"),
            ),
        ),
        tests=("sim/test_snapshot_crashes.py",),
    ),
)
