"""The log against a model: random appends, conflicts, votes, drops, restarts, torn tails."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvorum.core.entries import Entry, EntryKind, HardState
from tests.unit.storage.log_under_test import LogUnderTest, configuration, entry


class LogModel(RuleBasedStateMachine):
    """A list of entries and a vote; whatever the log does must look like that."""

    @initialize()
    def start(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kvorum-log-model-"))
        self.lives = 0
        self.entries: list[Entry] = []
        self.hard_state = HardState()
        self.committed = 0
        self.log = LogUnderTest(self.directory / "0", segment_bytes=2048)

    def teardown(self) -> None:
        self.log.stop()
        shutil.rmtree(self.directory)

    def _append(self, entries: list[Entry], hard_state: HardState | None) -> None:
        self.log.queue(*entries, hard_state=hard_state)
        if hard_state:
            self.hard_state = hard_state
        if entries:
            self.entries[entries[0].index - 1 :] = entries

    def _settle(self) -> None:
        self.log.run_until(lambda: self.log.durable == self.log.ticket)

    @rule(
        sizes=st.lists(st.integers(0, 700), min_size=1, max_size=6),
        back=st.integers(0, 8),
        vote=st.none() | st.integers(0, 2),
        newer=st.booleans(),
        settle=st.booleans(),
    )
    def append(self, sizes: list[int], back: int, vote: int | None, *, newer: bool, settle: bool) -> None:
        """Append a batch, sometimes over uncommitted entries, sometimes without waiting."""
        back = min(back, len(self.entries) - self.committed)
        term = (self.entries[-1].term if self.entries else 1) + (newer or back > 0)
        first = len(self.entries) + 1 - back
        batch = [entry(first + offset, term, os.urandom(size)) for offset, size in enumerate(sizes)]
        self._append(batch, HardState(term, vote) if vote is not None else None)
        if settle:
            self._settle()

    @rule(nodes=st.integers(1, 5))
    def configure(self, nodes: int) -> None:
        """Append a configuration."""
        term = self.entries[-1].term if self.entries else 1
        payload = configuration(*range(nodes)).encode()
        self._append([entry(len(self.entries) + 1, term, payload, EntryKind.CONFIGURATION)], None)

    @rule(term=st.integers(1, 9), vote=st.none() | st.integers(0, 4))
    def vote(self, term: int, vote: int | None) -> None:
        """Record a vote alone."""
        self._append([], HardState(term, vote))
        self._settle()

    @rule(part=st.floats(0, 1))
    def commit(self, part: float) -> None:
        """Commit more of the log."""
        self.committed += int((len(self.entries) - self.committed) * part)
        self.log.log.note_committed(self.committed)

    @precondition(lambda self: self.committed > 1)
    @rule(part=st.floats(0, 1))
    def drop(self, part: float) -> None:
        """Drop what the state machine has."""
        self._settle()
        self.log.log.drop_before(int(self.committed * part) + 1)

    @rule()
    def restart(self) -> None:
        """Stop in order and start again in the same place."""
        self.log.stop()
        self._reopen(self.log.path)

    @rule(cut=st.floats(0, 1), flip=st.booleans(), size=st.integers(0, 3000))
    def crash(self, cut: float, *, flip: bool, size: int) -> None:
        """Die in the middle of a group that nobody was told of; it must vanish whole."""
        self._settle()
        self.log.stop()
        before = self.log.log.statistics()["size_bytes"]
        newest = self.log.files()[-1]
        used = self.log.log._writer.segment.end
        assert before >= used
        room = newest.stat().st_size - used
        torn = os.urandom(int(min(size, room) * cut))
        if flip and torn:
            torn = bytes(len(torn) // 2) + torn[len(torn) // 2 :]
        with newest.open("r+b") as file:
            file.seek(used)
            file.write(torn)
        self._reopen(self.log.path)
        assert self.log.recovered.torn_bytes == len(torn.rstrip(b"\0"))

    def _reopen(self, path: Path) -> None:
        self.lives += 1
        target = self.directory / str(self.lives)
        path.rename(target)
        self.log = LogUnderTest(target, segment_bytes=2048)
        self.log.log.note_committed(self.committed)
        recovered = self.log.recovered
        assert recovered.hard_state == self.hard_state
        assert recovered.last_index == len(self.entries)
        assert recovered.base_index <= max(0, self.committed)
        if recovered.base_index:
            assert recovered.base_term == self.entries[recovered.base_index - 1].term
        runs = []
        for one in self.entries[recovered.base_index :]:
            if not runs or runs[-1][1] != one.term:
                runs.append((one.index, one.term))
        assert list(recovered.terms) == runs
        configured = [one.index for one in self.entries if one.kind == EntryKind.CONFIGURATION]
        needed = [index for index in configured if index > self.committed]
        settled = [index for index in configured if index <= self.committed]
        assert [index for index, _ in recovered.configurations if index > self.committed] == needed
        assert [index for index, _ in recovered.configurations if index <= self.committed][-1:] == settled[-1:]

    @invariant()
    def reads_back(self) -> None:
        """Whatever is durable can be read and is what was appended last at its index."""
        if self.log.durable == self.log.ticket:
            first = self.log.log.first_index
            assert self.log.entries() == self.entries[first - 1 :]
            assert first <= max(1, self.committed + 1)


LogModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLogAgainstModel = LogModel.TestCase
