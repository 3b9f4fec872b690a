"""
The hand of `discovery.scaling`: reads what is wanted, has it decided, and does it, one step after the other.

Every pod runs one. All read the size of the StatefulSet; the one that leads takes in who is wanted and comes, and lets
go who is not wanted and gone. A pod that is told to stop asks here first whether it is a restart or a farewell.
One task does all of it, so that nothing crosses.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvorum.app.notices import Notices
from kvorum.consensus.changes import Action, Change
from kvorum.consensus.founding import PodBirth
from kvorum.consensus.membership import CAUGHT_UP_ENTRIES
from kvorum.core.errors import StartupError
from kvorum.discovery.genesis import GenesisRecord
from kvorum.discovery.kubernetes_api import REASONS, Failure, LeaderAddress, Reason, SliceOutcome
from kvorum.discovery.scaling import (
    SCALE_STATES,
    Absence,
    Add,
    Decision,
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
    find_heir,
    watch_absences,
)
from kvorum.observe.metrics import Metric, gauge

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    import structlog

    from kvorum.config.pod import Pod
    from kvorum.config.settings import Settings
    from kvorum.consensus.changes import Outcome
    from kvorum.consensus.manager import ConsensusManager
    from kvorum.core.ids import NodeId, Term
    from kvorum.discovery.kubernetes_api import KubernetesApi

LEADER_POLL_S: Final = 2.0
OTHERS_POLL_S: Final = 5.0
BUSY_POLL_S: Final = 0.5
"""While the cluster is being born, somebody waits to be taken in, or this pod is told to stop."""

BACK_OFF_S_MAX: Final = 30.0
JITTER: Final = 0.2

CHANGE_S: Final = 5.0
"""How long one change of the membership may take before everything is looked at again."""

LEAVE_S: Final = 100.0
"""How long a pod waits for its removal; the chart's grace period of 120 s covers it and the stop behind it."""

TOLD_S: Final = 3.0
"""A removal that the leader has confirmed, and that this node has not seen itself after so long, is good enough."""

LEADERLESS_S: Final = 10.0
"""Without a leader for this long it is worth asking whether there can be one."""

RECORDS_S: Final = 5.0
"""How often a leader looks at its EndpointSlice, and at the genesis record until that holds an id."""

RECORD_AGAIN_S: Final = 60.0
"""How often it looks at the record that does: whoever replaces the ConfigMap as a whole empties it."""

PODS_MAX: Final = 8
"""Pods that are asked for in one look; there are rarely more surplus members than that."""

_SIZE: Final = "the size of the StatefulSet cannot be read"
_POD: Final = "whether a pod is there cannot be read"
_SLICE: Final = "the leader's EndpointSlice cannot be written"
_RECORD: Final = "the genesis record cannot be had"


class Scaler:
    """See the module text."""

    def __init__(
        self,
        settings: Settings,
        pod: Pod,
        consensus: ConsensusManager,
        api: KubernetesApi | None,
        logger: structlog.typing.FilteringBoundLogger,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        randomness: random.Random,
        fail: Callable[[BaseException], None],
    ) -> None:
        """
        Put together what it needs; nothing is asked yet.

        Args:
            settings: Section ``discovery`` counts.
            pod: This one.
            consensus: What it looks at, and asks for changes.
            api: None where the Kubernetes API may not be asked: then a mounted file says how many pods are wanted.
            logger: Says every new decision once.
            loop: Everything runs on it.
            clock: Monotonic seconds.
            randomness: Keeps the pods of a set from asking in step.
            fail: Ends the process, so that the container starts again.
        """
        self._settings = settings.discovery
        self._pod = pod
        self._consensus = consensus
        self._api = api
        self._logger = logger
        self._loop = loop
        self._clock = clock
        self._randomness = randomness
        self._fail = fail
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._parted: asyncio.Future[bool] = loop.create_future()
        self._stopping_at: float | None = None
        self._told_at: float | None = None
        self._intent: Intent | Gone | None = None
        self._read_at = float("-inf")
        self._failures = 0
        self._trouble = ""
        """Why the size could not be read last; empty when it could."""
        self._complaints: dict[str, str] = {}
        """What does not work, and why."""
        self._refusal = ""
        """Why the last change that a leader wanted was not made."""
        self._seats: tuple[Seat, ...] = ()
        self._absences: dict[NodeId, Absence] = {}
        self._last: Decision = Wait(ScaleState.UNKNOWN, "nothing was looked at yet")
        self._notices = Notices(api, pod.statefulset, pod.name, clock) if api is not None else None
        self._record = (
            GenesisRecord(api, self._settings.genesis_config_map, pod.name, loop, randomness, logger)
            if api is not None and self._settings.genesis_config_map is not None
            else None
        )
        self._recorded_at = float("-inf")
        self._kept: tuple[Term, float] = (-1, 0.0)

    # --- life ---

    def start(self) -> None:
        """Begin; the first look is at once, for an empty pod waits for it."""
        assert self._task is None, "it is started once"
        self._task = self._loop.create_task(self._run(), name="scaler")
        self._task.add_done_callback(self._ended)

    async def stopping(self) -> bool:
        """
        This pod is told to stop: find out whether to leave, and leave; it votes and replicates meanwhile.

        Returns:
            True if the cluster has let this node go; False for a restart, or if the removal did not come in time.

        Cancel:
            The removal may still take effect.
        """
        if self._task is None or self._task.done():
            return False
        self._stopping_at = self._clock()
        self._wake.set()
        await asyncio.wait((self._parted,), timeout=LEAVE_S)
        if self._parted.done():
            return self._parted.result()
        self._logger.error(
            "this node was not removed in time and stops as a member; the leader removes it when its pod is gone",
            next_step=f"kvorum member remove {self._pod.ordinal}",
            waits_for=self._last.reason,
        )
        return False

    async def stop(self) -> None:
        """End the task; the connection to the API is its owner's."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        if self._record is not None:
            self._record.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._loop.call_exception_handler({"message": "the scaler failed", "exception": error})

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            await self._step()
            try:
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _step(self) -> None:
        await self._look()
        if self._look_for_removal():
            return
        self._tell()
        situation = self._situation()
        decision = decide(situation)
        self._note(decision)
        await self._perform(decision)
        if self._api is not None and self._stopping_at is None and self._consensus.may_serve:
            await self._keep_records(self._api)
        if self._notices is not None:
            await self._notices.send(self._intent.uid if isinstance(self._intent, Intent) else "")

    def _pause_s(self) -> float:
        consensus, intent = self._consensus, self._intent
        leads = consensus.may_serve
        base = LEADER_POLL_S if leads or consensus.machine is None else OTHERS_POLL_S
        awaited = leads and isinstance(intent, Intent) and any(map(intent.wants, self._knocking()))
        if awaited and self._settings.auto_join and not self._refusal:
            base = BUSY_POLL_S
        if self._stopping_at is not None or intent is None or (leads and not consensus.complete):
            base = BUSY_POLL_S
        if self._failures and self._stopping_at is None:
            base = min(BACK_OFF_S_MAX, base * 2 ** min(self._failures, 8))
        return base * self._randomness.uniform(1 - JITTER, 1 + JITTER)

    # --- looking ---

    async def _look(self) -> None:
        """Read what is wanted, and whether the pods of silent surplus members are gone."""
        if self._api is None:
            self._intent, self._read_at = self._read_file(), self._clock()
            self._seats = self._seen({})
            return
        asked_at = self._clock()
        answer = await self._api.read_statefulset()
        if isinstance(answer, Failure):
            self._failures += 1
            self._trouble = answer.reason
            self._complain(_SIZE, answer)
        else:
            self._failures = 0
            self._trouble = ""
            self._complaints.pop(_SIZE, None)
            self._intent, self._read_at = answer, asked_at
        absent: dict[NodeId, bool] = {}
        if self._consensus.may_serve and isinstance(self._intent, Intent) and self._intent.replicas:
            intent = self._intent
            silent = [s.node_id for s in self._seen({}) if not intent.wants(s.node_id) and not s.reachable]
            if isinstance(answer, Failure):
                silent = []  # each further call would wait as long, and so would a pod that is told to stop
            for node_id in sorted(silent, reverse=True)[:PODS_MAX]:
                said = await self._api.read_pod_absent(self._pod.name_of(node_id))
                if isinstance(said, Failure):
                    self._complain(_POD, said)
                else:
                    self._complaints.pop(_POD, None)
                    absent[node_id] = said
            self._seats = self._seen(absent)
            self._absences = watch_absences(self._absences, self._seats, intent, self._clock())
        else:
            self._seats = self._seen(absent)
            self._absences = {}

    def _complain(self, what: str, failure: Failure) -> None:
        """Say that something does not work, once until it works again or fails otherwise."""
        if self._complaints.get(what) != failure.reason:
            self._complaints[what] = failure.reason
            forbidden = "give the service account the chart's Role, or set [discovery] api = false"
            next_step = forbidden if failure.reason == Reason.FORBIDDEN else "none: it is tried again"
            self._logger.warning(what, reason=failure.reason, error=failure.text, next_step=next_step)

    def _read_file(self) -> Intent | None:
        """What the chart says, where the API may not be asked."""
        name = self._settings.replicas_file
        if name is None:
            return None
        try:
            replicas = int(Path(name).read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            if not self._trouble:
                self._trouble = str(error)
                self._logger.warning("the number of wanted pods cannot be read", file=name, error=str(error))
            return None
        self._trouble = ""
        return Intent(max(0, replicas), binding=False)

    def _seen(self, absent: dict[NodeId, bool]) -> tuple[Seat, ...]:
        """The members in force, as this node knows them; none before there is a cluster."""
        consensus = self._consensus
        machine = consensus.machine
        if machine is None:
            return ()
        now = self._clock()
        silent_s = 2 * consensus.settings.timings.election_timeout_s
        matches = machine.matches()
        seats = []
        for member in consensus.members.members:
            node_id = member.node_id
            age_s = consensus.contacts.seat_age_s(node_id, now)
            report = consensus.contacts.reports.get(node_id)
            behind = machine.commit_index - matches.get(node_id, machine.commit_index)
            seats.append(
                Seat(
                    node_id=node_id,
                    voter=member.voter,
                    reachable=node_id == consensus.node_id or (age_s is not None and age_s < silent_s),
                    caught_up=behind <= CAUGHT_UP_ENTRIES,
                    pod_absent=absent.get(node_id),
                    uptime_s=report.uptime_ms / 1000 if report is not None else float("inf"),
                )
            )
        return tuple(seats)

    def _knocking(self) -> frozenset[NodeId]:
        """Nodes without a cluster that talk to this one and hold no seat."""
        consensus = self._consensus
        members, gone = consensus.members, consensus.peering.has_gone
        empty = {peer for peer, report in consensus.contacts.reports.items() if not report.has_data}
        empty |= {peer for peer, greeting in consensus.contacts.greetings.items() if not any(greeting.cluster_id)}
        empty.discard(consensus.node_id)
        return frozenset(peer for peer in empty if members.member(peer) is None and not gone(peer))

    def _situation(self) -> Situation:
        consensus, now = self._consensus, self._clock()
        machine = consensus.machine
        leads = consensus.may_serve
        return Situation(
            own=self._pod.ordinal,
            leads=leads,
            leader_known=leads or consensus.contact_age_s() < LEADERLESS_S,
            intent=self._intent,
            intent_age_s=now - self._read_at,
            seats=self._seats,
            may_ask=self._trouble not in (Reason.FORBIDDEN, Reason.CONFIGURATION),
            stopping_s=None if self._stopping_at is None else now - self._stopping_at,
            knocking=self._knocking() if leads else frozenset(),
            change_open=leads and machine is not None and machine.change_refused() is not None,
            absences=self._absences,
            auto_join=self._settings.auto_join,
            auto_leave=self._settings.auto_leave,
            remove_after_s=self._settings.remove_after_seconds,
        )

    # --- doing ---

    def _look_for_removal(self) -> bool:
        """Whether this node holds no seat any more, so that nothing is left to decide."""
        if not self._consensus.removed:
            return False
        self._last = Wait(ScaleState.LEAVING, "the cluster has removed this node")
        if self._stopping_at is not None:
            self._part(left=True)
        elif isinstance(self._intent, Intent) and not self._intent.deleting and self._intent.wants(self._pod.ordinal):
            msg = (
                f"the cluster had removed node {self._pod.ordinal}, and it is wanted again: the process ends, so that "
                "it starts anew with an empty data directory and is taken in"
            )
            self._fail(StartupError(msg))
        return True

    def _tell(self) -> None:
        """Tell the birth who is wanted; a set that ends or sleeps says nothing about that."""
        intent, birth = self._intent, self._consensus.peering.birth
        if not isinstance(birth, PodBirth) or not isinstance(intent, Intent) or intent.deleting or not intent.replicas:
            return
        if (birth.founder, birth.wanted) != (intent.first_ordinal, intent.replicas):
            members = [self._pod.member(ordinal) for ordinal in intent.ordinals()]
            birth.expect(members, intent.first_ordinal, intent.replicas)

    def _note(self, decision: Decision) -> None:
        last, state = self._last, decision.state
        if decision == last:
            return
        stuck = state in (ScaleState.NO_QUORUM, ScaleState.BLOCKED)
        by_hand = isinstance(self._intent, Intent) and not self._intent.binding and state == ScaleState.SHRINKING
        if stuck or by_hand:
            if decision.reason != last.reason:
                self._logger.warning("scaling needs a hand", state=state, reason=decision.reason)
                self._notify("ScalingBlocked", decision.reason, warning=True)
        elif state != last.state or not isinstance(decision, Wait):
            self._logger.info("scaling", step=type(decision).__name__.lower(), state=state, reason=decision.reason)
        if isinstance(decision, Leave) and not isinstance(self._last, Leave):
            self._notify("MemberLeaves", f"node {self._pod.ordinal}: {decision.reason}")
        self._last = decision

    def _notify(self, reason: str, text: str, *, warning: bool = False) -> None:
        if self._notices is not None:
            self._notices.add(reason, text, warning=warning)

    async def _perform(self, decision: Decision) -> None:
        if isinstance(decision, Stop):
            self._part(left=False)
        elif isinstance(decision, Add):
            member = self._pod.member(decision.node_id)
            change = Change(Action.ADD, decision.node_id, member.client_endpoint, member.peer_endpoint)
            self._tell_of("MemberAdded", await self._change(change), decision)
        elif isinstance(decision, Remove):
            outcome = await self._change(Change(Action.REMOVE, decision.node_id))
            self._tell_of("MemberRemoved", outcome, decision, warning=True)
        elif isinstance(decision, Leave):
            await self._leave(decision)

    async def _leave(self, decision: Leave) -> None:
        """Hand over, or ask for the removal; then wait for the word of it to come back."""
        now = self._clock()
        if self._told_at is not None:
            if now - self._told_at >= TOLD_S:
                self._part(left=True)
            return
        if decision.hand_to is not None:
            outcome = await self._change(Change(Action.TRANSFER, decision.hand_to))
        else:
            outcome = await self._change(Change(Action.REMOVE, self._pod.ordinal))
            if outcome.ok:
                self._told_at = self._clock()
        self._logger.info("leaving", done=outcome.ok, text=outcome.text)

    async def _change(self, change: Change) -> Outcome:
        return await self._consensus.membership.change(change, CHANGE_S)

    def _tell_of(self, reason: str, outcome: Outcome, decision: Decision, *, warning: bool = False) -> None:
        if outcome.ok:
            self._refusal = ""
            self._notify(reason, f"{outcome.text}: {decision.reason}", warning=warning)
        elif outcome.text != self._refusal:
            self._refusal = outcome.text
            self._logger.warning("a change of the membership was not made", reason=outcome.text)

    def _part(self, *, left: bool) -> None:
        if not self._parted.done():
            self._logger.info("parting", left=left, reason=self._last.reason)
            self._parted.set_result(left)

    # --- what a leader writes ---

    async def _keep_records(self, api: KubernetesApi) -> None:
        """See to it that the leader's address and the cluster's id stand where they belong."""
        now, term = self._clock(), self._consensus.term
        if term == self._kept[0] and now - self._kept[1] < RECORDS_S:
            return
        self._kept = (term, now)
        name, ip, own = self._settings.leader_endpoint_slice, self._pod.ip, self._consensus.cluster_id
        assert own is not None, "a leader has a cluster"
        if name is not None and ip is not None:
            address = LeaderAddress(term, ip, self._pod.client_port, self._pod.name, own)
            outcome = await api.write_leader_slice(name, address)
            if isinstance(outcome, Failure):
                self._complain(_SLICE, outcome)
            else:
                self._complaints.pop(_SLICE, None)
            if outcome in (SliceOutcome.WRITTEN, SliceOutcome.FENCED):
                self._logger.info("the leader's EndpointSlice", outcome=outcome, term=term)
        if self._record is None or now - self._recorded_at < RECORD_AGAIN_S:
            return
        held = await self._record.settle(own)
        if isinstance(held, Failure):
            self._complain(_RECORD, held)
            return
        self._recorded_at = now
        self._complaints.pop(_RECORD, None)
        if held != own:
            text = f"the genesis record names cluster {held.hex()}, but the pods hold cluster {own.hex()}"
            self._logger.error(text, next_step=f"clear the data of the ConfigMap {self._settings.genesis_config_map}")
            self._notify("ForeignGenesisRecord", text, warning=True)

    # --- telling ---

    def _surplus(self) -> list[NodeId]:
        intent = self._intent
        if not isinstance(intent, Intent) or intent.deleting or not intent.replicas:
            return []
        return [member.node_id for member in self._seats if not intent.wants(member.node_id)]

    def heir(self) -> NodeId | None:
        """Who is to lead when this node stops; None: whoever has most of the log."""
        intent = self._intent
        if not isinstance(intent, Intent) or intent.deleting or not intent.replicas:
            return None
        return find_heir(self._pod.ordinal, intent, self._seen({}))

    def wants(self, node_id: NodeId) -> bool:
        """Whether the StatefulSet has a pod of this ordinal, as far as was read."""
        intent = self._intent
        return isinstance(intent, Intent) and intent.binding and not intent.deleting and intent.wants(node_id)

    def status(self) -> dict[str, Any]:
        """For the status page, and for whoever looks why nothing happens."""
        intent = self._intent
        return {
            "pod": self._pod.name,
            "desired_replicas": intent.replicas if isinstance(intent, Intent) else None,
            "read_age_s": None if intent is None else round(self._clock() - self._read_at, 1),
            "state": self._last.state,
            "reason": self._last.reason,
            "surplus_members": self._surplus(),
            "api": "off" if self._api is None else self._trouble or "ok",
            "complaints": [f"{what}: {reason}" for what, reason in self._complaints.items()],
        }

    def metrics(self) -> Iterable[Metric]:
        """The source of this room's metrics (docs/operations/metrics.md)."""
        intent = self._intent
        if isinstance(intent, Intent):
            yield gauge("kvorum_k8s_desired_replicas", "Replicas the StatefulSet asks for.", intent.replicas)
        states = [({"state": state}, float(state == self._last.state)) for state in SCALE_STATES]
        yield Metric("kvorum_scale_state", "gauge", "1 for where the membership stands.", list(states))
        yield gauge("kvorum_scale_surplus_members", "Members that are not wanted.", len(self._surplus()))
        counts = {} if self._api is None else self._api.errors
        errors = [({"reason": reason}, float(counts.get(reason, 0))) for reason in REASONS]
        yield Metric("kvorum_k8s_api_errors_total", "counter", "Calls of the Kubernetes API that failed.", list(errors))
