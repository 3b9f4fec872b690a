"""Bugs that kvorum really had, put back: the track record names them, and each must still be noticed today."""

from __future__ import annotations

from typing import Final

from kvorum_sim.teeth.mutation import Bug, Edit, edit

BUGS: Final = (
    Bug(
        "past: scan bounds freed too early",
        0,
        "The bytes of a scan's upper bound are freed while RocksDB still reads them, so scans end anywhere.",
        (
            edit(
                "storage.rocksdict_engine:RocksdictEngine._walk_up",
                ("    del bounds\n", ""),
                ("    while valid():\n", "    del bounds\n    while valid():\n"),
            ),
        ),
        tests=("conformance/test_storage_engine.py", "unit/statemachine/test_on_rocksdb.py"),
    ),
    Bug(
        "past: birth waits for a leader that nobody can elect",
        0,
        "A peer that was born a moment ago counts as one that has data, so the others wait for a leader for ever.",
        (
            edit(
                "consensus.peering:Peering._send_report",
                ("(machine.last_index > 1 or machine.term > _BIRTH_TERM)", "True"),
            ),
        ),
    ),
    Bug(
        "past: two wiped disks found a cluster at once",
        0,
        "A majority of empty directories is born before the link to the node that has data can be up.",
        (
            edit(
                "consensus.peering:Peering.consider_birth",
                ("patient=host.uptime_s < BIRTH_PATIENCE_S", "patient=False"),
            ),
        ),
        tests=("sim/test_member_changes.py::test_two_wiped_disks_found_no_cluster_beside_the_node_that_remembers",),
    ),
    Bug(
        "past: late follower is not told the commit index",
        0,
        "A follower that was still probed when the commit index moved is told nothing until the next write.",
        (
            edit(
                "raft.replication:Replicator.append_answered",
                ("if progress.commit_told < state.commit_index:", "if False:"),
            ),
        ),
    ),
    Bug(
        "past: restarted follower never learns what is committed",
        0,
        "A follower whose log is complete and that was restarted gets heartbeats only, which verify nothing.",
        (
            edit(
                "raft.progress:Progress.is_stuck",
                ("self.match + 1 == self.next and verified >= self.match", "self.match + 1 == self.next"),
            ),
        ),
    ),
    Bug(
        "past: short write of a segment's head",
        0,
        "When the system takes only a part of a new segment's head, the rest is never written.",
        (
            edit(
                "storage.wal.writer:SegmentWriter.begin_segment",
                ("self._write_fully(descriptor,", "self._system.write(descriptor,"),
            ),
        ),
        kinds=("disk failure",),
        tests=("unit/storage/test_segmented_log.py",),
    ),
    Bug(
        "past: snapshot of an unknown leader refused",
        0,
        "A member that lags takes no snapshot from a leader that its own log does not show yet, and lags for ever.",
        (
            edit(
                "consensus.peering:Peering._dispatch_unseated",
                ("elif kind == frames.SNAPSHOT_OFFER and host.snapshots is not None:", "elif False:"),
            ),
        ),
        tests=(
            "sim/test_member_changes.py::test_member_behind_the_log_takes_the_snapshot_of_a_leader_it_never_heard_of",
        ),
    ),
    Bug(
        "past: lost answer to a read",
        0,
        "An answer that is lost with the leader's own link leaves its reads waiting until their deadline.",
        (edit("consensus.reads:Reads.expire", ("if now >= asked_at + ASK_AGAIN_S", "if False")),),
        tests=("unit/consensus/test_reads.py",),
    ),
    Bug(
        "past: write refused whose first copy was taken",
        0,
        "A late refusal of a forward's first copy refuses a write that was sent again and may commit.",
        (edit("consensus.proposals:Proposals._resend", ("proposal.resent = True", "pass")),),
        tests=("unit/consensus/test_proposals.py",),
    ),
    Bug(
        "past: slow loop never ticks",
        0,
        "A loop on which every turn is slow postpones its ticks for ever and sends no heartbeat.",
        (
            edit(
                "consensus.manager:ConsensusManager._tick",
                ("if lag > STALL_S and not self._tick_postponed:", "if lag > STALL_S:"),
            ),
        ),
        tests=("unit/consensus/test_manager.py",),
    ),
    Bug(
        "past: replay runs into closed storage",
        0,
        "A replay under way goes on after the stop has closed its store.",
        (edit("consensus.applier:Applier.halt", ("self._halted = True", "self._halted = False")),),
        tests=("unit/consensus/test_applier.py", "unit/consensus/test_manager.py"),
    ),
    Bug(
        "past: leader whose disk hangs leads on",
        0,
        "A leader whose sync never ends sends heartbeats for ever and commits nothing.",
        (edit("consensus.manager:ConsensusManager._watch_log", ("and not self.log_hangs", "and False")),),
        tests=("unit/consensus/test_manager.py",),
    ),
    Bug(
        "past: failed task of a link in silence",
        0,
        "A task of the peer links that failed leaves its link dead, and nobody is told.",
        (edit("peers.tcp:TcpPeerLinks._task_ended", ("if error is not None:", "if False:")),),
        tests=("unit/peers/test_peer_tasks.py",),
    ),
    Bug(
        "past: void files deleted from the oldest on",
        0,
        "A second crash, while a recovery deletes void files, leaves a torn head without the segment before it.",
        (
            edit(
                "storage.wal.segmented_log:_take_over",
                ("for file in reversed(recovery.files):", "for file in recovery.files:"),
            ),
        ),
        tests=("unit/storage/test_wal_recovery.py",),
    ),
    Bug(
        "past: members told once to a node that hears nothing",
        0,
        "An empty directory that is short of space when it gets its seat is never told so again, and waits for ever.",
        (
            edit(
                "consensus.peering:Peering._report_received",
                ("elif not (report.has_data or report.commit_index):", "elif False:"),
            ),
        ),
        tests=(
            "sim/test_member_changes.py::test_empty_directory_that_was_short_of_space_when_it_got_its_seat_joins_later",
        ),
    ),
    Bug(
        "past: client looks for the leader beyond its time",
        0,
        "A call of kvorum_client that knows no leader waits for status calls after its own time is over.",
        (
            Edit(
                "kvorum_client.leader:LeaderTracker._freshen",
                (("timeout=max(0.0, deadline.remaining)", "timeout=None"),),
            ),
        ),
        kinds=("client cut", "crash"),
    ),
)
