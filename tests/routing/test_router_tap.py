"""The tap under training, under exceptions and beside other hooks."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers
from dwellmoe.routing import RouterTap
from tests.tiny_models import tiny_model

TOKENS_BT = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))


def training_model(family="olmoe", checkpointing=False):
    model = tiny_model(family).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    return model


def train_once(model, strategy=None, whole_step=False):
    """Gradients by name, and what was seen, of one step on the model's loss and one made of router logits."""
    layers, seen = find_moe_layers(model), []
    tap = RouterTap(model, layers, [seen.append], strategy)
    with tap if whole_step else nullcontext():
        with nullcontext() if whole_step else tap:
            loss = model(TOKENS_BT, labels=TOKENS_BT, use_cache=False).loss
        loss = loss + sum(output.logits_TE.square().mean() for output in seen)
        loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters()}, seen


def reverse(output):
    return output.weights_TK, output.layer.num_experts - 1 - output.indices_TK


@pytest.mark.parametrize(
    "family", ["olmoe", "qwen2_moe", "deepseek", "deepseek_v3", "gpt_oss", "gemma4_text", "llama4_text"]
)
@pytest.mark.parametrize("whole_step", [False, True])
def test_gradients_are_those_without_checkpointing(family, whole_step):
    expected, _ = train_once(training_model(family))
    model = training_model(family, checkpointing=True)
    found, seen = train_once(model, whole_step=whole_step)
    assert [output.layer.index for output in seen] == list(range(len(find_moe_layers(model))))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
    for layer in find_moe_layers(model):
        gates = [gradient for name, gradient in found.items() if name.startswith(f"{layer.router}.")]
        assert any(gate is not None and gate.any() for gate in gates)


def test_strategy_runs_again_in_recomputation():
    expected, _ = train_once(training_model(), reverse)
    found, seen = train_once(training_model(checkpointing=True), reverse, whole_step=True)
    assert len(seen) == 3
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_nothing_is_seen_outside_the_block():
    model, seen = tiny_model("olmoe"), []
    tap = RouterTap(model, find_moe_layers(model), [seen.append])
    model(TOKENS_BT)
    for opened in (1, 2):
        with tap:
            model(TOKENS_BT)
        model(TOKENS_BT)
        assert len(seen) == 3 * opened


def test_an_exception_leaves_no_hook():
    model = tiny_model("olmoe")
    layers = find_moe_layers(model)

    def fail(_output):
        raise RuntimeError("observer")

    with pytest.raises(RuntimeError, match="observer"), RouterTap(model, layers, [fail]):
        model(TOKENS_BT)
    assert not any(model.get_submodule(layer.router)._forward_hooks for layer in layers)
    wrong = [*layers, replace(layers[0], router="model.nowhere")]
    with pytest.raises(AttributeError), RouterTap(model, wrong):
        pass
    assert not any(model.get_submodule(layer.router)._forward_hooks for layer in layers)


def test_observers_see_the_choice_that_runs():
    model, seen = tiny_model("olmoe"), []
    layers = find_moe_layers(model)
    ran = []
    experts = model.get_submodule(layers[0].experts)
    handle = experts.register_forward_pre_hook(lambda _module, inputs: ran.append(inputs[1]))
    with RouterTap(model, layers, [seen.append], reverse):
        model(TOKENS_BT)
    handle.remove()
    assert torch.equal(seen[0].indices_TK, ran[0])


def test_hooks_run_behind_those_that_were_there():
    """As ZeRO-3 needs it: its hook wraps the outputs, and the loss must use the wrapped ones."""
    model, seen = tiny_model("olmoe"), []
    layers = find_moe_layers(model)
    router = model.get_submodule(layers[0].router)
    handle = router.register_forward_hook(lambda _module, _inputs, output: (output[0] + 7.0, *output[1:]))
    with RouterTap(model, layers, [seen.append]):
        model(TOKENS_BT)
    handle.remove()
    assert seen[0].logits_TE.mean() > 5


def test_gemma_logits_are_those_before_the_softmax():
    model, seen = tiny_model("gemma4_text"), []
    layers = find_moe_layers(model)
    scores = []
    projection = model.get_submodule(f"{layers[0].router}.proj")
    handle = projection.register_forward_hook(lambda _module, _inputs, output: scores.append(output))
    with RouterTap(model, layers, [seen.append]):
        model(TOKENS_BT)
    handle.remove()
    shift = seen[0].logits_TE - scores[0].flatten(0, -2)
    torch.testing.assert_close(shift, shift[:, :1].expand_as(shift))


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe", "deepseek_v3", "deepseek", "mixtral", "gpt_oss"])
def test_logits_are_one_matrix_product(family):
    model, seen, inputs = tiny_model(family), [], []
    layers = find_moe_layers(model)
    router = model.get_submodule(layers[0].router)
    handle = router.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
    with RouterTap(model, layers, [seen.append]):
        model(TOKENS_BT)
    handle.remove()
    weights = dict(router.named_parameters())
    expected = nn.functional.linear(inputs[0].flatten(0, -2), weights["weight"], weights.get("bias"))
    torch.testing.assert_close(seen[0].logits_TE, expected)


def test_a_module_that_is_no_router_is_named():
    model = tiny_model("olmoe")
    layer = replace(find_moe_layers(model)[0], router="lm_head")
    with (
        pytest.raises(UserError, match=r"router 'lm_head' returned a Tensor: expected \(logits"),
        RouterTap(model, [layer]),
    ):
        model(TOKENS_BT)


def test_a_strategy_of_the_wrong_shape_is_refused():
    model = tiny_model("olmoe")
    cut = lambda output: (output.weights_TK[:, :1], output.indices_TK)  # noqa: E731
    with (
        pytest.raises(ValueError, match="strategy returned shapes"),
        RouterTap(model, find_moe_layers(model), strategy=cut),
    ):
        model(TOKENS_BT)


def test_generate_is_seen_step_by_step():
    model: Any = tiny_model("olmoe")
    lengths: list[int] = []
    layers = find_moe_layers(model)
    with RouterTap(model, layers[:1], [lambda output: lengths.append(len(output.indices_TK))]):
        model.generate(TOKENS_BT, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert lengths == [18, 2, 2, 2]
