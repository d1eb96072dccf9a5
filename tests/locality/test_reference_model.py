"""The reference model inside the trained one, and the distances from it."""

import pytest
import torch

from dwellmoe.families import find_moe_layers
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora
from dwellmoe.locality.reference_model import as_reference, distillation_loss, gate_kl_loss
from tests.tiny_models import tiny_model

IDS = torch.arange(3, 13)[None]


def trained_model():
    """A model whose LoRA and whose fully trained gates have moved away from the start."""
    plain = tiny_model("olmoe")
    expected = plain(IDS).logits
    model = add_elastic_lora(plain, find_moe_layers(plain), LoraShape(rank=2, extra=("gate",)))
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.3)
    return model.train(), expected


def test_the_reference_is_the_model_before_training_and_leaves_no_trace():
    model, expected = trained_model()
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    with as_reference(model):
        found = model(IDS).logits
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    assert model.training
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == trainable
    assert not torch.allclose(model(IDS).logits, expected, atol=1e-3)


def kl(p, q):
    return (p * (p / q).log()).sum().item()


def test_distillation_is_the_divergence_where_a_label_is_predicted():
    ours, theirs = torch.randn(2, 2, 5, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, -100, 3, 4, -100], [-100, 1, -100, -100, -100]])
    places = [(0, 1), (0, 2), (1, 0)]
    terms = [kl(theirs[place].softmax(-1), ours[place].softmax(-1)) for place in places]
    assert distillation_loss(ours, theirs, labels).item() == pytest.approx(sum(terms) / 3, rel=1e-4)
    assert distillation_loss(ours, theirs, labels.fill_(-100)) == 0


def test_gate_kl_is_the_mean_over_layers_and_valid_tokens():
    ours, theirs = torch.randn(2, 3, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[True, True, False, False], [True, False, False, False]])
    places = [(layer, *at) for layer in range(3) for at in ((0, 0), (0, 1), (1, 0))]
    terms = [kl(theirs[place].softmax(-1), ours[place].softmax(-1)) for place in places]
    assert gate_kl_loss(ours, theirs, valid).item() == pytest.approx(sum(terms) / 9, rel=1e-4)
    assert gate_kl_loss(ours, ours, valid).item() == pytest.approx(0, abs=1e-6)
