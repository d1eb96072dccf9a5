"""The commands of `dwellmoe simulate`: what they print and write, and how they fail."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file

from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.cli import simulate
from dwellmoe.errors import UserError
from tests.cache.traces import random_trace

pytestmark = pytest.mark.slow

ROW = {
    *(
        "policy",
        "scope",
        "access",
        "phase",
        "start",
        "reset",
        "capacity",
        "capacity_bytes",
        "capacity_percent",
    ),
    *("hits", "misses", "compulsory_misses", "hit_rate", "miss_bytes_per_token"),
}
LRU = ("replay", "--policy", "lru", "--capacity")
PLAN = ("plan", "--device", "configs/devices/laptop_8gb.toml")


@pytest.fixture
def trace_path(tmp_path):
    base = random_trace(0, steps=120)
    path = tmp_path / "in" / "t.safetensors"
    path.parent.mkdir()
    RoutingTrace(base.experts, base.phase, base.request, 12, expert_bytes=(1000, 1000, 2000)).save(path)
    return path


def run(*words):
    simulate.run([str(word) for word in words])


def result(capsys, *words):
    run(*words, "--json", "-")
    return json.loads(capsys.readouterr().out)


def test_replay(trace_path, capsys):
    found = result(
        capsys, "replay", "--trace", trace_path, "--policy", "lru", "--capacity", 6, "--phase", "decode"
    )
    assert found["schema_version"] == 1 and found["settings"]["policy"] == "lru"
    (row,) = found["cache"]
    assert set(row) >= ROW and row["hit_rate"] == row["hits"] / (row["hits"] + row["misses"])
    assert row["capacity_bytes"] == 24000 and row["capacity_percent"] == 50


def test_replay_split(trace_path, capsys):
    words = (
        "replay",
        "--trace",
        trace_path,
        "--policy",
        "lru",
        "--capacity",
        6,
        "--prefill_handoff",
        "recent:tokens=4",
    )
    (row,) = result(capsys, *words)["cache"]
    assert set(row) >= ROW | {"prefill_handoff", "prefill_loads"}


def test_curve_writes_file_and_figure(trace_path, tmp_path):
    out, figure = tmp_path / "out.json", tmp_path / "out.png"
    run("curve", "--trace", trace_path, "--policies", "lru", "lfu", "--json", out, "--plot", figure)
    rows = json.loads(out.read_text())["cache"]
    assert [row["capacity"] for row in rows] == list(range(3, 13)) * 2
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_describe(trace_path, tmp_path, capsys):
    figure = tmp_path / "out.png"
    found = result(capsys, "describe", "--trace", trace_path, "--segment_tokens", 5, "--plot", figure)
    assert 0 <= found["locality"][0]["ecr"] <= 1 and figure.exists()
    assert found["reuse"]["method"] in ("recency", "frequency")
    covered = [entry["value"] for entry in found["sch"]]
    assert covered == sorted(covered) and covered[0] == found["srp"]["value"] and covered[-1] <= 1
    outside = [row["outside"] for row in found["prompt_pool"]]
    assert [row["capacity"] for row in found["prompt_pool"]] == [3, 6]
    assert outside == sorted(outside, reverse=True) and 0 < outside[0] < 1
    run("describe", "--trace", trace_path)
    assert "outside the experts that the prompt used most: 3 experts" in capsys.readouterr().out
    decode = found["trace"]["decode_tokens"]
    assert sum(row["uses"] for row in found["reuse"]["reuse_distance"]) == decode * 9


def test_report(trace_path, tmp_path, capsys):
    words = ("report", "--trace", trace_path, "--capacities", "50%", 8, "--policies", "lfu")
    found = result(capsys, *words)
    assert [row["capacity"] for row in found["regime"]] == [6, 8]
    policies = {row["policy"] for row in found["policies"]}
    assert policies == {"lru", "lfru", "opt", "lfu"}
    assert all(not ROW - set(row) for row in found["policies"])
    run(*words, "--markdown", "--json", tmp_path / "r.json")
    printed = capsys.readouterr().out
    assert printed.count("## ") == 9 and "not recorded" in printed
    assert json.loads((tmp_path / "r.json").read_text())["gaps"] == found["gaps"]
    compared = result(capsys, *words, "--against", trace_path)["memory_equivalents"]
    assert [(row["capacity"], row["ratio"]) for row in compared] == [(6, 1), (8, 1)]


def test_shares_of_both_gaps_are_printed(trace_path, capsys):
    run("curve", "--trace", trace_path, "--policies", "lru", "lfru", "lfu", "opt", "--capacities", 6)
    line = {words.split()[0]: words for words in capsys.readouterr().out.splitlines()}
    assert "LRU" in line["lfu"] and "LFRU" in line["lfu"]
    assert "LRU" in line["lfru"] and "LFRU" not in line["lfru"] and "gap" not in line["opt"]


def test_plan_is_the_arithmetic_of_its_device(trace_path, tmp_path, capsys):
    device = tmp_path / "device.toml"
    speeds = "memory_gb_per_second = 1e-3\nstorage_gb_per_second = 1e-4"
    device.write_text(f'name = "d"\n{speeds}\nmemory_gb = 3e-5\nstorage_latency_us = 100')
    words = ("plan", "--trace", trace_path, "--device", device, "--policies", "lru", "--resident", "2000B")
    found = result(capsys, *words, "--tokens_per_second", 1, "--plot", tmp_path / "plan.png")
    rate = {row["capacity"]: row for row in found["cache"]}
    for row in found["plan"]:
        misses = rate[row["capacity"]]["misses"]
        tokens = int((RoutingTrace.load(trace_path).phase == 1).sum())
        seconds = (2000 + 3 * 4000) / 1e6 + row["miss_bytes_per_token"] / 1e5 + misses / tokens * 1e-4
        assert row["tokens_per_second"] == pytest.approx(1 / seconds)
        assert row["memory_bytes"] == 2000 + row["capacity"] * 4000
        assert row["fits"] == (row["memory_bytes"] <= 30000)
    assert found["smallest"][0]["capacity"] == min(
        row["capacity"] for row in found["plan"] if row["fits"] and row["tokens_per_second"] >= 1
    )


MODEL = "models/tiny-olmoe"


def sized_trace(folder, experts=32, expert_bytes=110592, model="tiny-olmoe"):
    """A trace with the shape of the model in `MODEL`, whose experts are of float16."""
    path = folder / "m.safetensors"
    sizes = {"layers": 6, "experts": experts, "top_k": 4, "expert_bytes": (expert_bytes,) * 6}
    random_trace(0, steps=60, model=model, **sizes).save(path)
    return path


@pytest.mark.parametrize(("expert_bytes", "factor"), [(110592, 1), (221184, 2)])
@pytest.mark.parametrize("words", [(), ("--model_name", MODEL)])
def test_plan_counts_the_other_weights_of_the_model(expert_bytes, factor, words, tmp_path, capsys):
    trace = sized_trace(tmp_path, expert_bytes=expert_bytes, model="tiny-olmoe" if not words else "")
    found = result(capsys, *PLAN, "--trace", trace, "--policies", "lru", "--capacities", 8, *words)
    stored = load_file(f"{MODEL}/model.safetensors")
    others = sum(value.nbytes for name, value in stored.items() if ".experts." not in name)
    assert found["resident_bytes"] == factor * others


def test_plan_answers_in_words(trace_path, tmp_path, capsys):
    device = tmp_path / "device.toml"
    device.write_text(
        'name = "d"\nmemory_gb_per_second = 1e-3\nstorage_gb_per_second = 1e-4\nmemory_gb = 3e-5\n'
    )
    words = ("plan", "--trace", trace_path, "--device", device, "--policies", "lru", "opt")
    found = result(capsys, *words)
    run(*words)
    *_, lru, opt = capsys.readouterr().out.splitlines()
    row, _ = found["largest"]
    assert row["capacity"] == max(each["capacity"] for each in found["plan"] if each["fits"]) == 7
    assert f"with 3e-05 GB, 7 of 12 experts a layer fit: expect {row['misses_per_token']:.2f} misses" in lru
    assert "knows the future" in opt
    run(*words, "--resident", "1GB")
    assert "none of these sizes fits" in capsys.readouterr().out
    device.write_text(device.read_text().replace("3e-5", "1"))
    run(*words)
    assert "with 1 GB, all 12 experts a layer fit" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"expert_bytes": 3}, (), "not the same model"),
        ({"experts": 64}, ("--model_name", MODEL), "not the same model"),
        ({}, ("--model_name", "none/of/these"), "none/of/these"),
        ({}, ("--model_name", MODEL, "--resident", "1GB"), "no effect"),
        ({"expert_bytes": 0}, (), "expert_bytes"),
    ],
)
def test_plan_refuses_a_model_that_is_not_the_traces(changes, words, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run(*PLAN, "--trace", sized_trace(tmp_path, **changes), *words)


def test_stall(trace_path, capsys):
    words = ("stall", "--trace", trace_path, "--device", "configs/devices/gpu_8gb.toml")
    found = result(
        capsys, *words, "--capacity", "40%", "--ram_capacity", "30%", "--tier_policies", "lru", "placement"
    )
    assert [(row["tier_policy"], row["scope"]) for row in found["stall"]] == [
        ("lru", "global"),
        ("lru", "layer"),
        ("placement", "global"),
    ]
    assert found["device"]["placement"]["predictor"] == "habits"
    assert all(row["device_bytes"] >= 4 * row["ram_bytes"] / 3 > 0 for row in found["stall"])


def test_calibrate_writes_thresholds(tmp_path, capsys):
    weights = np.random.default_rng(0).random((120, 3, 3)).astype(np.float16) + np.float16(0.1)
    random_trace(0, steps=120, weights=weights).save(tmp_path / "t.safetensors")
    run("calibrate", "--trace", tmp_path / "t.safetensors", "--out", tmp_path / "mu.json")
    table = json.loads((tmp_path / "mu.json").read_text())
    ratios = np.sort(weights[:, 0].astype(float), axis=1)
    assert table["kept"] == [2] and len(table["median_ratio"]) == 3
    assert table["median_ratio"][0] == [pytest.approx(np.median(ratios[:, 1] / ratios[:, 0]))]
    assert "a token may stop at 2" in capsys.readouterr().out


def test_convert_and_back(trace_path, tmp_path, capsys):
    run("convert", "--trace", trace_path, "--out", tmp_path / "t.route.csv")
    run("convert", "--trace", tmp_path / "t.route.csv", "--out", tmp_path / "back.safetensors")
    assert np.array_equal(
        RoutingTrace.load(tmp_path / "back.safetensors").experts, RoutingTrace.load(trace_path).experts
    )
    assert "120 token steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["replay", "--policy", "nru", "--capacity", "6"], "unknown policy 'nru': did you mean 'lru'."),
        ([*LRU, "2"], "below the 3 experts that one step needs"),
        ([*LRU, "6", "--phase", "x"], "unknown phase 'x'"),
        ([*LRU, "6", "--prefill_buffer", "1"], "no effect without"),
        (
            [*LRU, "6", "--prefill_handoff", "none", "--scope", "global"],
            "no effect with",
        ),
        (
            ["replay", "--policy", "opt", "--capacity", "6", "--prefill_handoff", "none"],
            "looks into the future",
        ),
        (
            ["replay", "--policy", "lopt", "--capacity", "6", "--prefill_handoff", "none"],
            "looks into the future",
        ),
        (
            [*LRU, "6", "--prefill_handoff", "none", "--prefill_buffer", "-1"],
            "at least 0",
        ),
        ([*LRU, "0%"], "must be 1 to 12"),
        ([*LRU[:-1], "--capacity=-4"], "capacity '-4'"),
        ([*LRU, "101%"], "capacity '101%'"),
        ([*LRU, "nan%"], "capacity 'nan%'"),
        ([*LRU, "infGiB"], "capacity 'infGiB'"),
        ([*LRU, f"{9e20:.0f}"], "must be 1 to 12"),
        (["replay", "--policy", "lrfu:decay=0.9,decay=0.1", "--capacity", "6"], "'decay' is given twice"),
        (["replay", "--policy", "random:seed=-1", "--capacity", "6"], "seed must be at least 0"),
        (
            [*LRU, "6", "--json", "none/x.json"],
            "there is no folder",
        ),
        ([*LRU, "6", "--json", "/"], "not the name of a file"),
        ([*LRU, "6", "--json", ""], "not the name of a file"),
        ([*LRU, "6", "--json", "tests"], "not the name of a file"),
        ([*LRU, "6", "--json", "new/"], "not the name of a file"),
        (["replay", "--policy", "lru"], "required: --capacity"),
        ([*LRU, "6", "--polcy", "x"], "unknown option '--polcy': did you mean --policy"),
        (["describe", "--segment_tokens", "x"], "option --segment_tokens: 'x' is not a whole number"),
        (["curve", "--policies", "lru", "--plot", "tests"], "not the name of a file"),
        ([*PLAN, "--tokens_per_second", "nan"], "above 0"),
        ([*PLAN, "--resident", "x"], "--resident 'x'"),
        (
            [*PLAN, "--resident", "infGB"],
            "--resident 'infGB'",
        ),
        (["fit", "--policy", "lru", "--out", "w.safetensors"], "unknown learned policy 'lru'"),
        (["fit", "--policy", "ml_habits", "--out", "w.safetensors"], "needs at least 4"),
        ([*LRU, "6", "--num_experts", "4"], "has no effect"),
        (["curve", "--policies", "lru", "--capacities", "2"], "below the 3 experts"),
        (["report", "--capacities", "2"], "below the 3 experts"),
        (["report", "--policies", "static"], "give weights=FILE"),
        (["report", "--against", "configs/none.csv"], "configs/none.csv"),
        (["report", "--policies", "nearest"], "unknown policy"),
        (["describe", "--segment_tokens", "0"], "option --segment_tokens: '0' must be at least 1"),
        (["plan", "--device", "none.toml"], "cannot be read"),
        (["convert", "--out", "t.xyz"], "not a trace in any known format"),
    ],
)
def test_mistakes_say_what_is_wrong(trace_path, words, message):
    with pytest.raises(UserError, match=message):
        run(words[0], "--trace", trace_path, *words[1:])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "d"', "'memory_gb_per_second' is missing"),
        ("memory_gb_per_second = 0", "must be a number above 0"),
        ('memory_gb_per_second = "fast"', "must be a number above 0"),
        ("speed = 1", "unknown key 'speed'"),
        ("name = 3", "'name' must be text"),
        ("memory_gb_per_second = inf", "must be a number above 0"),
        ("storage_latency_us = -1", "must be a number >= 0"),
        ("=", "not a TOML file"),
    ],
)
def test_wrong_device_is_refused(trace_path, tmp_path, text, message):
    (tmp_path / "d.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        run("plan", "--trace", trace_path, "--device", tmp_path / "d.toml")


@pytest.mark.parametrize(
    "words",
    [
        [*LRU, "6", "--json", "TRACE"],
        ["report", "--against", "other.npz", "--json", "other.npz"],
        ["convert", "--out", "TRACE"],
        ["curve", "--policies", "lru", "--json", "x.png", "--plot", "x.png"],
        ["calibrate", "--out", "LINK"],
    ],
)
def test_an_output_replaces_no_file_of_another_option(trace_path, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (link := tmp_path / "link").symlink_to(trace_path)
    before, places = trace_path.read_bytes(), {"TRACE": trace_path, "LINK": link}
    with pytest.raises(UserError, match="which it would replace"):
        run(words[0], "--trace", trace_path, *(places.get(word, word) for word in words[1:]))
    assert trace_path.read_bytes() == before and not (tmp_path / "x.png").exists()


def test_columns_stand_apart_whatever_the_size_of_an_expert(trace_path, tmp_path, capsys):
    large = replace(RoutingTrace.load(trace_path), expert_bytes=(1 << 40,) * 3)
    large.save(tmp_path / "large.safetensors")
    run(LRU[0], "--trace", tmp_path / "large.safetensors", *LRU[1:], "6")
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[line.index("GB") - 2] == "%" and line[line.index("rate") + 1].count(".") == 1


def test_a_mistake_leaves_with_two_and_no_file(trace_path, tmp_path):
    content = trace_path.read_bytes()
    trace_path.write_bytes(content[:-10])
    command = [
        sys.executable,
        "-m",
        "dwellmoe",
        "simulate",
        "replay",
        "--trace",
        str(trace_path),
        "--policy",
        "lru",
        "--capacity",
        "6",
    ]
    done = subprocess.run([*command, "--json", str(tmp_path / "out.json")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "truncated" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_starts_without_torch_and_quickly(trace_path):
    """Under 1 s after the first run; the limit in seconds of the processor leaves room for a busy machine."""
    command = ["replay", "--trace", str(trace_path), "--policy", "lru", "--capacity", "6", "--json", "-"]
    script = (
        f"import sys; from dwellmoe.cli.main import run; run(['simulate', *{command}]); "
        "heavy = {'torch', 'pandas', 'matplotlib'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    for _ in range(2):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        after = os.times()
        assert done.returncode == 0, done.stderr
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2


def test_no_figure_is_left_where_the_result_cannot_be_written(trace_path, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        run("curve", "--trace", trace_path, "--policies", "lru", "--plot", tmp_path / "x.png", "--json", "/")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_fit_writes_weights_that_replay_reads(tmp_path, capsys):
    trace, weights = tmp_path / "t.safetensors", tmp_path / "w.safetensors"
    random_trace(0, steps=300, requests=8).save(trace)
    found = result(
        capsys, "fit", "--trace", trace, "--policy", "ml_habits", "--out", weights, "--capacity", 6
    )
    policies = [row["policy"] for row in found["cache"]]
    assert policies == ["lru", "lfu", "lfru", "lrfu:decay=0.95", "opt", f"ml_habits:weights={weights}"]
    (row,) = result(
        capsys, "replay", "--trace", trace, "--policy", f"ml_habits:weights={weights}", "--capacity", 6
    )["cache"]
    assert row["hits"] > 0


def test_a_fitted_forecast_is_judged_on_its_held_out_requests_and_on_any_trace(tmp_path, capsys):
    trace, weights = tmp_path / "t.safetensors", tmp_path / "w.safetensors"
    random_trace(0, steps=300, requests=8).save(trace)
    words = ("--trace", trace, "--policy", "ml_forecast", "--out", weights, "--capacity", 6, "--epochs", 2)
    held_out = result(capsys, "fit", *words)["forecast"]
    rows = result(capsys, "forecast", "--trace", trace, "--weights", weights)["forecast"]
    for found in (held_out, rows):
        assert [row["horizon_tokens"] for row in found] == [1, 2, 4, 8] * 2
        assert {row["predictor"] for row in found} == {"ml_forecast", "uses so far"}
    assert rows[0]["log_loss"] < rows[4]["log_loss"]  # fitted to most of these requests
    run("forecast", "--trace", trace, "--weights", weights)
    printed = capsys.readouterr().out
    assert all(f"{row['recall_at_2k']:.3f}" in printed for row in rows)
    with pytest.raises(UserError, match="policy must be 'ml_forecast'"):
        other = "dwellmoe/cache/learned/shipped/ml_habits.safetensors"
        run("forecast", "--trace", trace, "--weights", other)


def test_a_prompt_can_be_counted_as_decoded(trace_path, tmp_path):
    run("convert", "--trace", trace_path, "--out", tmp_path / "d.safetensors", "--as_decode")
    before, after = RoutingTrace.load(trace_path), RoutingTrace.load(tmp_path / "d.safetensors")
    assert (after.phase == 1).all() and np.array_equal(after.experts, before.experts)
