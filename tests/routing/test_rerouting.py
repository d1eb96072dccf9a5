"""Re-routing on real models of every family: weights, the virtual cache, empty slots."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from dwellmoe.cache.replay.replay_split import replay_split
from dwellmoe.cache.trace import EMPTY
from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers
from dwellmoe.routing import Rerouter, RouterTap, SimulatedCache, TraceRecorder
from dwellmoe.routing.router_scores import score_rules
from dwellmoe.routing.strategies.base import NEVER
from tests.routing.contexts import specs
from tests.tiny_models import FAMILIES, FAMILIES_BY_NAME, tiny_model

pytestmark = pytest.mark.slow

TOKENS_BT = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(1))
PROMPT = 5
UNKNOWN = ("inkling_text", "phimoe", "zaya")  # they make weights in ways of their own


@cache
def model_of(family):
    """With biases of the choice that are not zero, as trained models have them."""
    model = tiny_model(family)
    for name, weight in (*model.named_buffers(), *model.named_parameters()):
        if "correction_bias" in name or "expert_bias" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model


def virtual(model, spec, capacity=4, **options):
    return SimulatedCache(model, find_moe_layers(model), spec, policy="lru", capacity=capacity, **options)


def described(strategy, tokens_BT=TOKENS_BT, prompt=PROMPT):
    decode = np.broadcast_to(np.arange(tokens_BT.shape[1]) >= prompt, tokens_BT.shape)
    strategy.describe(list(range(len(tokens_BT))), np.ones(tokens_BT.shape), decode)


def run(model, strategy=None, tokens_BT=TOKENS_BT, **inputs):
    layers, seen = find_moe_layers(model), []
    with torch.no_grad(), RouterTap(model, layers, [seen.append], strategy):
        output = model(tokens_BT, **({"use_cache": False} | inputs))
    return output, seen


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in UNKNOWN])
def test_every_family_can_be_rerouted(family):
    """The router's own choice gives the router's own weights; another choice runs and changes the output."""
    model = model_of(family)
    plain, seen = run(model)
    for rule, output in zip(score_rules(model, find_moe_layers(model)), seen, strict=True):
        assert rule.explains(output)
        torch.testing.assert_close(rule.weights(output, output.indices_TK), output.weights_TK)
    strategy = virtual(model, "cecar:tau=1,m=4")
    described(strategy)
    changed, rerouted = run(model, strategy)
    assert torch.isfinite(changed.logits).all()
    assert not torch.equal(changed.logits, plain.logits)
    assert all(len(set(row)) == len(row) for output in rerouted for row in output.indices_TK.tolist())


@pytest.mark.parametrize("family", UNKNOWN)
def test_a_router_of_another_kind_is_named(family):
    model = model_of(family)
    with pytest.raises(
        UserError, match=r"no rule explains how router 'model.layers.\d.mlp.(gate|router)' makes weights"
    ):
        score_rules(model, find_moe_layers(model))


def expected_weights(family, model, logits_E, chosen):
    """From the original scores, as the family's router makes weights."""
    if family == "deepseek_v3":
        scores = logits_E.sigmoid()[chosen]
        return scores / scores.sum() * model.config.routed_scaling_factor
    scores = logits_E.softmax(-1)[chosen]
    return scores / scores.sum() if family in ("mixtral", "gpt_oss") else scores


@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "deepseek_v2", "deepseek_v3", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("spec", ["cecar:tau=1,m=4", "cecar:fill=drop,tau=1,m=4"])
def test_weights_are_the_original_ones(family, spec):
    model = model_of(family)
    strategy = virtual(model, spec)
    described(strategy)
    _, seen = run(model, strategy)
    emptied = 0
    for output in seen:
        for logits_E, weights_K, indices_K in zip(*output[1:], strict=True):
            kept = indices_K >= 0
            emptied += int((~kept).sum())
            assert not weights_K[~kept].any()
            expected = expected_weights(family, model, logits_E, indices_K[kept])
            torch.testing.assert_close(weights_K[kept], expected, rtol=1e-5, atol=1e-6)
    assert (emptied > 0) == ("drop" in spec)


@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "deepseek_v3", "mixtral", "gpt_oss"])
def test_own_weight_changes_no_weight_and_limits_what_leaves(family):
    """Experts that stay keep the router's weight; one that enters has its score times the router's factor."""
    model = model_of(family)
    below = float(torch.cat([output.weights_TK for output in run(model)[1]]).median())
    strategy = virtual(model, f"own_weight:below={below}", capacity=3)
    described(strategy)
    _, seen = run(model, strategy)
    left = lost = 0
    for output, rule in zip(seen, score_rules(model, find_moe_layers(model)), strict=True):
        own_TK = rule.rank(output.logits_TE).topk(output.layer.top_k).indices
        for logits_E, weights_K, indices_K, own_K in zip(*output[1:], own_TK, strict=True):
            weight_of = dict(
                zip(own_K.tolist(), expected_weights(family, model, logits_E, own_K).tolist(), strict=True)
            )
            score_E = logits_E.sigmoid() if family == "deepseek_v3" else logits_E.softmax(-1)
            factor = sum(weight_of.values()) / float(score_E[own_K].sum())
            for weight, expert in zip(weights_K.tolist(), indices_K.tolist(), strict=True):
                expected = weight_of.get(expert, float(score_E[expert]) * factor)
                assert weight == pytest.approx(expected, rel=1e-4)
            gone = weight_of.keys() - set(indices_K.tolist())
            assert all(weight_of[expert] < below * 1.0001 for expert in gone)
            left += len(gone)
            lost += float(weights_K.sum()) < sum(weight_of.values()) * 0.999
    assert left and lost


@pytest.mark.parametrize("family", FAMILIES_BY_NAME)
def test_with_everything_resident_and_no_bonus_the_model_is_itself(family, tmp_path):
    model = model_of(family)
    plain, _ = run(model)
    every = specs(tmp_path, 1e30, top_k=2)
    no_bonus = {name: f"{name}:scale=0" for name in ("cecar", "lru", "lfu", "random", "constant")}
    for spec in (every | no_bonus | {"mocce": "mocce:strength=0", "max_rank": "max_rank:within=2"}).values():
        strategy = virtual(model, spec, capacity=8, reroute_prefill=True, prefill_handoff="shared")
        for layer in find_moe_layers(model):
            strategy.cache.decode_cache.request(layer.index, range(8))
        described(strategy)
        found = run(model, strategy)[0].logits
        eager = spec.startswith("odp")  # it needs attention weights, and so another implementation
        torch.testing.assert_close(found, plain.logits, rtol=0, atol=1e-5 if eager else 0, msg=spec)


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "gpt_oss", "mixtral", "deepseek"])
@pytest.mark.parametrize("spec", ["cecar", "mocce", "cecar:fill=drop", "lfu", "random", "max_rank"])
def test_one_causal_pass_is_decoding_token_by_token(family, spec):
    model = model_of(family)
    at_once = virtual(model, spec)
    described(at_once)
    expected, seen = run(model, at_once)
    one_by_one = virtual(model, spec)
    for row in range(len(TOKENS_BT)):
        tokens_1T, past = TOKENS_BT[row : row + 1], None
        one_by_one.describe([row], np.ones((1, PROMPT)), np.zeros((1, PROMPT)))
        for begin, end in [(0, PROMPT), *((place, place + 1) for place in range(PROMPT, 12))]:
            found, steps = run(
                model, one_by_one, tokens_1T[:, begin:end], past_key_values=past, use_cache=True
            )
            past = found.past_key_values
            torch.testing.assert_close(found.logits[0], expected.logits[row, begin:end], rtol=1e-4, atol=1e-4)
            for step, whole in zip(steps, seen, strict=True):
                at = slice(row * 12 + begin, row * 12 + end)
                assert step.indices_TK.tolist() == whole.indices_TK[at].tolist()
    assert all((at_once.tallies[row] == one_by_one.tallies[row]).all() for row in range(2))


@pytest.mark.parametrize("spec", ["none", "cecar", "cecar:fill=drop,tau=1"])
@pytest.mark.parametrize("reroute_prefill", [False, True])
def test_counts_are_those_of_the_recorded_trace(spec, reroute_prefill):
    model = model_of("olmoe")
    layers = find_moe_layers(model)
    recorder, strategy = TraceRecorder(layers), virtual(model, spec, reroute_prefill=reroute_prefill)
    described(strategy)
    with torch.no_grad(), RouterTap(model, layers, [recorder], strategy):
        model(TOKENS_BT)
    decode = np.broadcast_to(np.arange(12) >= PROMPT, (2, 12))
    recorder.add([0, 1], np.ones((2, 12)), decode)
    trace = recorder.trace()
    assert (trace.experts == EMPTY).any() == ("drop" in spec)
    row = replay_split(trace, "lru", 4, "recent:tokens=8")
    hits, misses, kept, agreed, tokens, loads = np.sum(list(strategy.tallies.values()), axis=(0, 1))
    assert (hits, misses, loads) == (row.hits, row.misses, row.prefill_loads)
    assert kept == hits + misses == (trace.experts[trace.phase == 1] != EMPTY).sum()
    assert tokens == 3 * 14 and agreed <= kept
    assert (agreed == kept) == (spec == "none")


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "llama4_text", "deepseek_v3"])
def test_an_empty_slot_adds_nothing_whatever_runs_the_experts(family):
    """The experts module is given a choice with empty slots as if K were smaller there."""
    model = tiny_model(family)
    expected = run(model, lambda output: first_only(output, 0))[0].logits
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        if family != "llama4_text":  # it has one way only
            model.set_experts_implementation(implementation)
        found = run(model, lambda output: first_only(output, -1))[0].logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def first_only(output, filler):
    """Keeps each row's first expert; the other slots are empty (-1), or (0) hold another with weight 0."""
    weights_TK = output.weights_TK.clone()
    weights_TK[:, 1:] = 0
    indices_TK = output.indices_TK.clone()
    if filler < 0:
        indices_TK[:, 1:] = filler
    return weights_TK, indices_TK


def test_rows_of_a_decode_step_choose_by_the_same_residency():
    model = model_of("olmoe")
    layers = find_moe_layers(model)
    strategy = virtual(model, "constant:share=5,tau=1", capacity=4)
    strategy.describe([0, 1], np.ones((2, 6)), np.zeros((2, 6)))
    _, seen = run(model, strategy, TOKENS_BT[:, :6])
    before = [strategy.cache.decode_cache.resident(layer.index) for layer in layers]
    _, seen = run(model, strategy, TOKENS_BT[:, 6:7])
    alone = Rerouter(model, layers, "constant:share=5,tau=1")
    for output, plain, resident_E in zip(seen, run(model, None, TOKENS_BT[:, 6:7])[1], before, strict=True):
        if output.layer.index == 0:  # later layers see other hidden states
            assert alone(plain, resident_E)[1].tolist() == output.indices_TK.tolist()
        for row in output.indices_TK.tolist():
            assert sum(bool(resident_E[expert]) for expert in row) >= 1
    assert [int(strategy.tallies[row][0, 4]) for row in (0, 1)] == [1, 1]


def test_a_batch_is_generated_under_a_virtual_cache():
    model: Any = model_of("olmoe")
    strategy = virtual(model, "cecar", capacity=2)
    strategy.describe([7, 8], np.ones((2, 6)), np.zeros((2, 6)))
    with RouterTap(model, find_moe_layers(model), [], strategy):
        model.generate(TOKENS_BT[:, :6], max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert [int(strategy.tallies[row][0, 4]) for row in (7, 8)] == [4, 4]


def test_odp_protects_by_attention_and_leaves_no_hook(tmp_path):
    model = model_of("olmoe")
    hooks = lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())  # noqa: E731
    before, attention = hooks(), model.config._attn_implementation
    spec = specs(tmp_path, 0.0, top_k=4)["odp"] + ",protect=0.2"
    wide = tiny_model("olmoe", num_experts_per_tok=4)
    counts = {}
    for prefill in (False, True):
        strategy = virtual(wide, spec, reroute_prefill=prefill)
        described(strategy)
        _, seen = run(wide, strategy)
        counts[prefill] = (seen[0].indices_TK >= 0).sum(-1).reshape(2, 12)
    assert counts[False][:, :PROMPT].tolist() == [[4] * 5] * 2
    assert counts[True][:, :PROMPT].sum(-1).tolist() == [4 + 4 * 3] * 2  # one of five tokens is protected
    assert set(counts[True][:, PROMPT:].flatten().tolist()) == {3}
    assert (hooks(), model.config._attn_implementation) == (before, attention)


def test_importance_is_norm_times_later_attention():
    from dwellmoe.routing.token_importance import importance

    attention_HTT, norms_T = torch.rand(2, 5, 5), torch.rand(5)
    for token in range(4):
        paid = [attention_HTT[:, later, token].mean() for later in range(token + 1, 5)]
        expected = norms_T[token] * sum(paid) / len(paid)
        torch.testing.assert_close(importance(attention_HTT, norms_T)[token], expected)
    assert importance(attention_HTT, norms_T)[4] == 0


def test_the_running_range_is_cache_priors():
    from dwellmoe.routing.history import History

    history, ranges = History(4), [3.0, 1.0, 2.0]
    for spread in ranges:
        history.add_ranks(np.array([[0.0, spread, -np.inf, spread / 2]]))
    assert history.spread == pytest.approx(0.99 * (0.99 * 3.0 + 0.01 * 1.0) + 0.01 * 2.0)


def test_a_dropped_expert_is_no_use_and_a_lag_counts_token_steps():
    from dwellmoe.routing.history import History

    history = History(4)
    history.add_uses(np.array([[2, 0]]))
    history.add_uses(np.array([[1, -1], [1, 0]]))  # two rows of one step
    assert history.uses_E.tolist() == [2, 2, 1, 0]
    assert history.lag_E.tolist()[:3] == [1, 1, 2] and history.lag_E[3] == NEVER
