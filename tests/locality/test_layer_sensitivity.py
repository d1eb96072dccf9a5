"""How much the loss depends on a gate, and the strength that follows from it."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from dwellmoe.families import find_moe_layers, gate_matrix
from dwellmoe.locality.layer_sensitivity import LEAST_SENSITIVITY, sensitivities, strengths
from tests.tiny_models import tiny_model


def test_strength_is_inverse_to_the_sensitivity_and_keeps_its_mean():
    assert strengths(7.0, [0.01, 0.02, 0.04]) == pytest.approx([12.0, 6.0, 3.0])
    assert strengths(3.0, [0.5]) == pytest.approx([3.0])


def test_an_insensitive_layer_does_not_take_all():
    given = strengths(1.0, [0.04, 0.0, 1e-9, 0.04])
    least = LEAST_SENSITIVITY * 0.02
    assert given[1] == given[2] == pytest.approx(given[0] * 0.04 / least)
    assert strengths(2.0, [0.0, 0.0]) == pytest.approx([2.0, 2.0])


def summed_loss(model, ids_BT) -> float:
    """In float64, where the model's own loss is rounded to float32."""
    logits_BTV = model(input_ids=ids_BT).logits[:, :-1].double()
    return float(cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum"))


def test_a_sensitivity_is_the_squared_slope_of_a_batch_along_the_change():
    model = tiny_model("olmoe").double().requires_grad_(False)
    model.set_experts_implementation("eager")
    gates = [gate_matrix(model, layer)[1] for layer in find_moe_layers(model)][:2]
    names = {id(weight): name for name, weight in model.named_parameters()}
    kept = [gate.detach().clone() for gate in gates]
    draw = torch.Generator().manual_seed(0)
    changes = [torch.randn(gate.shape, generator=draw) for gate in gates]
    batches = []
    for rows in (1, 2):
        ids_BT = torch.randint(3, 60, (rows, 12), generator=draw)
        batches.append({"input_ids": ids_BT, "labels": ids_BT})
    found = sensitivities(
        model, {names[id(gate)]: change for gate, change in zip(gates, changes, strict=True)}, batches
    )
    assert all(torch.equal(gate, before) for gate, before in zip(gates, kept, strict=True))
    expected = []
    for gate, before, change in zip(gates, kept, changes, strict=True):
        squares = 0.0
        for batch in batches:
            ends = []
            for step in (1e-4, -1e-4):
                gate.copy_(before + step * change)
                ends.append(summed_loss(model, batch["input_ids"]))
            squares += ((ends[0] - ends[1]) / 2e-4) ** 2 / 2
        gate.copy_(before)
        expected.append(squares / 33)
    assert found == pytest.approx(expected, rel=0.05)
    assert min(found) > 0
