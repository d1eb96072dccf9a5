"""What smoothing a gate costs, and how strength is dealt out by it."""

import pytest
import torch

from locality.smoothing_price import LEAST_PRICE, loss_rises, strengths
from models import find_moe_layers, gate_matrix
from tests.tiny_models import tiny_model


def test_strength_is_inverse_to_the_price_and_keeps_its_mean():
    assert strengths(7.0, [0.01, 0.02, 0.04]) == pytest.approx([12.0, 6.0, 3.0])
    assert strengths(3.0, [0.5]) == pytest.approx([3.0])


def test_a_rise_as_small_as_chance_does_not_decide():
    given = strengths(1.0, [0.04, -0.5, 1e-9, 0.04])
    least = LEAST_PRICE * 0.02
    assert given[1] == given[2] == pytest.approx(given[0] * 0.04 / least)
    assert strengths(2.0, [0.0, -1.0]) == pytest.approx([2.0, 2.0])


def test_rises_are_those_of_one_replaced_gate_and_the_model_stays():
    model = tiny_model("olmoe")
    gates = [gate_matrix(model, layer)[1] for layer in find_moe_layers(model)]
    kept = [gate.detach().clone() for gate in gates]
    ids_BT = torch.arange(3, 27).reshape(2, 12)
    batch = {"input_ids": ids_BT, "labels": ids_BT}
    replacements = [kept[0], -kept[1]]
    rises = loss_rises(model, gates[:2], replacements, [batch])
    assert all(torch.equal(gate, before) for gate, before in zip(gates, kept, strict=True))
    with torch.no_grad():
        before = float(model(**batch).loss)
        gates[1].copy_(-kept[1])
        after = float(model(**batch).loss)
    assert rises == pytest.approx([0.0, after - before])
    assert after != before
