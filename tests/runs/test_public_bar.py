"""The script that says whether the published bar is reached: its rows, its verdict, and what it refuses."""

import json
import sys

import pytest

from dwellmoe.errors import UserError
from runs import public_bar
from runs.public_bar import Interval, Row, of_all_seeds, row_of, verdict


def row(misses, perplexity, spread=0.004, name="1"):
    return Row(
        name, 1200, *(Interval(value, value - spread, value + spread) for value in (misses, perplexity))
    )


def write_report(folder, **changes):
    compared = {
        "lru_misses_25_ratio": 0.66,
        "lru_misses_25_ratio_ci95": [0.65, 0.67],
        "perplexity_ratio": 1.007,
        "perplexity_ratio_ci95": [1.005, 1.009],
    } | changes
    folder.mkdir()
    path = folder / "report.json"
    path.write_text(json.dumps({"data": {"requests": 1200}, "comparison": {"tuned_vs_control": compared}}))
    return path


@pytest.mark.parametrize(
    ("misses", "perplexity", "reached", "by_intervals"),
    [
        (0.66, 1.005, True, True),
        (0.66, 1.008, True, False),
        (0.698, 1.005, True, False),
        (0.70, 1.01, True, False),
        (0.701, 1.0, False, False),
        (0.5, 1.0101, False, False),
    ],
)
def test_a_seed_reaches_the_bar_by_both_values(misses, perplexity, reached, by_intervals):
    found = row(misses, perplexity)
    assert (found.reached, found.reached_by_intervals) == (reached, by_intervals)
    assert str(found).endswith("| reached |" if reached else "| not reached |")


def test_every_seed_has_to_reach_it():
    good, narrow, bad = row(0.66, 1.005), row(0.66, 1.009), row(0.5, 1.02)
    assert "perplexity: reached (2 of 2 seeds, 1 with" in verdict([good, narrow])
    assert "perplexity: not reached (1 of 2 seeds, 1 with" in verdict([good, bad])
    assert of_all_seeds([good, bad]).misses == pytest.approx((0.58, 0.496, 0.664))


def test_reports_become_rows_and_a_verdict(tmp_path, monkeypatch, capsys):
    reports = [write_report(tmp_path / f"seed-{seed}") for seed in (42, 7)]
    monkeypatch.setattr(sys, "argv", ["public_bar.py", *map(str, reports)])
    public_bar.main()
    *_, first, second, mean, said = capsys.readouterr().out.splitlines()
    assert first == "| 42 | 1,200 | 0.660x (0.650-0.670) | 1.007x (1.005-1.009) | reached |"
    assert second.startswith("| 7 |") and mean.startswith("| mean |")
    assert said.endswith("reached (2 of 2 seeds, 2 with both whole intervals)")


def test_what_it_cannot_judge_is_named(tmp_path, monkeypatch):
    without_control = write_report(tmp_path / "seed-1")
    without_control.write_text(json.dumps({"data": {"requests": 3}, "comparison": {"tuned_vs_base": {}}}))
    with pytest.raises(UserError, match=r"seed-1/report\.json.*--control_path"):
        row_of(without_control)
    with pytest.raises(UserError, match="perplexity_ratio"):
        row_of(write_report(tmp_path / "seed-2", perplexity_ratio_ci95=None))
    monkeypatch.setattr(sys, "argv", ["public_bar.py"])
    with pytest.raises(UserError, match=r"report\.json"):
        public_bar.main()
