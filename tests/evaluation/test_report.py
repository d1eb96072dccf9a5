"""The whole report of one run: its rows, its files, and that they agree with the traces beside them."""

import csv
import json
import re
from itertools import product

import pytest

from dwellmoe.cache.metrics import ecr
from dwellmoe.cache.replay.memory_equivalent import memory_equivalent
from dwellmoe.cache.replay.prompt_pool import prompt_pool_rows
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.replay.report_block import report_block
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.evaluation.options import policy_list
from dwellmoe.evaluation.report.comparison import at_share
from dwellmoe.evaluation.report.folder import choose_folder
from dwellmoe.evaluation.report.output import check_space
from dwellmoe.evaluation.report.report import finite
from dwellmoe.evaluation.report.summary import readable_bytes
from dwellmoe.files import written_whole

pytestmark = pytest.mark.slow

VARIANTS = ["base", "control", "tuned"]
TEXTS = ["teacher_forced", "generated"]


def test_it_has_the_rows_of_every_variant_text_and_phase(report):
    assert report["schema_version"] == 1 and report["variants"] == VARIANTS
    found = {(row["variant"], row["text"], row["phase"]) for row in report["locality"]}
    assert found == {(v, t, p) for v in VARIANTS for t in TEXTS for p in ("prefill", "decode")}
    assert [row["variant"] for row in report["quality"]] == VARIANTS
    names = {"ecr", "ecr_ci95", "gds", "gds_ci95", "lal", "lal_ci95", "chance_ecr", "per_layer"}
    assert all(names <= set(row) and len(row["per_layer"]) == 3 for row in report["locality"])


def test_every_capacity_is_there_in_both_scopes(report):
    for phase, least in (("decode", 2), ("prefill", 1)):
        for scope, step in (("layer", 1), ("global", 3)):
            rows = [r for r in report["cache"] if (r["phase"], r["scope"]) == (phase, scope)]
            some = [r for r in rows if (r["variant"], r["text"], r["policy"]) == ("base", TEXTS[0], "lru")]
            expected = [step * slots for slots in range(1, 9) if step * slots >= least]
            assert [row["capacity"] for row in some] == expected
            assert {row["policy"] for row in rows} == {"lru", "lfu", "opt", "lopt:horizon=2"}
            for row, rate in product(rows, ("hit_rate", "miss_bytes_per_token")):
                assert row[f"{rate}_ci95"][0] <= row[rate] <= row[f"{rate}_ci95"][1]
                assert len(row[f"layer_{rate}"]) == len(row[f"layer_{rate}_ci95"]) == 3


def test_rows_are_what_the_written_traces_give(run, report):
    for variant in VARIANTS:
        trace = RoutingTrace.load(run / f"trace-{variant}-teacher_forced.safetensors")
        row = at_share(report["cache"], variant=variant, policy="opt")
        again = replay(trace, "opt", row["capacity"], phase="decode")
        assert row["misses"] == again.misses and row["capacity_percent"] == 25.0
        locality = next(r for r in report["locality"] if r["variant"] == variant and r["phase"] == "decode")
        assert locality["ecr"] == pytest.approx(ecr(trace, "decode").value)


def test_perplexity_and_ratios_belong_together(report):
    quality = {row["variant"]: row for row in report["quality"]}
    ratio = report["comparison"]["tuned_vs_control"]["perplexity_ratio"]
    assert ratio == pytest.approx(quality["tuned"]["perplexity"] / quality["control"]["perplexity"])
    assert all({"accuracy", "choice_accuracy", "perplexity_ci95"} <= set(row) for row in report["quality"])
    locality = {
        r["variant"]: r["ecr"] for r in report["locality"] if r["text"] == TEXTS[0] and r["phase"] == "decode"
    }
    ratios = report["comparison"]["tuned_vs_base"]
    switched = (1 - locality["tuned"]) / (1 - locality["base"])
    assert ratios["switch_rate_ratio"] == pytest.approx(switched)
    missed = [at_share(report["cache"], variant=name, policy="lru")["misses"] for name in ("tuned", "base")]
    assert ratios["lru_misses_25_ratio"] == pytest.approx(missed[0] / missed[1])
    for name in ("switch_rate_ratio", "lru_misses_25_ratio", "perplexity_ratio"):
        low, high = ratios[f"{name}_ci95"]
        assert low <= ratios[name] <= high


def test_memory_equivalents_are_those_of_the_written_traces(run, report):
    for name, compared in report["comparison"].items():
        one, other = (
            RoutingTrace.load(run / f"trace-{v}-teacher_forced.safetensors") for v in name.split("_vs_")
        )
        again = memory_equivalent(one, other, "25%", resamples=report["settings"]["bootstrap_samples"])
        assert (compared["memory_equivalent_25"], compared["memory_equivalent_25_bound"]) == (
            again.ratio,
            again.bound,
        )
        assert compared["memory_equivalent_25_ci95"] == again.ratio_ci95


def test_the_reporting_block_of_every_variant_and_text(run, report):
    assert [(row["variant"], row["text"]) for row in report["reporting"]] == [*product(VARIANTS, TEXTS)]
    for row in report["reporting"]:
        trace = RoutingTrace.load(run / f"trace-{row['variant']}-{row['text']}.safetensors")
        policies = ["lru", "lfu", "opt", "lopt:horizon=2"]
        samples = report["settings"]["bootstrap_samples"]
        again = {"variant": row["variant"], "text": row["text"]} | report_block(
            trace, policies, resamples=samples
        )
        assert json.loads(json.dumps(again)) == row
        assert set(trace.categories.values()) == {report["data"]["dataset"]}
        assert trace.chat_template is report["data"]["chat_template"]
    page = (run / "report.html").read_text()
    assert "What a hit rate must state" in page and "unit of execution" in page


def test_what_lies_outside_the_prompts_pools(run, report):
    rows = report["prompt_pool"]
    assert {(row["variant"], row["text"]) for row in rows} == {*product(VARIANTS, TEXTS)}
    for variant, text in product(VARIANTS, TEXTS):
        trace = RoutingTrace.load(run / f"trace-{variant}-{text}.safetensors")
        again = prompt_pool_rows(trace, resamples=report["settings"]["bootstrap_samples"])
        found = [row for row in rows if (row["variant"], row["text"]) == (variant, text)]
        assert found == [{"variant": variant, "text": text} | row.as_dict() for row in again]
        assert [row["capacity_percent"] for row in found] == [25.0, 50.0]  # 12.5 % is less than a token needs
    assert "experts of the pool" in (run / "report.html").read_text()


def test_the_adapters_make_a_difference(report):
    assert len({row["perplexity"] for row in report["quality"]}) == 3


def test_the_folder_is_whole(run, report, workspace):
    assert sorted(file.name for file in run.iterdir()) == report["files"]
    assert json.loads((workspace / "copy.json").read_text()) == report
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "tuned against control" in page and set(report["made"]) == {"command", "code", "date"}
    assert "expert consistency rate" in page.lower() and "prefers-color-scheme: dark" in page
    assert page.index("decode, scope layer") < page.index("prefill, scope layer")
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_samples_have_the_known_columns(run):
    with open(run / "samples.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:5] == ["Input", "Output_Baseline", "ECR_Baseline", "Output_Tuned", "ECR_Tuned"]
    assert len(rows) == 3 and all(0 <= float(row[2] or 0) <= 1 for row in rows)


def test_policies_keep_their_own_commas():
    assert policy_list("lru, lopt:horizon=2") == ["lru", "lopt:horizon=2"]
    with pytest.raises(UserError, match="unknown policy"):
        policy_list("lru,nearest")


def test_reports_of_other_settings_are_left_alone(tmp_path):
    first = tmp_path / "run"
    with written_whole(choose_folder(first, {"seed": 1})) as folder:
        (folder / "report.json").write_text('{"settings": {"seed": 1}}')
    assert choose_folder(first, {"seed": 1}) == first
    assert choose_folder(first, {"seed": 2}) == tmp_path / "run-2"


def test_an_error_while_writing_leaves_the_old_report(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(RuntimeError), written_whole(tmp_path) as folder:
        (folder / "report.json").write_text("half")
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "{}"


def test_small_helpers():
    assert (
        readable_bytes(1_250_000) == "1.25 MB"
        and readable_bytes(None) == "-"
        and readable_bytes(12) == "12 B"
    )
    assert finite({"a": float("inf"), "b": [1.0, float("nan")], "c": [{"d": float("inf")}, None]}) == {
        "a": None,
        "b": None,
        "c": [{"d": None}, None],
    }


def test_speeds_tell_how_the_adapter_ran(report):
    rows = {row["variant"]: row for row in report["measured_speed"]}
    assert [rows[name]["adapter"] for name in VARIANTS] == ["none", "unmerged", "unmerged"]
    assert rows["base"]["merged_decode_tokens_per_second"] is None
    assert all(rows[name]["merged_decode_tokens_per_second"] > 0 for name in VARIANTS[1:])


def test_a_disk_without_room_is_named_before_the_work(tmp_path):
    check_space(tmp_path, 1)
    with pytest.raises(UserError, match=f"{tmp_path}.*free"):
        check_space(tmp_path, 10**18)


def test_a_folder_that_holds_no_report_is_not_written_over(tmp_path):
    (tmp_path / "run" / "report.json").mkdir(parents=True)
    (tmp_path / "run-2").mkdir()
    (tmp_path / "run-2" / "report.json").write_text("[" * 100_000)
    assert choose_folder(tmp_path / "run", {"seed": 1}) == tmp_path / "run-3"
