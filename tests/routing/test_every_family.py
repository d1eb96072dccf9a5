"""The contract of models/ and of the tap, over every MoE family that transformers has."""

from functools import cache

import pytest
import torch
from peft import LoraConfig, get_peft_model

from dwellmoe.families import find_moe_layers, lora_targets
from dwellmoe.families.base import unwrap
from dwellmoe.routing import RouterTap, router_order
from tests.tiny_models import FAMILIES, tiny_model

TOKENS_BT = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))


@cache
def model_of(family):
    return tiny_model(family)


def run(model, layers, strategy=None):
    """Logits of the model and what the tap saw."""
    seen = []
    with torch.no_grad(), RouterTap(model, layers, [seen.append], strategy):
        logits = model(TOKENS_BT, use_cache=False).logits
    return logits, seen


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def keep(output):
    return output.weights_TK, output.indices_TK


def rotate(output):
    return output.weights_TK, (output.indices_TK + 1) % output.layer.num_experts


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_layers_are_where_the_names_say(family):
    model = model_of(family)
    layers = find_moe_layers(model)
    assert [layer.index for layer in layers] == list(range(len(layers)))
    assert [layer.layer_id for layer in layers] == sorted({layer.layer_id for layer in layers})
    for layer in layers:
        for name in (layer.block, layer.router, layer.experts, *layer.shared):
            assert f".{layer.layer_id}" in name
            model.get_submodule(name)
        assert layer.attention or family == "nemotron_h"  # its decoder layers hold one thing each


def test_tap_sees_each_layer_once_and_leaves_no_hook(family):
    model = model_of(family)
    layers, before = find_moe_layers(model), hooks(model)
    _, seen = run(model, layers)
    assert [output.layer for output in seen] == layers
    assert hooks(model) == before
    for layer, logits_TE, weights_TK, indices_TK in seen:
        tokens = TOKENS_BT.numel()
        assert logits_TE.shape == (tokens, layer.num_experts)
        assert weights_TK.shape == indices_TK.shape == (tokens, layer.top_k)
        assert all(len(set(row)) == layer.top_k for row in indices_TK.tolist())
        assert int(indices_TK.min()) >= 0 and int(indices_TK.max()) < layer.num_experts


def test_logits_are_raw(family):
    """They are linear in the hidden states, so some are negative and rows add up to anything."""
    _, seen = run(model_of(family), find_moe_layers(model_of(family)))
    logits = torch.cat([output.logits_TE for output in seen])
    assert (logits < 0).any()
    assert logits.sum(-1).std() > 0.05


def test_keeping_the_choice_changes_nothing_and_changing_it_does(family):
    model = model_of(family)
    layers = find_moe_layers(model)
    plain, _ = run(model, layers)
    kept, _ = run(model, layers, keep)
    changed, seen = run(model, layers, rotate)
    assert torch.equal(plain, kept)
    assert not torch.allclose(plain, changed, atol=1e-6)
    assert torch.equal(model(TOKENS_BT, use_cache=False).logits, plain)
    assert len(seen) == len(layers)


def test_router_order_is_by_weight(family):
    _, seen = run(model_of(family), find_moe_layers(model_of(family)))
    for output in seen:
        weights_TK, indices_TK = router_order(output.weights_TK, output.indices_TK)
        assert (weights_TK.diff(dim=-1) <= 0).all()
        assert torch.equal(indices_TK.sort(-1).values, output.indices_TK.sort(-1).values)


@pytest.mark.slow
def test_peft_wrapped_models_are_found_and_tapped(family):
    model = tiny_model(family)
    plain, _ = run(model, find_moe_layers(model))
    layers = find_moe_layers(model)
    (targets,) = lora_targets(model, layers[-1:], ["down_proj", "gate"])
    parameters = [*targets.parameters, *targets.router_weights]
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=[], target_parameters=parameters))
    found = find_moe_layers(wrapped)
    assert [layer.layer_id for layer in found] == [layer.layer_id for layer in layers]
    assert unwrap(wrapped.get_submodule(found[-1].experts)) is not wrapped.get_submodule(found[-1].experts)
    logits, seen = run(wrapped, found)
    assert torch.allclose(logits, plain, atol=1e-5)
    assert [output.layer for output in seen] == found
    with wrapped.disable_adapter():
        assert len(run(wrapped, found)[1]) == len(found)
