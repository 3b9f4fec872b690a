"""The checker convicts planted violations, acquits what a real register did, and agrees with brute force."""

from __future__ import annotations

import itertools
import math
import random
import time
from dataclasses import replace

import pytest

from kvorum_sim.linearizability import Kind, Operation, Outcome, check


def op(
    client: int,
    kind: str,
    value: str | None,
    invoked: float,
    returned: float,
    outcome: str = Outcome.OK,
    key: str = "k",
) -> Operation:
    """Shorthand; ``value`` is what is written or read."""
    is_get = kind == Kind.GET
    return Operation(
        client, key, kind, None if is_get else value, value if is_get else None, invoked, returned, outcome
    )


def get(client: int, value: str | None, invoked: float, returned: float, outcome: str = Outcome.OK) -> Operation:
    return op(client, Kind.GET, value, invoked, returned, outcome)


def put(client: int, value: str, invoked: float, returned: float, outcome: str = Outcome.OK) -> Operation:
    return op(client, Kind.SET, value, invoked, returned, outcome)


def delete(client: int, invoked: float, returned: float, outcome: str = Outcome.OK) -> Operation:
    return op(client, Kind.DELETE, None, invoked, returned, outcome)


LEGAL = {
    "nothing": [],
    "in turn": [put(1, "a", 0, 1), get(2, "a", 2, 3), delete(1, 4, 5), get(2, None, 6, 7)],
    "read of the older value while a write is under way": [put(1, "a", 0, 1), put(1, "b", 2, 9), get(2, "a", 3, 4)],
    "read of the newer value while a write is under way": [put(1, "a", 0, 1), put(1, "b", 2, 9), get(2, "b", 3, 4)],
    "two writes at once, read either way": [put(1, "a", 0, 5), put(2, "b", 0, 5), get(3, "a", 6, 7)],
    "unknown write that never shows": [
        put(1, "a", 0, 1),
        put(1, "b", 2, math.inf, Outcome.UNKNOWN),
        get(2, "a", 90, 91),
    ],
    "unknown write that shows much later": [
        put(1, "a", 0, 1),
        put(1, "b", 2, 3, Outcome.UNKNOWN),
        get(2, "a", 4, 5),
        put(3, "c", 6, 7),
        get(2, "c", 8, 9),
        get(2, "b", 10, 11),
        get(2, "b", 12, 13),
    ],
    "unknown delete that shows later": [
        put(1, "a", 0, 1),
        delete(1, 2, math.inf, Outcome.UNKNOWN),
        get(2, "a", 3, 4),
        get(2, None, 5, 6),
    ],
    "failed write that does not show": [put(1, "a", 0, 1), put(1, "b", 2, 3, Outcome.FAILED), get(2, "a", 4, 5)],
    "unknown read": [put(1, "a", 0, 1), get(1, None, 2, 3, Outcome.UNKNOWN)],
    "one moment": [put(1, "a", 1, 1), get(2, "a", 1, 1), get(2, None, 1, 1)],
}

ILLEGAL = {
    "stale read": ([put(1, "a", 0, 1), put(1, "b", 2, 3), get(2, "a", 4, 5)], "can only have been 'b'"),
    "lost update": ([put(1, "a", 0, 1), get(2, None, 2, 3)], "read that there is no value"),
    "phantom value": ([put(1, "a", 0, 1), get(2, "z", 2, 3)], "Nobody wrote 'z'"),
    "value of a failed write": (
        [put(1, "a", 0, 1), put(1, "b", 2, 3, Outcome.FAILED), get(2, "b", 4, 5)],
        "certainly failed",
    ),
    "value from the future": ([get(2, "a", 0, 1), put(1, "a", 2, 3)], "written only later"),
    "new value, then the old one": (
        [put(1, "a", 0, 1), put(1, "b", 2, 9), get(2, "b", 3, 4), get(3, "a", 5, 6)],
        "'a' had been written by",
    ),
    "deleted key comes back": ([put(1, "a", 0, 1), delete(1, 2, 3), get(2, "a", 4, 5)], "'a' had been written by"),
    "unknown write that shows, goes, and shows again": (
        [
            put(1, "a", 0, 1),
            put(1, "b", 2, 3, Outcome.UNKNOWN),
            get(2, "b", 4, 5),
            get(2, "a", 6, 7),
        ],
        "'a' had been written by",
    ),
    "unknown write seen before it was invoked": (
        [get(2, "b", 0, 1), put(1, "b", 2, math.inf, Outcome.UNKNOWN)],
        "Nobody wrote 'b'",
    ),
    "two readers that disagree on the order": (
        [
            put(1, "a", 0, 1),
            put(2, "b", 0, 1),
            get(3, "a", 2, 3),
            get(3, "b", 4, 5),
        ],
        "'b' had been written by",
    ),
}


@pytest.mark.parametrize("name", LEGAL)
def test_check_legal_history_is_acquitted(name: str) -> None:
    """A history with a legal order is linearizable, whatever the order in which it is given."""
    history = LEGAL[name]
    verdict = check(reversed(history))
    assert verdict, verdict.explanation
    assert "" == verdict.explanation


@pytest.mark.parametrize("name", ILLEGAL)
def test_check_planted_violation_is_convicted_and_explained(name: str) -> None:
    """A violation is found, and the text names the key, the operation and what was wrong with it."""
    history, said = ILLEGAL[name]
    verdict = check(history)
    assert verdict.linearizable is False
    assert not verdict
    assert "k" == verdict.key
    assert said in verdict.explanation
    assert "=> " in verdict.explanation


def test_check_initial_value_counts_as_written_before_everything() -> None:
    """A preloaded key may be read without a write, and only until it is overwritten."""
    history = [get(1, "old", 0, 1), put(1, "new", 2, 3)]
    assert check(history, initial={"k": "old"})
    assert check(history).linearizable is False
    assert check([*history, get(1, "old", 4, 5)], initial={"k": "old"}).linearizable is False


def register_history(
    seed: int, *, operations: int, clients: int, keys: int, unknown: float, horizon: float = 5.0
) -> list[Operation]:
    """What clients of a real register see: each operation takes effect at one moment inside its interval."""
    chance = random.Random(seed)
    ready = [(chance.random(), client) for client in range(clients)]
    drafts: list[tuple[float, Operation]] = []
    for number in range(operations):
        at, client = min(ready)
        key = f"key-{chance.randrange(keys)}"
        kind = chance.choices((Kind.GET, Kind.SET, Kind.DELETE), (5, 4, 1))[0]
        effect = at + chance.random()
        returned = effect + chance.random()
        outcome = Outcome.OK
        if chance.random() < unknown:
            outcome = Outcome.UNKNOWN
            effect = chance.choice((effect, effect + horizon * chance.random(), math.inf))
        draft = Operation(client, key, kind, f"v{number}" if kind == Kind.SET else None, None, at, returned, outcome)
        drafts.append((effect, draft))
        ready[ready.index((at, client))] = (returned + chance.random() * 0.1, client)
    state: dict[object, object] = {}
    history = []
    for effect, draft in sorted(drafts, key=lambda pair: pair[0]):
        if draft.kind == Kind.GET:
            history.append(replace(draft, result=state.get(draft.key)))
        else:
            history.append(draft)
            if effect < math.inf:
                state[draft.key] = draft.argument
    return history


@pytest.mark.parametrize("seed", range(20))
def test_check_history_of_a_real_register_is_acquitted(seed: int) -> None:
    """Random histories with known and unknown outcomes, many clients and few keys, are all legal."""
    history = register_history(seed, operations=400, clients=4 + seed % 9, keys=1 + seed % 4, unknown=0.02 * (seed % 3))
    verdict = check(history)
    assert verdict, verdict.explanation


def _brute_force(history: list[Operation]) -> bool:
    """Every order of every choice of unknown writes, tried one by one."""
    must = [o for o in history if o.outcome == Outcome.OK]
    may = [o for o in history if o.outcome == Outcome.UNKNOWN and o.kind != Kind.GET]
    for count in range(len(may) + 1):
        for chosen in itertools.combinations(may, count):
            for order in itertools.permutations(must + list(chosen)):
                if _is_legal(order):
                    return True
    return False


def _is_legal(order: tuple[Operation, ...]) -> bool:
    latest = -math.inf
    value: object = None
    for operation in order:
        if operation.outcome == Outcome.OK and operation.returned < latest:
            return False
        latest = max(latest, operation.invoked)
        if operation.kind == Kind.GET:
            if operation.result != value:
                return False
        else:
            value = operation.argument
    return True


def test_check_small_random_histories_agree_with_brute_force() -> None:
    """On thousands of small histories, legal or not, with values that repeat, the verdict is that of brute force."""
    chance = random.Random(20)
    verdicts = {True: 0, False: 0}
    for _ in range(3000):
        history = []
        for client in range(chance.randrange(2, 7)):
            kind = chance.choice((Kind.GET, Kind.GET, Kind.SET, Kind.SET, Kind.DELETE))
            invoked = chance.randrange(8)
            value = chance.choice(("a", "b", None) if kind == Kind.GET else ("a", "b"))
            outcome = chance.choices((Outcome.OK, Outcome.UNKNOWN, Outcome.FAILED), (8, 3, 1))[0]
            history.append(
                op(
                    client,
                    kind,
                    None if kind == Kind.DELETE else value,
                    invoked,
                    invoked + chance.randrange(5),
                    outcome,
                )
            )
        expected = _brute_force(history)
        assert expected == check(history).linearizable, "\n".join(map(str, history))
        verdicts[expected] += 1
    assert min(verdicts.values()) > 300


@pytest.mark.parametrize("seed", range(10))
def test_check_one_stale_read_among_thousands_is_found(seed: int) -> None:
    """A single read that goes back behind an acknowledged write convicts a long history."""
    history = register_history(seed, operations=3000, clients=10, keys=20, unknown=0.01)
    acknowledged = [o for o in history if o.kind == Kind.SET and o.outcome == Outcome.OK]
    chance = random.Random(seed)
    while True:
        old = chance.choice(acknowledged[:-100])
        newer = [o for o in acknowledged if o.key == old.key and o.invoked > old.returned]
        reads = [
            o
            for o in history
            if o.kind == Kind.GET and newer and o.key == old.key and o.invoked > newer[0].returned and o.outcome == "ok"
        ]
        if reads:
            break
    planted = chance.choice(reads)
    spoilt = [replace(o, result=old.argument) if o is planted else o for o in history]
    verdict = check(spoilt)
    assert verdict.linearizable is False
    assert planted.key == verdict.key


def test_check_hopeless_search_is_given_up_and_is_no_pass() -> None:
    """When the budget is spent the verdict is neither yes nor no, and not true."""
    history = [put(i, f"v{i}", 0, 100) for i in range(14)] + [get(90 + i, f"v{i}", 1, 99) for i in range(14)]
    history += [get(200, "v0", 101, 102), get(200, "v1", 103, 104)]
    verdict = check(history, configurations_max=1000)
    assert verdict.linearizable is None
    assert not verdict
    assert "given up" in verdict.explanation


@pytest.mark.slow
def test_check_twenty_thousand_operations_take_seconds() -> None:
    """The size of a process test's history is judged within a few seconds of processor time."""
    history = register_history(1, operations=20_000, clients=16, keys=100, unknown=0.02)
    start = time.process_time()
    verdict = check(history)
    assert verdict, verdict.explanation
    assert 19_000 < verdict.operations <= 20_000
    assert time.process_time() - start < 60
