"""Bugs in changes of the members, and in who counts as one."""

from __future__ import annotations

from typing import Final

from kvorum_sim.teeth.mutation import Bug, edit

BUGS: Final = (
    Bug(
        "change before the no-op",
        41,
        "A new leader changes the members before an entry of its term is committed (Ongaro 2015).",
        (
            edit(
                "raft.replication:Replicator.change_refused",
                ("if state.commit_index < state.term_start:", "if False:"),
            ),
        ),
    ),
    Bug(
        "two changes at once",
        42,
        "A second change is taken while the first is not committed.",
        (
            edit(
                "raft.replication:Replicator.change_refused",
                ("if not state.configuration_committed:", "if False:"),
            ),
        ),
    ),
    Bug(
        "several voters changed at once",
        43,
        "One change may replace any number of voters.",
        (edit("raft.membership:change_flaw", ("if len(changed) > 1:", "if False:")),),
        tests=("unit/raft/test_raft_membership.py",),
    ),
    Bug(
        "configuration counts from its commit",
        43,
        "A configuration is used only once it is committed, not from its append on.",
        (
            edit(
                "raft.state:RaftState.adopt_configuration",
                (
                    "configuration = self.configurations[-1][1] if self.configurations else Configuration(())",
                    (
                        "known = [c for at, c in self.configurations if at <= self.commit_index]\n"
                        "    known = known or [c for _, c in self.configurations[:1]]\n"
                        "    configuration = known[-1] if known else Configuration(())"
                    ),
                ),
            ),
            edit(
                "raft.state:RaftState.commit_up_to",
                ("    self.commit_index = index\n", "    self.commit_index = index\n    self.adopt_configuration()\n"),
            ),
        ),
    ),
    Bug(
        "configuration not rolled back",
        44,
        "A configuration stays in force although its entry was overwritten.",
        (
            edit(
                "raft.state:RaftState.truncate_after",
                ("if self.configurations and self.configurations[-1][0] > index:", "if False:"),
            ),
        ),
    ),
    Bug(
        "removed leader counts itself",
        45,
        "A leader that is no voter any more counts its own copy.",
        (edit("raft.replication:Replicator.maybe_commit", ("if state.is_voter:", "if True:")),),
    ),
    Bug(
        "removed leader leaves too early",
        45,
        "A leader steps down at the first commit after its removal was appended, whatever was committed.",
        (
            edit(
                "raft.replication:Replicator.maybe_commit",
                ("if not state.is_voter and state.configuration_committed:", "if not state.is_voter:"),
            ),
        ),
    ),
    Bug(
        "removed node never stands",
        46,
        "A node whose removal is not committed yet refuses to stand, although nobody else may be able to.",
        (edit("raft.state:RaftState.may_stand", ("before is not None and before.voter", "False and before.voter")),),
    ),
    Bug(
        "learners vote at once",
        47,
        "A new member is asked for votes and counted as if it were a voter already.",
        (
            edit(
                "raft.state:RaftState.adopt_configuration",
                (
                    "frozenset(configuration.voters)",
                    "frozenset(member.node_id for member in configuration.members)",
                ),
            ),
        ),
    ),
    Bug(
        "learner restarts as a voter",
        48,
        "Whoever is a member takes itself for a voter.",
        (
            edit(
                "raft.state:RaftState.adopt_configuration",
                ("member is not None and member.voter and self._is_self(member)", "member is not None"),
            ),
        ),
    ),
    Bug(
        "wiped member keeps its match",
        28,
        "What a lost data directory had acknowledged counts for the new one in its seat.",
        (
            edit(
                "raft.followers:Followers._adopt_configuration",
                (
                    "if progress is None or progress.incarnation not in (0, member.incarnation):",
                    "if progress is None:",
                ),
            ),
        ),
        kinds=("lost disk",),
    ),
    Bug(
        "new directory votes as the old one",
        29,
        "An empty data directory is taken for the voter whose seat it holds.",
        (edit("raft.state:RaftState._is_self", ("return ", "return True or ")),),
        kinds=("lost disk",),
    ),
    Bug(
        "answers of another incarnation counted",
        74,
        "Frames count whichever data directory of a seat has sent them.",
        (
            edit(
                "consensus.peering:Peering._holds_seat",
                ("member is not None and member.incarnation in {0, incarnation}", "member is not None"),
            ),
        ),
        kinds=("lost disk",),
        tests=("sim/test_member_changes.py", "unit/consensus/test_manager.py"),
    ),
    Bug(
        "another cluster admitted",
        74,
        "A node of another cluster may connect and is heard.",
        (edit("consensus.peering:Peering.admit", ("if theirs != host.cluster_id:", "if False:")),),
        tests=("unit/consensus/test_peering.py",),
    ),
)
