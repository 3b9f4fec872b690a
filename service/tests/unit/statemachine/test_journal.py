"""The rows of sessions may be behind, be cut anywhere, or be those of an earlier release: nobody can tell."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.core.cluster import Configuration, Member
from kvorum.core.entries import Entry, EntryKind
from kvorum.core.errors import LocalError, Refusal, WriteStalledError
from kvorum.core.operations import APPLIED, Applied, Mutation, MutationKind
from kvorum.core.snapshot import Manifest
from kvorum.statemachine import sessions as room
from kvorum.statemachine.journal import JournalBounds, Outcomes, Replay, Session
from kvorum.statemachine.layout import Head, pack_outcome, pack_ring, parse_ring, parse_uses, request_of
from kvorum.statemachine.transfer import Export, Import
from kvorum.storage.memory_engine import MemoryEngine
from kvorum.storage.rocksdict_engine import RocksdictEngine
from tests.unit.statemachine.session_model import (
    OUTCOME,
    RING,
    SESSION,
    SET,
    USES,
    A,
    B,
    C,
    D,
    Model,
    content,
    digest,
    identified_entry,
    maintenance_entry,
    make_old,
    operation_of,
    sessions_of,
)

CLIENTS = [A, B, C, D]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from(CLIENTS), st.integers(0, 9), st.integers(0, 3)),
        st.tuples(st.just("send"), st.sampled_from(CLIENTS), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("maintain"), st.integers(0, 60), st.integers(1, 4), st.just(0)),
        st.tuples(st.just("plain"), st.integers(0, 3), st.just(0), st.just(0)),
    ),
    max_size=60,
)
PLACES = st.sets(st.integers(0, 60))
BOUNDS = st.builds(JournalBounds, st.integers(0, 3), st.integers(0, 20), st.integers(0, 8))


def rows(engine, *prefixes):
    """Rows whose keys begin with one of these."""
    return [(key, row) for key, row in engine.iterate(b"\0", b"\1") if key.startswith(prefixes)]


def replayed(make_store, model, steps):
    """Entries of the steps, what the model says to each, and the model's rows behind each."""
    entries, expected, behind = [], [], []
    for index, (kind, first, second, third) in enumerate(steps, 1):
        if kind == "send":
            entries.append(identified_entry(index, first, second, operation_of(third), index))
            expected.append(model.send(index, index, first, second, third))
        elif kind == "maintain":
            entries.append(maintenance_entry(index, idle_before_ms=first, sessions_max=second))
            expected.append(None)
            model.maintain(first, second)
        else:
            entries.append(make_store.entry_of(index, SET))
            expected.append(0)
            model.newest = index
        behind.append(model.rows())
    return entries, expected, behind


def plain(outcome):
    """A refusal's code, the first version of a retry, 0 for a new write, None for what nobody waits for."""
    return outcome.code if isinstance(outcome, Refusal) else None if outcome is None else outcome.version


@settings(max_examples=300, deadline=None)
@given(STEPS, PLACES, PLACES, PLACES, PLACES, BOUNDS, BOUNDS)
def test_sessions_do_what_the_model_says_in_whatever_groups(
    make_store, steps, cuts, reopens, stalls, conversions, bounds, later
):
    """
    Equal logs give equal outcomes, sessions and hashes, however they are cut into groups and whenever rows are written.

    In between the store is opened again, with other bounds, stalled, and put back to format 1, and a snapshot is taken.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvorum.statemachine.journal.OUTCOMES_KEPT", Model.KEPT)
        patch.setattr(room, "RINGS_LOADED_MAX", 2)
        model = Model()
        entries, expected, behind = replayed(make_store, model, steps)
        one, many = make_store(), make_store(bounds=bounds)
        for entry in entries:
            one.executor.apply_group([entry])
        got, group = [], []
        for position, entry in enumerate(entries, 1):
            group.append(entry)
            if position not in cuts and position < len(entries):
                continue
            if position in stalls:
                many.engine.stalled = True
                with pytest.raises(WriteStalledError):
                    many.executor.apply_group(group)
                many.engine.stalled = False
            got += make_store.last(many.executor.apply(group))
            group = []
            assert behind[position - 1] == content(many.engine)
            if position in conversions:
                make_old(many.engine, behind[position - 1])
                assert behind[position - 1] == content(many.engine)
            if position in reopens | conversions:
                many = make_store(many.engine, later)
        assert expected == [plain(outcome) for outcome in got]
        assert set(model.sessions) == sessions_of(many.engine)
        assert one.hash() == many.hash()


@settings(max_examples=150, deadline=None)
@given(STEPS, PLACES, BOUNDS)
def test_journal_stays_within_its_bounds_and_knows_them_after_a_start(make_store, steps, cuts, bounds):
    """Rows, records and sessions behind are never more than allowed, and a start finds what was left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvorum.statemachine.journal.OUTCOMES_KEPT", Model.KEPT)
        patch.setattr(room, "RINGS_LOADED_MAX", 4)
        entries, _, _ = replayed(make_store, Model(), steps)
        store, group = make_store(bounds=bounds), []
        for position, entry in enumerate(entries, 1):
            group.append(entry)
            if position in cuts or position == len(entries):
                store.executor.apply_group(group)
                group = []
                replay = Replay(store.engine)
                list(replay.run())
                used = any(entry.kind == EntryKind.COMMAND for entry in entries)
                assert len(replay.behind) <= bounds.sessions or not used
                assert len(replay.rows) <= bounds.rows
                assert sum(row.uses for row in replay.rows) <= bounds.uses
                live, restarted = store.executor._sessions, make_store(store.engine, bounds).executor._sessions
                assert live._behind == restarted._behind
                for known in (live, restarted):
                    assert sorted(known._behind.values()) == list(known._behind.values())
                assert live._journal == restarted._journal
                assert [(each.client_id, each.head) for each in live._all.values()] == [
                    (each.client_id, each.head) for each in restarted._all.values()
                ]


def test_rows_of_uses_and_rings_are_the_documented_bytes(store, make_store):
    """One row for each group, with an applied request, a refused one, a repetition; then a ring for all."""
    conflict = operation_of(2)
    store.executor.apply_group(
        [
            identified_entry(1, A, 5, SET, 1000),
            identified_entry(2, A, 6, conflict, 1001),
            identified_entry(3, A, 5, SET, 1002),
        ]
    )

    def at(number):
        return number.to_bytes(8, "big")

    code = b"FUTURE_VERSION"
    assert [
        (
            USES + at(3),
            b"\1" + at(1) + at(1000) + A + at(5) + digest(SET)
            + b"\2" + at(2) + at(1001) + A + at(6) + digest(conflict) + bytes((len(code),)) + code
            + b"\3" + at(3) + at(1002) + A,
        )
    ] == rows(store.engine, USES, RING, SESSION, OUTCOME)  # fmt: skip

    store = make_store(store.engine, JournalBounds(0))
    store.executor.apply_group([maintenance_entry(4, sessions_max=1), identified_entry(5, B, 0, SET, 1003)])
    assert [
        (RING + B, b"\0\x20" + at(0) + at(5) + digest(SET)),
        (SESSION + B, at(1) + b"\xff" * 8 + at(5) + at(1003)),
    ] == rows(store.engine, USES, RING, SESSION, OUTCOME)

    store.reopen()
    store = make_store(store.engine)
    store.executor.apply_group([identified_entry(6, C, 0, SET, 1004)])
    store.executor.apply_group([identified_entry(7, D, 0, SET, 1005)])
    assert [
        (USES + at(6), b"\1" + at(6) + at(1004) + C + at(0) + digest(SET)),
        (USES + at(7), b"\4" + at(7) + at(0) + C + b"\1" + at(7) + at(1005) + D + at(0) + digest(SET)),
    ] == rows(store.engine, USES, RING, SESSION, OUTCOME)


@given(st.lists(st.builds(pack_outcome, st.integers(-1, 99), st.integers(0, 99), st.binary(max_size=16), st.just("X"))))
def test_ring_reads_back_as_written(outcomes):
    """In its order, with and without codes."""
    outcomes += [outcome[:32] for outcome in outcomes]

    assert outcomes == parse_ring(pack_ring(outcomes))


REQUESTS = st.one_of(st.integers(0, 12), st.sampled_from([0x20, 0x2000, 0x200000, 0x0020 << 48, 2**63 - 1]))
DIGESTS = st.one_of(st.binary(min_size=16, max_size=16), st.just(bytes(16)), st.just(b"\0\x20" * 8))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(REQUESTS, st.sampled_from([0, 0x20, 300]), DIGESTS, st.sampled_from(["", "", "CONFLICT"]))))
def test_session_remembers_its_latest_outcomes_and_nothing_else(noted):
    """Against a list: whatever ids and digests look like, also when read back from its row halfway."""
    kept, forgotten, kept_max = [], -1, 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvorum.statemachine.journal.OUTCOMES_KEPT", kept_max)
        session = Session(A, Head(), Outcomes())
        for request_id, version, digest_of_it, code in noted:
            known = {request_of(row): row for row in kept}
            assert known.get(request_id) == session.outcomes.get(request_id)
            assert (request_id in known) is (request_id in session.outcomes)
            assert max(known, default=-1) <= session.outcomes.highest
            if request_id in known or request_id <= forgotten:
                packed = session.outcomes.packed(session.recorded)
                assert packed == pack_ring(kept)
                session.outcomes = Outcomes(parse_ring(packed), session.recorded)
                continue
            row = pack_outcome(request_id, version, digest_of_it, code)
            session.note(request_id, row)
            kept.append(row)
            if len(kept) > kept_max:
                forgotten = max(forgotten, request_of(kept.pop(0)))
            assert (kept, forgotten) == (session.outcomes.rows(session.recorded), session.forgotten)
            assert len(kept) == session.kept


@pytest.mark.parametrize("cut", [1, 20, 33, 34, 50, 57, 58, 60])
def test_row_of_uses_that_is_cut_or_unknown_stops_the_node(store, cut):
    """What a session did is never guessed."""
    store.executor.apply_group([identified_entry(1, A, 5, SET), identified_entry(2, A, 6, operation_of(2))])
    ((key, row),) = rows(store.engine, USES)
    assert 57 + 57 + 1 + len("FUTURE_VERSION") == len(row)
    # Behind 57 bytes the first record is whole; anywhere else nothing fits.
    if cut != 57:
        with pytest.raises(LocalError):
            list(parse_uses(row[:cut]))
    with pytest.raises(LocalError):
        list(parse_uses(b"\5" + row[1:]))
    batch = store.engine.batch()
    batch.put(key, b"")
    store.engine.write(batch)
    with pytest.raises(LocalError):
        store.reopen()


def test_ring_that_is_cut_stops_the_node():
    """Its lengths must fit."""
    with pytest.raises(LocalError):
        parse_ring(pack_ring([bytes(32)])[:-1])


def test_session_forgotten_after_its_rows_were_written_stays_forgotten(make_store):
    """Its uses are still in the journal, because another session is behind since before them."""
    store = make_store(bounds=JournalBounds(2, 100, 100))
    store.executor.apply_group([identified_entry(1, A, 1, SET)])
    store.executor.apply_group([identified_entry(2, B, 1, SET)])
    store.executor.apply_group([identified_entry(3, A, 2, SET), identified_entry(4, C, 1, SET)])
    assert {A} == {key[len(SESSION) :] for key, _ in rows(store.engine, SESSION)}
    assert [USES + (2).to_bytes(8, "big"), USES + (4).to_bytes(8, "big")] == [
        key for key, _ in rows(store.engine, USES)
    ]
    # A, whose rows are written, is now the least recently used but for B.
    store.executor.apply_group([maintenance_entry(5, sessions_max=1)])
    assert {C} == sessions_of(store.engine)

    store.reopen()

    assert {C} == sessions_of(store.engine)
    assert 1 == store.executor.sessions_count
    assert [APPLIED] == store.executor.apply_group([identified_entry(6, A, 2, SET)])


def test_group_without_uses_leaves_the_rows_of_sessions_alone(make_store):
    """Also when lower bounds than those of the last start would ask for more."""
    store = make_store()
    store.executor.apply_group([identified_entry(1, A, 1, SET)])
    before = rows(store.engine, USES, RING, SESSION)
    store = make_store(store.engine, JournalBounds(0, 0, 0))

    store.one(SET)

    assert before == rows(store.engine, USES, RING, SESSION)


def old_store(make_store, requests):
    """A store as the release of format 1 left it: A with this many requests, B with one."""
    store = make_store()
    model = Model()
    model.KEPT = 128
    entries = [identified_entry(index, A, index, SET, 1000 + index) for index in range(1, requests + 1)]
    entries.append(identified_entry(requests + 1, B, 1, operation_of(1), 5000))
    for entry in entries[:-1]:
        model.send(entry.index, entry.time_ms, A, entry.index, 0)
    model.send(requests + 1, 5000, B, 1, 1)
    store.executor.apply_group(entries)
    make_old(store.engine, model.rows())
    return store.engine, model


def test_store_of_format_1_answers_retries_and_becomes_format_2(make_store):
    """Its rows are read where they lie, hash as before, and go with the first use of their session."""
    engine, model = old_store(make_store, 130)
    canonical = model.rows()
    assert 128 + 1 == len(rows(engine, OUTCOME))
    store = make_store(engine)
    before = store.hash()
    assert canonical == content(engine)
    store.reopen()
    assert before == store.hash()
    assert b"\1" == engine.get(b"\0format")

    entries = [
        identified_entry(132, A, 130, SET, 6000),
        identified_entry(133, A, 2, SET, 6000),
        identified_entry(134, A, 131, SET, 6000),
    ]
    first, forgotten, new = store.executor.apply_group(entries)

    assert Applied(version=130) == first
    assert "INVALID_ARGUMENT" == forgotten.code
    assert APPLIED == new
    assert b"\2" == engine.get(b"\0format")
    assert [OUTCOME + B + b"\0"] == [key for key, _ in rows(engine, OUTCOME)]
    assert [RING + A] == [key for key, _ in rows(engine, RING)]
    model.send(132, 6000, A, 130, 0)
    model.send(133, 6000, A, 2, 0)
    model.send(134, 6000, A, 131, 0)
    for _ in range(2):
        assert model.rows() == content(engine)
        store.reopen()
    assert [Applied(version=131)] == store.executor.apply_group([identified_entry(135, B, 1, operation_of(1), 6001)])
    assert [] == rows(engine, OUTCOME)
    model.send(135, 6001, B, 1, 1)
    assert model.rows() == content(engine)


def test_store_of_format_1_becomes_format_2_with_any_group_and_not_before(make_store):
    """A plain write is enough: from then on an earlier release refuses it rather than misread it."""
    engine, model = old_store(make_store, 3)
    store = make_store(engine)
    engine.stalled = True
    with pytest.raises(WriteStalledError):
        store.one(SET)
    engine.stalled = False
    assert b"\1" == engine.get(b"\0format")

    store.one(SET)

    assert b"\2" == engine.get(b"\0format")
    assert model.rows() == content(engine)


def test_sessions_of_format_1_are_forgotten_with_all_their_rows(make_store):
    """Never used since, or used and forgotten in one group."""
    for used in (False, True):
        engine, _ = old_store(make_store, 130)
        store = make_store(engine)
        entries = [identified_entry(132, A, 200, SET, 6000)] if used else []
        entries += [maintenance_entry(132 + used, idle_before_ms=10_000)]

        store.executor.apply_group(entries)

        assert [] == rows(engine, OUTCOME, RING, SESSION)
        assert [] == content(engine)
        store.reopen()
        assert 0 == store.executor.sessions_count


def test_undone_group_leaves_a_store_of_format_1_as_it_was(make_store):
    """Staged again it converts what it uses."""
    engine, model = old_store(make_store, 130)
    store = make_store(engine)
    entries = [identified_entry(132, A, 129, SET, 6000), identified_entry(133, B, 2, SET, 6001)]
    engine.stalled = True
    for _ in range(2):
        with pytest.raises(WriteStalledError):
            store.executor.apply_group(entries)
    engine.stalled = False
    assert model.rows() == content(engine)

    assert [Applied(version=129), APPLIED] == store.executor.apply_group(entries)

    assert [] == rows(engine, OUTCOME)


def test_snapshots_of_both_formats_carry_their_sessions(make_store):
    """Rows go as they lie, the journal included; the receiver answers and hashes as the sender."""
    old, _ = old_store(make_store, 130)
    new = make_store(bounds=JournalBounds(1, 100, 100))
    for index in range(1, 9):
        new.executor.apply_group([identified_entry(index, CLIENTS[index % 3], index, SET, index)])
    assert rows(new.engine, USES)
    assert rows(new.engine, RING)
    member = Configuration.of([Member(1, "c:1", "p:1")])
    for engine in (old, new.engine):
        store = make_store(engine)
        index = store.executor.applied_index
        manifest = Manifest(b"c" * 16, index, 1, 9, Entry.create(1, 1, EntryKind.CONFIGURATION, 0, member.encode()))
        copy = MemoryEngine()
        incoming = Import(copy)
        for chunk in Export(store.executor.view(), manifest).chunks():
            for _ in incoming.take(chunk) if chunk is not None else ():
                pass
        assert incoming.check.finished
        received = make_store(copy)
        assert store.hash() == received.hash()
        retry = identified_entry(index + 1, B, 1, operation_of(1) if engine is old else SET, index)
        assert store.executor.apply_group([retry]) == received.executor.apply_group([retry])
        assert store.hash() == received.hash()


def test_sessions_on_rocksdb_are_the_sessions_in_memory(make_store, tmp_path):
    """Rows written and cut all the time, and a start in between, on the engine that production uses."""
    memory = make_store()
    rocks = make_store(RocksdictEngine.open(tmp_path / "store"), JournalBounds(5, 60, 20))
    index = 0
    for turn in range(60):
        entries = []
        for number in range(turn % 7 + 1):
            index += 1
            client = bytes((turn * number % 11,)) * 16
            entries.append(identified_entry(index, client, turn * number % 50, SET, index))
        index += 1
        entries.append(maintenance_entry(index, sessions_max=9 + turn % 3))
        assert memory.executor.apply_group(entries) == rocks.executor.apply_group(entries)
        if turn % 20 == 19:
            rocks.engine.flush()
            rocks.engine.close()
            rocks = make_store(RocksdictEngine.open(tmp_path / "store"), JournalBounds(5, 60, 20))
            assert memory.hash() == rocks.hash()
    assert memory.hash() == rocks.hash()
    rocks.engine.close()


def test_large_values_and_deletes_are_known_again_from_the_journal(store):
    """Every kind of identified write leaves the same record."""
    large = Mutation(MutationKind.SET, b"", b"k", b"x" * 5000)
    delete = Mutation(MutationKind.DELETE, b"", b"k")
    store.executor.apply_group([identified_entry(1, A, 1, large), identified_entry(2, A, 2, delete)])
    store.reopen()

    again = [identified_entry(3, A, 1, large), identified_entry(4, A, 2, delete)]

    assert [Applied(version=1), Applied(version=2)] == store.executor.apply_group(again)
