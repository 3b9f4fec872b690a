"""
Seeded lives of the real log over a disk that records each call: appends, conflicts, rollover, cuts, resets, failures.

`live` plays one seed: several lives of one directory, ended by a stop, a kill at some system call, or a failed sync.
What comes out is the journal of the disk and the `History` of what had been promised at each of its calls.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvorum.core.cluster import Configuration, Member
from kvorum.core.entries import Entry, EntryBatch, EntryKind, HardState
from kvorum.core.errors import StorageFailedError
from kvorum.core.snapshot import Manifest
from kvorum.storage.wal.segmented_log import SegmentedLog
from kvorum_sim.crash.history import History, State
from kvorum_sim.filesystem import SimulatedFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvorum.core.ids import Index, Term, Ticket
    from kvorum.storage.wal.system import SystemCalls
    from kvorum_sim.filesystem import Step

DIRECTORY: Final = Path("/simulated/log")
SEGMENT_BYTES: Final = (1024, 2048, 4096)
"""Small, so that a short life begins many segments and an image is quickly opened."""
LIVES: Final = 4
ACTS: Final = 14
"""Of each life."""


class KilledError(BaseException):
    """The process is gone: nothing catches this but whoever started it."""


class _Patience:
    """Takes the place of the event on which the log's thread waits for space."""

    def __init__(self, files: SimulatedFiles, tries: int) -> None:
        self._files = files
        self._tries = tries

    def wait(self, _: float) -> bool:
        """Space is found after some tries; nobody stops the log meanwhile."""
        self._tries -= 1
        self._files.full = self._tries > 0
        return False

    def set(self) -> None:
        """Nobody waits."""


class DrivenLog(SegmentedLog):
    """The log without its thread: `pump` does what the thread would, on the spot."""

    _said: list[Callable[[], None]]

    @classmethod
    def boot(
        cls, system: SystemCalls, segment_bytes: int, installed: Manifest | None = None, directory: Path = DIRECTORY
    ) -> DrivenLog:
        """
        Open the log in the directory.

        Raises:
            StorageFailedError: It is damaged, or the disk refuses.
        """
        said: list[Callable[[], None]] = []
        log = cls.open(
            directory,
            run_on_loop=said.append,
            fail=_raise,
            segment_bytes=segment_bytes,
            system=system,
            installed=installed,
        )
        assert isinstance(log, DrivenLog)
        log.grouped = lambda _: None
        log.tell_from(said)
        return log

    def tell_from(self, said: list[Callable[[], None]]) -> None:
        """What the log says to its loop is found here; `boot` calls it."""
        self._said = said

    grouped: Callable[[Ticket], None]
    """Called with the last ticket of each group, before it is written."""

    def start(self, on_durable: Callable[[Ticket], None], on_space: Callable[[bool], None]) -> None:
        """Begin to report; see `core.ports.Log.start`."""
        self._on_durable = on_durable
        self._on_space = on_space

    def pump(self) -> None:
        """Write, sync and report everything queued, group after group."""
        while self._carried is not None or self._queue.qsize():
            item = self._next()
            assert item is not None
            self._work(item)
            self._tell()

    def _tell(self) -> None:
        said, self._said[:] = list(self._said), []
        for callback in said:
            callback()

    def _commit(self, group: list[Any]) -> None:
        self.grouped(group[-1][0])
        super()._commit(group)

    def _commit_reset(self, reset: Any) -> None:
        self.grouped(reset.ticket)
        super()._commit_reset(reset)

    def wait_with(self, patience: _Patience) -> None:
        """The next full disk is waited for in this way."""
        self._stopping = patience  # type: ignore[assignment]

    def entries(self) -> list[Entry]:
        """Every entry it can read, in portions, so that reads begin at many places."""
        found: list[Entry] = []
        at, last = self.first_index, int(self.statistics()["last_index"])
        while at <= last:
            found += self.read(at, last, 700)
            at = found[-1].index + 1
        return found

    def leave(self) -> None:
        """Close the files; nothing is written."""
        self._writer.close()
        self._index.close()


def _raise(error: StorageFailedError) -> None:
    raise error


@dataclass(slots=True)
class Recording:
    """What one seed left."""

    seed: int
    segment_bytes: int
    files: SimulatedFiles
    history: History = field(default_factory=History)
    acts: Counter[str] = field(default_factory=Counter)
    """How often each thing was done or happened."""

    @property
    def journal(self) -> list[Step]:
        """Every call that changed something, in order."""
        return self.files.journal


def live(
    seed: int, alter: Callable[[SystemCalls], SystemCalls] = lambda system: system, *, mishaps: bool = True
) -> Recording:
    """
    Play a seed.

    Args:
        seed: Decides everything.
        alter: Changes the system calls that the log is given: to make one fail, or to break the log.
        mishaps: Lives may end by a kill or a failed sync, disks fill up, and writes take less than they are given.

    Raises:
        AssertionError: The log itself broke a promise between two lives.
    """
    chance = random.Random(f"lives {seed}")
    files = SimulatedFiles(random.Random(f"files {seed}"))
    files.short_writes = mishaps and chance.random() < 0.3
    recording = Recording(seed, chance.choice(SEGMENT_BYTES), files)
    for _ in range(LIVES):
        _Life(recording, chance, alter(files.system), mishaps=mishaps).play()
    return recording


def configuration(chance: random.Random, index: Index, term: Term) -> Entry:
    """A configuration entry of a few members."""
    nodes = sorted(chance.sample(range(1, 8), chance.randint(1, 4)))
    members = Configuration.of(Member(node, f"c{node}:1", f"p{node}:1") for node in nodes)
    return Entry.create(index, term, EntryKind.CONFIGURATION, 1000 + index, members.encode())


class _Life:
    """One process that uses the log as consensus does."""

    def __init__(self, recording: Recording, chance: random.Random, system: SystemCalls, *, mishaps: bool) -> None:
        self._recording = recording
        self._history = recording.history
        self._files = recording.files
        self._chance = chance
        self._mishaps = mishaps
        self._calls_left = chance.randint(10, 160) if mishaps and chance.random() < 0.6 else -1
        self._partly_full = False
        self._log: DrivenLog | None = None
        self._ticket: Ticket = 0
        self._system = self._mortal(system)

    @property
    def _calls(self) -> int:
        return len(self._recording.journal)

    def _mortal(self, system: SystemCalls) -> SystemCalls:
        """System calls of a process that is killed after some of them, and whose disk may fill up inside a write."""

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def act(*arguments: Any) -> Any:
                if self._calls_left == 0:
                    raise KilledError
                self._calls_left -= 1
                return call(*arguments)

            return act

        def write(descriptor: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
            if not self._partly_full:
                return system.write(descriptor, buffers, offset)
            self._partly_full = False
            self._files.full = True
            data = b"".join(buffers)
            if len(data) < 2:
                raise OSError(errno.ENOSPC, "the disk was told to be full")
            self._files.full = False
            written = system.write(descriptor, [data[: self._chance.randrange(1, len(data))]], offset)
            self._files.full = True
            return written

        return replace(
            system,
            create=counted(system.create),
            allocate=counted(system.allocate),
            write=counted(write),
            sync_data=counted(system.sync_data),
            sync_file=counted(system.sync_file),
            sync_directory=counted(system.sync_directory),
            unlink=counted(system.unlink),
            truncate=counted(system.truncate),
            close=lambda descriptor: None if self._calls_left == 0 else system.close(descriptor),
        )

    def play(self) -> None:
        """From the start of the process to its end."""
        acts = self._recording.acts
        try:
            self._boot()
            for _ in range(ACTS):
                self._act()
            assert self._log is not None
            self._log.pump()
            self._log.leave()
            acts["stop"] += 1
        except KilledError:
            acts["kill"] += 1
        except StorageFailedError:
            acts["failed sync"] += 1
        self._files.full = False
        self._files.fail_next = None

    def _boot(self) -> None:
        installed = self._history.now.installed
        log = self._log = DrivenLog.boot(self._system, self._recording.segment_bytes, installed)
        wrong = self._history.reopened(self._calls, log.recovered)
        assert not wrong, f"seed {self._recording.seed}, call {self._calls}: {wrong}"
        log.grouped = self._history.grouped
        log.start(lambda ticket: self._history.reported(self._calls, ticket), lambda _: None)
        log.note_committed(self._history.now.committed)
        log.wait_with(_Patience(self._files, 1))

    def _act(self) -> None:
        (act,) = self._chance.choices(
            (self._append, self._replace, self._commit, self._cut, self._reset, self._fill_disk, self._fail_sync),
            (10, 3, 4, 2, 0.7, 1, 0.15) if self._mishaps else (10, 3, 4, 2, 0.7, 0, 0),
        )
        act()

    # --- acts ---

    def _queue(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        assert self._log is not None
        self._ticket += 1
        self._history.asked(self._calls, self._ticket, self._history.newest.appended(hard_state, entries))
        self._log.append(self._ticket, hard_state, EntryBatch(entries) if entries else None)

    def _made(self, first: Index, count: int, term: Term) -> list[Entry]:
        chance = self._chance
        made = []
        for index in range(first, first + count):
            if chance.random() < 0.12:
                made.append(configuration(chance, index, term))
                self._recording.acts["configuration"] += 1
            else:
                size = chance.choice((0, 1, 30, 100, 300, 300, 700, 2500 if chance.random() < 0.1 else 50))
                made.append(Entry.create(index, term, EntryKind.COMMAND, 1000 + index, chance.randbytes(size)))
        return made

    def _append(self) -> None:
        """One group of a few appends, some with a new term or a vote."""
        assert self._log is not None
        for _ in range(self._chance.choice((1, 1, 1, 2, 4))):
            newest = self._history.newest
            hard_state = None
            if self._chance.random() < 0.25:
                term = newest.hard_state.term + self._chance.randint(1, 2)
                hard_state = HardState(term, self._chance.choice((None, 1, 2, 3)))
                self._recording.acts["hard state"] += 1
            elif newest.hard_state.voted_for is None and self._chance.random() < 0.3:
                hard_state = replace_vote(newest.hard_state, self._chance.randint(1, 3))
            term = max(1, (hard_state or newest.hard_state).term)
            count = self._chance.choice((0, 1, 1, 2, 5)) if hard_state else self._chance.choice((1, 1, 2, 3, 6))
            self._queue(hard_state, self._made(newest.last_index + 1, count, term))
            self._recording.acts["append"] += 1
        self._log.pump()

    def _replace(self) -> None:
        """A new leader's entries in place of some that were not committed."""
        assert self._log is not None
        newest, committed = self._history.newest, self._history.now.committed
        lowest = max(committed, newest.base_index) + 1
        if lowest > newest.last_index:
            return
        first = self._chance.randint(lowest, newest.last_index)
        hard_state = HardState(newest.hard_state.term + 1, None)
        self._queue(hard_state, self._made(first, self._chance.choice((1, 1, 2, 4)), hard_state.term))
        self._recording.acts["conflict"] += 1
        if self._chance.random() < 0.5:
            self._log.pump()

    def _commit(self) -> None:
        assert self._log is not None
        self._log.pump()
        committed = self._chance.randint(self._history.now.committed, self._history.durable.last_index)
        self._history.committed(self._calls, committed)
        self._log.note_committed(committed)

    def _cut(self) -> None:
        """The state machine is durable up to somewhere: drop what nobody needs."""
        assert self._log is not None
        self._log.pump()
        self._commit()
        index = self._chance.randint(0, self._history.now.committed) + 1
        self._history.dropped(self._calls, index)
        segments = self._log.statistics()["segments"]
        self._log.drop_before(index)
        self._recording.acts["segments dropped"] += int(segments - self._log.statistics()["segments"])
        self._log.pump()

    def _reset(self) -> None:
        """A snapshot is installed: the store first, then the log."""
        assert self._log is not None
        self._log.pump()
        newest = self._history.newest
        index = self._history.now.committed + self._chance.randint(1, 40)
        term = max(1, newest.hard_state.term) + self._chance.randint(0, 1)
        entry = configuration(self._chance, self._chance.randint(1, index), term)
        manifest = Manifest(bytes(16), index, term, 5000, entry)
        self._history.installed(self._calls, manifest)
        hard_state = newest.hard_state if newest.hard_state.term >= term else HardState(term, None)
        self._ticket += 1
        state = State(hard_state, index, term, (), ((entry.index, entry.record),))
        self._history.asked(self._calls, self._ticket, state)
        self._log.reset(self._ticket, hard_state, manifest.base, entry)
        self._log.pump()
        self._history.committed(self._calls, index)
        self._log.note_committed(index)
        self._recording.acts["reset"] += 1

    def _fill_disk(self) -> None:
        """No space for a while, at once or in the middle of the write; then it goes on."""
        assert self._log is not None
        self._log.pump()
        self._log.wait_with(_Patience(self._files, self._chance.randint(1, 3)))
        if self._chance.random() < 0.5:
            self._partly_full = True
        else:
            self._files.full = True
        self._append()
        self._partly_full = self._files.full = False
        self._recording.acts["disk full"] += 1

    def _fail_sync(self) -> None:
        """A sync fails, and with it the process."""
        self._files.fail_next = "sync"
        self._append()


def replace_vote(hard_state: HardState, node: int) -> HardState:
    """The vote of a term that had none yet."""
    return HardState(hard_state.term, node)
