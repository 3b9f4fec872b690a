"""
What a power cut can leave of a recorded disk: for every call in its journal, images of the directory.

What a sync covers is there. Of everything else there may be nothing, all, any subset of the calls, and of the write
that was under way a beginning, an end, some sectors, zeros or garbage. Names follow the order in which they were made
and removed, as in the journal of a file system, and get lost if their directory was not synced. This is written apart
from `SimulatedFiles.cut_power`, so that one checks the other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from kvorum_sim.filesystem import BLOCK_BYTES, Act, File, Step, change

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

FRAME_CUTS: Final = (1, 3, 4, 8, 16, 19, 20, 21, 24)
"""Bytes into a write at which a header or a frame is torn inside a field, or just behind it."""
SUBSETS: Final = 4
"""Random subsets of the calls, and of the sectors of a write, for each place."""


@dataclass(frozen=True, slots=True)
class Image:
    """One directory after a crash."""

    calls: int
    """The crash came behind so many calls of the journal."""
    kind: str
    """What became of that which no sync covers."""
    contents: Mapping[Path, bytes]
    garbled: bool = False
    """It holds bytes that nobody ever wrote there."""

    @property
    def digest(self) -> int:
        """Equal for equal contents."""
        found = hashlib.blake2b(digest_size=8)
        for path, content in sorted(self.contents.items()):
            found.update(b"%s %d\n" % (path.name.encode(), len(content)))
            found.update(content)
        return int.from_bytes(found.digest(), "big")


class Platter:
    """What is certainly on the disk behind a number of calls, and what may be."""

    def __init__(self, held: Mapping[Path, File]) -> None:
        self._names = dict(held)
        self._bytes = {file: bytes(file.durable) for file in held.values()}
        self.named: list[Step] = []
        """Names made and removed that no sync covers, in order."""
        self.written: list[Step] = []
        """Writes and changes of size that no sync covers, in order."""
        self.calls = 0

    def take(self, step: Step) -> None:
        """One more call."""
        self.calls += 1
        if step.act in {Act.CREATE, Act.UNLINK}:
            self.named.append(step)
        elif step.act in {Act.WRITE, Act.RESIZE}:
            self.written.append(step)
        elif step.act == Act.SYNC:
            # What a failed sync dropped stays uncertain for ever.
            covered = [found for found in self.written if found.file is step.file and not found.lost]
            self._bytes[step.file] = _with(self._bytes.get(step.file, b""), covered)
            self.written = [found for found in self.written if found not in covered]
        else:
            self._names = self._with_names(self.named)
            self.named = []

    def _with_names(self, named: Sequence[Step]) -> dict[Path, File]:
        names = dict(self._names)
        for step in named:
            if step.act == Act.CREATE:
                names[step.path] = step.file
            else:
                names.pop(step.path, None)
        return names

    def contents(self, named: Sequence[Step], written: Sequence[Step]) -> dict[Path, bytes]:
        """Every file, if these calls of those not covered were carried out."""
        by_file: dict[File, list[Step]] = {}
        for step in written:
            by_file.setdefault(step.file, []).append(step)
        return {
            path: _with(self._bytes.get(file, b""), by_file.get(file, ()))
            for path, file in self._with_names(named).items()
        }


def _with(content: bytes, steps: Sequence[Step]) -> bytes:
    if not steps:
        return content
    changed = bytearray(content)
    for step in steps:
        change(changed, step)
    return bytes(changed)


def _in_place_of(step: Step, at: int, data: bytes) -> Step:
    return Step(step.act, step.path, step.file, step.offset + at, data)


def torn(step: Step, chance: random.Random) -> Iterator[tuple[str, list[Step], bool]]:
    """Ways in which one write can be on the disk in part: what it is called, what was carried out, whether garbled."""
    data = step.data
    content = len(data.rstrip(b"\0"))
    if step.act != Act.WRITE or not content:
        return
    sectors = range(BLOCK_BYTES - step.offset % BLOCK_BYTES, content, BLOCK_BYTES)
    cuts = {*sectors, *FRAME_CUTS, content // 2, content - 1, content, *(chance.randrange(content) for _ in range(3))}
    for cut in sorted(cut for cut in cuts if 0 < cut <= content):
        garbage = chance.randbytes(content - cut)
        yield f"cut at {cut}", [_in_place_of(step, 0, data[:cut])], False
        yield f"cut at {cut}, then zeros", [_in_place_of(step, 0, data[:cut] + bytes(len(data) - cut))], False
        if cut < content:
            yield f"cut at {cut}, then garbage", [_in_place_of(step, 0, data[:cut] + garbage)], True
            yield f"only from {cut} on", [_in_place_of(step, cut, data[cut:])], False
    yield "garbage", [_in_place_of(step, 0, chance.randbytes(content))], True
    bounds = [0, *sectors, len(data)]
    if len(bounds) > 3:
        for _ in range(SUBSETS):
            kept = [
                _in_place_of(step, begin, data[begin:end]) for begin, end in pairwise(bounds) if chance.random() < 0.5
            ]
            yield f"{len(kept)} of {len(bounds) - 1} sectors", kept, False
    for _ in range(SUBSETS):
        flipped = bytearray(data)
        at = chance.randrange(content)
        flipped[at] ^= 1 << chance.randrange(8)
        yield f"bit flipped at {at}", [_in_place_of(step, 0, bytes(flipped))], True


def images_at(platter: Platter, chance: random.Random) -> Iterator[Image]:
    """Every kind of image for a crash at one place, some of them alike."""
    named, written, calls = platter.named, platter.written, platter.calls
    contents = platter.contents
    for count in range(len(named) + 1):
        yield Image(calls, f"{count} of {len(named)} names, nothing written", contents(named[:count], ()))
        yield Image(calls, f"{count} of {len(named)} names, all written", contents(named[:count], written))
    if len(written) > 1:
        for position in range(len(written)):
            others = [*written[:position], *written[position + 1 :]]
            yield Image(calls, f"all but call {position}", contents(named, others))
            yield Image(calls, f"only call {position}", contents(named, [written[position]]))
        for _ in range(SUBSETS):
            kept = [step for step in written if chance.random() < 0.5]
            shown = named[: chance.randint(0, len(named))]
            yield Image(calls, f"{len(kept)} of {len(written)} calls", contents(shown, kept))
    # The last write in every way; of the others, each was the last one once.
    for position, step in enumerate(written):
        ways = list(torn(step, chance))
        if position < len(written) - 1:
            ways = chance.sample(ways, min(2, len(ways)))
        for kind, parts, garbled in ways:
            carried_out = [*written[:position], *parts, *written[position + 1 :]]
            yield Image(calls, f"call {position} {kind}", contents(named, carried_out), garbled)


def images_of(
    journal: Sequence[Step], chance: random.Random, held: Mapping[Path, File] | None = None
) -> Iterator[Image]:
    """
    Images for a crash behind every prefix of a journal.

    Args:
        journal: The calls.
        chance: Draws the subsets, the garbage and the odd places.
        held: What the disk held before the first call; nothing if not given.
    """
    platter = Platter(held or {})
    yield from images_at(platter, chance)
    for step in journal:
        platter.take(step)
        yield from images_at(platter, chance)


def durable_part(journal: Sequence[Step], held: Mapping[Path, File]) -> dict[Path, bytes]:
    """What the disk holds for certain behind a journal: the worst of all images."""
    platter = Platter(held)
    for step in journal:
        platter.take(step)
    return platter.contents((), ())
