"""The reliability ledger: a report of the harness becomes one line that says what was run."""

from __future__ import annotations

from kvorum_sim.ledger import render
from kvorum_sim.scenario import examine, totals


def test_ledger_page_names_commit_counts_and_failing_seeds():
    """Figures of a real history stand in the page, newest run first, failures with their seed."""
    verdicts = [examine(7, ("crash",))]
    report = {
        "tool": "make sim", "commit": "abc1234", "first_seed": 7, "seeds": 1, "repeated": 0, "minutes": 0.1,
        "failures": [{"seed": 7}], **totals(verdicts),
    }  # fmt: skip
    other = {"tool": "make crash", "commit": "abc1234", "summary": "10 images", "failures": [], "minutes": 1}

    page = render([{"date": "2026-01-01", "report": report}, {"date": "2026-01-02", "report": other}])

    lines = [line for line in page.splitlines() if line.startswith("| 2026")]
    assert lines[0] == "| 2026-01-02 | abc1234 | `make crash` | 10 images | 0 | 1 |"
    assert f"operations {report['outcomes']['ok']} ok" in lines[1]
    assert "| 1 (7) |" in lines[1]
