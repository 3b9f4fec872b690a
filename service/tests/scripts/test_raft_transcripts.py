"""Each file in raft/ is one rule of the protocol, acted out; see transcript.py for the commands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.scripts import transcript

SCRIPTS = sorted((Path(__file__).parent / "raft").glob("*.txt"))
REWRITE = "KVORUM_REWRITE_SCRIPTS"
"""Set to 1, this variable writes what happens into the files; look at the difference before you commit it."""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_transcript_replayed_gives_the_written_trace(path: Path) -> None:
    """The commands of a transcript cause exactly the events and effects that are written below them."""
    written, happened = transcript.run(path)
    if os.environ.get(REWRITE) == "1":
        path.write_text(happened)
        return

    assert written == happened, f"{path.name} tells another story; {REWRITE}=1 rewrites it"
