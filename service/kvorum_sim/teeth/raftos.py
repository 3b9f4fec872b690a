"""
Stock raftos 0.2.6 as a known-bad target: whoever looks for bugs in Raft must be able to convict it.

The package gets an environment of its own, for it would never share one with the product: its requirements name
releases of msgpack and cryptography that no present Python can build, so it is installed without them and beside
current ones. `raftos_driver` runs there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

RELEASE: Final = "0.2.6"
HISTORIES: Final = 400
INSTALL_WALL_S: Final = 180.0
TRIAL_WALL_S: Final = 600.0

CHARGES: Final = ("double vote", "wrong majority", "committed entry erased")
"""Of these it must be convicted; whatever else is seen is told too."""


@dataclass(slots=True)
class Trial:
    """What became of it."""

    convictions: list[dict[str, Any]] = field(default_factory=list)
    histories: int = 0
    calm: int = 0
    false_alarms: list[str] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)
    """What its own handlers raised, by the way."""
    error: str = ""
    """Why there was no trial."""

    @property
    def problems(self) -> list[str]:
        """Why this trial proves nothing."""
        if self.error:
            return [f"raftos was not tried: {self.error}"]
        names = {conviction["name"] for conviction in self.convictions}
        missing = [f"raftos was not convicted of: {charge}" for charge in CHARGES if charge not in names]
        return missing + [f"raftos without faults: {alarm}" for alarm in self.false_alarms]

    @property
    def lines(self) -> list[str]:
        """For people: one line for each conviction, with what was seen."""
        if self.error:
            return [f"raftos {RELEASE} was not tried: {self.error}"]
        lines = [
            f"raftos {RELEASE}, {conviction['name']}: {conviction['text']}"
            + (f" (seed {conviction['seed']}, {conviction['nodes']} nodes)" if conviction["nodes"] else "")
            for conviction in self.convictions
        ]
        if self.raised:
            lines.append(f"raftos {RELEASE}, its handlers raised: {'; '.join(self.raised)}")
        lines.append(
            f"raftos {RELEASE}: {self.histories} seeded histories with faults; {self.calm} without faults, watched in "
            f"the same way, raised {len(self.false_alarms)} alarms"
        )
        return lines

    @property
    def summary(self) -> str:
        """In a few words."""
        if self.error:
            return f"raftos {RELEASE} not tried"
        named = ", ".join(conviction["name"] for conviction in self.convictions)
        return f"raftos {RELEASE} convicted of {len(self.convictions)}: {named or 'nothing'}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "summary": self.summary,
            "lines": self.lines,
            "convictions": self.convictions,
            "problems": self.problems,
        }


def installed(folder: Path) -> Path:
    """
    The Python of an environment that holds the package; makes one unless it is there.

    Raises:
        subprocess.SubprocessError: It cannot be made; what the tool said stands in the message.
    """
    python = folder / "bin/python"
    ready = folder / f"raftos-{RELEASE}.ready"
    if not ready.is_file():
        _call([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)])
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        install += ["--disable-pip-version-check", "--retries", "2"]
        _call([*install, "--no-deps", f"raftos=={RELEASE}"])
        _call([*install, "msgpack", "cryptography"])
        ready.touch()
    return python


def tried(folder: Path) -> Trial:
    """Install and drive it."""
    driver = Path(__file__).with_name("raftos_driver.py")
    try:
        told = _call([str(installed(folder)), "-P", str(driver), str(HISTORIES)], TRIAL_WALL_S)
    except subprocess.SubprocessError as error:
        return Trial(error=str(error))
    return Trial(**json.loads(told))


def _call(command: list[str], wall_s: float = INSTALL_WALL_S) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(  # noqa: S603 - the commands of this module, without a shell
        command, capture_output=True, text=True, timeout=wall_s, env=environment, check=False
    )
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["it said nothing"]
        msg = f"{Path(command[0]).name} {' '.join(command[1:3])} ended with {done.returncode}: {last[0].strip()}"
        raise subprocess.SubprocessError(msg)
    return done.stdout
