"""The report of ``make teeth`` as a page of the documentation."""

from __future__ import annotations

from typing import Any, Final

HEAD: Final = """# Teeth

Written by `make teeth`. Each row is a bug that was put into the running product, and what noticed it first. The
numbers are those of the catalogue of classical Raft bugs; past ones are bugs that kvorum really had (see the
[track record](track-record.md)), put back. Transcripts are the golden traces of the protocol, in
`service/tests/scripts/raft`; cores are Raft cores alone under seeded faults; stories are whole clusters in virtual time
(`make sim`); tests are ordinary ones, below `service/tests`.

"""


def render(report: dict[str, Any]) -> str:
    """The page."""
    control, bugs, tried = report["control"], report["bugs"], report["raftos"]
    lines = [
        f"{report['summary']}.",
        "",
        (
            f"On commit {report['commit']}, in {report['minutes']} minutes, {report['processor_minutes']} of a "
            f"processor. Control: the {control['checked']} pieces of work that noticed something were done again "
            f"without any bug and raised {len(control['alarms'])} alarms."
        ),
        "",
        "## Survivors",
        "",
    ]
    survivors = [bug for bug in bugs if not bug["catches"]]
    lines += [
        f"- {bug['name']} (number {bug['number'] or 'past'}): {bug['reason'] or 'no known reason'}" for bug in survivors
    ]
    if not survivors:
        lines.append("None.")
    lines += ["", "## Stock raftos", ""]
    lines += [f"- {line}" for line in (tried["lines"] if tried else ["not tried in this run"])]
    lines += [
        "",
        "## Bugs",
        "",
        "| # | bug | what is wrong | noticed by | seed or file | what was said |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_row(bug) for bug in bugs]
    return HEAD + "\n".join(lines) + "\n"


def _row(bug: dict[str, Any]) -> str:
    cells = [str(bug["number"] or "past"), bug["name"], bug["text"]]
    if not bug["catches"]:
        tried = ", ".join(f"{count} {layer}" for layer, count in bug["tried"].items())
        cells += ["SURVIVED", "", bug["error"] or f"after {tried}"]
    else:
        first = bug["catches"][0]
        also = "; ".join(f"also {catch['work']['layer']}: {_place(catch['work'])}" for catch in bug["catches"][1:])
        cells += [first["work"]["layer"], _place(first["work"]), first["text"] + (f" ({also})" if also else "")]
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(text: str) -> str:
    """A text that cannot be taken for markup."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _place(work: dict[str, Any]) -> str:
    if work["layer"] in {"transcripts", "tests"}:
        return str(work["what"])
    kinds = f" ({' + '.join(work['kinds'])})" if work["kinds"] else ""
    what = f", {work['what']}" if work["what"] else ""
    return f"seed {work['seed']}{what}{kinds}"
