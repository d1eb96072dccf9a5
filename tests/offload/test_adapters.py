"""A tuned model computes the same through the cache: LoRA of experts runs beside their weights."""

from typing import cast

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from dwellmoe.families import find_moe_layers, lora_targets
from dwellmoe.loading import BASE, active_variant, load_adapters, load_model, load_model_with_cache
from dwellmoe.offload import Engine, EngineSettings, engine_of
from dwellmoe.settings.model import ModelSettings
from tests.offload.workbench import checkpoint, prompt
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.slow

EXPERTS = ["gate_proj", "up_proj", "down_proj"]
FUSED = ["gate_up_proj", "down_proj"]
NAMES = {
    "gpt_oss": ["q_proj", *FUSED],
    "deepseek_v3": ["q_b_proj", *EXPERTS],
    "inkling2_text": ["q_proj", *FUSED],
    "llama4_text": ["q_proj", *FUSED],
    "longcat_flash": ["q_b_proj", *EXPERTS],
}
FAMILIES = ["olmoe", "qwen2_moe", *NAMES]


def _adapter(family, folder, seed, full_gate=False):
    """A random adapter on attention, experts and gate of all but the last layer."""
    model = tiny_model(family)
    layers = find_moe_layers(model)[:-1]
    names = NAMES.get(family, ["q_proj", *EXPERTS])
    targets = lora_targets(model, layers, [*names, "gate"])
    parameters = [name for target in targets for name in target.parameters]
    routers = [name for target in targets for name in target.router_weights]
    config = LoraConfig(
        r=3,
        lora_alpha=6,
        use_rslora=True,
        init_lora_weights=False,
        target_modules=[name for target in targets for name in target.linears],
        target_parameters=parameters + ([] if full_gate else routers),
        modules_to_save=[name for target in targets for name in target.routers] if full_gate else None,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, config)
    for name, weight in wrapped.named_parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.3) if "lora_" in name else weight.data.mul_(1.1)
    wrapped.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", ["2", "100%"])
def test_variants_through_the_cache(family, budget, tmp_path):
    paths = {name: _adapter(family, tmp_path / name, seed) for seed, name in enumerate(("control", "tuned"))}
    settings = ModelSettings(model_name=str(checkpoint(family)), dtype="float32")
    plain = load_adapters(load_model(settings), paths)
    cached = load_adapters(
        load_model_with_cache(settings, EngineSettings(budget, prefill_buffer=2, readers=2)), paths
    )
    engine: Engine = cast(Engine, engine_of(cached))
    with engine, torch.no_grad():
        logits = []
        for variant in (BASE, "tuned", "control", BASE):
            before = engine.loaded_on_device()
            with active_variant(plain, variant), active_variant(cached, variant):
                assert np.array_equal(engine.loaded_on_device(), before), "no expert moves"
                expected = plain(prompt()).logits
                assert (cached(prompt()).logits - expected).abs().max() <= 1e-5
                options = {"input_ids": prompt(), "max_new_tokens": 5, "do_sample": False}
                assert torch.equal(cached.generate(**options), plain.generate(**options))
                logits.append(expected)
        assert (logits[0] - logits[1]).abs().max() > 1e-2 and torch.equal(logits[0], logits[3])


def test_a_fully_trained_gate(tmp_path):
    paths = {"tuned": _adapter("olmoe", tmp_path, 5, full_gate=True)}
    settings = ModelSettings(model_name=str(checkpoint("olmoe")), dtype="float32")
    plain = load_adapters(load_model(settings), paths)
    cached = load_adapters(load_model_with_cache(settings, EngineSettings("3", readers=1)), paths)
    engine: Engine = cast(Engine, engine_of(cached))
    with engine, torch.no_grad(), active_variant(plain, "tuned"), active_variant(cached, "tuned"):
        assert (cached(prompt()).logits - plain(prompt()).logits).abs().max() <= 1e-5
