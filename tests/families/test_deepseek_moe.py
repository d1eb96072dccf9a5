"""DeepSeek-MoE-16B's architecture against a slow, obvious one, and its files against the published names."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers
from dwellmoe.families.deepseek_moe import DeepseekConfig, DeepseekForCausalLM
from tests.tiny_models import tiny_model

TOKENS_BT = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))
# config.json of the published checkpoint, shrunk.
PUBLISHED = {
    "architectures": ["DeepseekForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekConfig",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM",
    },
    "aux_loss_alpha": 0.001,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "model_type": "deepseek",
    "moe_intermediate_size": 16,
    "moe_layer_freq": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.36.0",
    "use_cache": True,
    "vocab_size": 64,
}


def published_weights():
    """Random tensors under the names and shapes of the published checkpoint."""
    generator = torch.Generator().manual_seed(0)
    hidden, dense, expert, vocab = 32, 48, 16, 64
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(3):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"{name}.{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        shapes |= (
            mlp_shapes(f"{name}.mlp", hidden, dense)
            if layer == 0
            else moe_shapes(f"{name}.mlp", hidden, expert)
        )
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def mlp_shapes(name, hidden, width):
    up = {f"{name}.{part}_proj.weight": (width, hidden) for part in ("gate", "up")}
    return up | {f"{name}.down_proj.weight": (hidden, width)}


def moe_shapes(name, hidden, width):
    shapes = mlp_shapes(f"{name}.shared_experts", hidden, 2 * width) | {f"{name}.gate.weight": (8, hidden)}
    for expert in range(8):
        shapes |= mlp_shapes(f"{name}.experts.{expert}", hidden, width)
    return shapes


def write_checkpoint(folder, weights, shards=1, **config):
    """A folder as the hub has it: one file, or shards with an index."""
    (folder / "config.json").write_text(json.dumps(PUBLISHED | config))
    if shards == 1:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return
    files = [f"model-{at + 1:05}-of-{shards:05}.safetensors" for at in range(shards)]
    places = {
        name: files[at % shards] for at, name in enumerate(sorted(weights))
    }  # experts of a layer torn apart
    for file in files:
        save_file(
            {name: weights[name] for name in weights if places[name] == file}, folder / file, {"format": "pt"}
        )
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def slow_mlp(weights, name, x):
    up = nn.functional.silu(x @ weights[f"{name}.gate_proj.weight"].T) * (
        x @ weights[f"{name}.up_proj.weight"].T
    )
    return up @ weights[f"{name}.down_proj.weight"].T


def slow_moe(weights, name, x_TD, renormalise=False):
    """The block token by token and expert by expert, out of the published tensors."""
    rows = []
    for x in x_TD:
        scores = torch.softmax(weights[f"{name}.gate.weight"] @ x, dim=0)
        chosen = sorted(range(8), key=lambda expert: -scores[expert])[:2]
        total = sum(scores[expert] for expert in chosen) if renormalise else 1.0
        routed = sum(scores[e] / total * slow_mlp(weights, f"{name}.experts.{e}", x) for e in chosen)
        rows.append(routed + slow_mlp(weights, f"{name}.shared_experts", x))
    return torch.stack(rows)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_loads_published_names_and_computes_the_block(tmp_path, shards, implementation):
    weights = published_weights()
    write_checkpoint(tmp_path, weights, shards)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, experts_implementation=implementation, output_loading_info=True
    )
    model, report = loaded
    assert type(model) is DeepseekForCausalLM and model.config._experts_implementation == implementation
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    x_BTD = torch.randn(2, 5, 32)
    for layer in find_moe_layers(model):
        found = model.get_submodule(layer.block)(x_BTD)
        torch.testing.assert_close(found.flatten(0, 1), slow_moe(weights, layer.block, x_BTD.flatten(0, 1)))


def test_renormalises_when_configured_to(tmp_path):
    weights = published_weights()
    write_checkpoint(tmp_path, weights, norm_topk_prob=True)
    block = AutoModelForCausalLM.from_pretrained(tmp_path).get_submodule("model.layers.1.mlp")
    x_TD = torch.randn(5, 32)
    expected = slow_moe(weights, "model.layers.1.mlp", x_TD, renormalise=True)
    torch.testing.assert_close(block(x_TD[None])[0], expected)


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_writes_the_published_names_back(tmp_path, shard_size):
    weights = published_weights()
    write_checkpoint(tmp_path, weights)
    AutoModelForCausalLM.from_pretrained(tmp_path).save_pretrained(
        tmp_path / "again", max_shard_size=shard_size
    )
    written = {}
    for file in (tmp_path / "again").glob("*.safetensors"):
        written |= load_file(file)
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[name], weight) for name, weight in weights.items())
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    kept = PUBLISHED.keys() - {
        "auto_map",
        "torch_dtype",
        "transformers_version",
        "rope_theta",
        "rope_scaling",
    }
    assert {name: config[name] for name in kept} == {name: PUBLISHED[name] for name in kept}
    assert config["rope_parameters"]["rope_theta"] == 10000 and "auto_map" not in config


def test_code_that_a_checkpoint_names_is_never_asked_for(tmp_path):
    write_checkpoint(tmp_path, published_weights())
    assert type(AutoConfig.from_pretrained(tmp_path)) is DeepseekConfig
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is DeepseekForCausalLM


def test_first_layers_are_dense_and_frequency_is_obeyed():
    assert [layer.layer_id for layer in find_moe_layers(tiny_model("deepseek"))] == [1, 2]
    model = tiny_model("deepseek", num_hidden_layers=5, moe_layer_freq=2)
    assert [layer.layer_id for layer in find_moe_layers(model)] == [2, 4]


def test_cache_and_generate_agree_with_the_whole_pass():
    model: Any = tiny_model("deepseek")
    sequences = model.generate(TOKENS_BT, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    whole = model(sequences[:, :-1]).logits[:, TOKENS_BT.shape[1] - 1 :]
    blocked = whole.index_fill(-1, torch.tensor([2]), float("-inf"))  # min_new_tokens forbids the end
    assert torch.equal(blocked.argmax(-1), sequences[:, TOKENS_BT.shape[1] :])


def test_implementations_agree_and_bf16_is_near():
    model = tiny_model("deepseek")
    logits = {}
    for name in ("eager", "grouped_mm", "batched_mm"):
        model.set_experts_implementation(name)
        logits[name] = model(TOKENS_BT).logits
    torch.testing.assert_close(logits["eager"], logits["grouped_mm"])
    torch.testing.assert_close(logits["eager"], logits["batched_mm"])
    assert model.bfloat16()(TOKENS_BT).logits.isfinite().all()


def test_checkpointing_keeps_the_gradients():
    plain, saving = tiny_model("deepseek").train(), tiny_model("deepseek").train()
    saving.activation_checkpointing_enable()
    for model in (plain, saving):
        model(TOKENS_BT, labels=TOKENS_BT, use_cache=False).loss.backward()
    for weight, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad)


@pytest.mark.parametrize(("field", "value"), [("scoring_func", "sigmoid"), ("n_shared_experts", 0)])
def test_what_the_block_does_not_compute_is_refused(field, value):
    with pytest.raises(UserError, match=f"{field} is '?{value}"):
        DeepseekConfig(**{field: value})
