"""Bugs in reads."""

from __future__ import annotations

from typing import Final

from kvorum_sim.teeth.mutation import Bug, edit

BUGS: Final = (
    Bug(
        "read before the no-op",
        33,
        "A new leader confirms reads before it knows what its predecessors committed.",
        (
            edit(
                "raft.replication:Replicator._start_round",
                (
                    "if reads.confirming or not reads.waiting or state.commit_index < state.term_start:",
                    "if reads.confirming or not reads.waiting:",
                ),
            ),
        ),
    ),
    Bug(
        "round numbers reused",
        34,
        "All rounds have the same number, so a late echo of one confirms another.",
        (edit("raft.reads:ReadRounds.start_round", ("self.round += 1", "self.round = 1")),),
    ),
    Bug(
        "read answered before it is applied",
        35,
        "A read is served as soon as its index is known, whatever this node shows.",
        (edit("consensus.reads:Reads._serve_at", ("if self._host.applied_index >= index:", "if True:")),),
    ),
    Bug(
        "no round to confirm",
        40,
        "A leader serves reads at once, without asking a majority whether it still leads.",
        (
            edit(
                "raft.replication:Replicator.read_asked",
                (
                    "if state.reads.ask(request):",
                    (
                        "if state.commit_index >= state.term_start:\n"
                        "        state.effects.append(ServeReads((request,), state.commit_index))\n"
                        "    elif state.reads.ask(request):"
                    ),
                ),
            ),
        ),
    ),
    Bug(
        "lease too long",
        36,
        "Whoever was heard within an election timeout counts as having confirmed the leader.",
        (
            edit(
                "raft.replication:Replicator._count_reads",
                (
                    "if progress.round >= reads.round:",
                    "if state.clock - progress.heard_at < state.settings.election_timeout_s:",
                ),
            ),
            edit(
                "raft.replication:Replicator._start_round",
                ("self._send_heartbeats()", "self._send_heartbeats()\n        self._count_reads()"),
            ),
        ),
    ),
    Bug(
        "local reads on the leader",
        36,
        "A node that believes to lead answers linearizable reads from its own state.",
        (
            edit(
                "consensus.reads:Reads.flush",
                ("unconfirmed = [w for w in waiting if not w.confirm]", "unconfirmed = waiting"),
                ("[w for w in waiting if w.confirm] if unconfirmed else waiting", "[]"),
            ),
        ),
        kinds=("pause",),
    ),
    Bug(
        "waiting reads dropped",
        39,
        "Reads that wait for a round are forgotten when leadership ends.",
        (edit("raft.reads:ReadRounds.drop", ("(*self.confirming, *self.waiting)", "(*self.confirming,)")),),
    ),
    Bug(
        "dropped reads forgotten",
        31,
        "A read whose leader gave it back is neither asked again nor answered.",
        (
            edit(
                "consensus.reads:Reads.dropped",
                ("self._asking += self._asked.pop(request, [])", "self._asked.pop(request, [])"),
            ),
            edit(
                "consensus.reads:Reads.ask_again",
                ("self._asking += self._asked.pop(request)", "self._asked.pop(request)"),
            ),
        ),
    ),
)
