"""Bugs in the log on disk."""

from __future__ import annotations

from typing import Final

from kvorum_sim.teeth.mutation import Bug, edit

_WAL: Final = ("unit/storage/test_wal_recovery.py", "unit/storage/test_segmented_log.py", "conformance/test_log.py")

BUGS: Final = (
    Bug(
        "acknowledged before fsync",
        59,
        "A group is reported durable without being synced.",
        (edit("storage.wal.segmented_log:SegmentedLog._write_durably", ("self._writer.sync()", "pass")),),
        kinds=("power cut",),
        tests=_WAL,
    ),
    Bug(
        "fsync error ignored",
        60,
        "The log goes on after a failed fsync, whose pages the kernel has thrown away.",
        (edit("storage.wal.writer:_no_second_chance", ("raise StorageFailedError(msg) from error", "del msg, error")),),
        kinds=("disk failure",),
        tests=_WAL,
    ),
    Bug(
        "damage taken for a torn tail",
        61,
        "A damaged group is cut off as if it were the last one, with everything good behind it.",
        (
            edit(
                "storage.wal.recovery:_Reader._judge_end",
                ("behind = find_group(data, flaw.offset, file.header.salt, self._expected)", "behind = None"),
            ),
        ),
        kinds=("damaged log",),
        tests=_WAL,
    ),
    Bug(
        "checksum not compared",
        61,
        "A group counts as good whatever its checksum says.",
        (
            edit(
                "storage.wal.layout:group_at",
                (
                    "_CHECKED_FRAME.pack(body_bytes, found_salt, sequence))) != checksum:",
                    "_CHECKED_FRAME.pack(body_bytes, found_salt, sequence))) < 0:",
                ),
            ),
        ),
        kinds=("damaged log",),
        tests=_WAL,
    ),
    Bug(
        "torn tail stops the start",
        62,
        "A node whose last write was torn by a crash refuses to start.",
        (
            edit(
                "storage.wal.recovery:_Reader._tear",
                ("    self._recovery.torn_bytes += torn_bytes\n", "    raise corrupt(path, offset, reason)\n"),
            ),
        ),
        kinds=("power cut",),
        tests=_WAL,
    ),
    Bug(
        "last group not written again",
        60,
        "Recovery does not sync the copy of the last group before it removes the old one.",
        (edit("storage.wal.segmented_log:_take_over", ("    writer.sync()\n", "")),),
        kinds=("power cut", "crash"),
        tests=_WAL,
    ),
    Bug(
        "directory not synced",
        63,
        "A new segment's name is not made durable, so a power cut may take the whole file.",
        (
            edit(
                "storage.wal.writer:SegmentWriter.begin_segment",
                ("self._system.sync_directory(self._directory)", "pass"),
            ),
        ),
        kinds=("power cut",),
        tests=_WAL,
    ),
    Bug(
        "head of a segment without the vote",
        65,
        "A new segment's head repeats the term and not the vote.",
        (
            edit(
                "storage.wal.stream:StreamState.head",
                ("hard_state_record(self.hard_state)", "hard_state_record(HardState(self.hard_state.term, None))"),
            ),
        ),
        kinds=("crash",),
        tests=_WAL,
    ),
    Bug(
        "applied index apart from the data",
        66,
        "The applied index is written in a batch of its own, before the data.",
        (
            edit(
                "statemachine.group:ApplyGroup.finish",
                (
                    "put(STATE_KEY, pack_state(*state))",
                    (
                        "first = self._engine.batch()\n    first.put(STATE_KEY, pack_state(*state))\n"
                        "    self._engine.write(first)"
                    ),
                ),
            ),
        ),
        kinds=("power cut",),
        tests=("unit/statemachine/test_apply.py",),
    ),
    Bug(
        "flush reported too early",
        66,
        "The durable index is that of the end of a flush, although entries were applied after its beginning.",
        (
            edit(
                "consensus.applier:Applier._flushed",
                ("self.durable_index = reached", "self.durable_index = self._machine.applied_index"),
            ),
        ),
        tests=("sim/test_snapshot_crashes.py::test_log_is_not_cut_beyond_what_a_power_cut_leaves",),
    ),
)
