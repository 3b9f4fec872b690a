"""Sessions: a write that is sent again gets its first outcome and changes nothing (contract section 5.4)."""

from __future__ import annotations

import pytest

from kvorum.core.errors import WriteStalledError
from kvorum.core.operations import APPLIED, Applied, AtomicCommit, Mutation, MutationKind
from kvorum.statemachine import sessions as room
from kvorum.statemachine.journal import JournalBounds
from kvorum.statemachine.layout import META, OUTCOMES_KEPT
from tests.unit.statemachine.session_model import SET, A, B, C, identified_entry, maintenance_entry, sessions_of

BOUNDS = [JournalBounds(), JournalBounds(0, 0, 0), JournalBounds(1, 4, 2)]
"""As usual; each group writes the rows of its sessions; some are always behind."""


class Log:
    """Feeds identified writes to a store, each as a group of its own unless asked otherwise."""

    def __init__(self, store):
        self.store = store

    def next(self):
        return self.store.executor.applied_index + 1

    def send(self, client_id, request_id, operation=SET, time_ms=1_700_000_000_000):
        entry = identified_entry(self.next(), client_id, request_id, operation, time_ms)
        (outcome,) = self.store.executor.apply_group([entry])
        return outcome

    def maintain(self, **fields):
        assert [None] == self.store.executor.apply_group([maintenance_entry(self.next(), **fields)])

    def sessions(self):
        return sessions_of(self.store.engine)

    def reopen(self):
        self.store.reopen()


@pytest.fixture(params=BOUNDS, ids=["bounds as usual", "bounds of nothing", "bounds of little"])
def store(request, make_store):
    """An empty store."""
    return make_store(bounds=request.param)


@pytest.fixture
def log(store):
    """A log in front of it."""
    return Log(store)


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize(
    "operation",
    [
        SET,
        Mutation(MutationKind.SET, b"", b"k", b""),
        Mutation(MutationKind.SET, b"", b"k", b"x" * 5000),
        Mutation(MutationKind.SET, b"fam", b"k", b"v"),
        Mutation(MutationKind.DELETE, b"", b"k"),
        AtomicCommit(0, (SET,), existing_style=False),
        AtomicCommit(0, (), existing_style=False),
    ],
)
def test_repeated_write_gets_its_first_version_and_changes_nothing(log, store, operation, reopened):
    """Between the two somebody else wrote the key; that stays."""
    assert APPLIED == log.send(A, 5, operation)
    store.one(store.set(b"k", b"other", operation.family if isinstance(operation, Mutation) else b""))
    if reopened:
        log.reopen()

    assert Applied(version=1) == log.send(A, 5, operation)

    assert 2 == store.executor.last_commit_version
    assert b"other" == store.executor.get(operation.family if isinstance(operation, Mutation) else b"", b"k")


def test_repeated_stamped_commit_gets_the_same_generated_bytes(log):
    """They are made again from the body with the first version."""
    commit = AtomicCommit(
        0,
        (
            Mutation(MutationKind.VERSIONSTAMPED_KEY, b"", b"a" + b"." * 10, b"v"),
            Mutation(MutationKind.VERSIONSTAMPED_VALUE, b"", b"k", b"b" + b"." * 10),
            Mutation(MutationKind.VERSIONSTAMPED_KEY, b"", b"a" + b"." * 10, b"w"),
        ),
        existing_style=False,
    )
    first = log.send(A, 0, commit)

    again = log.send(A, 0, commit)

    assert first.generated_keys == again.generated_keys
    assert first.generated_values == again.generated_values
    assert (0, 1) == (first.version, again.version)
    assert 2 == len(again.generated_keys)


def test_repeated_refusal_is_refused_the_same_way_although_it_would_pass_now(log, store):
    """CONFLICT is remembered, and what a new attempt under another number decides is not its business."""
    store.one(store.set(b"k", b"1"))
    conflicting = AtomicCommit(0, (SET,), (b"k",), existing_style=False)
    assert "CONFLICT" == log.send(A, 1, conflicting).code

    assert "CONFLICT" == log.send(A, 1, conflicting).code
    assert "FUTURE_VERSION" == log.send(A, 2, AtomicCommit(99, (SET,), (b"k",), existing_style=False)).code
    store.fill_to(200)
    assert "FUTURE_VERSION" == log.send(A, 2, AtomicCommit(99, (SET,), (b"k",), existing_style=False)).code
    assert b"1" == store.executor.get(b"", b"k")


def test_known_retry_is_answered_before_its_read_version_is_judged(log, store):
    """Its first outcome counts although the read version is too old by now."""
    commit = AtomicCommit(1, (SET,), (b"k",), existing_style=False)
    store.fill_to(1)
    assert APPLIED == log.send(A, 1, commit)
    log.maintain(watermark=3)

    assert Applied(version=2) == log.send(A, 1, commit)
    assert "TRANSACTION_TOO_OLD" == log.send(A, 2, commit).code
    assert "TRANSACTION_TOO_OLD" == log.send(A, 2, commit).code


def test_other_body_under_a_known_number_is_refused_and_not_applied(log, store):
    """Also a delete whose bytes are those of an empty set."""
    log.send(A, 1, Mutation(MutationKind.SET, b"", b"k", b""))

    for other in (SET, Mutation(MutationKind.DELETE, b"", b"k")):
        assert "INVALID_ARGUMENT" == log.send(A, 1, other).code
    assert b"" == store.executor.get(b"", b"k")
    assert Applied(version=1) == log.send(A, 1, Mutation(MutationKind.SET, b"", b"k", b""))


def test_two_sendings_in_one_group_take_effect_once(log, store):
    """The second sees what the first staged, plain or not."""
    delete = Mutation(MutationKind.DELETE, b"", b"k")
    entries = [
        identified_entry(1, A, 1, SET),
        identified_entry(2, A, 1, SET),
        identified_entry(3, A, 2, delete),
        identified_entry(4, A, 2, delete),
        identified_entry(5, B, 1, SET),
    ]

    outcomes = store.executor.apply_group(entries)

    assert [APPLIED, Applied(version=1), APPLIED, Applied(version=3), APPLIED] == outcomes
    assert 2 == store.executor.statistics().retries


def test_ring_keeps_exactly_the_latest_outcomes(log, store):
    """One more forgets the oldest, whose number and every lower one are refused from then on."""
    for number in range(10, 10 + OUTCOMES_KEPT):
        assert APPLIED == log.send(A, number)
    assert Applied(version=1) == log.send(A, 10)

    assert APPLIED == log.send(A, 10 + OUTCOMES_KEPT)

    for reopened in (False, True):
        if reopened:
            log.reopen()
        assert "INVALID_ARGUMENT" == log.send(A, 10).code
        assert "INVALID_ARGUMENT" == log.send(A, 9).code
        assert Applied(version=2) == log.send(A, 11)
    assert APPLIED == log.send(A, 10_000)
    assert "INVALID_ARGUMENT" == log.send(A, 11).code


def test_maintenance_forgets_idle_sessions_and_their_promise_ends(log):
    """Only those whose last entry is older than the bound."""
    log.send(A, 1, time_ms=1000)
    log.send(B, 1, time_ms=2000)
    log.send(A, 1, time_ms=3000)

    log.maintain(idle_before_ms=2001)

    assert {A} == log.sessions()
    assert APPLIED == log.send(B, 1, time_ms=4000)


def test_above_the_maximum_the_least_recently_used_session_goes(log, store):
    """In log order, also when a new session is made inside the very group; and a lower maximum takes effect at once."""
    log.maintain(sessions_max=2)
    log.send(A, 1)
    log.send(B, 1)
    log.send(A, 1)

    log.send(C, 1)

    assert {A, C} == log.sessions()
    index = log.next()
    entries = [identified_entry(index + at, client, 9, SET) for at, client in enumerate([B, A, C, B])]
    assert [APPLIED, APPLIED, APPLIED, APPLIED] == store.executor.apply_group(entries)
    assert {C, B} == log.sessions()
    log.reopen()
    log.maintain(sessions_max=1)
    assert {B} == log.sessions()
    assert 1 == store.executor.statistics().sessions


def test_one_maintenance_entry_removes_a_bounded_number_of_rows(log, monkeypatch):
    """The rest goes with the next one."""
    for number in range(40):
        log.send(number.to_bytes(16, "big"), 1)
    monkeypatch.setattr(room, "FORGET_ROWS_MAX", 20)

    log.maintain(sessions_max=5)
    assert 30 == len(log.sessions())
    for _ in range(3):
        log.maintain(sessions_max=5)
    assert 5 == len(log.sessions())


def test_group_that_was_not_written_leaves_no_trace_in_the_sessions(log, store):
    """Staged again it decides the same."""
    log.maintain(sessions_max=2)
    log.send(A, 1)
    log.send(B, 1)
    before = store.hash()
    entries = [identified_entry(log.next(), A, 2, SET), identified_entry(log.next() + 1, C, 1, SET)]
    store.engine.stalled = True
    for _ in range(2):
        with pytest.raises(WriteStalledError):
            store.executor.apply_group(entries)
    assert before == store.hash()
    store.engine.stalled = False

    assert [APPLIED, APPLIED] == store.executor.apply_group(entries)

    assert {A, C} == log.sessions()
    assert Applied(version=2) == log.send(A, 1)


def test_more_sessions_than_fit_in_memory_are_read_again(log, store, monkeypatch):
    """Their outcomes come back from their rows, oldest first."""
    monkeypatch.setattr(room, "RINGS_LOADED_MAX", 1)
    for number in range(OUTCOMES_KEPT + 3):
        for client in (A, B, C):
            assert APPLIED == log.send(client, number)
    for client in (C, A, B):
        assert "INVALID_ARGUMENT" == log.send(client, 2).code
        assert isinstance(log.send(client, 3), Applied)
    assert 3 == store.executor.statistics().sessions


def test_watermark_moves_with_its_entry_and_never_back_nor_beyond_what_is_applied(log, store):
    """Commits of the same group are judged by the one before them."""
    store.fill_to(10)
    stale = store.entry_of(12, AtomicCommit(3, (SET,), (b"k",)))
    outcomes = store.executor.apply_group([maintenance_entry(11, watermark=5), stale])
    assert "CONFLICT" == outcomes[1].code
    assert 5 == store.executor.low_watermark
    log.maintain(watermark=4)
    assert 5 == store.executor.low_watermark
    log.maintain(watermark=99)
    assert 14 == store.executor.low_watermark
    assert "TRANSACTION_TOO_OLD" == store.executor.check_readable(13).code


def test_store_without_session_rows_opens_and_plain_writes_leave_none(store):
    """What an earlier release wrote is a store like any other."""
    store.one(store.set(b"k", b"v"))

    assert [b"format", b"state"] == [key[1:] for key, _ in store.engine.iterate(META, b"\x01")]
    assert APPLIED == Log(store).send(A, 1)
