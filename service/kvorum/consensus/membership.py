"""
Changes of the membership: asked for on any node, made by the leader, one at a time (docs/decisions/0014).

A request travels to the leader and is asked again of the next one if leadership changes; what is done already is then
a success. The leader also acts by itself: it records which data directory holds each seat, gives the seat of a wiped
disk to its successor as a learner, and makes every learner a voter once it has caught up.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from itertools import count, product
from typing import TYPE_CHECKING, Any, Final, Protocol

from kvorum.consensus import frames
from kvorum.consensus.changes import ACTIONS, Action, Change, Facts, Outcome, plan, quorum_flaw
from kvorum.core.cluster import Configuration
from kvorum.core.errors import RemoteError
from kvorum.core.machine import Role, TransferAsked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import structlog

    from kvorum.consensus.contacts import Contacts
    from kvorum.consensus.settings import ManagerSettings
    from kvorum.core.ids import Incarnation, Index, NodeId, Term
    from kvorum.core.machine import Event, Machine

REQUESTS_MAX: Final = 64
"""Requests under way on one node, asked here and, on the leader, taken from others."""

ASK_AGAIN_S: Final = 1.0
"""A request without an answer is sent again after this long; the leader knows it by its number."""

CAUGHT_UP_ENTRIES: Final = 250
CHECKS: Final = 3
CHECK_S: Final = 0.2
"""A learner that at so many checks in a row lacks no more than so many committed entries becomes a voter."""

TICK_S: Final = 0.02

DONE: Final = "done"
RESULTS: Final = (DONE, "failed")
"""How a change or a hand-over ended, as the metrics spell it."""

_STANDALONE: Final = "this node runs alone, without peers: its membership cannot change (UNSUPPORTED)"


class Host(Protocol):
    """What the membership needs of its ConsensusManager."""

    settings: ManagerSettings
    machine: Machine | None
    contacts: Contacts
    node_id: NodeId
    incarnation: Incarnation

    @property
    def leader(self) -> NodeId | None:
        """Known leader."""
        ...

    @property
    def is_leader(self) -> bool:
        """This node leads, as far as it knows."""
        ...

    @property
    def may_serve(self) -> bool:
        """This node leads and its no-op has committed."""
        ...

    @property
    def applied_index(self) -> Index:
        """What reads on this node show."""
        ...

    @property
    def members(self) -> Configuration:
        """Configuration in force."""
        ...

    def clock(self) -> float:
        """Monotonic seconds."""
        ...

    def send(self, peer: NodeId, kind: int, parts: Sequence[bytes]) -> bool:
        """Give one frame to a peer."""
        ...

    def feed(self, event: Event) -> None:
        """Give the machine one event."""
        ...

    def propose_configuration(self, configuration: Configuration) -> None:
        """Append a configuration entry as the leader."""
        ...


@dataclass(slots=True)
class _Ask:
    """A request of this node's administrator."""

    change: Change
    deadline: float
    done: Callable[[Outcome], None]
    sent_to: tuple[NodeId, Term] | None = None
    sent_at: float = 0.0
    again: bool = False


@dataclass(slots=True)
class _Job:
    """A request on the leader."""

    origin: NodeId
    number: int
    change: Change
    deadline: float
    again: bool
    index: Index = 0
    term: Term = 0
    text: str = ""
    handing_over: bool = False
    handed_over: bool = False
    weighed_at: float | None = None
    """When it was first looked at what it comes to."""


class Membership:
    """See the module text. `change` is for callers with a loop, `ask` for those with a callback."""

    def __init__(
        self,
        host: Host,
        loop: asyncio.AbstractEventLoop,
        logger: structlog.typing.FilteringBoundLogger,
        *,
        standalone: bool,
        first_number: int,
    ) -> None:
        self._host = host
        self._loop = loop
        self._logger = logger
        self._standalone = standalone
        self._numbers = count(first_number)
        self._asks: dict[int, _Ask] = {}
        self._jobs: list[_Job] = []
        self._caught_up: dict[NodeId, int] = {}
        self._checked_at = 0.0
        self.changes = dict.fromkeys(product(ACTIONS[:-1], RESULTS), 0)
        """Changes this node decided as the leader, asked for or its own, by action and result."""
        self.transfers = dict.fromkeys(product(("manual", "removal", "shutdown"), RESULTS), 0)
        """Hand-overs of leadership from here, by reason and result."""

    # --- asking, on any node ---

    async def change(self, change: Change, timeout_s: float = 10.0) -> Outcome:
        """Make one change, or say why not; ends within the time and a moment."""
        answer: asyncio.Future[Outcome] = self._loop.create_future()

        def done(outcome: Outcome) -> None:
            if not answer.done():
                answer.set_result(outcome)

        self.ask(change, timeout_s, done)
        return await answer

    def ask(self, change: Change, timeout_s: float, done: Callable[[Outcome], None]) -> None:
        """Like `change`; ``done`` is called once, perhaps before this returns."""
        if self._standalone:
            done(Outcome(ok=False, text=_STANDALONE))
        elif len(self._asks) >= REQUESTS_MAX:
            done(Outcome(ok=False, text=f"{REQUESTS_MAX} membership requests are under way on this node; retry later"))
        else:
            self._asks[next(self._numbers)] = _Ask(change, self._host.clock() + timeout_s, done)
            self.tick(self._host.clock())

    def tick(self, now: float) -> None:
        """Called a few times a second: send, work, give up."""
        for number, ask in list(self._asks.items()):
            if now >= ask.deadline + ASK_AGAIN_S:  # the leader, which knows more, answers at the deadline itself
                text = "no leader made the change in time"
                if ask.sent_to is not None:
                    text += "; it may still take effect: look at the members before asking again"
                self._finish(number, Outcome(ok=False, text=text))
            else:
                self._pursue(number, ask, now)
        if self._jobs or self._host.may_serve:
            self._work(now)

    def shut_down(self, *, removed: bool = False) -> None:
        """This node goes away, perhaps because it was removed: whoever waits is told."""
        own = self._host.node_id
        for number, ask in list(self._asks.items()):
            if removed and ask.change.action == Action.REMOVE and ask.change.node_id == own:
                self._finish(number, Outcome(ok=True, text=f"node {own} is removed"))
            else:
                self._finish(number, Outcome(ok=False, text="this node goes away; ask another one"))

    def _pursue(self, number: int, ask: _Ask, now: float) -> None:
        host = self._host
        leader, machine = host.leader, host.machine
        if leader is None or machine is None or now >= ask.deadline:
            return
        target = (leader, machine.term)
        if ask.sent_to == target and (leader == host.node_id or now - ask.sent_at < ASK_AGAIN_S):
            return
        again = ask.again or ask.sent_to is not None
        if leader == host.node_id:
            self._take(_Job(leader, number, ask.change, ask.deadline, again))
        else:
            content = {**ask.change.as_json(), "again": again, "timeout_ms": int((ask.deadline - now) * 1000)}
            if not host.send(leader, frames.ADMIN, frames.encode_admin(number, content)):
                return
        ask.sent_to, ask.sent_at, ask.again = target, now, again

    def _finish(self, number: int, outcome: Outcome) -> None:
        ask = self._asks.pop(number, None)
        if ask is not None:
            ask.done(outcome)

    def reply_received(self, payload: bytes) -> None:
        """The leader answers. Raises RemoteError if the frame does not fit."""
        number, content = frames.decode_admin(payload)
        ask = self._asks.get(number)
        if ask is None:
            return
        if content.get("retry") is True:
            ask.sent_to, ask.again = None, True  # the next tick asks whoever leads then
            return
        spelt = content.get("configuration")
        try:
            configuration = Configuration.decode(bytes.fromhex(spelt)) if isinstance(spelt, str) else None
        except ValueError as error:
            msg = f"the leader's answer about the membership does not parse: {error}"
            raise RemoteError(msg) from error
        self._finish(number, Outcome(content.get("ok") is True, str(content.get("text")), configuration))

    # --- working, on the leader ---

    def request_received(self, origin: NodeId, payload: bytes) -> None:
        """Another node's administrator asks. Raises RemoteError if the frame does not fit."""
        number, content = frames.decode_admin(payload)
        timeout_ms = content.get("timeout_ms")
        try:
            change = Change.of_json(content)
            if type(timeout_ms) is not int:
                msg = "it names no time"
                raise ValueError(msg)
        except ValueError as error:
            self._answer(origin, number, Outcome(ok=False, text=f"the leader cannot read this: {error}"))
            return
        deadline = self._host.clock() + timeout_ms / 1000
        self._take(_Job(origin, number, change, deadline, content.get("again") is True))
        self._work(self._host.clock())

    def _take(self, job: _Job) -> None:
        if any(known.origin == job.origin and known.number == job.number for known in self._jobs):
            return
        if len(self._jobs) >= REQUESTS_MAX:
            text = f"{REQUESTS_MAX} membership requests wait on the leader; retry later"
            self._answer(job.origin, job.number, Outcome(ok=False, text=text))
            return
        self._jobs.append(job)

    def _answer(self, origin: NodeId, number: int, outcome: Outcome | None) -> None:
        """Tell whoever asked; None: ask the next leader."""
        host = self._host
        if origin == host.node_id:
            ask = self._asks.get(number)
            if outcome is not None:
                self._finish(number, outcome)
            elif ask is not None:
                ask.sent_to, ask.again = None, True
            return
        content: dict[str, Any] = {"retry": True}
        if outcome is not None:
            content = {"ok": outcome.ok, "text": outcome.text}
            if outcome.configuration is not None:
                content["configuration"] = outcome.configuration.encode().hex()
        host.send(origin, frames.ADMIN_REPLY, frames.encode_admin(number, content))

    def _work(self, now: float) -> None:
        """Do the first job as far as it goes; the others wait, as long as they may."""
        host = self._host
        while self._jobs:
            job = self._jobs[0]
            ended, outcome = self._advance(job, now)
            if not ended:
                break
            self._jobs.pop(0)
            if outcome is not None:
                if job.index or job.handing_over or not outcome.ok:  # else it was done already, and was counted then
                    self._count(job.change.action, ok=outcome.ok)
                self._logger.info("membership request", action=job.change.action, ok=outcome.ok, text=outcome.text)
            self._answer(job.origin, job.number, outcome)
        for job in [job for job in self._jobs[1:] if now >= job.deadline]:
            self._jobs.remove(job)
            text = f"another change was under way all the time ({self._jobs[0].change.action}); retry"
            self._answer(job.origin, job.number, Outcome(ok=False, text=text, configuration=host.members))
        if not self._jobs and host.may_serve:
            self._act_alone(now)

    def _count(self, action: str, *, ok: bool) -> None:
        result = DONE if ok else "failed"
        if action == Action.TRANSFER:
            self.transfers["manual", result] += 1
        else:
            self.changes[action, result] += 1

    def _advance(self, job: _Job, now: float) -> tuple[bool, Outcome | None]:
        """One step: whether the job has ended, and the outcome; none says that another leader must be asked."""
        host = self._host
        machine = host.machine
        if machine is None:
            return True, None
        if job.index:
            return self._await(job, machine, now)
        removes_itself = job.change.action == Action.REMOVE and job.change.node_id == host.node_id
        if job.change.action == Action.TRANSFER or (removes_itself and not job.handed_over):
            ended, outcome = self._hand_over(job, machine, now)
            if ended or not job.handed_over:
                return ended, outcome
        if not host.is_leader:
            return True, None
        refused = machine.change_refused()
        if refused is not None:
            expired = now >= job.deadline
            return expired, Outcome(ok=False, text=refused, configuration=host.members) if expired else None
        found = plan(machine.configuration, job.change, self._facts(machine, now), again=job.again)
        if found.following is None:
            return True, Outcome(found.ok, found.text, machine.configuration)
        if not job.change.force and found.following.voters != machine.configuration.voters:
            job.weighed_at = now if job.weighed_at is None else job.weighed_at
            flaw = quorum_flaw(found.following, self._reachable(now, now - job.weighed_at))
            if flaw is not None:
                # Who was heard before may have died since; whoever lives is heard within a heartbeat.
                expired = now >= job.deadline
                return expired, Outcome(ok=False, text=flaw, configuration=host.members) if expired else None
        job.term, job.text = machine.term, found.text
        job.index = machine.last_index + 1
        host.propose_configuration(found.following)
        return self._await(job, machine, now)

    def _await(self, job: _Job, machine: Machine, now: float) -> tuple[bool, Outcome | None]:
        """Wait for the entry of a job to be applied here."""
        host = self._host
        if host.applied_index >= job.index and machine.term_at(job.index) in (job.term, -1):
            return True, Outcome(ok=True, text=job.text, configuration=machine.configuration)
        if machine.term != job.term or not host.is_leader:
            job.again = True
            return True, None
        if now < job.deadline:
            return False, None
        text = f"proposed at index {job.index} but not committed in time; it may still take effect: look at the members"
        return True, Outcome(ok=False, text=text, configuration=machine.configuration)

    def _hand_over(self, job: _Job, machine: Machine, now: float) -> tuple[bool, Outcome | None]:
        """A transfer that was asked for, or the one before a leader removes itself."""
        host = self._host
        transfers = job.change.action == Action.TRANSFER
        target = job.change.node_id if transfers else None
        if not job.handing_over:
            if not host.may_serve:
                return True, None
            flaw = self._transfer_flaw(machine, target)
            if flaw is None:
                job.handing_over = True
                host.feed(TransferAsked(target))
            elif not transfers:
                job.handed_over = True
                return False, None
            else:
                ok = target == host.node_id
                return True, Outcome(ok=ok, text=flaw, configuration=machine.configuration)
        if machine.role != Role.LEADER:
            if machine.leader is None and now < job.deadline:
                return False, None
            if not transfers:
                self.transfers["removal", DONE] += 1
                return True, None
            ok = machine.leader is not None and target in (None, machine.leader)
            text = f"node {machine.leader} leads" if machine.leader is not None else "nobody leads yet; look again"
            return True, Outcome(ok=ok, text=text, configuration=machine.configuration)
        if machine.transferring_to is not None:
            return False, None
        job.handed_over = not transfers
        if not transfers:
            self.transfers["removal", "failed"] += 1
        text = "the other node did not take over in time; this node still leads"
        return transfers, Outcome(ok=False, text=text, configuration=machine.configuration) if transfers else None

    async def hand_over(self, heir: NodeId | None = None) -> None:
        """
        Before a planned stop: let another voter lead, while everything goes on; a leader without one just returns.

        ``heir`` leads then if it can; without one, the voter that has most of the log. Bounded by two election
        timeouts. Writes that come meanwhile wait, and go to the next leader.
        """
        host = self._host
        machine = host.machine
        if machine is None or not host.is_leader or self._transfer_flaw(machine, None) is not None:
            return
        end = host.clock() + 2 * host.settings.timings.election_timeout_s
        host.feed(TransferAsked(None if heir is None or self._transfer_flaw(machine, heir) else heir))
        while host.clock() < end and machine.leader in (None, host.node_id):  # a poll per tick, in shut-down only
            if machine.role == Role.LEADER and machine.transferring_to is None:
                break
            await asyncio.sleep(TICK_S)
        taken = machine.leader not in {None, host.node_id}
        self.transfers["shutdown", DONE if taken else "failed"] += 1
        self._logger.info("leadership handed over", leader=machine.leader)

    def _transfer_flaw(self, machine: Machine, target: NodeId | None) -> str | None:
        configuration, own = machine.configuration, self._host.node_id
        if target == own:
            return f"node {own} leads already"
        if target is not None and configuration.member(target) is None:
            return f"node {target} is no member of this cluster"
        if target is not None and target not in configuration.voters:
            return f"node {target} is a learner and cannot lead; it becomes a voter once it has caught up"
        if not [voter for voter in configuration.voters if voter != own]:
            return "there is no other voter to lead"
        return None

    def _facts(self, machine: Machine, now: float) -> Facts:
        return Facts(self._host.node_id, machine.last_index, machine.matches(), self._reachable(now, self._lost_s))

    def _reachable(self, now: float, bound: float) -> frozenset[NodeId]:
        """Members heard less than so many seconds ago, this node included."""
        host = self._host
        ages = {m.node_id: host.contacts.seat_age_s(m.node_id, now) for m in host.members.members}
        return frozenset(peer for peer, age in ages.items() if age is not None and age < bound) | {host.node_id}

    # --- what the leader does by itself ---

    def _act_alone(self, now: float) -> None:
        machine = self._host.machine
        assert machine is not None
        if machine.change_refused() is not None:
            return
        configuration = machine.configuration
        following = self._recorded(configuration) or self._replaced(configuration, now)
        if following is None and now - self._checked_at >= CHECK_S:
            self._checked_at = now
            following = self._promoted(machine, now)
        if following is not None:
            self._host.propose_configuration(following)

    def _recorded(self, configuration: Configuration) -> Configuration | None:
        """Write into the configuration which data directory holds each seat (architecture section 3)."""
        host = self._host
        if all(member.incarnation for member in configuration.members):
            return None
        # Only what our own links found at the endpoints in force: anybody may call and say a node id.
        known = {peer: greeting.incarnation for peer, greeting in host.contacts.greetings.items()}
        known[host.node_id] = host.incarnation
        recorded = configuration
        for member in configuration.members:
            if not member.incarnation and member.node_id in known:
                recorded = recorded.with_incarnation(member.node_id, known[member.node_id])
        return None if recorded == configuration else recorded

    def _replaced(self, configuration: Configuration, now: float) -> Configuration | None:
        """
        A seat whose disk was wiped goes to the new directory, as a learner.

        Safety: a voter that forgot what it acknowledged counts no more from this entry on, and the new directory
        begins only when the entry is committed, by a quorum of those who remain (catalogue bugs 28 and 29).
        """
        host = self._host
        for member in configuration.members:
            greeting = host.contacts.greetings.get(member.node_id)
            report = host.contacts.reports.get(member.node_id)
            if not member.incarnation or greeting is None or report is None:
                continue
            fresh = greeting.incarnation
            if fresh == member.incarnation or host.contacts.incarnations.get(member.node_id) != fresh:
                continue
            age = host.contacts.seat_age_s(member.node_id, now)
            if report.has_data or any(greeting.cluster_id) or (age is not None and age < self._lost_s):
                continue
            following = Configuration(
                tuple(
                    replace(m, voter=False, incarnation=fresh) if m.node_id == member.node_id else m
                    for m in configuration.members
                )
            )
            if not following.voters or quorum_flaw(following, self._reachable(now, self._there_s)) is not None:
                continue
            self._count(Action.REPLACE, ok=True)
            self._logger.warning(
                "an empty data directory takes a seat over, as a learner",
                node=member.node_id,
                before=f"{member.incarnation:016x}",
                now=f"{fresh:016x}",
            )
            return following
        return None

    @property
    def _lost_s(self) -> float:
        """A directory that was not heard for this long while another one answers in its place is gone."""
        return 2 * self._host.settings.timings.election_timeout_s

    @property
    def _there_s(self) -> float:
        """Who was heard within this time counts for a change that nobody waits for: it is looked at again soon."""
        return self._host.settings.timings.election_timeout_s

    def _promoted(self, machine: Machine, now: float) -> Configuration | None:
        """The first learner that has been caught up for a while becomes a voter."""
        matches, caught_up = machine.matches(), self._caught_up
        self._caught_up = {}
        reachable = self._reachable(now, self._there_s)
        for member in machine.configuration.members:
            node_id = member.node_id
            if member.voter or not member.incarnation or node_id not in reachable:
                continue
            match = matches.get(node_id, 0)
            if not match or match + CAUGHT_UP_ENTRIES < machine.commit_index:
                continue  # of a short log, too, it must hold something: that it has begun is what makes it a help
            self._caught_up[node_id] = caught_up.get(node_id, 0) + 1
            following = Configuration(
                tuple(replace(m, voter=True) if m.node_id == node_id else m for m in machine.configuration.members)
            )
            if self._caught_up[node_id] >= CHECKS and quorum_flaw(following, reachable) is None:
                self._count(Action.PROMOTE, ok=True)
                self._logger.info("a learner has caught up and becomes a voter", node=node_id)
                return following
        return None
