"""What operators ask is checked on the node that is asked, and outcomes keep their meaning as codes."""

from __future__ import annotations

from typing import Any

import pytest

from kvorum.app.admin import Administration
from kvorum.consensus.changes import Action, Change, Outcome
from kvorum.core.cluster import Configuration, Member
from kvorum.core.errors import ErrorCode, Refusal

MEMBERS = Configuration.of(
    [Member(0, "a:9090", "a:7090", incarnation=5), Member(1, "b:9090", "b:7090", voter=False)],
)


class Consensus:
    """The part of a ConsensusManager that is asked, with a fixed outcome."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.asked: list[tuple[Change, float]] = []
        self.alone = False
        self.membership = self

    async def change(self, change: Change, timeout_s: float) -> Outcome:
        self.asked.append((change, timeout_s))
        return self.outcome

    def leader_hint(self) -> tuple[int, str] | None:
        return (0, "a:9090")


def administration(outcome: Outcome) -> tuple[Administration, Consensus]:
    consensus = Consensus(outcome)
    return Administration(consensus), consensus  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("action", "arguments", "said"),
    [
        ("member-add", {}, "client_endpoint is missing"),
        ("member-add", {"client_endpoint": "nowhere"}, "nowhere"),
        ("member-add", {"client_endpoint": "a:1500"}, "give peer_endpoint as well"),
        ("member-add", {"client_endpoint": 7}, "endpoints are texts"),
        ("member-remove", {}, "node_id is missing"),
        ("member-remove", {"node_id": "1"}, "is no number"),
        ("member-remove", {"node_id": 1, "forse": True}, "'forse' is not known"),
        ("member-remove", {"node_id": 1, "force": "yes"}, "force must be true or false"),
        ("leader-move", {"node_id": -1}, "is no number"),
        ("leader-move", {"timeout_s": 0}, "timeout_s must be a number"),
        ("leader-move", {"timeout_s": True}, "timeout_s must be a number"),
        ("log-compact", {"timeout_s": 1e9}, "timeout_s must be a number"),
    ],
)
async def test_administration_bad_arguments_are_refused_without_asking_anybody(
    action: str, arguments: dict[str, Any], said: str
) -> None:
    """The text names what is wrong and what is allowed."""
    asked, consensus = administration(Outcome(ok=True, text="", configuration=MEMBERS))
    refusal = await asked.perform(action, arguments)
    assert isinstance(refusal, Refusal)
    assert refusal.code == ErrorCode.INVALID_ARGUMENT
    assert said in refusal.text
    assert consensus.asked == []


async def test_administration_added_node_gets_its_peer_endpoint_and_tells_its_number() -> None:
    """The peer port follows the client port unless it is given; the number comes from the members in force."""
    asked, consensus = administration(Outcome(ok=True, text="node 1 is a learner", configuration=MEMBERS))
    answer = await asked.perform("member-add", {"client_endpoint": "b:9090", "timeout_s": 3})
    assert consensus.asked == [(Change(Action.ADD, None, "b:9090", "b:7090"), 3)]
    assert not isinstance(answer, Refusal)
    assert (answer["text"], answer["node_id"]) == ("node 1 is a learner", 1)
    assert [(m["voter"], m["incarnation"]) for m in answer["members"]] == [(True, f"{5:016x}"), (False, None)]


@pytest.mark.parametrize(
    ("configuration", "alone", "code"),
    [
        (MEMBERS, False, ErrorCode.CONFLICT),
        (None, False, ErrorCode.UNAVAILABLE),
        (None, True, ErrorCode.UNSUPPORTED),
    ],
)
async def test_administration_failures_say_whether_a_leader_judged(
    configuration: Configuration | None, code: str, *, alone: bool
) -> None:
    """A leader's no is a conflict, silence is unavailability, and a node without peers cannot do it at all."""
    asked, consensus = administration(Outcome(ok=False, text="no", configuration=configuration))
    consensus.alone = alone
    refusal = await asked.perform("member-remove", {"node_id": 1})
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.text) == (code, "no")


async def test_member_that_the_statefulset_wants_is_removed_only_by_force() -> None:
    """It would come straight back; nobody is asked, and the text says what to do instead."""
    consensus = Consensus(Outcome(ok=True, text="node 1 is removed", configuration=MEMBERS))
    subject = Administration(consensus, lambda node_id: node_id == 1)  # type: ignore[arg-type]
    refused = await subject.perform("member-remove", {"node_id": 1})
    assert isinstance(refused, Refusal)
    assert refused.code == ErrorCode.CONFLICT
    assert "scale the StatefulSet down" in refused.text
    assert not consensus.asked
    assert isinstance(await subject.perform("member-remove", {"node_id": 1, "force": True}), dict)
    assert isinstance(await subject.perform("member-remove", {"node_id": 2}), dict)
