"""Every MoE family that the installed transformers has: found by itself, then trained, saved, loaded and
evaluated. tests/offload/test_every_family.py runs each with its experts in a cache.
"""

from typing import Any

import pytest
import torch

from dwellmoe.experts import use_expert_lora
from dwellmoe.families import find_moe_layers
from dwellmoe.loading import load_adapters, load_model
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora
from dwellmoe.locality.loss import LocalityLoss
from dwellmoe.routing.record import record
from dwellmoe.settings.model import ModelSettings
from tests.data.stand_ins import word_tokenizer, words
from tests.every_family import NOT_CHECKED, made, moe_families

TOKENS_BT = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(1))
TEXTS = [words(3, 9), words(20, 5)]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=TOKENS_BT, use_cache=False).logits


def train_a_step(model: Any) -> None:
    """A large step of the language-model and the locality loss, which must reach every trained tensor."""
    weights = [weight for weight in model.train().parameters() if weight.requires_grad]
    with LocalityLoss(model, "cache_miss:budget=50%") as locality:
        loss = model(input_ids=TOKENS_BT, labels=TOKENS_BT, use_cache=False).loss
        (loss + locality({"input_ids": TOKENS_BT})).backward()
    assert all(weight.grad is not None for weight in weights)
    torch.optim.SGD(weights, lr=0.1).step()


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in moe_families() if name not in NOT_CHECKED])
def test_a_family_trains_and_evaluates(family, tmp_path):
    published, base, adapter = made(family), str(tmp_path / "base"), str(tmp_path / "adapter")
    published.save_pretrained(base)
    settings = ModelSettings(model_name=base)
    model = load_model(settings)
    before = logits(model)
    torch.testing.assert_close(before, logits(published), atol=1e-5, rtol=0)

    trained = add_elastic_lora(model, find_moe_layers(model), LoraShape(rank=2))
    use_expert_lora(trained)
    train_a_step(trained)
    tuned = logits(trained)
    assert not torch.equal(tuned, before)
    trained.save_pretrained(adapter)
    loaded = load_adapters(load_model(settings), {"tuned": adapter})
    assert torch.equal(logits(loaded), tuned)

    layers = find_moe_layers(loaded)
    trace = record(loaded, word_tokenizer(), TEXTS)
    assert trace.experts.shape[1:] == (len(layers), layers[0].top_k)


def test_the_list_of_families_left_out_is_true():
    assert set(NOT_CHECKED) <= set(moe_families()), "a family that is gone, or has become another name"
