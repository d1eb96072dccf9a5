"""LoRA of experts on the rows that each serves gives what PEFT's wrapper gives: loss and every gradient."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from dwellmoe.experts import use_expert_lora
from dwellmoe.experts.implementation import NAME
from dwellmoe.experts.peft_factors import PerExpertWrapper
from dwellmoe.families import find_moe_layers, lora_targets
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora
from tests.tiny_models import (
    FAMILIES,
    FAMILIES_BY_NAME,
    MULTIMODAL,
    WHOLE_MULTIMODAL,
    tiny_model,
    tiny_multimodal,
)

TOLERANCE = 1e-5
UNSTABLE = dict.fromkeys(("gemma4_text", "gemma4", "muse_spark", "qwen3_5_moe_text", "qwen3_5_moe"), 1e-4)
"""Families whose own rounding in float32 is larger than that (in float64 the two ways agree to 1e-14)."""
OTHER_FAMILIES = [name for name in FAMILIES if name not in FAMILIES_BY_NAME]


def token_ids(rows: int = 2, tokens: int = 17) -> torch.Tensor:
    return torch.randint(3, 60, (rows, tokens), generator=torch.Generator().manual_seed(4))


def randomise(model: torch.nn.Module, seed: int = 1) -> None:
    """Factors that are not zero, so that the adapter counts and every factor has a gradient."""
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)


def with_lora(model: Any, *targets: str) -> PeftModel:
    shape = LoraShape(rank=3, alpha=6, targets=targets or ("auto",))
    wrapped = add_elastic_lora(model, find_moe_layers(model), shape)
    randomise(wrapped)
    return wrapped


def loss_and_gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(input_ids=token_ids(), labels=token_ids(), use_cache=False).loss
    loss.backward()
    return loss.item(), {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }


def assert_same(found, expected, tolerance: float = TOLERANCE) -> None:
    assert abs(found[0] - expected[0]) <= TOLERANCE
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        largest = gradient.abs().max()
        assert (found[1][name] - gradient).abs().max() <= tolerance * max(largest, 1e-3), name


def both_ways(model: Any, compute: Callable[[Any], Any] = loss_and_gradients) -> tuple[Any, Any]:
    """What PEFT computes, and what is computed per expert."""
    by_peft = compute(model)
    use_expert_lora(model)
    return compute(model), by_peft


def assert_per_expert(model: torch.nn.Module) -> None:
    """The experts of every layer are computed by this package."""
    for layer in find_moe_layers(model):
        assert type(model.get_submodule(layer.experts)) is PerExpertWrapper


@pytest.mark.parametrize("family", FAMILIES_BY_NAME)
def test_a_family(family):
    model = with_lora(tiny_model(family))
    assert_same(*both_ways(model))
    assert_per_expert(model)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*OTHER_FAMILIES, *MULTIMODAL, *WHOLE_MULTIMODAL])
def test_another_family(family):
    whole = family in MULTIMODAL or family in WHOLE_MULTIMODAL
    model = with_lora((tiny_multimodal if whole else tiny_model)(family))
    assert_same(*both_ways(model), UNSTABLE.get(family, TOLERANCE))
    assert_per_expert(model)


@pytest.mark.parametrize("targets", [("down_proj",), ("up_proj",), ("gate", "attention")])
def test_lora_on_some_parameters(targets):
    assert_same(*both_ways(with_lora(tiny_model("qwen3_moe"), *targets)))


def test_expert_groups_of_deepseek():
    overrides = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
    assert_same(*both_ways(with_lora(tiny_model("deepseek_v2", **overrides))))


def test_a_token_may_choose_every_expert_and_an_expert_no_token():
    assert_same(*both_ways(with_lora(tiny_model("olmoe", num_experts_per_tok=8))))
    assert_same(*both_ways(with_lora(tiny_model("olmoe", num_experts=64))))


def expert_config(model: Any, **options: Any) -> LoraConfig:
    targets = lora_targets(model, find_moe_layers(model), ["q_proj", "gate_up_proj", "down_proj"])
    return LoraConfig(
        target_modules=[name for target in targets for name in target.linears],
        target_parameters=[name for target in targets for name in target.parameters],
        **options,
    )


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 16},
        {"r": 4, "lora_alpha": 16, "use_rslora": True},
        {"r": 4, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"gate_up_proj": 5}},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_ranks_and_scales(family, options):
    model = tiny_model(family)
    wrapped = get_peft_model(model, expert_config(model, **options))
    randomise(wrapped)
    assert_same(*both_ways(wrapped))


@pytest.mark.parametrize("active", [["first"], ["second"], ["first", "second"]], ids=str)
def test_several_adapters(active):
    model = tiny_model("olmoe")
    wrapped: Any = get_peft_model(model, expert_config(model, r=4), adapter_name="first")
    wrapped.add_adapter("second", expert_config(model, r=2, lora_alpha=3))
    randomise(wrapped)
    wrapped.base_model.set_adapter(active)
    assert_same(*both_ways(wrapped))


def test_an_adapter_added_later_counts():
    model = tiny_model("olmoe")
    wrapped = get_peft_model(model, expert_config(model, r=4), adapter_name="first")
    use_expert_lora(wrapped)
    wrapped.add_adapter("second", expert_config(model, r=2))
    randomise(wrapped)
    wrapped.set_adapter("second")
    found = loss_and_gradients(wrapped)
    by_peft = get_peft_model(tiny_model("olmoe"), expert_config(tiny_model("olmoe"), r=4), "first")
    by_peft.add_adapter("second", expert_config(tiny_model("olmoe"), r=2))
    randomise(by_peft)
    by_peft.set_adapter("second")
    assert_same(found, loss_and_gradients(by_peft))


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor | None = None) -> torch.Tensor:
    return model(input_ids=token_ids() if ids is None else ids, use_cache=False).logits


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "nemotron_h"])
def test_with_its_adapter_off_a_model_is_the_base_model_to_the_bit(family):
    before = logits(tiny_model(family))
    model = with_lora(tiny_model(family)).eval()
    use_expert_lora(model)
    assert not torch.equal(logits(model), before)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("family", ["llama4_text", "longcat_flash"])
def test_and_to_rounding_where_experts_are_run_in_another_way(family):
    before = logits(tiny_model(family))
    model = with_lora(tiny_model(family)).eval()
    use_expert_lora(model)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), before, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "llama4_text"])
def test_one_token_is_computed_as_many_are(family):
    model = with_lora(tiny_model(family)).eval()
    one = token_ids(rows=1, tokens=1)
    found, by_peft = both_ways(model, lambda model: logits(model, one))
    torch.testing.assert_close(found, by_peft, atol=TOLERANCE, rtol=0)
    with torch.enable_grad():
        kept_for_training = model(input_ids=one, use_cache=False).logits
    torch.testing.assert_close(found, kept_for_training.detach(), atol=TOLERANCE, rtol=0)


def test_merging_and_unmerging():
    model = with_lora(tiny_model("olmoe")).eval()
    use_expert_lora(model)
    beside = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), beside, atol=TOLERANCE, rtol=0)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), beside, atol=TOLERANCE, rtol=0)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), beside, atol=TOLERANCE, rtol=0)
    assert not any(isinstance(module, PerExpertWrapper) for module in merged.modules())


def test_plain_peft_loads_the_adapter(tmp_path):
    model = with_lora(tiny_model("gpt_oss")).eval()
    use_expert_lora(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("gpt_oss"), str(tmp_path)).eval()
    assert not any(isinstance(module, PerExpertWrapper) for module in loaded.modules())
    torch.testing.assert_close(logits(loaded), logits(model), atol=TOLERANCE, rtol=0)


def test_the_saved_configuration_names_no_implementation(tmp_path):
    model = with_lora(tiny_model("olmoe"))
    use_expert_lora(model)
    model.merge_and_unload().save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_gradient_checkpointing(family):
    model = with_lora(tiny_model(family)).train()
    expected = loss_and_gradients(model)
    use_expert_lora(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    assert_same(loss_and_gradients(model), expected)


def test_bfloat16_is_as_near_to_float32_as_peft_is():
    exact = loss_and_gradients(with_lora(tiny_model("olmoe")))[1]
    found, by_peft = both_ways(with_lora(tiny_model("olmoe").bfloat16()))
    names = [name for name in exact if ".experts." in name]
    assert names
    for name in names:
        ours, theirs = ((each[1][name].float() - exact[name]).norm() for each in (found, by_peft))
        assert ours <= 1.5 * theirs + 1e-2 * exact[name].norm(), name


def test_autocast_does_not_round_the_experts():
    model = with_lora(tiny_model("olmoe"))

    def under_autocast(model):
        with torch.autocast("cpu", torch.bfloat16):
            return loss_and_gradients(model)

    found, by_peft = both_ways(model, under_autocast)
    assert abs(found[0] - by_peft[0]) <= 1e-3


def test_which_modules_run_does_not_depend_on_the_tokens():
    """Under ZeRO-3 a rank whose modules run in another order would wait for the others forever."""
    model = with_lora(tiny_model("olmoe"))
    use_expert_lora(model)
    runs: list[list[str]] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: runs[-1].append(name))
    for tokens in (2, 17):
        runs.append([])
        ids = token_ids(1, tokens)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert runs[0] == runs[1]


def test_experts_that_are_not_described_are_left_to_peft(capsys, monkeypatch):
    model = with_lora(tiny_model("olmoe"))
    for layer in find_moe_layers(model):
        module: Any = model.get_submodule(layer.experts)
        experts = module.get_base_layer()
        experts.forward = MethodType(type(experts).forward.__wrapped__, experts)
        delattr(experts, "has_gate")
    expected = loss_and_gradients(model)
    use_expert_lora(model)
    assert "OlmoeExperts" in capsys.readouterr().err
    assert not any(isinstance(module, PerExpertWrapper) for module in model.modules())
    assert_same(loss_and_gradients(model), expected)


class Products:
    """Expert weights that count their products."""

    def __init__(self, experts: Any) -> None:
        self.matrices = {name: getattr(experts, name).detach() for name in ("gate_up_proj", "down_proj")}
        self.calls: list[str] = []

    def product(self, name, x_SI, ends):
        self.calls.append(name)
        groups = x_SI.tensor_split(list(ends[:-1]))
        return torch.cat([x @ matrix.T for x, matrix in zip(groups, self.matrices[name], strict=True)])


@pytest.mark.parametrize("adapter", [True, False])
def test_weights_held_elsewhere_are_asked_for_every_product(adapter):
    model: Any = tiny_model("olmoe")
    if adapter:
        model = with_lora(model)
    before = logits(model)
    use_expert_lora(model)
    held = []
    for layer in find_moe_layers(model):
        experts: Any = model.get_submodule(layer.experts)
        experts = experts.get_base_layer() if adapter else experts
        experts.expert_weights = Products(experts)
        held.append(experts.expert_weights)
    torch.testing.assert_close(logits(model), before, atol=TOLERANCE, rtol=0)
    assert all(weights.calls == ["gate_up_proj", "down_proj"] for weights in held)
