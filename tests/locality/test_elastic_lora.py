"""What is trained is what was selected: the trainable set against the layers, for every named family."""

import re

import pytest

from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora, savings, trainable_count
from dwellmoe.locality.settings import AdapterSettings
from tests.tiny_models import tiny_model

FAMILIES = ["olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "mixtral", "gpt_oss", "deepseek"]


def trainable_names(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def layer_numbers(names):
    return {int(re.search(r"layers\.(\d+)\.", name).group(1)) for name in names}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("extra", [(), ("gate",)], ids=["lora", "full gate"])
def test_only_the_selected_layers_train(family, extra):
    model = tiny_model(family)
    chosen = find_moe_layers(model)[-1:]
    names = trainable_names(add_elastic_lora(model, chosen, LoraShape(rank=2, extra=extra)))
    assert layer_numbers(names) == {chosen[0].layer_id}
    router = chosen[0].router.rpartition(".")[2]
    gate = [name for name in names if re.search(rf"\.{router}\.", name)]
    assert gate, "the gate is trained"
    assert all(("modules_to_save" in name) == bool(extra) for name in gate)
    assert any("experts" in name for name in names)
    assert any(chosen[0].attention.rpartition(".")[2] in name for name in names)


def test_old_names_mean_the_fused_experts():
    model = tiny_model("olmoe")
    layers = find_moe_layers(model)
    shape = LoraShape(rank=2, targets=("q_proj", "gate_proj", "up_proj", "down_proj"), extra=("gate",))
    names = trainable_names(add_elastic_lora(model, layers[:1], shape))
    assert {name.split("layers.0.")[1].split(".lora")[0].split(".modules")[0] for name in names} == {
        "self_attn.q_proj",
        "mlp.experts",
        "mlp.experts.base_layer",
        "mlp.gate",
    }


def test_a_wrong_name_lists_the_choices():
    layers = find_moe_layers(model := tiny_model("olmoe"))
    with pytest.raises(UserError, match=r"no MoE layer has a module 'queries': choose from .*q_proj"):
        add_elastic_lora(model, layers, LoraShape(targets=("queries",)))
    with pytest.raises(UserError, match="only 'gate' can be trained in full"):
        add_elastic_lora(model, layers, LoraShape(extra=("experts",)))
    with pytest.raises(UserError, match="at least one LoRA target"):
        add_elastic_lora(model, layers, LoraShape(targets=(), extra=("gate",)))


def test_savings_of_the_upper_half():
    model = tiny_model("olmoe", num_hidden_layers=4)
    layers = find_moe_layers(model)
    half = savings(
        trainable_count(add_elastic_lora(model, layers[2:], LoraShape(rank=2))), layers[2:], layers
    )
    whole = trainable_count(
        add_elastic_lora(tiny_model("olmoe", num_hidden_layers=4), layers, LoraShape(rank=2))
    )
    assert half.memory_saved_bytes == (whole - half.trainable) * 16
    assert half.time_saved_share == pytest.approx(1 - (1 + 0.5 + 0.5) / 3)


@pytest.mark.parametrize(
    ("scope", "expected"), [("router", {"gate"}), ("router_attention", {"gate", "self_attn"})]
)
def test_scopes_of_training(scope, expected):
    adapter = AdapterSettings(train_scope=scope)
    shape = LoraShape(rank=2, targets=tuple(adapter.target_names), extra=tuple(adapter.extra_names))
    model = add_elastic_lora(tiny_model("qwen2_moe"), find_moe_layers(tiny_model("qwen2_moe")), shape)
    assert {re.search(r"\.(gate|self_attn)\.", name)[1] for name in trainable_names(model)} == expected


def test_a_scope_excludes_the_options_it_is_short_for():
    with pytest.raises(UserError, match="either --train_scope"):
        AdapterSettings(train_scope="all", lora_extra_modules="gate")
    with pytest.raises(UserError, match="--train_scope gates: choose from router, router_attention, all"):
        AdapterSettings(train_scope="gates")
