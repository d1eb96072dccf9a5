"""gate_ahead: a layer's own gate on the hidden state one layer earlier, hidden from every other observer."""

import dataclasses

import numpy as np
import pytest
import torch

from dwellmoe.cache.prediction import Calibration, quality
from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers
from dwellmoe.routing import RouterTap
from dwellmoe.routing.gate_ahead import GateAhead, margin, margins_ahead
from tests.cache.traces import random_trace
from tests.tiny_models import tiny_model

TOKENS_BT = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "gpt_oss", "mixtral"])
def test_each_gate_sees_the_hidden_state_of_the_layer_before(family):
    model = tiny_model(family)
    layers, hidden, seen = find_moe_layers(model), {}, []

    def keep(place):
        return lambda _, inputs: hidden.__setitem__(place, inputs[0])

    handles = [
        model.get_submodule(layer.router).register_forward_pre_hook(keep(layer.index)) for layer in layers
    ]
    with torch.no_grad(), RouterTap(model, layers, [seen.append]), GateAhead(model, layers) as ahead:
        plain = model(TOKENS_BT, use_cache=False).logits
    assert len(seen) == len(layers)  # the tap hears of each router once
    for handle in handles:
        handle.remove()
    found = ahead.margins()
    assert found.shape == (18, len(layers), 8) and found[:, 0].isnan().all()
    for layer in layers[1:]:
        one = []
        with torch.no_grad(), RouterTap(model, [layer], [one.append]):
            model.get_submodule(layer.router)(hidden[layer.index - 1])
        (expected,) = one
        assert torch.equal(found[:, layer.index], margin(expected.logits_TE, layer.top_k))
    with torch.no_grad():
        assert torch.equal(model(TOKENS_BT, use_cache=False).logits, plain)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_margin_is_above_zero_for_the_k_largest():
    logits_TE = torch.randn(50, 8)
    chosen = torch.zeros(50, 8, dtype=torch.bool).scatter_(1, logits_TE.topk(2).indices, True)
    assert torch.equal(margin(logits_TE, 2) > 0, chosen)


def test_a_trace_gives_its_decoded_tokens_in_order():
    model = tiny_model("olmoe")
    trace = random_trace(0, steps=30, experts=8, top_k=2, requests=2)
    with pytest.raises(UserError, match="token_ids"):
        margins_ahead(model, find_moe_layers(model), trace)
    ids = torch.randint(3, 64, (30,)).numpy().astype(np.int32)
    trace = dataclasses.replace(trace, token_ids=ids)
    found = margins_ahead(model, find_moe_layers(model), trace)
    assert found.shape == ((trace.phase == 1).sum(), 3, 8)
    last = np.flatnonzero(trace.request == trace.request[-1])
    with torch.no_grad(), GateAhead(model, find_moe_layers(model)) as ahead:
        model(torch.from_numpy(ids[last].astype(np.int64))[None], use_cache=False)
    assert np.array_equal(found[-1], ahead.margins()[-1].numpy(), equal_nan=True)


def test_calibration_says_how_often_such_a_score_came_true():
    rng = np.random.default_rng(0)
    score = rng.normal(size=(4000, 2, 6))
    used = rng.random(score.shape) < 1 / (1 + np.exp(-2 * score))
    score[:, 0] = np.nan
    predicted = Calibration(score, used)(score)
    assert np.allclose(predicted[:, 0], used[:, 0].mean(axis=0))
    assert np.abs(predicted[:, 1] - 1 / (1 + np.exp(-2 * score[:, 1]))).mean() < 0.02
    assert quality(predicted[:, 1:], used[:, 1:])["calibration_error"] < 0.01
