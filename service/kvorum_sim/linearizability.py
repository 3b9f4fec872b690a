"""
Is a history linearizable? A checker for registers with get, set and delete, one per key.

The search is Wing and Gong's in the form Lowe calls just-in-time: the events of a key are walked in order of time with
the set of all configurations that are still possible – the register's value and which pending operations have taken
effect. When an operation returns, every configuration must have made it take effect by then; when none is left, there
is no legal order, and this operation is where it shows. The set is bounded by what is pending at one moment, not by
the length of the history.

Outcomes: `OK` means the result is known; `FAILED` means it certainly had no effect; `UNKNOWN` means it may take effect
at any later time, or never. Keys are judged one by one, which is legal because each operation touches one key.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping

CONFIGURATIONS_MAX: Final = 2_000_000
"""Configurations looked at per key before the checker says that it does not know."""

_INVOKE: Final = 0
_RETURN: Final = 1
_RETIRE: Final = 2


class Kind:
    """What an operation does to its key."""

    GET: Final = "get"
    SET: Final = "set"
    DELETE: Final = "delete"


class Outcome:
    """What its client knows of it."""

    OK: Final = "ok"
    FAILED: Final = "failed"
    UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation as its client saw it. Times are of one clock, any unit; a key without value reads None."""

    client: int
    key: Hashable
    kind: str
    argument: Hashable
    """What a set writes; None otherwise."""
    result: Hashable
    """What a get returned; None otherwise."""
    invoked: float
    returned: float
    """`math.inf` if it never returned."""
    outcome: str

    def __str__(self) -> str:
        what = {
            Kind.GET: f"get -> {self.result!r}",
            Kind.SET: f"set {self.argument!r}",
            Kind.DELETE: "delete",
        }[self.kind]
        until = "" if math.isinf(self.returned) else f"{self.returned:.6f}"
        return f"client {self.client:>3}  [{self.invoked:.6f} .. {until}]  {what} ({self.outcome})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer: `linearizable` is True, False, or None if the search was given up."""

    linearizable: bool | None
    operations: int
    """Operations that were judged."""
    keys: int
    configurations: int
    """How much work it was."""
    key: Hashable = None
    """The key at fault, or the one that was too hard."""
    explanation: str = ""

    def __bool__(self) -> bool:
        """Only a proof counts: a search that was given up is no pass."""
        return self.linearizable is True


class _Config(NamedTuple):
    """One way the register may stand: its value, and a bit for each pending operation that has taken effect."""

    value: Hashable
    done: int


class _Pending(NamedTuple):
    """An operation between invocation and return, in the slot whose bit is ``bit``."""

    bit: int
    operation: Operation
    writes: bool
    value: Hashable
    """What it writes, or must read."""


def check(
    history: Iterable[Operation],
    *,
    initial: Mapping[Hashable, Hashable] | None = None,
    configurations_max: int = CONFIGURATIONS_MAX,
) -> Verdict:
    """
    Judge a history key by key; the first key at fault decides.

    Args:
        history: In any order.
        initial: Values before the first operation; absent keys have none.
        configurations_max: Budget per key.
    """
    by_key: dict[Hashable, list[Operation]] = defaultdict(list)
    for operation in history:
        assert operation.invoked <= operation.returned, f"returned before it was invoked: {operation}"
        by_key[operation.key].append(operation)
    total = work = 0
    given_up: Verdict | None = None
    for key, operations in by_key.items():
        start = None if initial is None else initial.get(key)
        register = _Register(operations, start, configurations_max)
        linearizable = register.judge()
        total += register.judged
        work += register.work
        if linearizable is False:
            # Once more without looking ahead: that takes longer, but finds the first moment at which it is too late.
            again = _Register(operations, start, configurations_max, lookahead=False)
            culprit = again if again.judge() is False else register
            return Verdict(False, total, len(by_key), work, key, culprit.explain())
        if linearizable is None:
            text = f"given up after {register.work} configurations: too many operations of key {key!r} overlap"
            given_up = Verdict(None, total, len(by_key), work, key, text)
    return Verdict(True, total, len(by_key), work) if given_up is None else given_up


class _Register:
    """The search over one key."""

    def __init__(self, operations: list[Operation], initial: Hashable, budget: int, *, lookahead: bool = True) -> None:
        self._last_read = _last_reads(operations)
        self._operations = _relevant(operations, self._last_read)
        self._budget = budget
        self._pending: dict[int, _Pending] = {}
        """By position of the operation."""
        self._free_bits: list[int] = []
        self._bits = 0
        self._configs: set[_Config] = {_Config(initial, 0)}
        self._lookahead = lookahead
        """Never overwrite a value that a later read needs: prunes most of the search, blames an earlier one."""
        self._reads_to_come: Counter[Hashable] = Counter()
        self._writes_to_come: Counter[Hashable] = Counter()
        for operation in self._operations:
            to_come = self._reads_to_come if operation.kind == Kind.GET else self._writes_to_come
            to_come[_touched(operation)] += 1
        self._readers: dict[Hashable, int] = defaultdict(int)
        """Bits of the pending reads of a value."""
        self._writers: dict[Hashable, int] = defaultdict(int)
        self._last_configs = self._configs
        self._culprit: Operation | None = None
        self.judged = len(self._operations)
        self.work = 0

    def judge(self) -> bool | None:
        """True, False, or None if the budget ran out."""
        for _, step, position in self._events():
            if step == _INVOKE:
                self._invoke(position)
            elif step == _RETIRE:
                self._retire(position)
            elif not self._return(position):
                return None if self.work > self._budget else False
            if self.work > self._budget:
                return None
        return True

    def _events(self) -> list[tuple[float, int, int]]:
        """(time, step, position) in order; at one moment invocations come first and retirements last."""
        events = []
        for position, operation in enumerate(self._operations):
            events.append((operation.invoked, _INVOKE, position))
            if operation.outcome == Outcome.OK:
                events.append((operation.returned, _RETURN, position))
            else:
                # Nobody reads its value after this: from here on it makes no difference whether it takes effect.
                events.append((self._last_read[_written(operation)], _RETIRE, position))
        events.sort()
        return events

    # --- events ---

    def _invoke(self, position: int) -> None:
        operation = self._operations[position]
        if not self._free_bits:
            self._free_bits.append(1 << self._bits)
            self._bits += 1
        bit = self._free_bits.pop()
        writes = operation.kind != Kind.GET
        pending = _Pending(bit, operation, writes, _touched(operation))
        self._pending[position] = pending
        if writes:
            self._writes_to_come[pending.value] -= 1
            self._writers[pending.value] |= bit
        else:
            self._reads_to_come[pending.value] -= 1
            self._readers[pending.value] |= bit
            # A read that fits takes effect at once: it changes nothing, so sooner is never worse.
            self._configs = {
                _Config(value, done | bit) if value == pending.value else _Config(value, done)
                for value, done in self._configs
            }

    def _return(self, position: int) -> bool:
        pending = self._pending[position]
        self._last_configs = self._configs
        self._configs = self._with(pending.bit)
        if not self._configs:
            self._culprit = pending.operation
            return False
        self._retire(position)
        return True

    def _retire(self, position: int) -> None:
        bit, _, writes, value = self._pending.pop(position)
        (self._writers if writes else self._readers)[value] &= ~bit
        self._free_bits.append(bit)
        self._configs = {_Config(value, done & ~bit) for value, done in self._configs}

    def _with(self, bit: int) -> set[_Config]:
        """Every configuration that can be reached by pending writes and has this operation done, none further."""
        reached = {config for config in self._configs if config.done & bit}
        stack = [config for config in self._configs if not config.done & bit]
        seen = set(stack)
        while stack:
            config = stack.pop()
            for following in self._steps(config):
                if following in seen:
                    continue
                self.work += 1
                seen.add(following)
                if following.done & bit:
                    reached.add(following)
                else:
                    stack.append(following)
            if self.work > self._budget:
                return set()
        self.work += len(reached)
        return reached

    def _steps(self, config: _Config) -> Iterator[_Config]:
        """Let one pending write take effect, and with it every pending read that it satisfies."""
        current, done = config
        if self._lookahead and self._is_needed(current, done) and not self._can_return(current, done):
            return
        absorbed = 0
        """Pending writes whose value nobody reads any more: best done unseen, right before another write."""
        choices = []
        for pending in self._pending.values():
            if not pending.writes or done & pending.bit:
                continue
            needed = self._is_needed(pending.value, done)
            if pending.operation.outcome == Outcome.OK:
                choices.append(pending)
                if not needed:
                    absorbed |= pending.bit
            elif needed and all(other.value != pending.value for other in choices):
                # Unknown writes of one value never return and are all alike: the oldest may stand for any of them.
                choices.append(pending)
        for pending in choices:
            value = pending.value
            yield _Config(value, done | absorbed | pending.bit | self._readers[value])

    def _is_needed(self, value: Hashable, done: int) -> bool:
        """Some read that has not taken effect must still see this value."""
        return self._reads_to_come[value] > 0 or bool(self._readers[value] & ~done)

    def _can_return(self, value: Hashable, done: int) -> bool:
        """Some write of this value has not taken effect."""
        return self._writes_to_come[value] > 0 or bool(self._writers[value] & ~done)

    # --- the counter-example ---

    def explain(self) -> str:
        """Where it shows, what was possible until then, and what happened around it."""
        culprit = self._culprit
        assert culprit is not None
        values = sorted({repr(value) for value, _ in self._last_configs})
        begin = min(o.invoked for o in self._operations if o.returned >= culprit.invoked)
        around = [o for o in self._operations if o.returned >= begin and o.invoked <= culprit.returned]
        before = [o for o in self._operations if o.returned < begin and o.kind != Kind.GET][-3:]
        lines = [
            f"key {culprit.key!r}: no order of the operations is legal. It shows when this one returns:",
            f"    {culprit}",
            f"The value just before can only have been {' or '.join(values[:8])}.",
        ]
        if culprit.kind == Kind.GET:
            lines.append(self._origin(culprit))
        lines.append("The last writes before, and everything that overlaps:")
        lines += [f"  {'=>' if o is culprit else '  '} {o}" for o in (before + around)[-40:]]
        return "\n".join(lines)

    def _origin(self, culprit: Operation) -> str:
        if culprit.result is None:
            return "It read that there is no value."
        writers = [o for o in self._operations if o.kind == Kind.SET and o.argument == culprit.result]
        if not writers:
            return f"Nobody wrote {culprit.result!r}, or only an operation that certainly failed."
        if all(o.invoked > culprit.returned for o in writers):
            return f"{culprit.result!r} was written only later: {writers[0]}"
        return f"{culprit.result!r} had been written by: {writers[-1]}"


def _written(operation: Operation) -> Hashable:
    return operation.argument if operation.kind == Kind.SET else None


def _touched(operation: Operation) -> Hashable:
    """The value a write writes or a read must see."""
    return operation.result if operation.kind == Kind.GET else _written(operation)


def _last_reads(operations: list[Operation]) -> dict[Hashable, float]:
    """When each value was last seen by a read."""
    last: dict[Hashable, float] = {}
    for operation in operations:
        if operation.kind == Kind.GET and operation.outcome == Outcome.OK:
            last[operation.result] = max(last.get(operation.result, -math.inf), operation.returned)
    return last


def _relevant(operations: list[Operation], last_read: Mapping[Hashable, float]) -> list[Operation]:
    """Operations that can matter, by invocation: no failed ones, no unknown reads, no unknown writes nobody can see."""
    kept = [
        o
        for o in operations
        if o.outcome == Outcome.OK
        or (o.outcome == Outcome.UNKNOWN and o.kind != Kind.GET and last_read.get(_written(o), -math.inf) >= o.invoked)
    ]
    return sorted(kept, key=lambda o: (o.invoked, o.returned))
