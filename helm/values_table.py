"""
Write the table of values in helm/kvorum/README.md from the comments in values.yaml.

A comment that begins with ``# --`` describes the key below it; keys above it give the path. Everything else in the
README is written by hand. With ``--check`` nothing is written, and the exit code says whether anything would be.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHART = Path(__file__).parent / "kvorum"
BEGIN, END = "<!-- values: begin (make chart-docs) -->\n", "<!-- values: end -->\n"
KEY = re.compile(r"^( *)([A-Za-z]+):(?: (.*))?$")


def rows(values: str) -> list[tuple[str, str, str]]:
    """
    Path, default and description of every described key.

    Raises:
        ValueError: A key holds a value but has no description, itself or above it.
    """
    found: list[tuple[str, str, str]] = []
    path: list[str] = []
    described: list[int] = []  # indents of described keys that the present line is below of
    description = None
    for number, line in enumerate(values.splitlines(), 1):
        text = line.strip()
        if text.startswith("# -- "):
            description = text.removeprefix("# -- ")
            continue
        match = KEY.match(line)
        if match is None:
            continue
        indent, key, value = len(match[1]), match[2], match[3] or ""
        described = [other for other in described if other < indent]
        path = [*path[: indent // 2], key]
        if description is not None:
            found.append((".".join(path), value, description))
            described.append(indent)
        elif value and not described:
            text = f"values.yaml:{number}: {'.'.join(path)} has no '# --' above it"
            raise ValueError(text)
        description = None
    return found


def table(values: str) -> str:
    """The same as a Markdown table."""
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for path, default, description in rows(values):
        shown = f"`{default}`" if default else "see values.yaml"
        lines.append(f"| `{path}` | {shown} | {description.replace('|', '&#124;')} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Write the table, or look whether it is up to date."""
    readme = CHART / "README.md"
    text = readme.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    new = head + BEGIN + table((CHART / "values.yaml").read_text()) + END + tail
    if arguments == ["--check"]:
        return int(new != text)
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
