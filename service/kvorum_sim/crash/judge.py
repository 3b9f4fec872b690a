"""
Opens what a crash left with the log's own recovery, and says what is wrong with what comes back.

An image must open, say one of the states that its history allows, read back every entry byte by byte, say the same
when opened again, and take new entries that survive the next power cut. Some images are cut again at every call of
their own recovery.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from kvorum.core.entries import Entry, EntryBatch, EntryKind, HardState
from kvorum.core.errors import StorageFailedError
from kvorum_sim.crash.images import Image, durable_part, images_of
from kvorum_sim.crash.lives import DrivenLog
from kvorum_sim.filesystem import SimulatedFiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from kvorum_sim.crash.history import Expectation, State
    from kvorum_sim.filesystem import File, Step

AGAIN_MAX: Final = 12
"""Images of one recovery that are opened, out of all."""
LAWFUL_REFUSAL: Final = "and a later segment was begun"
"""What docs/formats/log.md section 4 lets recovery refuse if a torn head claims what nobody wrote: garbage did."""


@dataclass(slots=True)
class Outcome:
    """What came of one image."""

    problem: str = ""
    refused: bool = False
    """It was refused, and that was right."""
    again: int = 0
    """Images of its recovery that were opened too."""
    untold: bool = False
    """More came back than anybody had been told was durable."""


class _WrongError(Exception):
    """What is wrong, in words."""


def judge(image: Image, expectation: Expectation, segment_bytes: int, *, again: bool = False) -> Outcome:
    """
    Open an image.

    Args:
        image: The directory.
        expectation: What its history allows.
        segment_bytes: As the log that wrote it was told.
        again: Cut the power during its recovery too.
    """
    outcome = Outcome()
    try:
        _Judge(image, expectation, segment_bytes, outcome).run(again=again)
    except _WrongError as wrong:
        outcome.problem = str(wrong)
    except Exception as error:  # noqa: BLE001 - whatever a log raises that must open and go on is the finding
        outcome.problem = f"{type(error).__name__}: {error}"
    return outcome


class _Judge:
    """One image under judgement."""

    def __init__(self, image: Image, expectation: Expectation, segment_bytes: int, outcome: Outcome) -> None:
        self._image = image
        self._expectation = expectation
        self._segment_bytes = segment_bytes
        self._outcome = outcome
        self._chance = random.Random(image.digest)

    def run(self, *, again: bool) -> None:
        files = self._disk(self._image.contents)
        held = files.names
        try:
            log = self._boot(files)
        except StorageFailedError as error:
            self._outcome.refused = self._may_refuse(error, self._image)
            if self._outcome.refused:
                return
            raise
        state = self._must_say(log, self._expectation)
        settled = replace(self._expectation, states=[state])
        self._outcome.untold = state != self._expectation.states[0].following(self._expectation.installed)
        recovery = list(files.journal)
        for disk in (files.contents(), durable_part(recovery, held)):
            self._must_say(self._boot(self._disk(disk)), settled, repaired=True)
        grown = self._append(log, state)
        after = self._boot(self._disk(durable_part(files.journal, held)))
        self._must_say(after, replace(settled, states=[grown]), repaired=True)
        if again:
            self._cut_during(recovery, held, settled)

    @staticmethod
    def _may_refuse(error: StorageFailedError, image: Image) -> bool:
        return image.garbled and LAWFUL_REFUSAL in str(error)

    def _disk(self, contents: Mapping[Path, bytes]) -> SimulatedFiles:
        # Each process draws salts of its own, as real ones do.
        return SimulatedFiles.holding(random.Random(self._chance.random()), contents)

    def _boot(self, files: SimulatedFiles) -> DrivenLog:
        return DrivenLog.boot(files.system, self._segment_bytes, self._expectation.installed)

    def _must_say(self, log: DrivenLog, expectation: Expectation, *, repaired: bool = False) -> State:
        """What a log says and what it reads back is what one of the states says."""
        state, wrong = expectation.match(log.recovered)
        if state is None:
            raise _WrongError(f"when opened again, {wrong}" if repaired else wrong)
        if repaired and (log.recovered.torn_bytes or log.recovered.notes):
            msg = f"when opened again, there is still something to repair: {log.recovered.notes}"
            raise _WrongError(msg)
        base = log.recovered.base_index
        if log.first_index > base + 1:
            msg = f"the log can be read from {log.first_index} on only, and its base is {base}"
            raise _WrongError(msg)
        # An entry at the base may still be there; it is what its state says, if that reaches so far down.
        wanted = {entry.index: entry for entry in state.entries}
        read = {entry.index: entry for entry in log.entries()}
        for index in range(base + 1, state.last_index + 1):
            if read.get(index) != wanted[index]:
                msg = f"entry {index} does not read back as it was appended"
                raise _WrongError(msg)
        if any(index in wanted and wanted[index] != entry for index, entry in read.items()):
            msg = f"an entry at or below the base, {base}, does not read back as it was appended"
            raise _WrongError(msg)
        return state

    def _append(self, log: DrivenLog, state: State) -> State:
        """New entries, perhaps in place of old ones, are reported durable; the state with them."""
        durable: list[int] = []
        log.start(durable.append, lambda _: None)
        log.note_committed(self._expectation.committed)
        lowest = max(state.base_index, log.recovered.base_index, self._expectation.committed) + 1
        first = self._chance.randint(min(lowest, state.last_index + 1), state.last_index + 1)
        hard_state = HardState(state.hard_state.term + 1, 1)
        made = [
            Entry.create(index, hard_state.term, EntryKind.COMMAND, 9000 + index, self._chance.randbytes(90))
            for index in range(first, first + 3)
        ]
        for ticket, (vote, part) in enumerate(((hard_state, made[:1]), (None, made[1:])), 1):
            log.append(ticket, vote, EntryBatch(part))
            log.pump()
        log.leave()
        if durable != [1, 2]:
            msg = f"tickets {durable} were reported after recovery, not 1 and 2"
            raise _WrongError(msg)
        return state.appended(hard_state, made)

    def _cut_during(self, recovery: Sequence[Step], held: Mapping[Path, File], settled: Expectation) -> None:
        """The power goes while the image is repaired: the same states may follow, and the found one once it is."""
        images = list(images_of(recovery, self._chance, held))
        for image in self._chance.sample(images, min(AGAIN_MAX, len(images))):
            try:
                log = self._boot(self._disk(image.contents))
            except StorageFailedError as error:
                if self._may_refuse(error, image) or self._may_refuse(error, self._image):
                    continue
                msg = f"power cut again during recovery ({image.calls} calls, {image.kind}): {error}"
                raise _WrongError(msg) from error
            self._outcome.again += 1
            done = image.calls == len(recovery)
            try:
                self._must_say(log, settled if done else self._expectation)
            except _WrongError as wrong:
                msg = f"power cut again during recovery ({image.calls} calls, {image.kind}): {wrong}"
                raise _WrongError(msg) from wrong
