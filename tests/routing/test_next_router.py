"""A router asked a layer early: with its own bias, with what the one before was given, or not at all."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers
from dwellmoe.routing.gate_ahead import GateAhead
from dwellmoe.routing.next_router import NextRouter
from tests.tiny_models import tiny_model

TOKENS_BT = torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(1))


def inputs_and_outputs(model: Any) -> tuple[list, list]:
    """What each router was given, and what it gave, in a forward pass."""
    given, gave, handles = [], [], []
    for layer in find_moe_layers(model):
        router = model.get_submodule(layer.router)
        handles.append(
            router.register_forward_hook(
                lambda _, inputs, named, output: (given.append((inputs, named)), gave.append(output))[0],
                with_kwargs=True,
            )
        )
    with torch.no_grad():
        model(TOKENS_BT, use_cache=False)
    for handle in handles:
        handle.remove()
    return given, gave


@pytest.mark.parametrize(
    ("family", "bias"),
    [
        ("afmoe", "expert_bias"),
        ("hy_v3", "e_score_correction_bias"),
        ("lfm2_moe", "expert_bias"),
        ("minimax_m2", "e_score_correction_bias"),
    ],
)
def test_the_bias_is_that_of_the_layer_that_is_asked(family, bias):
    model: Any = tiny_model(family)
    layers = find_moe_layers(model)
    block: Any = model.get_submodule(layers[1].block)
    last = torch.arange(layers[1].num_experts) >= layers[1].num_experts - layers[1].top_k
    getattr(block, bias).data.copy_(100.0 * last)
    given, _ = inputs_and_outputs(model)
    answer = NextRouter(model, *layers[:2])(*given[0])
    assert answer is not None
    assert set(answer[2].flatten().tolist()) == set(last.nonzero().flatten().tolist())


def test_zayas_router_gets_the_states_that_the_one_before_was_given():
    model = tiny_model("zaya")
    layers = find_moe_layers(model)
    given, _ = inputs_and_outputs(model)
    answer = NextRouter(model, *layers[1:3])(*given[1])
    router: Any = model.get_submodule(layers[2].router)
    with torch.no_grad():
        expected = router.forward(given[1][0][0], router_states=given[1][1]["router_states"])
    assert answer is not None and torch.equal(answer[2], expected[2])


def test_token_ids_reach_the_next_router_that_takes_them_and_no_other():
    """DeepSeek-V4's first layers look the experts of a token up."""
    model: Any = tiny_model("deepseek_v4", mlp_layer_types=["hash_moe", "hash_moe", "moe"])
    layers = find_moe_layers(model)
    for layer in layers[:2]:
        table = model.get_submodule(layer.router).tid2eid
        table.copy_(torch.randint(0, layer.num_experts, table.shape))
    given, gave = inputs_and_outputs(model)
    pairs = zip(given, pairwise(layers), strict=False)
    second, third = (NextRouter(model, *pair)(*inputs) for inputs, pair in pairs)
    assert second is not None and torch.equal(second[2], gave[1][2])
    assert third is not None and third[2].shape == gave[2][2].shape


@pytest.mark.parametrize(
    "trained",
    [{"modules_to_save": ["gate"]}, {"target_parameters": ["mlp.gate.weight"]}],
    ids=["whole", "LoRA"],
)
def test_a_gate_that_an_adapter_trained_is_the_one_that_is_asked(trained):
    """Though the adapter comes after the engine; and not while it is switched off."""
    model: Any = tiny_model("olmoe")
    layers = find_moe_layers(model)
    ask = NextRouter(model, *layers[:2])
    wrapped = get_peft_model(model, LoraConfig(**{"target_modules": ["q_proj"], **trained}))
    for name, weight in wrapped.named_parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(name)))
    hidden = torch.randn(4, 32)
    router: Any = model.get_submodule(layers[1].router)
    with torch.no_grad():
        tuned = router(hidden)[2]
        with wrapped.disable_adapter():
            base = router(hidden)[2]
            asked_of_base = ask((hidden,), {})
    asked = ask((hidden,), {})
    assert asked is not None and asked_of_base is not None and not torch.equal(tuned, base)
    assert torch.equal(asked[2], tuned) and torch.equal(asked_of_base[2], base)


class NeedsMore(nn.Module):
    """A router that the model can call, and that nothing else can."""

    def __init__(self, usual: Any) -> None:
        super().__init__()
        self.usual = usual

    def __call__(self, hidden: torch.Tensor) -> tuple:
        return self.usual(hidden)

    def forward(self, hidden: torch.Tensor, weather: str) -> tuple:
        return hidden, weather


def test_a_router_that_cannot_be_asked_has_no_answer_and_that_is_said_once(capsys):
    model: Any = tiny_model("olmoe")
    layers = find_moe_layers(model)
    parent, _, name = layers[1].router.rpartition(".")
    setattr(model.get_submodule(parent), name, NeedsMore(model.get_submodule(layers[1].router)))
    ask = NextRouter(model, *layers[:2])
    hidden = torch.randn(2, 32)
    assert ask((hidden,), {}) is None and ask((hidden,), {}) is None
    assert "weather" in ask.fault and layers[1].router in ask.fault
    assert capsys.readouterr().err.count(layers[1].router) == 1
    with GateAhead(model, layers) as ahead, torch.no_grad():
        model(TOKENS_BT, use_cache=False)
    assert ahead.margin_of(1) is None
    with pytest.raises(UserError, match="weather"):
        ahead.margins()
