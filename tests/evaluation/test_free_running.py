"""Text written under re-routing: every number against a loop that decodes token by token."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dwellmoe.cache.replay.replay_split import replay_split
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.data.task import load_task
from dwellmoe.errors import UserError
from dwellmoe.evaluation.evaluated_model import start_rerouting
from dwellmoe.evaluation.free_running import FreeModels, reference_ids, write_freely
from dwellmoe.evaluation.measure import measure, one_after_the_other, workload
from dwellmoe.evaluation.ranks import Ranks
from dwellmoe.evaluation.report.free_running import free_running_fields
from dwellmoe.evaluation.requests import SampleSpec, load_requests
from dwellmoe.evaluation.rerouting import NO_REROUTING, FreeRunning, ReroutingSettings
from dwellmoe.loading import BASE, active_variant
from dwellmoe.routing import RouterTap, SimulatedCache
from inference import evaluate, parse
from model_loader import load_evaluated_model
from tests.evaluation.workspace import make_workspace, options

TOKENS, REQUESTS, RESAMPLES = 12, 3, 40
SPECS = ("margin:loss=0.9", "own_weight:below=0.5", "regret:budget=0.9")


def settings_of(spec):
    return ReroutingSettings(spec, "4", "lru", "recent:tokens=8")


def seed_of(settings, request):
    return int(np.random.SeedSequence((settings.seed, request.request_id)).generate_state(1)[0])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A model whose experts matter: those of the other tests hardly change what it predicts."""
    folder = make_workspace(tmp_path_factory.mktemp("free"))
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    for name, weight in model.named_parameters():
        weight.data *= 20 if ".experts." in name else 3 if "lm_head" in name else 1
    model.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def base(workspace, one_thread):
    evaluated = load_evaluated_model(parse(options(workspace)))
    with active_variant(evaluated.model, BASE):
        yield evaluated


@pytest.fixture(scope="module")
def requests(workspace, base):
    task = load_task(str(workspace / "task" / "task.toml"))
    return load_requests(task, "test", base.tokenizer, SampleSpec(0, 3, 6, 64), 42)


def measured(evaluated, requests, spec, settings):
    work = workload(requests[:REQUESTS], [], 2, REQUESTS, max_new_tokens=2, free_running=settings)
    found = measure(evaluated, one_after_the_other(work), Ranks(), "base", settings_of(spec))
    assert found is not None
    return found


def log_probs(evaluated, ids):
    """Of the token after `ids`, by the untouched model, without a cache of keys and values."""
    with torch.no_grad():
        return evaluated.model(torch.tensor([ids]), use_cache=False).logits[0, -1].double().log_softmax(-1)


def decode(evaluated, cache, request, tokens, choose):
    """Yields (ids so far, log-probabilities as re-routed, next token), decoding one token a step."""
    ids, past, prompt = list(request.prompt_ids), None, len(request.prompt_ids)
    cache.describe([request.request_id], np.ones((1, prompt)), np.zeros((1, prompt)))
    for step in range(tokens):
        fed = ids if step == 0 else ids[-1:]
        with torch.no_grad(), RouterTap(evaluated.model, evaluated.moe_layers, [], cache):
            output = evaluated.model(torch.tensor([fed]), past_key_values=past, use_cache=True)
        past, log_q = output.past_key_values, output.logits[0, -1].double().log_softmax(-1)
        token = choose(step, log_q)
        yield list(ids), log_q, token
        ids.append(token)
        if token in evaluated.end_token_ids:
            return


def kl(log_p, log_q):
    return float((log_p.exp() * (log_p - log_q)).sum())


def slow_request(evaluated, caches, request, settings):
    """Nats by the untouched model, KL and tokens of the text, KL and tokens of the reference, and the ids."""

    def draw(_step, log_q):
        if not settings.temperature:
            return int(log_q.argmax())
        return int(torch.multinomial((log_q.float() / settings.temperature).softmax(-1), 1))

    torch.manual_seed(seed_of(settings, request))
    written = list(decode(evaluated, caches[0], request, settings.tokens, draw))
    reference = request.row["input_ids"][request.row["prompt_tokens"] :][: settings.tokens]
    given = list(decode(evaluated, caches[1], request, len(reference), lambda step, _: reference[step]))
    nats = [-float(log_probs(evaluated, ids)[token]) for ids, _, token in written]
    own, other = (
        [kl(log_probs(evaluated, ids), log_q) for ids, log_q, _ in steps] for steps in (written, given)
    )
    return sum(nats), sum(own), len(own), sum(other), len(other), [token for _, _, token in written]


def slow_interval(statistic, rows):
    """Percentiles of the statistic over requests drawn anew."""
    drawn = np.random.default_rng(0).integers(0, len(rows), (RESAMPLES, len(rows)))
    found = [statistic([rows[i] for i in draw]) for draw in drawn]
    return np.percentile(found, (2.5, 97.5)).tolist()


def mean(rows, above, below):
    return sum(row[above] for row in rows) / sum(row[below] for row in rows)


NATS, OWN, TOKENS_OWN, REFERENCE, TOKENS_REFERENCE = range(5)
SLOW = {
    "perplexity_untouched": lambda rows: math.exp(mean(rows, NATS, TOKENS_OWN)),
    "kl_own_path": lambda rows: mean(rows, OWN, TOKENS_OWN),
    "kl_reference": lambda rows: mean(rows, REFERENCE, TOKENS_REFERENCE),
    "feedback_factor": lambda rows: mean(rows, OWN, TOKENS_OWN) / mean(rows, REFERENCE, TOKENS_REFERENCE),
}


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "temperature"), [(SPECS[0], 1.0), (SPECS[1], 0.7), (SPECS[2], 0.0)])
def test_every_number_is_that_of_a_loop_token_by_token(base, requests, spec, temperature):
    settings = FreeRunning(TOKENS, temperature, seed=5)
    found = measured(base, requests, spec, settings)
    own = measured(base, requests, NO_REROUTING, settings)
    caches = [start_rerouting(settings_of(spec), base) for _ in range(2)]
    rows = [slow_request(base, caches, request, settings) for request in requests[:REQUESTS]]
    assert [text.answer.written_ids for text in found.free_texts.values()] == [row[-1] for row in rows]
    fields = free_running_fields(found, own, settings, RESAMPLES)
    for name, statistic in SLOW.items():
        assert fields[name] == pytest.approx(statistic(rows), rel=1e-3), name
        assert fields[f"{name}_ci95"] == pytest.approx(slow_interval(statistic, rows), rel=1e-3), name
    assert fields["kl_own_path"] > 0 and fields["tokens"] == sum(len(row[-1]) for row in rows)
    for request in requests[
        :REQUESTS
    ]:  # the cache that scores the text went the way of the one that wrote it
        live = found.tallies["free_running"][request.request_id]
        assert (live == caches[0].tallies[request.request_id]).all()


def test_scoring_the_text_leaves_its_cache_as_writing_it_did(base, requests):
    models = FreeModels(
        *(replace(base, rerouting=start_rerouting(settings_of(SPECS[0]), base)) for _ in range(3))
    )
    for request in requests[:REQUESTS]:
        write_freely(models, request, FreeRunning(TOKENS))
    written, reread, reference = (model.rerouting for model in models)
    for request in requests[:REQUESTS]:
        assert (written.tallies[request.request_id] == reread.tallies[request.request_id]).all()
    assert isinstance(written, SimulatedCache) and isinstance(reread, SimulatedCache)
    for layer in base.moe_layers:
        caches = [each.cache.decode_cache.resident(layer.index) for each in (written, reread)]
        assert (caches[0] == caches[1]).all()
    steps = sum(tally[0, 4] for tally in reference.tallies.values())
    lengths = [min(TOKENS, len(reference_ids(request))) for request in requests[:REQUESTS]]
    assert steps == sum(lengths) - REQUESTS, "a text's last token is never run"


def test_without_rerouting_the_text_costs_nothing(base, requests):
    settings = FreeRunning(TOKENS, 1.0, seed=1)
    own = measured(base, requests, NO_REROUTING, settings)
    fields = free_running_fields(own, own, settings, RESAMPLES)
    assert (fields["kl_own_path"], fields["kl_reference"], fields["feedback_factor"]) == (0, 0, None)
    assert fields["perplexity_untouched_ratio"] == 1 and fields["perplexity_untouched_ratio_ci95"] == [1, 1]
    nats = [
        -float(log_probs(base, request.prompt_ids + text.answer.written_ids[:step])[token])
        for request, text in zip(requests, own.free_texts.values(), strict=False)
        for step, token in enumerate(text.answer.written_ids)
    ]
    assert fields["perplexity_untouched"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-3)


def test_draws_depend_on_seed_and_request_alone(base, requests):
    def texts(settings, some):
        models = FreeModels(
            *(replace(base, rerouting=start_rerouting(settings_of("margin"), base)) for _ in range(3))
        )
        return [write_freely(models, request, settings)[0].answer.written_ids for request in some]

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    all_of_them = texts(FreeRunning(TOKENS, 1.0, 0), requests[:2])
    assert torch.rand(1) == expected, "the generator of others is left alone"
    assert texts(FreeRunning(TOKENS, 1.0, 0), requests[:1]) == all_of_them[:1]
    assert texts(FreeRunning(TOKENS, 1.0, 1), requests[:2]) != all_of_them
    config = base.model.generation_config
    before = config.to_dict()
    config.update(top_k=1, repetition_penalty=9.0, min_new_tokens=TOKENS)
    try:
        assert texts(FreeRunning(TOKENS, 1.0, 0), requests[:2]) == all_of_them
    finally:
        config.update(**{name: before[name] for name in ("top_k", "repetition_penalty", "min_new_tokens")})


def test_running_text_goes_on_from_its_prompt(requests):
    ids = list(range(20))
    window = replace(
        requests[0], row={"input_ids": ids, "prompt_tokens": 1}, has_prompt=False, prompt_ids=ids[:8]
    )
    assert reference_ids(window) == ids[8:]
    answer = replace(
        window, has_prompt=True, row={"input_ids": ids, "prompt_tokens": 15}, prompt_ids=[7] * 40
    )
    assert reference_ids(answer) == ids[15:]


def given(workspace, **changes):
    """A command line without the control."""
    settings = {
        "free_running": TOKENS,
        "routing_strategy": SPECS[0],
        "expert_budget": "50%",
        "choice_limit": 0,
    }
    words = options(workspace, policies="lru", bootstrap_samples=50, **settings | changes)
    index = words.index("--control_path")
    return [*words[:index], *words[index + 2 :]]


@pytest.fixture(scope="module")
def folder(workspace, one_thread, tmp_path_factory):
    folder = tmp_path_factory.mktemp("free") / "results"
    evaluate(parse(given(workspace, results_dir=folder, seed=4)), Ranks())
    return folder


@pytest.mark.slow
def test_the_report_has_the_price_beside_every_hit_rate(folder):
    report = json.loads((folder / "report.json").read_text())
    rows = {row["variant"]: row for row in report["rerouting"] if row["text"] == "free_running"}
    assert list(rows) == report["variants"] == ["base", "tuned", "base-rerouted", "tuned-rerouted"]
    for variant, row in rows.items():
        trace = RoutingTrace.load(folder / f"trace-{variant}-free_running.safetensors")
        expected = replay_split(trace, "lru", 4, "recent:tokens=8")
        assert (row["hits"], row["misses"]) == (expected.hits, expected.misses)
        assert row["miss_bytes_per_token"] == pytest.approx(expected.miss_bytes_per_token)
        assert (row["requests"], row["tokens_at_most"], row["temperature"], row["seed"]) == (
            3,
            TOKENS,
            1.0,
            4,
        )
        assert 0 <= row["accuracy"] <= 1 and row["answered_requests"] == 3
        assert (row["kl_own_path"] > 0) == variant.endswith("-rerouted")
        repeated = [
            each
            for each in report["locality"]
            if (each["variant"], each["text"]) == (variant, "free_running")
        ]
        assert repeated[0]["repeated_4grams"] == pytest.approx(row["repeated_4grams"])
    assert rows["base"]["perplexity_untouched_ratio"] == 1 != rows["tuned"]["perplexity_untouched_ratio"]
    page = (folder / "report.html").read_text()
    assert "feedback factor" in page and "Free-running text" in page
    assert set(report["convention"]["free_running"].split()) & {
        "kl_own_path",
        "kl_reference;",
        "feedback_factor:",
    }


@pytest.mark.slow
def test_without_the_option_nothing_is_written_freely(workspace, one_thread, tmp_path):
    words = given(workspace, results_dir=tmp_path / "results")
    index = words.index("--free_running")
    evaluate(parse([*words[:index], *words[index + 2 :]]), Ranks())
    report = json.loads((tmp_path / "results" / "report.json").read_text())
    assert {row["text"] for row in report["rerouting"]} == {"teacher_forced", "generated"}
    assert not any("kl_own_path" in row for row in report["rerouting"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"free_running": 1}, "--free_running"),
        ({"free_running": "many"}, "--free_running"),
        ({"generate_limit": 0}, "--generate_limit"),
        ({"temperature": -1}, "--temperature"),
        ({"chat_mode": True}, "--chat_mode"),
    ],
)
def test_what_cannot_be_measured_is_refused(workspace, changes, named):
    with pytest.raises(UserError, match=named):
        parse(given(workspace, **changes))


def test_it_takes_a_routing_strategy(workspace):
    with pytest.raises(UserError, match="--routing_strategy"):
        parse(options(workspace, free_running=TOKENS))


def test_a_text_beyond_the_context_is_refused_before_anything_is_measured(workspace, one_thread, tmp_path):
    with pytest.raises(UserError, match="--allow_beyond_context"):
        evaluate(parse(given(workspace, free_running=2**20, results_dir=tmp_path / "results")), Ranks())
    assert not list(tmp_path.glob("results/*"))


def test_a_temperature_that_nothing_uses_is_named(workspace, capsys):
    parse(options(workspace, temperature=0.5))
    assert "--temperature" in capsys.readouterr().err
    parse(given(workspace, temperature=0.5))
    assert "--temperature" not in capsys.readouterr().err
