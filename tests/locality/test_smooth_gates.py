"""Gates refitted in closed form: against least squares over every pair, and what a strength does."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from dwellmoe.families import find_moe_layers, gate_matrix
from dwellmoe.locality.smooth_gates import InputMoments, set_gates, smoothed_gates
from dwellmoe.routing import RouterTap
from tests.tiny_models import FAMILIES, tiny_model

SEGMENTS_BT = torch.tensor([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0], [3, 3, 3, 3, 3, 3, 3, 3, 3, 3]])


def text(tokens: int = 10) -> dict:
    """A batch of two rows: two requests and padding, and one request."""
    draw = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(3, 60, (2, tokens), generator=draw)
    return {"input_ids": ids_BT, "labels": ids_BT.clone(), "segment_ids": SEGMENTS_BT}


def moments_of(x_BTD, valid_BT, mask_BP):
    moments = InputMoments(x_BTD.shape[-1], x_BTD.device)
    moments.add(x_BTD, valid_BT, mask_BP)
    return moments


def by_least_squares(weight_ED, x_BTD, valid_BT, mask_BP, strength):
    """The same gate from one tall system: a row a token, a pair and a ridge; then the old spread."""
    x_BTD, weight_ED = x_BTD.double(), weight_ED.double()
    tokens = torch.stack([x_BTD[b, t] for b, t in valid_BT.nonzero().tolist()])
    pairs = torch.stack([x_BTD[b, t + 1] - x_BTD[b, t] for b, t in mask_BP.nonzero().tolist()])
    ridge = (1e-3 * tokens.square().mean()).sqrt() * torch.eye(x_BTD.shape[-1], dtype=torch.float64)
    rows = [tokens / len(tokens) ** 0.5, pairs * (strength / len(pairs)) ** 0.5, ridge]
    wanted = [rows[0] @ weight_ED.T, torch.zeros(len(pairs), len(weight_ED)), ridge @ weight_ED.T]
    found = torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted)).solution.T
    before, after = (tokens @ (matrix - matrix.mean(0)).T for matrix in (weight_ED, found))
    return found * (before.square().sum() / after.square().sum()).sqrt()


@pytest.mark.parametrize("strength", [0.3, 4.0, 100.0])
def test_it_is_the_least_squares_gate(strength):
    draw = torch.Generator().manual_seed(0)
    x_BTD, weight_ED = torch.randn(2, 10, 6, generator=draw), torch.randn(4, 6, generator=draw)
    valid_BT = SEGMENTS_BT > 0
    mask_BP = (SEGMENTS_BT[:, 1:] == SEGMENTS_BT[:, :-1]) & valid_BT[:, 1:]
    smoothed = moments_of(x_BTD, valid_BT, mask_BP).smoothed(weight_ED, strength)
    expected = by_least_squares(weight_ED, x_BTD, valid_BT, mask_BP, strength)
    torch.testing.assert_close(smoothed.double(), expected, rtol=1e-4, atol=1e-5)


def test_no_strength_changes_nothing_and_unseen_directions_stay():
    weight_ED = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    x_BTD = torch.zeros(1, 8, 6)
    x_BTD[..., :3] = torch.randn(1, 8, 3, generator=torch.Generator().manual_seed(1))
    everywhere = torch.ones(1, 8, dtype=torch.bool)
    moments = moments_of(x_BTD, everywhere, everywhere[:, 1:])
    torch.testing.assert_close(moments.smoothed(weight_ED, 0.0), weight_ED)
    smoothed = moments.smoothed(weight_ED, 5.0)
    scale = smoothed[:, 3:] / weight_ED[:, 3:]
    torch.testing.assert_close(scale, scale.mean().expand_as(scale))
    assert not torch.allclose(smoothed[:, :3], weight_ED[:, :3] * scale.mean())


def roughness(model, layers) -> list[float]:
    """Mean squared change of each gate's logits over their variance, on the batch's consecutive tokens."""
    batch = text()
    inputs = {name: value for name, value in batch.items() if name != "segment_ids"}
    seen = []
    with torch.no_grad(), RouterTap(model, layers, [seen.append]):
        model(**inputs)
    mask_BP = (SEGMENTS_BT[:, 1:] == SEGMENTS_BT[:, :-1]) & (SEGMENTS_BT[:, 1:] > 0)
    logits = [message.logits_TE.unflatten(0, SEGMENTS_BT.shape) for message in seen]
    return [
        float((z[:, 1:] - z[:, :-1])[mask_BP].square().sum() / z[SEGMENTS_BT > 0].square().sum())
        for z in logits
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_smoother(family):
    model = tiny_model(family)
    layers = find_moe_layers(model)
    weights = smoothed_gates(model, layers[:1], [text()], 20.0)
    before = roughness(model, layers)[0]
    gate_matrix(model, layers[0])[1].requires_grad_(True)
    set_gates(model, weights)
    assert roughness(model, layers)[0] < before


def test_only_the_trained_copy_changes():
    plain = tiny_model("qwen2_moe")
    layers = find_moe_layers(plain)
    weights = smoothed_gates(plain, layers, [text()], 4.0)
    names = [layer.router for layer in layers]
    adapted = get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=names))
    set_gates(adapted, weights)
    inputs = {"input_ids": text()["input_ids"]}
    with torch.no_grad():
        on = adapted(**inputs).logits
        with adapted.disable_adapter():
            off = adapted(**inputs).logits
        untouched = tiny_model("qwen2_moe")(**inputs).logits
    torch.testing.assert_close(off, untouched)
    assert not torch.allclose(on, untouched)
