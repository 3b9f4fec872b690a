"""Retention: what a leader proposes to forget, from its own observations alone."""

from __future__ import annotations

import pytest

from kvorum.consensus.retention import LOOK_S, SAMPLES_PER_WINDOW, Retention, RetentionSettings
from kvorum.core.codec import TAG, encode_set, identified
from kvorum.core.entries import Entry, EntryKind
from kvorum.statemachine import sweep
from kvorum.statemachine.executor import KvStoreExecutor
from kvorum.storage.memory_engine import MemoryEngine

WINDOW_S = 60.0
SETTINGS = RetentionSettings(retention_s=WINDOW_S, session_idle_s=600.0, sessions_max=3)


class Leader:
    """A cluster of one in virtual time: what is proposed is applied at once."""

    def __init__(self, settings=SETTINGS):
        self.now = 1000.0
        self.wall_ms = 1_700_000_000_000
        self.term = 1
        self.may_serve = True
        self.proposals = []
        self.flushes = 0
        self.state = KvStoreExecutor(MemoryEngine())
        self.subject = Retention(self, settings, self.state, self.flushed)

    def flushed(self):
        self.flushes += 1
        return self.flushes > 1

    def clock(self):
        return self.now

    def propose_maintenance(self, maintenance):
        self.proposals.append(maintenance)
        self.apply(EntryKind.MAINTENANCE, maintenance.encode())

    def apply(self, kind, payload):
        index = self.state.applied_index + 1
        self.state.apply_group([Entry.create(index, self.term, kind, self.wall_ms, payload)])

    def write(self, key=b"k", client=None, number=0):
        body = encode_set(b"", key, b"v")
        if client is not None:
            body = identified(body, client, number)
        self.apply(EntryKind.COMMAND, TAG.pack(1, 2, 3) + body)

    def sleep(self, seconds, step=0.5):
        """Let time pass, ticking as the manager would."""
        end = self.now + seconds
        while self.now < end:
            self.now += step
            self.wall_ms += int(step * 1000)
            self.subject.tick(self.now)


def test_watermark_follows_a_whole_window_behind():
    """A version stays readable for the window after it stopped being the newest."""
    leader = Leader()
    leader.sleep(1)
    replaced = {}
    for _ in range(240):
        leader.write()
        replaced[leader.state.last_commit_version] = leader.now
        leader.sleep(1)
        watermark = leader.state.low_watermark
        assert all(leader.now - at >= WINDOW_S for version, at in replaced.items() if version <= watermark)

    spacing = WINDOW_S / SAMPLES_PER_WINDOW
    kept = [at for version, at in replaced.items() if version > leader.state.low_watermark]
    assert leader.now - min(kept) <= WINDOW_S + 2 * spacing + 2 * LOOK_S


def test_cluster_in_which_nothing_happens_writes_nothing():
    """Neither maintenance entries nor no-ops are a reason for the next one."""
    leader = Leader()
    for _ in range(5):
        leader.write()
    leader.write(client=b"a" * 16)
    leader.sleep(5 * WINDOW_S)
    applied = leader.state.applied_index

    leader.sleep(5 * WINDOW_S)

    assert applied == leader.state.applied_index
    assert 6 <= leader.state.low_watermark <= applied
    leader.sleep(SETTINGS.session_idle_s)
    applied = leader.state.applied_index
    leader.sleep(100 * WINDOW_S, step=1.0)
    assert applied == leader.state.applied_index


def test_new_leader_counts_from_its_start():
    """What it applied as a follower, and what it saw in an earlier term, says nothing."""
    leader = Leader()
    leader.sleep(1)
    leader.write()
    leader.sleep(WINDOW_S - 5)
    leader.may_serve = False
    leader.sleep(2)
    leader.may_serve = True
    leader.sleep(WINDOW_S - 2)
    assert 0 == leader.state.low_watermark
    leader.term = 2
    leader.sleep(WINDOW_S - 2)
    assert 0 == leader.state.low_watermark

    leader.sleep(5)

    assert 1 == leader.state.low_watermark


def test_follower_proposes_nothing():
    """Only who leads and shows everything may."""
    leader = Leader()
    leader.may_serve = False
    leader.write()
    leader.sleep(3 * WINDOW_S)

    assert [] == leader.proposals


def test_maintenance_is_rare_however_much_is_written():
    """At most one entry per part of the window."""
    leader = Leader()
    for _ in range(600):
        leader.write()
        leader.sleep(0.5)

    assert len(leader.proposals) <= 300 / (WINDOW_S / SAMPLES_PER_WINDOW)


def test_idle_sessions_are_forgotten_once_the_leader_saw_them_idle():
    """Those that were used meanwhile stay."""
    leader = Leader()
    for client in (b"a", b"b"):
        leader.write(client=client * 16)
    leader.sleep(400)
    leader.write(client=b"b" * 16, number=1)
    leader.sleep(300)

    assert 1 == leader.state.sessions_count
    leader.sleep(400)
    assert 0 == leader.state.sessions_count


@pytest.mark.parametrize("jump_ms", [10**9, -(10**9)])
def test_jump_of_the_wall_clock_forgets_no_session(jump_ms):
    """Idleness is measured by the clock that does not jump."""
    leader = Leader()
    leader.write(client=b"a" * 16)
    leader.sleep(100)
    leader.wall_ms += jump_ms
    leader.write(client=b"b" * 16)
    leader.sleep(SETTINGS.session_idle_s - 110)

    assert 2 == leader.state.sessions_count


def test_more_sessions_than_the_settings_allow_are_forgotten():
    """The leader's settings reach every replica through the log, once."""
    leader = Leader()
    for number in range(8):
        leader.write(client=bytes([number]) * 16)
    leader.sleep(3)

    assert 3 == leader.state.sessions_count == leader.state.sessions_max
    assert 1 == len(leader.proposals)


def test_sweep_begins_when_it_is_worth_a_pass_and_is_flushed_at_its_end(monkeypatch):
    """Few versions below the watermark are left where they are; a flush that cannot begin is asked for again."""
    monkeypatch.setattr(sweep, "SWEEP_ROWS_MIN", 50)
    leader = Leader()
    leader.sleep(1)
    for _ in range(40):
        leader.write()
    leader.sleep(2 * WINDOW_S)
    assert 0 == leader.state.statistics().rows_swept
    for _ in range(40):
        leader.write()

    leader.sleep(2 * WINDOW_S)

    assert 79 == leader.state.statistics().rows_swept
    assert (2, 1) == (leader.flushes, leader.subject.sweeps_total)


def test_sweep_pauses_while_the_engine_is_behind(monkeypatch):
    """It would only add to what the engine has to do."""
    monkeypatch.setattr(sweep, "SWEEP_ROWS_MIN", 10)
    leader = Leader()
    leader.sleep(1)
    for _ in range(40):
        leader.write()
    while not leader.state.sweeper.active:
        leader.sleep(0.5)
    for _ in range(10):
        leader.subject.tick(leader.now, busy=True)
    assert 0 == leader.state.statistics().rows_swept

    leader.subject.tick(leader.now)

    assert 39 == leader.state.statistics().rows_swept
