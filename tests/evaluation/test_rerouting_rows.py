"""A whole evaluation with re-routing: what the report has beside every hit rate."""

import json

import numpy as np
import pytest

from dwellmoe.cache.replay.replay_split import replay_split
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.evaluation.ranks import Ranks
from inference import evaluate, parse
from tests.evaluation.workspace import options

pytestmark = pytest.mark.slow

SPEC = "cecar:fill=drop,tau=1,m=4"


@pytest.fixture(scope="module")
def folder(workspace, one_thread, tmp_path_factory):
    given = options(
        workspace,
        results_dir=tmp_path_factory.mktemp("rerouted") / "results",
        routing_strategy=SPEC,
        expert_budget="50%",
        choice_limit=2,
    )
    index = given.index("--control_path")
    settings = parse([*given[:index], *given[index + 2 :]])
    evaluate(settings, Ranks())
    return settings.evaluation.results_dir


@pytest.fixture(scope="module")
def report(folder):
    with open(f"{folder}/report.json") as file:
        return json.load(file)


def row_of(report, variant, text="teacher_forced"):
    (row,) = [row for row in report["rerouting"] if (row["variant"], row["text"]) == (variant, text)]
    return row


def quality(report, variant):
    return next(row for row in report["quality"] if row["variant"] == variant)


def test_every_variant_is_measured_with_and_without(report):
    assert report["variants"] == ["base", "tuned", "base-rerouted", "tuned-rerouted"]
    assert len(report["rerouting"]) == 8
    assert {row["strategy"] for row in report["rerouting"]} == {"none", SPEC}
    assert "tuned-rerouted_vs_base-rerouted" in report["comparison"]


def test_a_hit_rate_never_stands_alone(report):
    names = ("experts_per_token", "agreement", "miss_bytes_per_token", "misses_ratio", "kl_next_token")
    row = row_of(report, "base-rerouted")
    assert all(np.isfinite(row[name]) for name in (*names, "perplexity"))
    assert row["perplexity"] == pytest.approx(quality(report, "base-rerouted")["perplexity"])
    assert row["kl_next_token"] > 0 and row["misses_ratio"] < 1
    assert row["agreement"] < 1 and row["experts_per_token"] < 2
    plain = row_of(report, "base")
    assert (plain["kl_next_token"], plain["agreement"], plain["experts_per_token"]) == (0, 1, 2)
    assert plain["misses_ratio"] == 1


def test_the_own_choice_scores_as_it_does_without_a_cache(report, run):
    plain = json.loads((run / "report.json").read_text())
    for variant in ("base", "tuned"):
        assert quality(report, variant)["perplexity"] == pytest.approx(quality(plain, variant)["perplexity"])
        assert quality(report, variant)["choice_accuracy_ci95"] is not None


@pytest.mark.parametrize("text", ["teacher_forced", "generated"])
@pytest.mark.parametrize("variant", ["base", "tuned-rerouted"])
def test_counts_are_a_replay_of_the_trace(folder, report, variant, text):
    trace = RoutingTrace.load(f"{folder}/trace-{variant}-{text}.safetensors")
    expected, row = replay_split(trace, "lru", 4, "recent:tokens=8"), row_of(report, variant, text)
    assert (row["hits"], row["misses"]) == (expected.hits, expected.misses)
    assert row["miss_bytes_per_token"] == pytest.approx(expected.miss_bytes_per_token)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"routing_strategy": "nearest"}, "unknown routing strategy 'nearest': choose from cecar"),
        ({"routing_strategy": "mocce", "decode_policy": "opt"}, "--decode_policy opt: "),
        (
            {"routing_strategy": "mocce", "expert_budget": "10%"},
            "--expert_budget 10%.* 0 slots|capacity must be 1",
        ),
        ({"routing_strategy": "mocce", "expert_budget": "1"}, "--expert_budget 1 leaves 1 slots a layer"),
    ],
)
def test_mistakes_are_named(workspace, change, message):
    with pytest.raises(UserError, match=message):
        evaluate(parse(options(workspace, **change)), Ranks())


def test_an_option_without_effect_is_named(workspace, capsys):
    parse(options(workspace, reroute_prefill="True"))
    assert "does not use --reroute_prefill" in capsys.readouterr().err
