"""Bugs in elections and votes."""

from __future__ import annotations

from typing import Final

from kvorum_sim.teeth.mutation import Bug, edit

BUGS: Final = (
    Bug(
        "vote not persisted",
        1,
        "The hard state is written without the vote, so a restarted node votes again.",
        (edit("raft.state:RaftState.persist", ("HardState(self.term, self.voted_for)", "HardState(self.term, None)")),),
    ),
    Bug(
        "vote of a known term not saved",
        1,
        "A vote in a term that the disk knows already is not written.",
        (
            edit(
                "raft.state:RaftState.vote_for",
                (
                    "self.voted_for = candidate\n        self._hard_state_changed = True",
                    "self.voted_for = candidate",
                ),
            ),
        ),
    ),
    Bug(
        "vote sent before durable",
        2,
        "Messages do not wait for the hard state of their term.",
        (edit("raft.state:RaftState.send", ("max(after, hard_state_ticket)", "after")),),
    ),
    Bug(
        "acknowledgement sent before durable",
        2,
        "A follower acknowledges entries that its disk does not hold yet.",
        (edit("raft.following:Follower._acknowledge", ("state.durability.ticket_of(match)", "0")),),
    ),
    Bug(
        "vote cleared on step-down",
        4,
        "Whoever becomes a follower forgets its vote, in the same term too.",
        (
            edit(
                "raft.state:RaftState.become_follower",
                ("    was_leader = ", "    self.voted_for = None\n    was_leader = "),
            ),
        ),
    ),
    Bug(
        "stale grants counted",
        5,
        "Grants of an earlier candidacy count in the present one.",
        (
            edit(
                "raft.elections:Elections.vote_answered",
                ("if reply.granted and reply.term != (state.term + 1 if self._prevote else state.term):", "if False:"),
            ),
        ),
    ),
    Bug(
        "repeated grants counted",
        5,
        "Grants are counted by message, not by voter.",
        (
            edit(
                "raft.elections:Elections.vote_answered",
                (
                    "answers[sender] = reply.granted or answers.get(sender, False)",
                    "answers[sender] = answers.get(sender, 0) + reply.granted",
                ),
            ),
        ),
    ),
    Bug(
        "quorum of half",
        6,
        "Half of the voters pass for a majority where their number is even.",
        (edit("core.cluster:Configuration.quorum", ("len(self.voters) // 2 + 1", "(len(self.voters) + 1) // 2")),),
    ),
    Bug(
        "committed by half",
        6,
        "With an even number of voters an entry commits when half of them hold it.",
        (edit("raft.quorum:agreed_index", ("matches[-quorum]", "matches[quorum - 1]")),),
    ),
    Bug(
        "length before term",
        7,
        "The longer log wins, whatever its last term.",
        (
            edit(
                "raft.log_view:LogView.is_behind_or_equal",
                (
                    "(last_term, last_index) >= (self.last_term, self.last_index)",
                    "(last_index, last_term) >= (self.last_index, self.last_term)",
                ),
            ),
        ),
    ),
    Bug(
        "vote for any log",
        7,
        "Votes and prevotes are given without a look at the candidate's log.",
        (edit("raft.log_view:LogView.is_behind_or_equal", ("return (last_term", "return True or (last_term")),),
    ),
    Bug(
        "repeated request refused",
        8,
        "A candidate whose first request was granted, but the grant lost, is refused the second time.",
        (
            edit(
                "raft.elections:Elections.vote_requested",
                (
                    "(state.voted_for == sender or (state.voted_for is None and state.leader is None))",
                    "state.voted_for is None",
                ),
            ),
        ),
    ),
    Bug(
        "no prevote",
        9,
        "A node that hears no leader raises its term at once, again and again.",
        (
            edit(
                "raft.elections:Elections._stand",
                ("if state.quorum == 1 and state.is_voter:", "if True:"),
            ),
        ),
    ),
    Bug(
        "trusted leader deposed",
        11,
        "A vote request of a later term is answered although a healthy leader is heard.",
        (
            edit(
                "raft.elections:Elections.vote_requested",
                ("if state.trusts_leader and not request.transfer:", "if False:"),
            ),
        ),
    ),
    Bug(
        "leader without quorum stays",
        12,
        "A leader that lost contact with a majority goes on for ever.",
        (edit("raft.replication:Replicator.tick", ("if heard < state.quorum:", "if heard < 0:")),),
    ),
    Bug(
        "no election timer after leading",
        14,
        "A leader that was deposed never stands again by itself.",
        (
            edit(
                "raft.state:RaftState.become_follower",
                ("self.restart_election_timer()", "self.election_deadline = _NEVER"),
            ),
        ),
    ),
    Bug(
        "deposed leader goes on",
        15,
        "A leader that learned of a later term goes on sending, with that term.",
        (
            edit(
                "raft.machine:RaftMachine._ticked",
                (
                    "if self.role == Role.LEADER:",
                    "if self.role == Role.LEADER or (self.leader is None and self._replicator._peers):",
                ),
            ),
        ),
    ),
    Bug(
        "hand-over to a node that lags",
        16,
        "The target of a transfer is told to stand before it holds all of the log.",
        (
            edit(
                "raft.transfer:Transfer.push",
                ("if progress.match != state.log.last_index:", "if False:"),
            ),
        ),
    ),
    Bug(
        "proposals during a hand-over",
        32,
        "A leader that hands over goes on taking writes.",
        (edit("consensus.manager:ConsensusManager.room", ("machine.transferring_to is not None", "False")),),
        kinds=("transfer",),
    ),
    Bug(
        "pause counts as silence",
        78,
        "After a pause of the process the whole of it counts as time without a leader.",
        (
            edit(
                "raft.machine:RaftMachine._ticked",
                ("min(max(elapsed_s, 0.0), self.settings.heartbeat_s)", "max(elapsed_s, 0.0)"),
            ),
        ),
    ),
)
