"""Bugs in the log, in acknowledgements and in what counts as committed."""

from __future__ import annotations

from typing import Final

from kvorum_sim.teeth.mutation import Bug, edit

BUGS: Final = (
    Bug(
        "figure 8",
        18,
        "Entries of an earlier term are committed by counting their copies.",
        (
            edit(
                "raft.replication:Replicator.maybe_commit",
                (
                    "if index <= state.commit_index or index < state.term_start:",
                    "if index <= state.commit_index:",
                ),
                ("state.log.term_at(index) == state.term,", "True,"),
            ),
        ),
    ),
    Bug(
        "old entry blocks",
        19,
        "An entry of an earlier term at the head of what is open keeps everything behind it from being committed.",
        (
            edit(
                "raft.replication:Replicator.maybe_commit",
                (
                    "if index <= state.commit_index or index < state.term_start:",
                    "if index <= state.commit_index or state.log.term_at(state.commit_index + 1) != state.term:",
                ),
            ),
        ),
    ),
    Bug(
        "no no-op",
        20,
        "A new leader appends nothing of its own term until a client writes.",
        (edit("raft.replication:Replicator.lead", ('self.propose(EntryKind.NOOP, (b"",), 0)', "pass")),),
    ),
    Bug(
        "truncation on every append",
        21,
        "A follower drops whatever stands behind the place where an append begins, equal or not.",
        (
            edit(
                "raft.following:Follower.append_requested",
                (
                    "    match = prev_index\n",
                    (
                        "    match = prev_index\n    if prev_index < log.last_index:\n"
                        "        state.truncate_after(prev_index)\n        state.verified = prev_index\n"
                    ),
                ),
            ),
            edit("raft.state:RaftState.truncate_after", ("index >= self.commit_index,", "True,")),
        ),
    ),
    Bug(
        "commit of the last entry",
        22,
        "A follower commits up to its last entry, verified or not, as far as the leader's commit index goes.",
        (
            edit(
                "raft.following:Follower._learn_commit",
                ("min(commit, state.verified)", "min(commit, state.log.last_index)"),
            ),
        ),
    ),
    Bug(
        "acknowledgement of the last entry",
        23,
        "A follower acknowledges its last entry instead of the last one that was compared.",
        (
            edit(
                "raft.following:Follower.append_requested",
                ("self._acknowledge(sender, request, match)", "self._acknowledge(sender, request, log.last_index)"),
            ),
        ),
    ),
    Bug(
        "stale acknowledgements",
        24,
        "Acknowledgements of an earlier term count for the present one.",
        (
            edit(
                "raft.machine:RaftMachine._received",
                (
                    "if message.term != self.term and kind not in _VOTING:",
                    (
                        "if message.term != self.term and kind not in _VOTING and (\n"
                        "        kind is not AppendReply or message.term > self.term\n    ):"
                    ),
                ),
            ),
        ),
    ),
    Bug(
        "old write vouches for new entries",
        24,
        "The end of a write counts for entries that replaced those it wrote.",
        (
            edit(
                "raft.durability:Durability.truncated",
                ("self._under_way = deque((ticket, min(last, index)) for ticket, last in self._under_way)", "pass"),
            ),
        ),
    ),
    Bug(
        "leader counts itself too early",
        26,
        "A leader counts its own copy before its disk has it.",
        (
            edit(
                "raft.replication:Replicator.maybe_commit",
                ("matches.append(state.durability.index)", "matches.append(state.log.last_index)"),
            ),
        ),
    ),
    Bug(
        "stale rejection counts",
        27,
        "A rejection that later events have overtaken moves the leader back, below what is known to agree.",
        (
            edit(
                "raft.progress:Progress.is_stale_rejection",
                ("if self.state == PROBE:", "if True:\n        return False\n    if False:"),
            ),
            edit("raft.progress:Progress.probe_from", ("max(next_index, self.match + 1)", "next_index")),
        ),
    ),
    Bug(
        "commit index of a heartbeat believed",
        28,
        "A follower takes over the leader's commit index whatever its own log holds.",
        (edit("raft.following:Follower._learn_commit", ("min(commit, state.verified)", "commit")),),
    ),
    Bug(
        "learners counted",
        47,
        "Copies on learners count for the majority that commits.",
        (
            edit(
                "raft.replication:Replicator.maybe_commit",
                ("for progress in self._voting_peers]", "for progress in self._peers]"),
            ),
        ),
    ),
    Bug(
        "applied before durable here",
        72,
        "Entries reach the state machine before this node's own log holds them.",
        (
            edit(
                "raft.state:RaftState.hand_out",
                ("min(self.commit_index, self.durability.index)", "self.commit_index"),
            ),
        ),
    ),
)
