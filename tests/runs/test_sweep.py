"""The sweep: trains what is missing, keeps what is there, and says what failed."""

import json
import sys

import pytest

from dwellmoe.errors import UserError
from runs import sweep
from runs.sweep import CONTROL, Point, accuracies, measured, task_file
from tests.conftest import ROOT
from tests.data.stand_ins import write_task
from tests.evaluation.workspace import CHOICE_TASK, make_row


@pytest.mark.slow
def test_a_sweep_resumes_and_tells_failures(
    run_command, tmp_path, monkeypatch, capsys, tiny_checkpoint, sentences
):
    """Once here, with its commands in forks of a Python that has imported all; again as its users run it."""
    rows = [make_row(number) for number in range(8)]
    (tmp_path / "quiz").mkdir()
    quiz = write_task(tmp_path / "quiz", CHOICE_TASK, a=rows[:2], b=rows[2:4], c=rows[4:])
    options = (
        f"--out out --objectives js:no=1 --weights 0.5 --seeds 1 --scopes router --tasks {quiz} -- "
        f"--model_name {tiny_checkpoint} --dataset_name {sentences} --max_words_len 32 --batch_size 8 "
        "--lora_rank 2 --eval_steps 3 --save_steps 3"
    ).split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweep.py", *options])
    with monkeypatch.context() as patch, pytest.raises(UserError, match="1 points failed"):
        patch.setattr(sweep.subprocess, "run", lambda words, **_: run_command(*words))
        sweep.main()
    first = capsys.readouterr()
    assert "js-no1_0.5_router_1 failed: main.py" in first.err and "unknown option 'no'" in first.err
    points = {path.stem: path for path in (tmp_path / "out" / "points").glob("*.json")}
    assert set(points) == {"control_0_router_1"}
    record = json.loads(points["control_0_router_1"].read_text())
    assert record["compared_with"] == "base" and record["comparison"]["perplexity_ratio"] > 0
    tuned = record["variants"]["tuned"]
    assert {"perplexity", "perplexity_ci95", "ecr", "ecr_ci95", "budgets"} <= set(tuned)
    assert [row["budget_percent"] for row in tuned["budgets"]] == [12.5, 25.0, 50.0]
    for row in tuned["budgets"]:
        low, high = row["miss_bytes_per_token_ci95"]
        assert low <= row["miss_bytes_per_token"] <= high
    assert (tmp_path / "out" / "pareto.png").exists()
    (answered,) = (tmp_path / "out" / "tasks").iterdir()
    right = json.loads(answered.read_text())["tuned"]["choice_accuracy"]
    assert 0 <= right <= 1
    assert f"control        0      router, 1 seeds: accuracy {right:.3f} (" in first.out
    before = {path: path.stat().st_mtime_ns for path in points.values()}
    again = run_command(sys.executable, ROOT / "runs" / "sweep.py", *options)
    assert again.returncode == 2
    assert "js-no1_0.5_router_1 failed: main.py" in again.stderr and "unknown option 'no'" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in points.values()} == before


def test_accuracies_are_joined_over_seeds():
    def record(seed, accuracy):
        right = {"choice_accuracy": accuracy, "choice_accuracy_ci95": [accuracy - 0.1, accuracy + 0.1]}
        point = {"objective": "js", "weight": 0.5, "scope": "router", "seed": seed}
        return point | {"task": "quiz", "tuned": right}

    (line,) = accuracies([record(1, 0.4), record(2, 0.6)])
    assert line == "quiz     js             0.5    router, 2 seeds: accuracy 0.500 (0.300-0.700)"


@pytest.mark.parametrize(("record", "schema"), [('{"schema_version": 1}', "1"), ("{}", "unknown")])
def test_a_point_of_an_older_sweep_is_named(tmp_path, record, schema):
    (tmp_path / "js_1_router_1.json").write_text(record)
    with pytest.raises(UserError, match=rf"js_1_router_1\.json: schema {schema}, not 2; delete it"):
        measured(tmp_path)


def test_every_point_and_task_has_a_name_of_its_own():
    point = Point(CONTROL, 0.0, "router", 1)
    tasks = ("boolq", "boolq.toml", "./boolq.toml", "a/b.toml", "a-b.toml", "/a/b.toml", "../a/b.toml")
    names = {task_file(point, task) for task in tasks}
    assert len(names) == len(tasks) and not any("/" in name for name in names)
