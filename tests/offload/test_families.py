"""Families that need something of the engine beyond the common shape: the same logits as in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dwellmoe.loading import load_model
from dwellmoe.offload import EngineSettings, load_with_cache
from dwellmoe.offload.pack import pack
from dwellmoe.settings.model import ModelSettings
from tests.offload.workbench import checkpoint, prompt
from tests.tiny_models import MULTIMODAL, WHOLE_MULTIMODAL, tiny_multimodal

pytestmark = pytest.mark.slow

TOLERANCE = 1e-6
UNCOMMON = ("inkling2_text", "llama4_text", "longcat_flash")
SETTINGS = {
    "half": {},
    "all": {"expert_budget": "100%"},
    "RAM tier": {"expert_budget": "3", "ram_budget": "6", "prefill_buffer": 2},
    "prompts shared": {"expert_budget": "4", "prefill_handoff": "shared", "prefetch_budget": 0},
    "another predictor": {"prefetch_predictor": "transition", "expert_budget": "3"},
    "placed": {
        "decode_policy": "placement",
        "placement_predictor": "gate_ahead",
        "expert_budget": "3",
        "ram_budget": "6",
    },
}


def check_same(folder: Path, **settings: Any) -> None:
    """Logits of prompts, and of tokens that are decoded alone and side by side."""
    in_memory: Any = load_model(ModelSettings(model_name=str(folder), dtype="float32")).eval()
    given = EngineSettings(**{"expert_budget": "50%", **settings})
    model, engine = load_with_cache(str(folder), given, dtype=torch.float32)
    run: Any = model
    options: Any = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "pad_token_id": 0}
    with engine, torch.no_grad():
        for rows in (1, 2):
            found, expected = (
                each.generate(prompt(rows=rows), return_dict_in_generate=True, **options)
                for each in (run, in_memory)
            )
            torch.testing.assert_close(
                torch.stack(found.logits), torch.stack(expected.logits), rtol=0, atol=TOLERANCE
            )
        assert engine.statistics.decode.tokens


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("family", UNCOMMON)
def test_experts_of_another_shape(family, settings):
    check_same(checkpoint(family), **settings)


@pytest.mark.parametrize("family", UNCOMMON)
def test_experts_that_are_converted_while_they_are_read(family):
    """bfloat16 on disk, float32 in the slots."""
    check_same(checkpoint(family, torch.bfloat16))


@pytest.mark.parametrize("family", UNCOMMON)
def test_a_pack_of_experts_of_another_shape(family, tmp_path):
    pack(str(checkpoint(family)), tmp_path)
    check_same(checkpoint(family), packed=str(tmp_path))


def test_a_token_whose_experts_all_compute_nothing():
    """LongCat's router may choose those of its experts alone that return their input."""
    folder = checkpoint("longcat_flash", zero_expert_num=30)
    check_same(folder)


@pytest.mark.parametrize("family", sorted({*MULTIMODAL, *WHOLE_MULTIMODAL}))
def test_a_multimodal_checkpoint_runs_on_text(family, tmp_path):
    tiny_multimodal(family).save_pretrained(tmp_path / "model")
    check_same(tmp_path / "model")
    pack(str(tmp_path / "model"), tmp_path / "pack")
    check_same(tmp_path / "model", packed=str(tmp_path / "pack"))


@pytest.mark.parametrize("settings", [{}, {"expert_budget": "100%"}, {"ram_budget": "6"}])
def test_experts_that_are_stored_transposed(settings, tmp_path):
    """As Qwen3-VL-MoE is published."""
    tiny_multimodal("qwen3_vl_moe").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    turned = {
        name: weight.transpose(1, 2).contiguous() if name.endswith("experts.down_proj") else weight
        for name, weight in weights.items()
    }
    for stored in (weights, turned):
        save_file(stored, path, {"format": "pt"})
        check_same(tmp_path, **settings)
