"""The one decision about joining and leaving: a table of situations, and rules that hold in every one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.discovery.scaling import (
    FRESH_S,
    OBSERVATIONS_MIN,
    PATIENCE_S,
    SCALE_STATES,
    Absence,
    Add,
    Gone,
    Intent,
    Leave,
    Remove,
    ScaleState,
    Seat,
    Situation,
    Stop,
    Wait,
    decide,
    unreachable_quorum,
    watch_absences,
)

WANT_1, WANT_2, WANT_3, WANT_5 = Intent(1), Intent(2), Intent(3), Intent(5)
LONG_GONE = Absence(0.0, 90.0, 30)


def voters(*node_ids):
    return tuple(Seat(node_id) for node_id in node_ids)


def lost(node_id, **changes):
    """A member whose pod is gone."""
    return Seat(node_id, **{"reachable": False, "caught_up": False, "pod_absent": True, **changes})


LEADER = Situation(
    own=0, leads=True, leader_known=True, intent=WANT_3, intent_age_s=0.1, seats=voters(0, 1, 2), remove_after_s=60.0
)
FOLLOWER = replace(LEADER, own=2, leads=False)
LEAVER = replace(FOLLOWER, stopping_s=1.0, intent=WANT_1)
SHRUNK = replace(LEADER, seats=(*voters(0, 1), lost(2)), intent=WANT_2, absences={2: LONG_GONE})

TABLE = [
    # told to stop
    ("a wanted pod that is stopped restarts", replace(FOLLOWER, stopping_s=1.0), Stop),
    ("a pod above the new size leaves", LEAVER, Leave),
    ("a pod below ordinals.start leaves", replace(LEAVER, own=0, intent=Intent(3, first_ordinal=1)), Leave),
    ("a pod inside a shifted range restarts", replace(LEAVER, intent=Intent(1, first_ordinal=2)), Stop),
    ("a pod of a StatefulSet that is being deleted stops", replace(LEAVER, intent=Intent(1, deleting=True)), Stop),
    ("a pod of a StatefulSet that is gone (404) stops", replace(LEAVER, intent=Gone()), Stop),
    ("a pod of a cluster scaled to 0 stops", replace(LEAVER, intent=Intent(0)), Stop),
    ("a stopped pod asks again while the API does not answer", replace(LEAVER, intent=None), Wait),
    (
        "a stopped pod takes silence of the API for a restart",
        replace(LEAVER, intent=None, stopping_s=PATIENCE_S),
        Stop,
    ),
    ("a stopped pod that may not ask does not ask again", replace(LEAVER, intent=None, may_ask=False), Stop),
    ("a stopped pod that may not ask any more restarts", replace(LEAVER, intent_age_s=9.0, may_ask=False), Stop),
    ("a leaver goes on though it may not ask any more", replace(LEAVER, may_ask=False), Leave),
    ("a size read before the signal does not count", replace(LEAVER, intent_age_s=1.5), Wait),
    (
        "a size read before the signal is a restart in the end",
        replace(LEAVER, intent_age_s=PATIENCE_S + 2, stopping_s=PATIENCE_S + 1),
        Stop,
    ),
    ("a leaver goes on though the API falls silent", replace(LEAVER, stopping_s=60.0, intent_age_s=50.0), Leave),
    ("undo: a leaver that is wanted again restarts", replace(LEAVER, stopping_s=30.0, intent=WANT_3), Stop),
    ("a size that the controller has not seen yet counts", replace(LEAVER, intent=Intent(1, generation=2)), Leave),
    ("a node without a seat has nothing to leave", replace(LEAVER, seats=voters(0, 1)), Stop),
    ("a node that was never born has nothing to leave", replace(LEAVER, seats=()), Stop),
    ("with auto_leave off a surplus pod only stops", replace(LEAVER, auto_leave=False), Stop),
    ("a mounted file lets nobody leave", replace(LEAVER, intent=Intent(1, binding=False)), Stop),
    ("a learner leaves as well", replace(LEAVER, seats=(*voters(0, 1), Seat(2, voter=False))), Leave),
    ("nobody leaves while no wanted pod is a member", replace(LEAVER, intent=Intent(3, first_ordinal=3)), Wait),
    ("a leaver asks though it knows no leader", replace(LEAVER, leader_known=False), Leave),
    ("a surplus leader hands over and leaves", replace(LEAVER, leads=True), Leave),
    (
        "a surplus leader without an heir stays a while",
        replace(LEAVER, leads=True, seats=(Seat(0, reachable=False), *voters(1, 2))),
        Wait,
    ),
    (
        "a surplus leader waits for its heir to catch up",
        replace(LEAVER, leads=True, seats=(Seat(0, caught_up=False), *voters(1, 2))),
        Wait,
    ),
    (
        "a surplus leader does not hand over to a learner",
        replace(LEAVER, leads=True, seats=(Seat(0, voter=False), *voters(1, 2))),
        Wait,
    ),
    (
        "a surplus leader takes its heirs in first",
        replace(LEAVER, leads=True, intent=Intent(1, first_ordinal=3), knocking=frozenset({3})),
        Add,
    ),
    # leading
    ("three wanted and three there", LEADER, Wait),
    ("a wanted node that knocks is taken in", replace(LEADER, intent=WANT_5, knocking=frozenset({3})), Add),
    ("of two that knock the lower comes first", replace(LEADER, intent=WANT_5, knocking=frozenset({4, 3})), Add),
    ("a node that knocks but is not wanted stays out", replace(LEADER, knocking=frozenset({3})), Wait),
    ("a wiped directory in a seat is not added again", replace(LEADER, knocking=frozenset({2})), Wait),
    ("with auto_join off nobody is taken in", replace(LEADER, seats=voters(0, 1), knocking={2}, auto_join=False), Wait),
    ("a mounted file takes members in", replace(LEADER, intent=Intent(5, binding=False), knocking={3}), Add),
    ("a stale size takes nobody in", replace(LEADER, intent=WANT_5, intent_age_s=FRESH_S + 1, knocking={3}), Wait),
    ("an open change comes first", replace(LEADER, intent=WANT_5, knocking={3}, change_open=True), Wait),
    ("a follower takes nobody in", replace(FOLLOWER, intent=WANT_5, knocking={3}), Wait),
    ("a size never read takes nobody in", replace(LEADER, intent=None, knocking={3}), Wait),
    ("a StatefulSet that is gone takes nobody in", replace(LEADER, intent=Gone(), knocking={3}), Wait),
    ("a StatefulSet that ends takes nobody in", replace(LEADER, intent=Intent(5, deleting=True), knocking={3}), Wait),
    (
        "a retained directory that was set aside comes as an empty one and is taken in",
        replace(LEADER, seats=voters(0, 1), knocking={2}),
        Add,
    ),
    (
        "a learner that is stuck does not keep others out",
        replace(
            LEADER, intent=Intent(5), seats=(*voters(0, 1, 2), Seat(3, voter=False, caught_up=False)), knocking={4}
        ),
        Add,
    ),
    (
        "a learner that is stuck is not removed",
        replace(LEADER, intent=Intent(4), seats=(*voters(0, 1, 2), lost(3, voter=False)), absences={3: LONG_GONE}),
        Wait,
    ),
    ("a surplus member whose pod is long gone is removed", SHRUNK, Remove),
    (
        "a surplus learner whose pod is long gone is removed",
        replace(SHRUNK, seats=(*voters(0, 1), lost(2, voter=False))),
        Remove,
    ),
    ("a surplus member that answers is kept", replace(SHRUNK, seats=voters(0, 1, 2)), Wait),
    (
        "a surplus member that answers without a pod is kept",
        replace(SHRUNK, seats=(*voters(0, 1), Seat(2, pod_absent=True))),
        Wait,
    ),
    (
        "a silent surplus member whose pod is there is kept",
        replace(SHRUNK, seats=(*voters(0, 1), lost(2, pod_absent=False))),
        Wait,
    ),
    (
        "a silent surplus member nobody knows the pod of is kept",
        replace(SHRUNK, seats=(*voters(0, 1), lost(2, pod_absent=None))),
        Wait,
    ),
    ("a member absent for a moment is kept", replace(SHRUNK, absences={2: Absence(0.0, 59.0, 30)}), Wait),
    ("a member seen absent twice is kept", replace(SHRUNK, absences={2: Absence(0.0, 90.0, 2)}), Wait),
    ("a member never seen absent is kept", replace(SHRUNK, absences={}), Wait),
    ("a stale size removes nobody", replace(SHRUNK, intent_age_s=FRESH_S + 1), Wait),
    ("a size that the controller has not seen removes nobody", replace(SHRUNK, intent=Intent(2, generation=2)), Wait),
    ("scaled to 0 removes nobody", replace(SHRUNK, intent=Intent(0)), Wait),
    ("a StatefulSet that is being deleted removes nobody", replace(SHRUNK, intent=Intent(2, deleting=True)), Wait),
    ("a StatefulSet that is gone removes nobody", replace(SHRUNK, intent=Gone()), Wait),
    ("a mounted file removes nobody", replace(SHRUNK, intent=Intent(2, binding=False)), Wait),
    ("with auto_leave off nobody is removed", replace(SHRUNK, auto_leave=False), Wait),
    ("while a change is open nobody is removed", replace(SHRUNK, change_open=True), Wait),
    ("a follower removes nobody", replace(SHRUNK, leads=False), Wait),
    ("a wanted member that is long gone is never removed", replace(SHRUNK, intent=WANT_3), Wait),
    (
        "a removal that would leave no quorum is not made",
        replace(SHRUNK, seats=(Seat(0), Seat(1, reachable=False), lost(2))),
        Wait,
    ),
    (
        "of two surplus members the higher goes first",
        replace(
            SHRUNK,
            intent=WANT_3,
            seats=(*voters(0, 1, 2), lost(3), lost(4)),
            absences={3: LONG_GONE, 4: LONG_GONE},
        ),
        Remove,
    ),
    (
        "a surplus leader removes others, not itself",
        replace(SHRUNK, own=3, intent=WANT_3, seats=(*voters(0, 1, 2, 3), lost(4)), absences={4: LONG_GONE}),
        Remove,
    ),
    ("a surplus leader that nobody stops stays", replace(LEADER, own=2, intent=WANT_2), Wait),
    (
        "whoever is wanted comes before whoever goes",
        replace(SHRUNK, seats=(Seat(0), Seat(2), lost(3)), own=0, knocking={1}),
        Add,
    ),
]


@pytest.mark.parametrize(("situation", "kind"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_each_situation_has_one_answer(situation, kind) -> None:
    """The row's situation leads to the row's decision, with a known state and a reason in words."""
    decision = decide(situation)

    assert type(decision) is kind, decision
    assert decision.state in SCALE_STATES
    assert len(decision.reason) > 10


@pytest.mark.parametrize(
    ("situation", "state"),
    [
        (LEADER, ScaleState.STEADY),
        (replace(LEADER, intent=WANT_5), ScaleState.GROWING),
        (replace(LEADER, seats=(*voters(0, 1), Seat(2, voter=False))), ScaleState.CATCHING_UP),
        (replace(LEADER, intent=WANT_2), ScaleState.SHRINKING),
        (replace(SHRUNK, change_open=True), ScaleState.SHRINKING),
        (replace(SHRUNK, seats=(Seat(0), Seat(1, reachable=False), lost(2))), ScaleState.BLOCKED),
        (replace(LEADER, intent=Intent(0)), ScaleState.HIBERNATING),
        (replace(LEADER, intent=Gone()), ScaleState.ENDING),
        (replace(LEADER, intent=None), ScaleState.UNKNOWN),
        (FOLLOWER, ScaleState.FOLLOWING),
        (replace(FOLLOWER, intent=WANT_1, own=0, leader_known=False), ScaleState.NO_QUORUM),
        (replace(FOLLOWER, leader_known=False), ScaleState.FOLLOWING),
        (LEAVER, ScaleState.LEAVING),
    ],
)
def test_each_standing_has_a_state_of_its_own(situation, state) -> None:
    """What the metric shows is the word for where the cluster stands."""
    assert state == decide(situation).state


def test_lower_node_is_added_and_higher_one_removed_first() -> None:
    """Growing goes up and shrinking goes down, as the StatefulSet controller does."""
    grown = decide(replace(LEADER, intent=WANT_5, knocking=frozenset({4, 3})))
    shrunk = decide(
        replace(
            SHRUNK, intent=WANT_1, seats=(*voters(0, 1, 2), lost(3), lost(4)), absences=dict.fromkeys((3, 4), LONG_GONE)
        )
    )

    assert isinstance(grown, Add)
    assert isinstance(shrunk, Remove)
    assert (3, 4) == (grown.node_id, shrunk.node_id)


def test_leader_hands_over_to_a_voter_that_stays() -> None:
    """Leadership goes at once to where it can stay: not to the next one that leaves."""
    decision = decide(replace(LEAVER, leads=True, intent=WANT_2, seats=(Seat(0, reachable=False), *voters(1, 2))))

    assert isinstance(decision, Leave)
    assert decision.hand_to == 1


def test_without_api_a_surplus_member_is_named_with_the_command() -> None:
    """Who may not ask the API tells the operator what to type."""
    decision = decide(replace(SHRUNK, intent=Intent(2, binding=False)))

    assert "kvorum member remove 2" in decision.reason


@pytest.mark.parametrize(
    ("intent", "seats", "said"),
    [
        (WANT_1, voters(0, 1, 2), "scale to at least 2: of 3 voters only 1 may run, 2 are needed"),
        (WANT_2, voters(0, 1, 2, 3, 4), "scale to at least 3"),
        (WANT_2, voters(0, 1, 2), None),
        (Intent(0), voters(0, 1, 2), None),
        (Intent(1, first_ordinal=1), voters(0, 1, 2), "scale to at least 2"),
        (Intent(1, first_ordinal=2), voters(0, 1, 2), "lower spec.ordinals.start to 0"),
        (WANT_1, (*voters(0), Seat(1, voter=False), Seat(2, voter=False)), None),
        (WANT_1, (), None),
    ],
)
def test_a_size_below_the_quorum_says_how_far_to_scale_up(intent, seats, said) -> None:
    """After 3 to 0 to 1 no quorum can run: the text names the smallest size at which one can."""
    text = unreachable_quorum(intent, seats)

    assert text is None if said is None else said in (text or "")


# --- absences ---


def _watched(*looks):
    absences = {}
    for now, seat in looks:
        absences = watch_absences(absences, (Seat(0), seat), WANT_2, now)
    return absences


def test_absence_lasts_from_the_first_look_to_the_last() -> None:
    """Looks that agree add up."""
    assert {2: Absence(0.0, 4.0, 3)} == _watched((0.0, lost(2)), (2.0, lost(2)), (4.0, lost(2)))


@pytest.mark.parametrize("seen", [Seat(2), lost(2, reachable=True), lost(2, pod_absent=False)])
def test_absence_ends_when_the_member_or_its_pod_is_seen(seen) -> None:
    """One look at which it is there, and the count begins anew."""
    assert {2: Absence(4.0, 4.0, 1)} == _watched((0.0, lost(2)), (2.0, seen), (4.0, lost(2)))


def test_absence_is_not_counted_while_nobody_can_say() -> None:
    """A look without an answer adds nothing and, alone, breaks nothing."""
    looks = _watched((0.0, lost(2)), (2.0, lost(2, pod_absent=None)), (4.0, lost(2)))

    assert {2: Absence(0.0, 4.0, 2)} == looks


def test_absence_broken_in_between_begins_anew() -> None:
    """Two looks too far apart say nothing about the time between them."""
    late = FRESH_S + 1

    assert {2: Absence(late, late, 1)} == _watched((0.0, lost(2)), (late, lost(2)))
    assert {} == _watched((0.0, lost(2)), (late, lost(2, pod_absent=None)))


@pytest.mark.parametrize("intent", [WANT_3, Gone(), None])
def test_absence_is_not_counted_for_who_may_be_wanted(intent) -> None:
    """Without a size that excludes the member nothing is held against it."""
    assert {} == watch_absences({2: LONG_GONE}, (lost(2),), intent, 91.0)


# --- in every situation ---

seats_strategy = st.lists(
    st.builds(
        Seat,
        node_id=st.integers(0, 7),
        voter=st.booleans(),
        reachable=st.booleans(),
        caught_up=st.booleans(),
        pod_absent=st.sampled_from([True, False, None]),
    ),
    max_size=7,
    unique_by=lambda seat: seat.node_id,
).map(tuple)
intents = st.one_of(
    st.none(),
    st.just(Gone()),
    st.builds(
        Intent,
        replicas=st.integers(0, 7),
        first_ordinal=st.integers(0, 2),
        deleting=st.booleans(),
        generation=st.just(2),
        observed_generation=st.integers(1, 2),
        binding=st.booleans(),
    ),
)
situations = st.builds(
    Situation,
    own=st.integers(0, 7),
    leads=st.booleans(),
    leader_known=st.booleans(),
    intent=intents,
    intent_age_s=st.floats(0, 20),
    seats=seats_strategy,
    may_ask=st.booleans(),
    stopping_s=st.one_of(st.none(), st.floats(0, 20)),
    knocking=st.frozensets(st.integers(0, 8)),
    change_open=st.booleans(),
    absences=st.dictionaries(
        st.integers(0, 7), st.builds(Absence, st.just(0.0), st.floats(0, 120), st.integers(1, 6)), max_size=8
    ),
    auto_join=st.booleans(),
    auto_leave=st.booleans(),
    remove_after_s=st.just(60.0),
)
likely = st.builds(
    replace,
    situations,
    intent=st.builds(Intent, replicas=st.integers(1, 4), generation=st.just(1)),
    intent_age_s=st.floats(0, 2),
    leads=st.just(value=True),
    change_open=st.just(value=False),
    auto_leave=st.just(value=True),
)


@settings(max_examples=600, deadline=None)
@given(st.one_of(situations, likely))
def test_no_situation_leads_to_harm(s) -> None:
    """Nobody who is wanted, answers, or may come back loses a seat; no quorum is given away; one step at a time."""
    decision = decide(s)

    assert type(decision) in (Stop, Leave, Add, Remove, Wait)
    if isinstance(decision, Stop | Leave):
        assert s.stopping_s is not None
    if isinstance(decision, Leave | Remove | Add):
        assert isinstance(s.intent, Intent)
        assert s.intent.replicas > 0
        assert not s.intent.deleting
    if isinstance(decision, Leave):
        assert not s.intent.wants(s.own)
        assert s.intent.binding
        assert s.auto_leave
        assert s.intent_age_s <= s.stopping_s
        assert s.seat(s.own) is not None
        assert s.leads == (decision.hand_to is not None)
        assert any(s.intent.wants(seat.node_id) for seat in s.seats)
        assert decision.hand_to is None or s.intent.wants(decision.hand_to)
    if isinstance(decision, Remove):
        seat = s.seat(decision.node_id)
        assert s.leads
        assert not s.change_open
        assert seat is not None
        assert decision.node_id != s.own
        assert not s.intent.wants(decision.node_id)
        assert s.intent.settled
        assert s.intent.binding
        assert s.auto_leave
        assert s.intent_age_s <= FRESH_S
        assert not seat.reachable
        assert seat.pod_absent is True
        assert s.absences[decision.node_id].seconds >= s.remove_after_s
        assert s.absences[decision.node_id].observations >= OBSERVATIONS_MIN
        left = [other for other in s.seats if other.voter and other.node_id != decision.node_id]
        assert not seat.voter or 2 * sum(other.reachable for other in left) > len(left)
    if isinstance(decision, Add):
        assert s.leads
        assert not s.change_open
        assert s.auto_join
        assert decision.node_id in s.knocking
        assert s.intent.wants(decision.node_id)
        assert s.seat(decision.node_id) is None
