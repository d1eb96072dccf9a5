"""The sweep: trains what is missing, keeps what is there, and says what failed."""

import json
import sys

from tests.conftest import ROOT


def test_a_sweep_resumes_and_tells_failures(run_command, tmp_path, tiny_checkpoint, sentences):
    options = (
        f"--out out --objectives js:no=1 --weights 0.5 --seeds 1 --scopes router -- "
        f"--model_name {tiny_checkpoint} --dataset_name {sentences} --max_words_len 32 --batch_size 8 "
        "--lora_rank 2 --eval_steps 3 --save_steps 3"
    ).split()
    first = run_command(sys.executable, ROOT / "runs" / "sweep.py", *options, timeout_seconds=400)
    assert first.returncode == 2
    assert "js-no1_0.5_router_1 failed: main.py" in first.stderr and "unknown option 'no'" in first.stderr
    points = {path.stem: path for path in (tmp_path / "out" / "points").glob("*.json")}
    assert set(points) == {"control_0_router_1"}
    record = json.loads(points["control_0_router_1"].read_text())
    assert record["compared_with"] == "base" and record["comparison"]["perplexity_ratio"] > 0
    measured = record["variants"]["tuned"]
    assert {"perplexity", "perplexity_ci95", "ecr", "ecr_ci95", "budgets"} <= set(measured)
    assert [row["budget_percent"] for row in measured["budgets"]] == [12.5, 25.0, 50.0]
    for row in measured["budgets"]:
        low, high = row["miss_bytes_per_token_ci95"]
        assert low <= row["miss_bytes_per_token"] <= high
    assert (tmp_path / "out" / "pareto.png").exists()
    before = {path: path.stat().st_mtime_ns for path in points.values()}
    again = run_command(sys.executable, ROOT / "runs" / "sweep.py", *options)
    assert again.returncode == 2
    assert {path: path.stat().st_mtime_ns for path in points.values()} == before
