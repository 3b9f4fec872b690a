"""Histories of kvorum_client through the Thrift edge: judged like all others, and the judges' own teeth."""

from __future__ import annotations

import dataclasses
import types
from typing import TYPE_CHECKING, Any

import pytest

from kvorum.core.codec import IDENTIFIED
from kvorum.core.operations import Applied, MutationKind
from kvorum_client import calls, connection
from kvorum_client.connection import ConnectionLostError
from kvorum_client.retry import CallKind, Retry
from kvorum_sim import applications, edge, nemesis
from kvorum_sim.linearizability import Outcome
from kvorum_sim.probes import Probe
from kvorum_sim.scenario import EDGE_EVERY, Scenario, Verdict, examine, play_out

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvorum_client.calls import Caller
    from kvorum_client.errors import KvorumError
    from kvorum_client.pool import NodePool


def convictions(seeds: range, kinds: tuple[str, ...]) -> Iterator[str]:
    """Why each failed seed failed; nothing is played that nobody asks for."""
    for seed in seeds:
        verdict = examine(seed, kinds, edge=True)
        if verdict.verdict == "failed":
            yield verdict.reason


def counted(verdict: Verdict) -> Verdict:
    """A verdict that counts."""
    assert "counted" == verdict.verdict, f"{verdict.reason}\nreplay with: {verdict.replay}"
    return verdict


@pytest.mark.parametrize("seed", range(30_000, 30_006))
def test_applications_of_a_seed_lose_nothing(seed: int) -> None:
    """The seed's own mix of faults costs clients no promise; see the verdict for the replay command."""
    verdict = examine(seed, edge=True)
    assert verdict.verdict in {"counted", "inconclusive"}, f"{verdict.reason}\nreplay with: {verdict.replay}"


@pytest.mark.parametrize("kind", sorted(nemesis.CLIENT_KINDS))
def test_every_fault_of_clients_takes_effect_and_breaks_nothing(kind: str) -> None:
    """Each kind alone, as often as planned; such a kind brings the edge with it."""
    verdict = counted(examine(77, (kind,)))
    assert verdict.composition == f"edge: {kind}"
    assert Scenario.drawn(77, (kind,)).faults == verdict.faults[kind]


def test_applications_meet_the_rare_states_of_their_retries() -> None:
    """A handful of seeds reaches every state that the retries are made for."""
    rare = {Probe.CLIENT_DEDUPLICATED, Probe.CLIENT_FAILOVER, Probe.CLIENT_RESOLVED, Probe.REPLY_TORN}
    for seed in range(30_020, 30_032):
        rare -= {name for name, count in examine(seed, edge=True).probes.items() if count}
        if not rare:
            break
    assert set() == rare


def test_applications_same_seed_twice_gives_the_identical_run() -> None:
    """The client's jitter and names, its connections and the edge come from the seed alone."""
    first, again, other = (examine(seed, edge=True) for seed in (6, 6, 9))
    assert first.trace == again.trace
    assert first.outcomes == again.outcomes
    assert first.trace != other.trace


def test_share_of_seeds_with_the_edge() -> None:
    """Every third seed has it, whatever else it draws; the others draw what they always did."""
    drawn = [Scenario.drawn(seed) for seed in range(30)]
    assert [not seed % EDGE_EVERY for seed in range(30)] == [scenario.edge for scenario in drawn]
    assert not any(set(scenario.kinds) & set(nemesis.CLIENT_KINDS) for scenario in drawn if not scenario.edge)
    without = Scenario.drawn(3, edge=False)
    assert Scenario.drawn(3).nodes == without.nodes
    assert dataclasses.replace(without, edge=True, kinds=Scenario.drawn(3).kinds).pause_s == without.pause_s
    assert examine(3, ("crash",), edge=True).replay.endswith("3 --kind 'crash' --edge")


@pytest.mark.parametrize("seed", range(3))
def test_planned_stops_fail_no_call_of_a_client(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are stopped and started again, ten times or more: nothing but conflicts is ever told to anybody."""
    monkeypatch.setattr(applications, "RESTART_SHARE", 0.0)
    world, reason = play_out(seed, ("planned stop",), edge=True)

    assert reason == ""
    assert world.faults["planned stop"] >= 10
    assert [refusal for refusal in world.refusals if refusal[0] != "CONFLICT"] == []
    assert world.outcomes[Outcome.UNKNOWN] == 0


# --- the judges have teeth -----------------------------------------------------------------------------------------


def test_client_that_gives_each_attempt_its_own_identity_is_convicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that is repeated under another number takes effect twice, and the counters show it."""
    attempt = calls.Caller._attempt

    async def renamed(self: Caller, pool: NodePool, method: Any, kind: Any, fields: dict, **named: Any) -> Any:
        if "request_id" in fields:
            fields = fields | {"client_id": self.random.randbytes(16)}
        return await attempt(self, pool, method, kind, fields, **named)

    monkeypatch.setattr(calls.Caller, "_attempt", renamed)
    assert any("acknowledged" in reason for reason in convictions(range(4), ("torn reply", "client cut")))


def test_client_that_calls_a_lost_write_not_done_is_convicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that says nothing was done, after a connection broke with the write on it, is a lie that shows."""

    def certain(self: Caller, problem: KvorumError, kind: CallKind, pool: NodePool) -> Retry:
        if problem.code is None and kind is CallKind.WRITE and isinstance(problem, ConnectionLostError):
            problem.outcome_known = True
            raise calls.UnavailableError(str(problem))
        return judge(self, problem, kind, pool)

    judge = calls.Caller._judge
    monkeypatch.setattr(calls.Caller, "_judge", certain)
    assert any(convictions(range(4), ("torn reply", "client reset")))


def test_edge_that_answers_before_the_write_is_applied_is_convicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A success that no log entry stands for is seen in what others read, or in what is missing at the end."""
    write = edge._WatchedRouting.write

    def hasty(self: Any, body: bytes, pending: Any, received: float, deadline: float) -> None:
        class Silent:
            def decided(self, index: int, outcome: object) -> None:
                return

        if body[0] & ~IDENTIFIED == MutationKind.SET:
            pending.decided(1, Applied())
            pending = Silent()
        write(self, body, pending, received, deadline)

    monkeypatch.setattr(edge._WatchedRouting, "write", hasty)
    reasons = convictions(range(3), ("crash", "partition"))
    assert any("no order" in reason or "lost" in reason for reason in reasons)


def test_client_that_keeps_only_part_of_a_reply_is_convicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that comes in pieces and is not kept whole is noticed: no fault makes a node's bytes unreadable."""
    received = connection.Connection.data_received

    def forgetful(self: connection.Connection, data: bytes) -> None:
        received(self, data)
        del self._buffer[40:]

    monkeypatch.setattr(connection.Connection, "data_received", forgetful)
    assert any("ProtocolViolationError" in reason for reason in convictions(range(2), ("client cut",)))


def test_edge_that_forgets_a_write_is_convicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write is answered within its deadline, also when its client has gone elsewhere meanwhile."""
    write = edge._WatchedRouting.write

    def forgetful(self: Any, body: bytes, pending: Any, received: float, deadline: float) -> None:
        routing = self._routing
        if len(self._clients.attempts) == 30:
            self._routing = types.SimpleNamespace(write=lambda *_: None)
        write(self, body, pending, received, deadline)
        self._routing = routing

    monkeypatch.setattr(edge._WatchedRouting, "write", forgetful)
    assert any("is not decided" in reason for reason in convictions(range(3), ("clock jump",)))
