"""The reliability ledger: a report of the harness becomes one line that says what was run."""

from __future__ import annotations

from collections import Counter

from kvorum_sim.crash.campaign import CrashCampaign
from kvorum_sim.crash.campaign import examine as examine_crashes
from kvorum_sim.crash.faults import FaultReport
from kvorum_sim.crash.flips import flip_snapshot
from kvorum_sim.ledger import described, failures, render
from kvorum_sim.scenario import examine, totals


def test_ledger_page_names_commit_counts_and_failing_seeds():
    """Figures of a real history stand in the page, newest run first, failures with their seed."""
    verdicts = [examine(7, ("crash",))]
    report = {
        "tool": "make sim", "commit": "abc1234", "first_seed": 7, "seeds": 1, "repeated": 0, "minutes": 0.1,
        "failures": [{"seed": 7}], **totals(verdicts),
    }  # fmt: skip
    other = {"tool": "make teeth", "commit": "abc1234", "summary": "10 images", "failures": [], "minutes": 1}

    page = render([{"date": "2026-01-01", "report": report}, {"date": "2026-01-02", "report": other}])

    lines = [line for line in page.splitlines() if line.startswith("| 2026")]
    assert lines[0] == "| 2026-01-02 | abc1234 | `make teeth` | 10 images | 0 | 1 |"
    assert f"operations {report['outcomes']['ok']} ok" in lines[1]
    assert "| 1 (7) |" in lines[1]


def test_ledger_line_of_crashes_says_how_many_images_flips_and_kills():
    """The report of `make crash` becomes one line that names what was opened."""
    campaign = CrashCampaign(1, 4, 0)
    campaign.take(examine_crashes(4, 5))
    campaign.take_flips(4, flip_snapshot(4))
    campaign.take_faults(4, FaultReport(Counter({"EIO write": 2})))
    campaign.take_kills(4, {"cycles": 3, "killed_flushing": 1, "problems": ["seed 4: gone"]})
    report = campaign.report()

    line = described(report)

    assert f"{report['images']} distinct crash images" in line
    assert "seeds 4 to 4" in line
    assert f"{report['flips'].total()} bits flipped" in line
    assert "2 system calls failed" in line
    assert "3 kills of a store that applies, 1 while it flushed" in line
    assert failures(report) == "1 (4)"
    assert "1 failures" in report["problems"]
