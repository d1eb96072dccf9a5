"""Multimodal checkpoints, as they are published: trained, saved, loaded, merged as models of text."""

from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from dwellmoe.errors import UserError
from dwellmoe.export.merged import save_merged
from dwellmoe.families import find_moe_layers
from dwellmoe.loading import load_adapters, load_model, load_model_with_cache
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora
from dwellmoe.locality.loss import LocalityLoss
from dwellmoe.offload.io.shards import find_shards
from dwellmoe.settings.engine import EngineSettings
from dwellmoe.settings.model import ModelSettings
from tests.data.stand_ins import word_tokenizer
from tests.tiny_models import MULTIMODAL, WHOLE_MULTIMODAL, tiny_multimodal

pytestmark = pytest.mark.slow

TOKENS_BT = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=TOKENS_BT, use_cache=False).logits


def trained(model):
    """The model after one large step of the language-model loss and the locality loss."""
    model = add_elastic_lora(model, find_moe_layers(model), LoraShape(rank=2)).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    with LocalityLoss(model, "cache_miss:budget=50%") as locality:
        loss = model(input_ids=TOKENS_BT, labels=TOKENS_BT, use_cache=False).loss
        (loss + locality({"input_ids": TOKENS_BT})).backward()
    assert all(weight.grad is not None for weight in weights)
    torch.optim.SGD(weights, lr=1.0).step()
    return model


@pytest.mark.parametrize("family", [*MULTIMODAL, *WHOLE_MULTIMODAL])
def test_a_multimodal_checkpoint_is_trained_and_saved_as_a_model_of_text(family, tmp_path):
    published = tiny_multimodal(family)
    published.save_pretrained(tmp_path / "base", max_shard_size="100KB")
    settings = ModelSettings(model_name=str(tmp_path / "base"))
    model = load_model(settings)
    assert torch.allclose(logits(model), logits(published), atol=1e-5)
    assert not any("vision" in layer.block for layer in find_moe_layers(model))
    model = trained(model)
    tuned = logits(model)
    assert not torch.allclose(tuned, logits(published), atol=1e-4)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_adapters(load_model(settings), {"tuned": str(tmp_path / "adapter")})
    torch.testing.assert_close(logits(loaded), tuned, atol=1e-5, rtol=0)
    save_merged(model, word_tokenizer(), tmp_path / "merged", settings)
    merged: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert type(merged) is type(published), "the whole model, with its part for images"
    assert torch.allclose(logits(merged), tuned, atol=1e-5)
    before, after = find_shards(str(tmp_path / "base")), find_shards(str(tmp_path / "merged"))
    assert before.tensors.keys() == after.tensors.keys()
    kept = [name for name in published.state_dict() if "vision" in name or "visual" in name]
    assert kept and all(torch.equal(merged.state_dict()[name], published.state_dict()[name]) for name in kept)


@pytest.mark.parametrize("engine", [None, EngineSettings(expert_budget="50%")])
def test_a_model_that_writes_by_diffusion_is_named(engine, tmp_path):
    CONFIG_MAPPING["diffusion_gemma"]().save_pretrained(tmp_path)
    save_file({"any.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    settings = ModelSettings(model_name=str(tmp_path))
    with pytest.raises(UserError, match=r"DiffusionGemmaForBlockDiffusion.*no causal language model"):
        load_model_with_cache(settings, engine) if engine else load_model(settings)
