"""
Whether a node leaves or only stops, and whom a leader takes in or lets go: one pure decision (docs/decisions/0018).

Kubernetes does not tell a pod why it is stopped. So nothing is concluded from a signal or from silence alone: the
size that the StatefulSet asks for is read, and whatever is not proven by it is a restart. A wrong "restart" costs a
wait, for the leader removes the member later; a wrong "leave" would cost a vote.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvorum.core.ids import NodeId

FRESH_S: Final = 10.0
"""An intent that was read longer ago changes no membership; two observations further apart are not one absence."""

OBSERVATIONS_MIN: Final = 3
"""A member is removed behind its back only after it was seen absent this often in a row."""

PATIENCE_S: Final = 6.0
"""How long a node that is told to stop tries to learn why; then it is a restart."""


class ScaleState:
    """Where the cluster stands between the size it has and the size it should have; a label of a metric."""

    STEADY: Final = "steady"
    GROWING: Final = "growing"
    """Wanted members have not come yet."""
    CATCHING_UP: Final = "catching_up"
    """Wanted members are learners still."""
    SHRINKING: Final = "shrinking"
    """There are members that are not wanted any more."""
    BLOCKED: Final = "blocked"
    """A surplus member is gone, but without it the voters that can be reached would be no quorum."""
    LEAVING: Final = "leaving"
    """This node is being removed."""
    HIBERNATING: Final = "hibernating"
    """The StatefulSet asks for no pod at all: the membership waits for it to come back."""
    ENDING: Final = "ending"
    """The StatefulSet is being deleted, or is gone."""
    NO_QUORUM: Final = "no_quorum"
    """Too few of the voters are wanted for a quorum ever to run."""
    FOLLOWING: Final = "following"
    """Another node leads and does what there is to do."""
    UNKNOWN: Final = "unknown"
    """Nobody could say what is wanted, or not lately enough."""


SCALE_STATES: Final = tuple(value for name, value in vars(ScaleState).items() if name.isupper())


@dataclass(frozen=True, slots=True)
class Intent:
    """How many members somebody wants, as read from the StatefulSet."""

    replicas: int
    first_ordinal: int = 0
    deleting: bool = False
    generation: int = 1
    observed_generation: int = 1
    uid: str = ""
    binding: bool = True
    """False if it comes from a mounted file, which may be old: enough to take members in, never to let any go."""

    @property
    def settled(self) -> bool:
        """Whether the StatefulSet controller has seen this very size."""
        return self.observed_generation >= self.generation

    def wants(self, ordinal: NodeId) -> bool:
        """Whether a pod with this ordinal should be there."""
        return ordinal in self.ordinals()

    def ordinals(self) -> range:
        """Ordinals of the pods that should be there."""
        return range(self.first_ordinal, self.first_ordinal + self.replicas)


@dataclass(frozen=True, slots=True)
class Gone:
    """The API server says that there is no such StatefulSet."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One member of the configuration in force, as this node knows it."""

    node_id: NodeId
    voter: bool = True
    reachable: bool = True
    """The data directory that holds the seat was heard a moment ago."""
    caught_up: bool = True
    pod_absent: bool | None = None
    """None: not asked, or nobody could say."""
    uptime_s: float = float("inf")
    """Age of its process, as it has said."""


@dataclass(frozen=True, slots=True)
class Absence:
    """How long a member has been surplus, silent and without a pod, at every look in between."""

    since: float
    last: float
    observations: int = 1

    @property
    def seconds(self) -> float:
        """Between the first look and the last one."""
        return self.last - self.since


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that `decide` looks at."""

    own: NodeId
    leads: bool
    """This node leads and a quorum has confirmed it."""
    leader_known: bool
    intent: Intent | Gone | None
    """None: never read."""
    intent_age_s: float
    seats: tuple[Seat, ...]
    may_ask: bool = True
    """False if the API server refuses to say: to ask again is no use."""
    stopping_s: float | None = None
    """Since this node was told to stop; None if it was not."""
    knocking: frozenset[NodeId] = frozenset()
    """Nodes with an empty data directory that a link stands to."""
    change_open: bool = False
    """A change of the membership is not committed yet."""
    absences: Mapping[NodeId, Absence] = field(default_factory=dict)
    auto_join: bool = True
    auto_leave: bool = True
    remove_after_s: float = 60.0

    def seat(self, node_id: NodeId) -> Seat | None:
        """The seat of a node, if it has one."""
        return next((seat for seat in self.seats if seat.node_id == node_id), None)


@dataclass(frozen=True, slots=True)
class Stop:
    """This node may end now; its seat stays."""

    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Leave:
    """This node gives its seat up; as the leader it first hands leadership to ``hand_to``."""

    state: str
    reason: str
    hand_to: NodeId | None = None


@dataclass(frozen=True, slots=True)
class Add:
    """The leader takes a node in, as a learner."""

    state: str
    reason: str
    node_id: NodeId


@dataclass(frozen=True, slots=True)
class Remove:
    """The leader gives up a seat whose pod will not come back."""

    state: str
    reason: str
    node_id: NodeId


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now."""

    state: str
    reason: str


Decision: TypeAlias = Stop | Leave | Add | Remove | Wait


def find_heir(own: NodeId, intent: Intent, seats: Iterable[Seat]) -> NodeId | None:
    """
    Who is to lead when this node stops: a wanted voter that can be reached and has caught up.

    The one that started last: in a rollout it has been restarted already, and leadership stays there (operations L16).
    """
    heirs = [
        seat
        for seat in seats
        if seat.node_id != own and intent.wants(seat.node_id) and seat.voter and seat.reachable and seat.caught_up
    ]
    return min(heirs, key=lambda seat: seat.uptime_s).node_id if heirs else None


def decide(situation: Situation) -> Decision:
    """The next step, at most one: what is done changes the situation, and then it is looked at again."""
    return _reconcile(situation) if situation.stopping_s is None else _part(situation, situation.stopping_s)


def watch_absences(
    before: Mapping[NodeId, Absence], seats: Iterable[Seat], intent: Intent | Gone | None, now: float
) -> dict[NodeId, Absence]:
    """
    Note which members are surplus, silent and without a pod at this look.

    A member seen otherwise begins anew. A look at which nobody could say counts neither for nor against, but two that
    are more than `FRESH_S` apart do not belong together.
    """
    after: dict[NodeId, Absence] = {}
    for seat in seats:
        if not isinstance(intent, Intent) or intent.wants(seat.node_id) or seat.reachable or seat.pod_absent is False:
            continue
        known = before.get(seat.node_id)
        if known is not None and now - known.last > FRESH_S:
            known = None
        if seat.pod_absent is None:
            if known is not None:
                after[seat.node_id] = known
        elif known is None:
            after[seat.node_id] = Absence(now, now)
        else:
            after[seat.node_id] = Absence(known.since, now, known.observations + 1)
    return after


def unreachable_quorum(intent: Intent, seats: Iterable[Seat]) -> str | None:
    """Why no quorum of the voters will ever run at this size; None if one may."""
    voters = sorted(seat.node_id for seat in seats if seat.voter)
    quorum = len(voters) // 2 + 1
    wanted = [voter for voter in voters if intent.wants(voter)]
    if not voters or not intent.replicas or len(wanted) >= quorum:
        return None
    # Only ordinals from the first one up can be had by scaling; those below need another `ordinals.start`.
    having = [voter for voter in voters if voter >= intent.first_ordinal]
    if len(having) < quorum:
        return (
            f"no quorum: of {len(voters)} voters only {len(wanted)} may run, {quorum} are needed; "
            f"lower spec.ordinals.start to {voters[0]}"
        )
    return (
        f"scale to at least {having[quorum - 1] - intent.first_ordinal + 1}: of {len(voters)} voters only "
        f"{len(wanted)} may run, {quorum} are needed"
    )


# --- told to stop ---


def _part(s: Situation, stopping_s: float) -> Decision:
    """Restart or leave; asked again and again while the removal is on its way, so that it can still be undone."""
    intent, seat = s.intent, s.seat(s.own)
    if seat is None:
        return Stop(ScaleState.UNKNOWN, "this node holds no seat: there is nothing to leave")
    if not s.auto_leave:
        return Stop(ScaleState.UNKNOWN, "auto_leave is off: the seat stays")
    if isinstance(intent, Intent) and not intent.binding:
        return Stop(ScaleState.UNKNOWN, "without the Kubernetes API nobody can tell a restart from a scale-down")
    if intent is None or s.intent_age_s > stopping_s:
        if stopping_s < PATIENCE_S and s.may_ask:
            return Wait(ScaleState.UNKNOWN, "reading the size of the StatefulSet: a restart, or a scale-down?")
        return Stop(ScaleState.UNKNOWN, "the size of the StatefulSet cannot be read: taken as a restart")
    if isinstance(intent, Gone):
        return Stop(ScaleState.ENDING, "the StatefulSet is gone: the seat stays with the data")
    if intent.deleting:
        return Stop(ScaleState.ENDING, "the StatefulSet is being deleted: the seat stays with the data")
    if intent.replicas == 0:
        return Stop(ScaleState.HIBERNATING, "scaled to 0: every seat stays, for the cluster to come back as it was")
    if intent.wants(s.own):
        return Stop(ScaleState.STEADY, f"a restart: ordinal {s.own} is wanted")
    if not s.leads and not any(intent.wants(other.node_id) for other in s.seats):
        return Wait(ScaleState.LEAVING, "none of the wanted pods is a member yet: somebody has to hand the data on")
    if not s.leads:
        return Leave(ScaleState.LEAVING, f"scaled to {intent.replicas}: ordinal {s.own} is not wanted any more")
    heir = find_heir(s.own, intent, s.seats)
    if heir is not None:
        return Leave(
            ScaleState.LEAVING,
            f"scaled to {intent.replicas}: ordinal {s.own} is not wanted any more; node {heir} is to lead",
            heir,
        )
    # Nobody who stays can lead yet: this leader goes on with its work until somebody can.
    step = _reconcile(s)
    if isinstance(step, Add | Remove):
        return step
    return Wait(ScaleState.LEAVING, "no wanted voter can be reached and has caught up: nobody could lead after this")


# --- leading ---


def _reconcile(s: Situation) -> Decision:
    intent = s.intent
    if intent is None:
        return Wait(ScaleState.UNKNOWN, "the size of the StatefulSet was never read")
    if isinstance(intent, Gone):
        return Wait(ScaleState.ENDING, "the StatefulSet is gone: the membership stays as it is")
    if intent.deleting:
        return Wait(ScaleState.ENDING, "the StatefulSet is being deleted: the membership stays as it is")
    if intent.replicas == 0:
        return Wait(ScaleState.HIBERNATING, "scaled to 0: the membership stays as it is")
    if not s.leads:
        hopeless = None if s.leader_known else unreachable_quorum(intent, s.seats)
        if hopeless is not None:
            return Wait(ScaleState.NO_QUORUM, hopeless)
        return Wait(ScaleState.FOLLOWING, "the leader takes members in and lets them go")
    if s.intent_age_s > FRESH_S:
        return Wait(ScaleState.UNKNOWN, f"the size of the StatefulSet was last read {s.intent_age_s:.0f} s ago")
    standing = _standing(s, intent)
    if s.change_open:
        return Wait(standing.state, "a change of the membership is under way")
    for node_id in sorted(s.knocking):
        if intent.wants(node_id) and s.seat(node_id) is None:
            if s.auto_join:
                return Add(ScaleState.GROWING, f"node {node_id} came with an empty directory and is wanted", node_id)
            text = f"node {node_id} came and is wanted, but auto_join is off: kvorum member add"
            standing = Wait(ScaleState.GROWING, text)
            break
    for seat in _surplus(s, intent):
        if _kept(seat, s, intent) is None:
            text = f"node {seat.node_id} is not wanted, silent, and its pod is gone"
            return Remove(ScaleState.SHRINKING, text, seat.node_id)
    return standing


def _surplus(s: Situation, intent: Intent) -> list[Seat]:
    """Members that are not wanted, highest ordinal first, as the StatefulSet controller goes."""
    return sorted((seat for seat in s.seats if not intent.wants(seat.node_id)), key=lambda seat: -seat.node_id)


def _kept(seat: Seat, s: Situation, intent: Intent) -> Wait | None:
    """Why a surplus member keeps its seat for now; None if nothing speaks for it."""
    node = f"node {seat.node_id} is not wanted"
    if seat.node_id == s.own:
        return Wait(ScaleState.SHRINKING, f"{node} and leads: it leaves when its pod is stopped")
    if not intent.binding:
        # Nobody watches over this member but the one who reads this: say what to type.
        return Wait(ScaleState.SHRINKING, f"{node}; if its pod will not come back: kvorum member remove {seat.node_id}")
    if seat.reachable:
        return Wait(ScaleState.SHRINKING, f"{node} and still there: it leaves when its pod is stopped")
    if not s.auto_leave:
        return Wait(
            ScaleState.SHRINKING, f"{node} and silent, but auto_leave is off: kvorum member remove {seat.node_id}"
        )
    if seat.pod_absent is None:
        return Wait(ScaleState.SHRINKING, f"{node} and silent; whether its pod is there is not known")
    if not seat.pod_absent:
        return Wait(ScaleState.SHRINKING, f"{node} and silent, but its pod is there still")
    if not intent.settled:
        return Wait(ScaleState.SHRINKING, f"{node}, but the StatefulSet controller has not seen the latest size yet")
    absence = s.absences.get(seat.node_id)
    seconds = 0.0 if absence is None else absence.seconds
    if absence is None or absence.observations < OBSERVATIONS_MIN or seconds < s.remove_after_s:
        return Wait(
            ScaleState.SHRINKING, f"{node} and gone for {seconds:.0f} s; it is removed after {s.remove_after_s:.0f} s"
        )
    voters = [other for other in s.seats if other.voter and other.node_id != seat.node_id]
    up, quorum = sum(1 for other in voters if other.reachable), len(voters) // 2 + 1
    if seat.voter and up < quorum:
        return Wait(
            ScaleState.BLOCKED,
            f"{node} and gone, but of the {len(voters)} other voters only {up} can be reached and {quorum} are needed",
        )
    return None


def _standing(s: Situation, intent: Intent) -> Wait:
    """What there is to say while nothing is done."""
    surplus = _surplus(s, intent)
    kept = [wait for seat in surplus if (wait := _kept(seat, s, intent)) is not None]
    kept.sort(key=lambda wait: wait.state != ScaleState.BLOCKED)
    if surplus:
        return kept[0] if kept else Wait(ScaleState.SHRINKING, f"node {surplus[0].node_id} is about to be removed")
    learners = [str(seat.node_id) for seat in s.seats if not seat.voter and intent.wants(seat.node_id)]
    if learners:
        return Wait(ScaleState.CATCHING_UP, f"node {', '.join(learners)} catches up and becomes a voter then")
    missing = [str(ordinal) for ordinal in intent.ordinals() if s.seat(ordinal) is None]
    if missing:
        return Wait(ScaleState.GROWING, f"node {', '.join(missing)} has not come yet")
    return Wait(ScaleState.STEADY, f"{intent.replicas} wanted, {intent.replicas} there")
