"""
The executor against the simplest thing that could be right: a dict of versions.

Goal: any log of sets, deletes, stamped writes and commits with conflict sets has the outcomes and the readable history
that the contract gives it, in whatever groups it is applied, with crashes and sweeps in between. Method: hypothesis
makes logs over few keys and families, so that they collide; the model below knows no groups, rows or overlays.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.core.operations import APPLIED, Applied, AtomicCommit, KeyRange, Mutation, MutationKind
from kvorum.statemachine.sweep import sweep

FAMILIES = [b"", b"f", b"g"]
KEYS = [b"\x00", b"a", b"a\x00", b"aa", b"b", b"\xff", b"\xff\xff"]
BOUNDS = [b"", *KEYS, b"c"]


def mutations():
    """Any mutation over few keys."""
    family, key = st.sampled_from(FAMILIES), st.sampled_from(KEYS)
    value = st.sampled_from([b"", b"v", b"w" * 1024, b"x" * 1025])
    return st.one_of(
        st.builds(Mutation, st.just(MutationKind.SET), family, key, value),
        st.builds(Mutation, st.just(MutationKind.SET), st.just(b""), key, value),
        st.builds(Mutation, st.just(MutationKind.DELETE), family, key),
        st.builds(Mutation, st.just(MutationKind.VERSIONSTAMPED_KEY), family, st.just(b"a" + b"." * 10), value),
        st.builds(
            Mutation, st.just(MutationKind.VERSIONSTAMPED_VALUE), family, key, st.sampled_from([b"p" * 12, b"short"])
        ),
    )


def commits():
    """Any commit; read versions are near the log's length, so that all verdicts occur."""
    ranges = st.builds(KeyRange, st.sampled_from([*FAMILIES, b"?"]), st.sampled_from(BOUNDS), st.sampled_from(BOUNDS))
    return st.builds(
        AtomicCommit,
        st.integers(-1, 24),
        st.lists(mutations(), max_size=4).map(tuple),
        st.lists(st.sampled_from(KEYS), max_size=2).map(tuple),
        st.lists(ranges, max_size=2).map(tuple),
        st.booleans(),
    )


LOGS = st.lists(st.one_of(mutations(), commits(), st.just("noop")), max_size=24)
CUTS = st.sets(st.integers(0, 24))
"""Positions at which a log is cut into groups."""


class Model:
    """State as a dict: (family, key) to its writes, oldest first."""

    def __init__(self):
        self.writes: dict[tuple[bytes, bytes], list[tuple[int, bytes | None]]] = {}
        self.families = {b"": 0}
        self.last_commit_version = 0

    def apply(self, index, operation):
        """Outcome of one entry: a refusal's code, an Applied, or None."""
        if operation == "noop":
            return None
        if isinstance(operation, AtomicCommit):
            code = self.verdict(index, operation)
            if code:
                return code
            operations = operation.mutations
        else:
            operations = (operation,)
        keys, values, net = [], [], {}
        for kind, family, key, value in operations:
            stamp = index.to_bytes(8, "big") + (len(keys) + len(values)).to_bytes(2, "big")
            if kind == MutationKind.VERSIONSTAMPED_KEY:
                keys.append(key[:-10] + stamp)
                net[family, keys[-1]] = value
            elif kind == MutationKind.VERSIONSTAMPED_VALUE:
                if len(value) < 10:
                    return "INVALID_OPERATION"
                values.append(value[:-10] + stamp)
                net[family, key] = values[-1]
            else:
                net[family, key] = value if kind == MutationKind.SET else None
        for (family, key), value in net.items():
            self.families.setdefault(family, index)
            self.writes.setdefault((family, key), []).append((index, value))
        self.last_commit_version = index
        return Applied(tuple(keys), tuple(values))

    def verdict(self, index, commit):
        """Code of the conflict rule, or None."""
        if not commit.conflict_keys and not commit.conflict_ranges:
            return None
        if commit.read_version < 0:
            return "INVALID_ARGUMENT"
        if commit.read_version >= index:
            return "FUTURE_VERSION"
        for (family, key), writes in self.writes.items():
            if writes[-1][0] <= commit.read_version:
                continue
            if family == b"" and key in commit.conflict_keys:
                return "CONFLICT"
            if any(family == item.family and item.begin <= key < item.end for item in commit.conflict_ranges):
                return "CONFLICT"
        return None

    def read(self, family, key, version):
        """Value at a version."""
        value = None
        for written, candidate in self.writes.get((family, key), []):
            if written <= version:
                value = candidate
        return value

    def pairs(self, family, begin, end, version):
        """Live pairs with begin <= key < end at a version."""
        keys = sorted(key for of, key in self.writes if of == family and begin <= key < end)
        found = [(key, self.read(family, key, version)) for key in keys]
        return [(key, value) for key, value in found if value is not None]


def coded(outcomes):
    """Outcomes with refusals as their codes."""
    return [getattr(outcome, "code", outcome) for outcome in outcomes]


def apply_in_groups(store, operations, cuts):
    """Apply a log cut into groups; returns coded outcomes."""
    outcomes = []
    borders = sorted({0, len(operations), *(cut for cut in cuts if cut < len(operations))})
    for first, end in pairwise(borders):
        outcomes += store.group(*operations[first:end])
    return coded(outcomes)


@settings(max_examples=150, deadline=None)
@given(LOGS, CUTS, st.data())
def test_outcomes_and_history_equal_the_models(make_store, operations, cuts, data):
    """Outcomes, families, newest values and every past version."""
    model, store = Model(), make_store()

    expected = [model.apply(index, operation) for index, operation in enumerate(operations, 1)]

    assert expected == apply_in_groups(store, operations, cuts)
    assert model.last_commit_version == store.executor.last_commit_version
    newest = len(operations)
    for version in range(newest + 1):
        assert [name in model.families and model.families[name] <= version for name in FAMILIES] == [
            store.executor.family_exists_at(name, version) for name in FAMILIES
        ]
        for family, key in [*model.writes, (b"g", b"never")]:
            assert model.read(family, key, version) == store.executor.read_at(family, key, version)
    for family, key in model.writes:
        assert model.read(family, key, newest) == store.executor.get(family, key)
    for _ in range(5):
        family, begin, end = (data.draw(st.sampled_from(pool)) for pool in (FAMILIES, BOUNDS, BOUNDS))
        version = data.draw(st.none() | st.integers(0, newest))
        limit, offset, reverse = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 2)), data.draw(st.booleans())
        live = model.pairs(family, begin, end, newest if version is None else version)
        wanted = (live[::-1] if reverse else live)[offset:]
        page = wanted[:limit] if limit else wanted
        result = store.scan(
            version=version, family=family, begin=begin, end=end, limit=limit, offset=offset, reverse=reverse
        )
        assert page == result.pairs
        assert (len(page) < len(wanted)) is result.has_more
        assert (wanted[len(page)][0] if len(page) < len(wanted) else None) == result.next_key


@settings(max_examples=75, deadline=None)
@given(LOGS, st.tuples(CUTS, CUTS), st.integers(0, 24), st.integers(0, 24))
def test_groups_crashes_and_sweeps_leave_no_trace(make_store, operations, cuts, kept, watermark):
    """Two replicas that cut the log differently, one of which crashes and sweeps, agree in outcomes and hash."""
    steady, shaken = make_store(), make_store()
    expected = apply_in_groups(steady, operations, cuts[0])
    apply_in_groups(shaken, operations, cuts[1])

    revived = make_store(shaken.engine.crashed(kept))
    applied = revived.executor.applied_index
    again = apply_in_groups(revived, operations[applied:], [])

    assert expected[applied:] == again
    assert steady.hash() == revived.hash()
    for store in (steady, revived):
        store.raise_watermark(min(watermark, len(operations)))
    list(sweep(revived.engine, min(watermark, len(operations)), 2))
    assert steady.hash() == revived.hash()


SCRIPT = """
import random, sys
sys.path.insert(0, sys.argv[2])
from conftest import Store
from kvorum.core.operations import AtomicCommit, KeyRange, Mutation
random.seed(5)
store, group = Store(), int(sys.argv[1])
key = lambda: b"%d" % random.randrange(40)
family = lambda: random.choice([b"", b"x", b"y", b"z%d" % random.randrange(9)])
log = []
for n in range(600):
    mutations = [Mutation(random.randrange(1, 5), family(), key() + bytes(10), b"v" * 12) for _ in range(4)]
    ranges = tuple(KeyRange(family(), key(), key()) for _ in range(2))
    commit = AtomicCommit(n - random.randrange(20), tuple(mutations), (key(),), ranges)
    log.append(random.choice([commit, mutations[0]]))
codes = []
for first in range(0, 600, group):
    codes += [getattr(outcome, "code", outcome) for outcome in store.group(*log[first : first + group])]
print(store.hash(), codes.count("CONFLICT"), sum(map(len, map(repr, codes))))
"""


@pytest.mark.slow
def test_apply_is_the_same_under_every_hash_seed_and_group_size():
    """Catalogue 70: processes with different PYTHONHASHSEED agree on hash and outcomes."""
    seen = set()
    for seed, group in (("0", 1), ("1", 7), ("4242", 600)):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(group), str(Path(__file__).parent)],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        seen.add(run.stdout)

    assert 1 == len(seen)
    assert 0 < int(seen.pop().split()[1]) < 600


def test_model_itself_knows_a_conflict():
    """The model is no yes-man."""
    model = Model()

    assert APPLIED == model.apply(1, Mutation(MutationKind.SET, b"", b"a", b"1"))
    assert "CONFLICT" == model.apply(2, AtomicCommit(0, (), (b"a",)))
    assert None is model.apply(3, "noop")
