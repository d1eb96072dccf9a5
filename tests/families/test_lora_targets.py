"""What the module names of a LoRA option mean, layer by layer."""

import pytest
from peft import LoraConfig, get_peft_model

from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers, lora_targets, target_names
from tests.tiny_models import FAMILIES, FAMILIES_BY_NAME, tiny_model

OLD_NAMES = ["gate_proj", "up_proj", "down_proj", "gate"]


def targets_of(family, names):
    """What the names mean in the first MoE layer."""
    model = tiny_model(family)
    return lora_targets(model, find_moe_layers(model)[:1], names)[0]


def test_old_names_mean_the_fused_experts_and_the_shared_ones():
    found = targets_of("deepseek", ["q_proj", *OLD_NAMES])
    block = "model.layers.1.mlp"
    fused = {f"{block}.experts.gate_up_proj", f"{block}.experts.down_proj"}
    assert set(found.parameters) == fused | {
        f"{block}.shared_experts.{name}.weight" for name in OLD_NAMES[:3]
    }
    assert found.linears == ("model.layers.1.self_attn.q_proj",)
    assert (found.routers, found.router_weights) == ((f"{block}.gate",), (f"{block}.gate.weight",))


def test_the_router_is_gate_whatever_its_name():
    assert targets_of("gpt_oss", ["gate"]) == targets_of("gpt_oss", ["router"])
    assert targets_of("gpt_oss", ["gate"]).routers == ("model.layers.0.mlp.router",)
    assert targets_of("hunyuan_v1_moe", ["gate"]).router_weights == ("model.layers.0.mlp.gate.wg.weight",)


def test_an_unknown_name_tells_what_there_is():
    with pytest.raises(
        UserError, match=r"has a module 'q_prj': choose from attention, down_proj, gate, gate_proj, .*q_proj"
    ):
        targets_of("olmoe", ["q_prj"])
    with pytest.raises(UserError, match=r"'k_proj': choose from .*kv_a_proj_with_mqa, kv_b_proj, o_proj"):
        targets_of("deepseek_v3", ["k_proj"])


def test_a_layer_of_a_hybrid_may_lack_a_name_but_not_all_layers():
    model = tiny_model("qwen3_next")
    layers = find_moe_layers(model)
    found = lora_targets(model, layers, ["q_proj"])
    assert [len(targets.linears) for targets in found] == [0, 1, 0]
    with pytest.raises(UserError):
        lora_targets(model, layers[:1], ["q_proj"])


@pytest.mark.parametrize("family", FAMILIES_BY_NAME)
def test_every_name_stays_in_its_layer_and_exists(family):
    model = tiny_model(family)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    for layer in find_moe_layers(model):
        (targets,) = lora_targets(model, [layer], OLD_NAMES)
        assert set(targets.linears) | set(targets.routers) <= set(modules)
        assert set(targets.parameters) | set(targets.router_weights) <= set(parameters)
        assert all(f".layers.{layer.layer_id}." in name for kind in targets for name in kind)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_trains_what_is_named_and_nothing_else(family):
    """PEFT rewrites some names for some families; these it must not."""
    model = tiny_model(family)
    last = find_moe_layers(model)[-1]
    (targets,) = lora_targets(model, [last], target_names(model, [last]))
    parameters = [*targets.parameters, *targets.router_weights]
    config = LoraConfig(r=2, target_modules=list(targets.linears), target_parameters=parameters)
    wrapped = get_peft_model(model, config)
    trained = {name for name, weight in wrapped.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * len({*targets.linears, *parameters})
    assert all(f".layers.{last.layer_id}." in name for name in trained)
    assert all(any(f"{shared}." in name for name in trained) for shared in last.shared)


def test_a_linear_that_computes_something_else_gets_no_lora():
    """DeepSeek-V4's `o_a_proj` is block-diagonal: a low-rank product has another shape."""
    model = tiny_model("deepseek_v4")
    layers = find_moe_layers(model)
    names = target_names(model, layers)
    assert "o_b_proj" in names and "o_a_proj" not in names


@pytest.mark.parametrize("names", [["up_proj"], ["q_proj", "gate_proj"]])
def test_half_a_fused_tensor_is_said_to_train_the_whole(names, monkeypatch, capsys):
    monkeypatch.setattr("dwellmoe.log._warned", set())
    assert targets_of("olmoe", names).parameters == ("model.layers.0.mlp.experts.gate_up_proj",)
    assert "gate_up_proj" in capsys.readouterr().err


@pytest.mark.parametrize("names", [["up_proj", "gate_proj"], ["up_proj", "gate_up_proj"], ["down_proj"]])
def test_whole_tensors_need_no_remark(names, monkeypatch, capsys):
    monkeypatch.setattr("dwellmoe.log._warned", set())
    targets_of("olmoe", names)
    assert not capsys.readouterr().err
