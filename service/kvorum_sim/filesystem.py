"""
A disk in memory that forgets what was not synced: the system calls of the log, and what a crash leaves of them.

Every change goes into a journal until a sync covers it. A killed process leaves all it did up to some call; a power cut
leaves what was synced and any part of the rest, torn at any byte, blocks in any order. A failed sync takes the pages
with it: they are still read, but no later sync makes them durable.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kvorum.storage.wal.system import SystemCalls

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence
    from pathlib import Path

BLOCK_BYTES: Final = 512
"""What a disk writes as a whole."""


class Act:
    """Kinds of journal entries."""

    CREATE: Final = 0
    UNLINK: Final = 1
    WRITE: Final = 2
    RESIZE: Final = 3
    SYNC: Final = 4
    SYNC_DIRECTORY: Final = 5


@dataclass(slots=True, eq=False)
class File:
    """One inode: what is read, and what is on the platter."""

    live: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)


@dataclass(slots=True, eq=False)
class Step:
    """One call that changed something."""

    act: int
    path: Path
    file: File
    offset: int = 0
    data: bytes = b""
    lost: bool = False
    """A failed sync dropped it: in the page cache, never on the platter."""


class SimulatedFiles:
    """
    The files of one node; survives its processes.

    Args:
        chance: Decides what a crash leaves.
    """

    def __init__(self, chance: random.Random) -> None:
        self.full = False
        """No block is to be had: calls that need one fail with ENOSPC."""
        self.fail_next: str | None = None
        """``write`` or ``sync``: the next such call fails with EIO."""
        self.short_writes = False
        """Writes may take less than was given to them."""
        self.torn = 0
        """Writes of which a power cut left a part."""
        self.failures = 0
        """Calls that failed on purpose."""
        self._chance = chance
        self._live: dict[Path, File] = {}
        self._durable: dict[Path, File] = {}
        self._journal: list[Step] = []
        self._settled = 0
        self._open: dict[int, tuple[Path, File]] = {}
        self._descriptors = 0
        self.system = SystemCalls(
            allocate=self._allocate,
            write=self._write,
            sync_data=self._sync,
            sync_file=self._sync,
            sync_directory=self._sync_directory,
            create=self._create,
            open_to_read=self._open_to_read,
            read=self._read,
            close=self._close,
            read_file=self._read_file,
            list_directory=self._list_directory,
            unlink=self._unlink,
            file_size=self._file_size,
            truncate=self._truncate,
            draw_salt=self._draw_salt,
        )

    @classmethod
    def holding(cls, chance: random.Random, contents: Mapping[Path, bytes]) -> SimulatedFiles:
        """A disk that holds these files and was just switched on."""
        files = cls(chance)
        for path, content in contents.items():
            files._live[path] = files._durable[path] = File(bytearray(content), bytearray(content))
        return files

    @property
    def journal(self) -> list[Step]:
        """What was done since the beginning, or since the last `settle`: not to be changed."""
        return self._journal

    @property
    def names(self) -> dict[Path, File]:
        """Every file whose name is on the platter."""
        return dict(self._durable)

    def contents(self) -> dict[Path, bytes]:
        """Every file as a process reads it now."""
        return {path: bytes(file.live) for path, file in self._live.items()}

    # --- time and crashes ---

    def settle(self) -> None:
        """Every sync asked for so far has ended: what they cover is on the platter."""
        self._journal = self._carry_out(self._journal)
        self._settled = len(self._journal)

    def kill(self) -> None:
        """The process dies somewhere in what it did since `settle`; the page cache stays."""
        del self._journal[self._chance.randint(self._settled, len(self._journal)) :]
        self._forget()
        for step in self._journal:
            self._show(step)

    def cut_power(self) -> None:
        """The machine dies somewhere in what was done since `settle`; of what no sync covers, anything may be left."""
        del self._journal[self._chance.randint(self._settled, len(self._journal)) :]
        leftover = self._carry_out(self._journal)
        names = [step for step in leftover if step.act in {Act.CREATE, Act.UNLINK}]
        for step in names[: self._chance.randint(0, len(names))]:
            self._name(self._durable, step)
        for step in leftover:
            if step.act in {Act.WRITE, Act.RESIZE} and not step.lost:
                self._tear(step)
        self._journal.clear()
        self._settled = 0
        self._forget()

    def flip(self, path: Path, offset: int, bit: int) -> None:
        """Turn one bit over, in the page cache and on the platter."""
        file = self._live[path]
        file.live[offset] ^= 1 << bit
        if offset < len(file.durable):
            file.durable[offset] ^= 1 << bit

    def wipe(self) -> None:
        """An empty disk, as after its replacement."""
        self._live.clear()
        self._durable.clear()
        self._journal.clear()
        self._open.clear()
        self._settled = 0
        self.full = False
        self.fail_next = None

    def _forget(self) -> None:
        """Nothing is open; what is read is what the platter holds."""
        self._open.clear()
        self._live = dict(self._durable)
        for file in self._live.values():
            file.live = bytearray(file.durable)

    def _carry_out(self, steps: list[Step]) -> list[Step]:
        """Move to the platter what syncs among these steps cover; returns the others, in their order."""
        covered: set[int] = set()
        waiting: dict[int, list[int]] = {}
        names: list[int] = []
        for position, step in enumerate(steps):
            if step.act == Act.SYNC:
                covered.add(position)
                for earlier in waiting.pop(id(step.file), ()):
                    self._put(steps[earlier])
                    covered.add(earlier)
            elif step.act == Act.SYNC_DIRECTORY:
                covered.add(position)
                for earlier in names:
                    self._name(self._durable, steps[earlier])
                    covered.add(earlier)
                names.clear()
            elif step.act in {Act.CREATE, Act.UNLINK}:
                names.append(position)
            elif not step.lost:
                waiting.setdefault(id(step.file), []).append(position)
        return [step for position, step in enumerate(steps) if position not in covered]

    @staticmethod
    def _name(directory: dict[Path, File], step: Step) -> None:
        if step.act == Act.CREATE:
            directory[step.path] = step.file
        else:
            directory.pop(step.path, None)

    @staticmethod
    def _put(step: Step) -> None:
        change(step.file.durable, step)

    def _show(self, step: Step) -> None:
        if step.act in {Act.CREATE, Act.UNLINK}:
            self._name(self._live, step)
            if step.act == Act.CREATE:
                step.file.live = bytearray(step.file.durable)
        elif step.act in {Act.WRITE, Act.RESIZE}:
            change(step.file.live, step)

    def _tear(self, step: Step) -> None:
        """Of one write that no sync covers: all, nothing, a beginning, or some blocks with perhaps a flipped bit."""
        chance = self._chance
        fate = chance.randrange(4)
        if fate == 0:
            return
        if fate == 1 or step.act == Act.RESIZE or not step.data:
            self._put(step)
            return
        self.torn += 1
        if fate == 2:
            kept = Step(step.act, step.path, step.file, step.offset, step.data[: chance.randrange(len(step.data))])
            change(step.file.durable, kept)
            return
        at = 0
        while at < len(step.data):
            end = at + BLOCK_BYTES - (step.offset + at) % BLOCK_BYTES
            if chance.random() < 0.5:
                block = bytearray(step.data[at:end])
                if chance.random() < 0.1:
                    block[chance.randrange(len(block))] ^= 1 << chance.randrange(8)
                change(step.file.durable, Step(step.act, step.path, step.file, step.offset + at, bytes(block)))
            at = end

    # --- system calls ---

    def _fails(self, call: str) -> None:
        if self.fail_next == call:
            self.fail_next = None
            self.failures += 1
            raise OSError(errno.EIO, "the disk was told to fail")

    def _needs_space(self) -> None:
        if self.full:
            self.failures += 1
            raise OSError(errno.ENOSPC, "the disk was told to be full")

    def _do(self, step: Step) -> None:
        self._journal.append(step)
        if step.act in {Act.WRITE, Act.RESIZE}:
            change(step.file.live, step)

    def _create(self, path: Path) -> int:
        if path in self._live:
            raise FileExistsError(errno.EEXIST, "file exists", str(path))
        self._needs_space()
        file = self._live[path] = File()
        self._do(Step(Act.CREATE, path, file))
        return self._descriptor(path, file)

    def _descriptor(self, path: Path, file: File) -> int:
        self._descriptors += 1
        self._open[self._descriptors] = (path, file)
        return self._descriptors

    def _open_to_read(self, path: Path) -> int:
        return self._descriptor(path, self._at(path))

    def _at(self, path: Path) -> File:
        file = self._live.get(path)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return file

    def _close(self, descriptor: int) -> None:
        # Nothing is left open by a crash; what closes late has nothing to close.
        self._open.pop(descriptor, None)

    def _read(self, descriptor: int, size: int, offset: int) -> bytes:
        return bytes(self._open[descriptor][1].live[offset : offset + size])

    def _read_file(self, path: Path) -> bytes:
        return bytes(self._at(path).live)

    def _list_directory(self, path: Path) -> list[Path]:
        return [found for found in self._live if found.parent == path]

    def _unlink(self, path: Path) -> None:
        file = self._at(path)
        del self._live[path]
        self._do(Step(Act.UNLINK, path, file))

    def _file_size(self, path: Path) -> int:
        return len(self._at(path).live)

    def _truncate(self, path: Path, size: int) -> None:
        self._do(Step(Act.RESIZE, path, self._at(path), size))
        # A truncation that is not durable is harmless, and so is one that is: recovery asks for it again.

    def _allocate(self, descriptor: int, offset: int, size: int) -> None:
        self._needs_space()
        path, file = self._open[descriptor]
        self._do(Step(Act.RESIZE, path, file, max(offset + size, len(file.live))))

    def _write(self, descriptor: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        self._fails("write")
        self._needs_space()
        path, file = self._open[descriptor]
        data = b"".join(buffers)
        if self.short_writes and len(data) > 1 and self._chance.random() < 0.1:
            data = data[: self._chance.randrange(1, len(data))]
        self._do(Step(Act.WRITE, path, file, offset, data))
        return len(data)

    def _sync(self, descriptor: int) -> None:
        path, file = self._open[descriptor]
        if self.fail_next == "sync":
            for step in reversed(self._journal):
                if step.file is file:
                    if step.act == Act.SYNC:
                        break  # what an earlier sync covers is safe
                    step.lost = True
        self._fails("sync")
        self._do(Step(Act.SYNC, path, file))

    def _sync_directory(self, path: Path) -> None:
        self._fails("sync")
        self._do(Step(Act.SYNC_DIRECTORY, path, File()))

    def _draw_salt(self) -> int:
        return self._chance.randrange(1, 2**32)


def change(content: bytearray, step: Step) -> None:
    """Carry out one WRITE or RESIZE on the bytes of a file."""
    if step.act == Act.WRITE:
        end = step.offset + len(step.data)
        if len(content) < end:
            content.extend(bytes(end - len(content)))
        content[step.offset : end] = step.data
    elif len(content) < step.offset:
        content.extend(bytes(step.offset - len(content)))
    else:
        del content[step.offset :]
