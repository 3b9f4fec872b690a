"""Bugs in proposals, forwards, and in what leaves for the peers."""

from __future__ import annotations

from typing import Final

from kvorum_sim.teeth.mutation import Bug, edit

_UNIT: Final = ("unit/consensus/test_proposals.py",)

BUGS: Final = (
    Bug(
        "proposals revived too early",
        67,
        "What was sent in an earlier term is proposed again as soon as the term changes, although it may still commit.",
        (
            edit(
                "consensus.proposals:Proposals.leadership_changed",
                (
                    "    leader = host.leader\n",
                    (
                        "    leader = host.leader\n"
                        "    self._take_back([p for p in self._outstanding.values() if p.term < host.term])\n"
                    ),
                ),
            ),
        ),
        tests=_UNIT,
    ),
    Bug(
        "order broken across terms",
        31,
        "New writes are sent in a new term while older ones are undecided, and may overtake them.",
        (
            edit(
                "consensus.proposals:Proposals._may_send_in",
                ("if any(proposal.term < term for proposal in self._outstanding.values()):", "if False:"),
            ),
        ),
        tests=_UNIT,
    ),
    Bug(
        "gap in forwards ignored",
        31,
        "A leader takes a follower's writes although earlier ones are missing.",
        (
            edit(
                "consensus.proposals:Proposals.forward_received",
                ("if not forward.resync:", "if False:"),
            ),
        ),
        tests=_UNIT,
    ),
    Bug(
        "reports of gaps ignored",
        31,
        "A follower does not send again what its leader misses.",
        (
            edit(
                "consensus.proposals:Proposals.forward_reply_received",
                ("if reply.kind == frames.GAP:", "if reply.kind == frames.GAP:\n        return\n    if False:"),
            ),
        ),
        tests=_UNIT,
    ),
    Bug(
        "forwards taken twice",
        67,
        "A leader appends again what a follower sends again.",
        (
            edit(
                "consensus.proposals:Proposals.forward_received",
                ("if position < expected:", "if False:"),
            ),
        ),
        tests=_UNIT,
    ),
    Bug(
        "answered when appended",
        59,
        "A leader answers its own clients' writes when it appends them.",
        (
            edit(
                "consensus.proposals:Proposals._append",
                (
                    "outstanding[item.sequence] = item",
                    "from kvorum.core.operations import APPLIED\n            item.pending.decided(0, APPLIED)",
                ),
            ),
        ),
        tests=_UNIT,
    ),
    Bug(
        "deadline of a sent write not kept",
        31,
        "A write that was sent and is never decided is never answered.",
        (
            edit(
                "consensus.proposals:Proposals.expire",
                ("[p for p in self._outstanding.values() if now >= p.deadline]", "[]"),
            ),
        ),
        kinds=("partition",),
        tests=_UNIT,
    ),
    Bug(
        "numbers begin anew in each process",
        74,
        "A restarted node numbers its forwards and questions as before, so answers to its former life count.",
        (
            edit(
                "consensus.manager:ConsensusManager.__init__",
                ("own_numbers = self._nonce >> 1", "own_numbers = 1"),
            ),
        ),
        tests=("unit/consensus/test_manager.py",),
    ),
    Bug(
        "urgent messages overtake their promise",
        2,
        "Urgent messages leave at once, whatever they wait for.",
        (
            edit(
                "consensus.manager:ConsensusManager._execute",
                ("if effect.after <= self._durable:", "if effect.after <= self._durable or effect.urgent:"),
            ),
        ),
    ),
    Bug(
        "silent node goes on",
        64,
        "A node whose disk is full goes on taking part, as if what it appends were kept.",
        (
            edit(
                "consensus.reporting:Reporting.speaks",
                ("not self._short_of_space and ", ""),
            ),
        ),
        tests=("unit/consensus/test_manager.py",),
    ),
    Bug(
        "entry too large to be sent",
        75,
        "A write is taken although its entry is larger than any message may be.",
        (
            edit(
                "consensus.proposals:Proposals.propose",
                ("if size + TAG_BYTES + HEADER_BYTES > ENTRY_BYTES_MAX:", "if False:"),
            ),
        ),
        tests=_UNIT,
    ),
)
