"""The script that prices re-routing in free-running text: what it chooses, and a whole tiny run."""

import json
import sys

import pytest

from dwellmoe.errors import UserError
from dwellmoe.evaluation import measure
from runs import free_running
from runs.free_running import Choice, Point, at_level, best_of_each_strategy
from tests.evaluation.workspace import make_workspace


def test_of_each_strategy_the_setting_with_the_fewest_misses_is_taken():
    choices = [
        Choice(1.01, "regret:swaps=1,budget=0.1", 0.6),
        Choice(1.01, "regret:swaps=2,budget=0.1", 0.5),
        Choice(1.01, "margin:loss=0.1", 0.55),
        Choice(1.005, "margin:loss=0.05", 0.7),
    ]
    assert best_of_each_strategy(choices) == [choices[3], choices[2], choices[1]]


def test_a_setting_lies_on_the_line_between_two_that_were_measured():
    points = [Point(0.0, 1.0, 1.0), Point(0.1, 1.01, 0.6), Point(0.2, 1.008, 0.5), Point(0.3, 1.03, 0.2)]
    choice = at_level(1.02, "margin:loss={}", points)
    assert choice.spec == "margin:loss=0.25" and choice.misses_ratio == pytest.approx(0.35)
    assert at_level(1.005, "margin:loss={}", points).spec == "margin:loss=0.05"
    assert at_level(1.05, "margin:loss={}", points).spec == "margin:loss=0.3", "none costs as much"


def arguments(folder, monkeypatch, *more):
    given = {
        "json": folder / "found.json",
        "model_name": folder / "model",
        "use_lora": False,
        "dataset_name": folder / "task" / "task.toml",
        "max_words_len": 64,
        "expert_budget": "50%",
        "generate_limit": 2,
        "bootstrap_samples": 20,
    }
    words = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["free_running.py", *words, *more])


def forbidden(*_, **__):
    raise AssertionError("this was measured already")


@pytest.mark.slow
def test_settings_are_chosen_on_one_split_and_judged_on_another(tmp_path, monkeypatch, capsys):
    """In a run that was stopped before its end and goes on."""
    folder = make_workspace(tmp_path)
    monkeypatch.setattr(
        free_running, "CURVES", {"margin:loss={}": (0.3, 0.9), "regret:swaps=2,budget={}": (0.9,)}
    )
    given = ("--free_running", "5", "--levels", "1.00001", "1.5", "--validation_requests", "1")
    arguments(folder, monkeypatch, *given)
    with monkeypatch.context() as stopped, pytest.raises(AssertionError):
        stopped.setattr(free_running, "write_json", forbidden)
        free_running.main()
    printed_before = capsys.readouterr().out
    arguments(folder, monkeypatch, *given, "--resume", "True")
    with monkeypatch.context() as resumed:
        resumed.setattr(measure, "_score", forbidden)
        resumed.setattr(measure, "_write", forbidden)
        free_running.main()
    assert not (folder / "found-unfinished").exists()
    found = json.loads((folder / "found.json").read_text())
    assert found["settings"]["validation_requests"] == 1 and found["settings"]["split"] == "test"
    untouched, *rows = found["rows"]
    assert (untouched["strategy"], untouched["level"]) == ("none", 0)
    assert (
        untouched["free_running"]["feedback_factor"] is None and untouched["reference"]["misses_ratio"] == 1
    )
    assert [row["level"] for row in rows] == [1.00001, 1.00001, 1.5, 1.5]
    assert [row["strategy"].partition(":")[0] for row in rows] == ["margin", "regret"] * 2
    assert all(row["free_running"]["requests"] == 2 for row in rows)
    printed = capsys.readouterr().out
    assert printed_before.endswith(printed)
    assert printed.count("\n| ") == 6 and "margin:loss=0.3: Point(limit=0.3" in printed


@pytest.mark.parametrize(
    ("more", "named"),
    [((), "--free_running"), (("--free_running", "5", "--levels", "0.99"), "--levels")],
)
def test_what_it_needs_is_named(tmp_path, monkeypatch, more, named):
    arguments(tmp_path, monkeypatch, *more)
    with pytest.raises(UserError, match=named):
        free_running.main()
