"""Settings that cannot work are refused in one line, before anything large is loaded."""

import json
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dwellmoe.errors import UserError
from dwellmoe.offload import EngineSettings, load_with_cache
from dwellmoe.offload.check_settings import check_settings
from dwellmoe.offload.pack import pack
from tests.offload.workbench import checkpoint, engine_of, prompt
from tests.tiny_models import MULTIMODAL, tiny_model, tiny_multimodal


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decode_policy": "opt"}, "--decode_policy opt: .*simulated"),
        ({"decode_policy": "lopt:horizon=2"}, "--decode_policy lopt:horizon=2: .*simulated"),
        ({"decode_policy": "nearest"}, "unknown policy 'nearest': choose from"),
        ({"prefill_policy": "opt"}, "--prefill_policy opt"),
        ({"prefill_handoff": "often"}, "unknown hand-off rule 'often'"),
        ({"expert_budget": "1"}, "--expert_budget 1 leaves 1 slots a layer: a token needs 2 of 8 experts"),
        ({"expert_budget": "10%"}, "--expert_budget 10%"),
        ({"expert_budget": "9"}, "--expert_budget 9: capacity must be 1 to 8"),
        ({"expert_budget": "3 apples"}, "--expert_budget 3 apples: .*slots .8., percent"),
        ({"expert_budget": "1KiB"}, "--expert_budget 1KiB"),
        ({"expert_budget": ""}, "--expert_budget"),
        ({"ram_budget": "4 pears"}, "--ram_budget 4 pears"),
        ({"ram_budget": "0GB"}, "--ram_budget 0GB: .*must be above 0"),
        ({"ram_budget": "1B"}, "--ram_budget 1B: holds no expert"),
        ({"ram_budget": "1KB"}, "--ram_budget 1KB: holds no expert"),
        ({"io": "psychic"}, "--io psychic: choose from direct, buffered"),
        ({"readers": 0}, "--readers 0: must be at least 1"),
        ({"prefill_buffer": 0}, "--prefill_buffer 0"),
        ({"prefetch_budget": -1}, "--prefetch_budget -1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        engine_of("olmoe", **settings)


@pytest.mark.parametrize("name", ["expert_budget", "ram_budget"])
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e999GB", "-1GB", "101%", "4.0", "1TB", "\n", "%"])
def test_a_budget_that_is_no_size_is_refused_before_anything_is_loaded(name, value):
    with pytest.raises(UserError, match=f"--{name} {value}: "):
        check_settings(EngineSettings(**{name: value}))


def test_slots_beyond_the_machines_memory_are_refused(monkeypatch):
    monkeypatch.setattr("dwellmoe.offload.budgets.os.sysconf", lambda name: 100)
    with pytest.raises(UserError, match="this machine has 10,000"):
        engine_of("olmoe")


def test_a_budget_beyond_the_machines_memory_is_said(capsys):
    for name in ("expert_budget", "ram_budget"):
        settings: dict[str, Any] = {name: "1e8GB"}
        engine_of("olmoe", **settings)[1].close()
        assert f"--{name} 1e8GB is more than this machine has" in capsys.readouterr().err


def test_buffers_have_no_more_slots_than_there_are_experts():
    _, engine = engine_of("olmoe", prefill_buffer=60_000, prefetch_budget=60_000)
    with engine:
        assert engine.memory.device_bytes == (3 * 2 + 2 * 3 * 8) * (4 * 3 * 32 * 48 + 4096 + 2048)


@pytest.mark.parametrize(("experts", "chosen"), [(2, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("layers", [1, 2])
def test_few_experts_and_one_layer_run_with_the_default_settings(experts, chosen, layers, tmp_path, capsys):
    sizes = {"num_experts": experts, "num_local_experts": experts, "num_experts_per_tok": chosen}
    model: Any = tiny_model("olmoe", num_hidden_layers=layers, **sizes)
    model.save_pretrained(tmp_path)
    cached: Any
    cached, engine = load_with_cache(str(tmp_path), EngineSettings(prefill_policy="lru"))
    options: Any = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    with engine, torch.no_grad():
        assert engine.budget.capacity == chosen
        found, expected = (
            each.generate(prompt(), return_dict_in_generate=True, **options) for each in (cached, model)
        )
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), rtol=0, atol=1e-6)


def test_a_budget_in_bytes_holds_the_buffers_too():
    slot_bytes = 4 * 3 * 32 * 48 + 4096 + 2048  # a record, room for its offset in a page, whole pages
    budget_bytes = (3 * 3 + 2 + 1) * slot_bytes
    model, engine = engine_of("olmoe", expert_budget=f"{budget_bytes}B", prefill_buffer=2, prefetch_budget=1)
    with engine:
        assert engine.budget.capacity == 3
        assert engine.memory.total_bytes == budget_bytes
        model(prompt())


def test_experts_that_cannot_run_from_a_cache(monkeypatch):
    """Of a class that neither transformers' experts interface nor the engine knows."""
    monkeypatch.setattr("dwellmoe.experts.other_experts.LLAMA4", "")
    with pytest.raises(UserError, match=r"experts' \(Llama4TextExperts\).*experts interface"):
        engine_of("llama4_text")


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("olmoe", {"": torch.float8_e4m3fn}, "is stored as F8_E4M3 without its scales"),
        ("olmoe", {"": torch.uint8}, "is stored as U8, though the configuration names no quantisation"),
        (
            "gpt_oss",
            {"_blocks": torch.uint8},
            "no weights for .*, but '_.*blocks' of it, though the configuration names no quantisation",
        ),
    ],
)
def test_quantised_experts_are_refused(family, change, message, tmp_path):
    folder = shutil.copytree(checkpoint(family), tmp_path / "quantised")
    (suffix, dtype), path = next(iter(change.items())), folder / "model.safetensors"
    weights = {
        name + suffix if ".experts." in name else name: weight.to(dtype) if ".experts." in name else weight
        for name, weight in load_file(path).items()
    }
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(UserError, match=message):
        engine_of(family, folder)


@pytest.mark.parametrize(
    "quantised",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
        {"quant_method": "fp8"},
        {"bits": 4},
    ],
)
@pytest.mark.parametrize("family", ["olmoe", "qwen3_5_moe"])
def test_a_configuration_of_quantised_weights_is_refused(family, quantised, tmp_path):
    if family in MULTIMODAL:
        tiny_multimodal(family).save_pretrained(tmp_path)
    else:
        shutil.copytree(checkpoint(family), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": quantised}))
    method = quantised.get("quant_method", "unknown")
    with pytest.raises(UserError, match=rf"{tmp_path}.*quantised by {method}.*give it in"):
        engine_of(family, tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path}.*quantised by {method}.*give it in"):
        pack(str(tmp_path), tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_a_dense_model_has_no_experts(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no MoE layer"):
        load_with_cache(str(tmp_path), EngineSettings("4"))


def test_a_router_that_gives_nan_is_named():
    model, engine = engine_of("olmoe")
    with engine, torch.no_grad():
        expected = model(prompt()).logits
        gate = model.model.layers[1].mlp.gate
        weight = gate.weight.data.clone()
        gate.weight.data.fill_(torch.nan)
        with pytest.raises(UserError, match="router of MoE layer 1"):
            model(prompt())
        gate.weight.data.copy_(weight)
        assert torch.equal(model(prompt()).logits, expected)


def test_an_expert_that_gives_nan_is_told_from_a_router(tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "layers.0.mlp.experts." in name:
            weight.fill_(torch.nan)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model, engine = engine_of("olmoe", folder)
    with engine, torch.no_grad(), pytest.raises(UserError, match=r"MoE layer 1 .* expert of MoE layer 0"):
        model(prompt())
