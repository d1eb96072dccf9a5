"""Finding MoE layers: plain, wrapped, merged and absent."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dwellmoe.errors import UserError
from dwellmoe.families import expert_bytes, find_moe_layers
from dwellmoe.families.base import unwrap
from dwellmoe.routing import RouterTap
from tests.tiny_models import tiny_model, tiny_multimodal

TOKENS_BT = torch.arange(3, 12)[None]
DBRX = {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0}
GATE = "model.layers.2.mlp.gate"
WRAPPINGS: dict[str, dict[str, Any]] = {
    "lora on the parameter": {"target_modules": [], "target_parameters": [f"{GATE}.weight"]},
    "trained copy": {"target_modules": ["q_proj"], "modules_to_save": [GATE]},
    "lora on the experts": {
        "target_modules": [],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    },
}


def dense_model():
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    return LlamaForCausalLM(config)


def seen_by_tap(model):
    seen = []
    with torch.no_grad(), RouterTap(model, find_moe_layers(model), [seen.append]):
        model(TOKENS_BT)
    return seen


def test_the_parts_of_a_layer():
    first, second = find_moe_layers(tiny_model("qwen2_moe"))
    assert (first.index, first.layer_id, second.index, second.layer_id) == (0, 0, 1, 2)
    assert (second.num_experts, second.top_k) == (8, 2)
    block = "model.layers.2.mlp"
    assert second.block == block
    assert (second.router, second.experts) == (f"{block}.gate", f"{block}.experts")
    assert second.attention == "model.layers.2.self_attn"
    assert second.shared == (f"{block}.shared_expert", f"{block}.shared_expert_gate")


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrapped_router_is_hooked_where_it_is_called(wrapping):
    wrapped = get_peft_model(tiny_model("qwen2_moe"), LoraConfig(r=2, **WRAPPINGS[wrapping]))
    layers = find_moe_layers(wrapped)
    assert [layer.router for layer in layers] == [
        f"base_model.model.model.layers.{at}.mlp.gate" for at in (0, 2)
    ]
    assert [len(seen_by_tap(wrapped)), len(layers)] == [2, 2]
    with wrapped.disable_adapter():
        assert len(seen_by_tap(wrapped)) == 2


def test_the_tap_sees_the_tuned_router_and_with_the_adapter_off_the_old_one():
    plain = tiny_model("olmoe")
    before = seen_by_tap(plain)[-1].logits_TE
    wrapped = get_peft_model(plain, LoraConfig(r=2, **WRAPPINGS["lora on the parameter"]))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=5.0)
    tuned = seen_by_tap(wrapped)[-1].logits_TE
    with wrapped.disable_adapter():
        torch.testing.assert_close(seen_by_tap(wrapped)[-1].logits_TE, before)
    assert not torch.allclose(tuned, before, atol=1e-2)
    merged = wrapped.merge_and_unload()
    assert find_moe_layers(merged) == find_moe_layers(tiny_model("olmoe"))
    torch.testing.assert_close(seen_by_tap(merged)[-1].logits_TE, tuned, atol=1e-4, rtol=1e-4)


def test_layers_found_before_wrapping_still_lead_to_the_wrapped_router():
    plain = tiny_model("olmoe")
    layers = find_moe_layers(plain)
    get_peft_model(plain, LoraConfig(r=2, **WRAPPINGS["lora on the parameter"]))
    assert unwrap(plain.get_submodule(layers[-1].router)) is not plain.get_submodule(layers[-1].router)


def test_any_container_of_the_model_will_do():
    model = nn.ModuleDict({"module": tiny_model("olmoe")})
    assert find_moe_layers(model)[0].router == "module.model.layers.0.mlp.gate"


def test_a_dense_model_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^model 'llama' \(LlamaForCausalLM\) has no MoE layer: .*$"):
        find_moe_layers(dense_model())


def test_the_expected_block_name_is_checked():
    model = tiny_model("granitemoe")
    assert len(find_moe_layers(model, "block_sparse_moe")) == 3
    with pytest.raises(UserError, match=r"no MoE block is called 'mlp' .*: choose from block_sparse_moe"):
        find_moe_layers(model, "mlp")


def test_bytes_of_an_expert_count_its_biases():
    for family, floats in (("olmoe", 3 * 48 * 32), ("gpt_oss", 3 * 48 * 32 + 2 * 48 + 32)):
        model = tiny_model(family)
        assert expert_bytes(model, find_moe_layers(model)[0]) == 4 * floats
        assert expert_bytes(model.bfloat16(), find_moe_layers(model)[0]) == 2 * floats


def test_more_experts_chosen_than_there_are_is_reported():
    with pytest.raises(UserError, match="layer 0 chooses 9 of its 8 experts"):
        find_moe_layers(tiny_model("olmoe", num_experts_per_tok=9))


@pytest.mark.parametrize(
    ("family", "options", "kind"),
    [
        ("jetmoe", {}, "JetMoeMoE"),
        ("doge", {"is_moe": True}, "DogeCDMoE"),
        ("dbrx", {"d_model": 32, "n_heads": 4, "n_layers": 2, "attn_config": DBRX}, "DbrxExperts"),
    ],
)
def test_experts_of_another_shape_are_refused_by_name(family, options, kind):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options))
    with pytest.raises(UserError, match=rf"has experts of a shape that is not supported \({kind}\)"):
        find_moe_layers(model)


def test_a_single_expert_is_refused():
    with pytest.raises(UserError, match="layer 0 has a single expert"):
        find_moe_layers(tiny_model("qwen2_moe", num_experts=1, num_experts_per_tok=1))


def test_blocks_that_no_text_passes_are_no_moe_layers():
    model = tiny_multimodal("ernie4_5_vl_moe")
    assert any("vision_moe" in name for name, _ in model.named_modules())
    layers = find_moe_layers(model)
    assert [layer.layer_id for layer in layers] == sorted({layer.layer_id for layer in layers})
    assert all(layer.block.endswith("text_moe") for layer in layers)
