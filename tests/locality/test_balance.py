"""The balance term: its ends, its mask, and an obvious version."""

import pytest
import torch

from locality.balance import balance_loss

T, E, K = 40, 8, 2


def test_even_use_is_one_and_a_single_expert_is_E():
    even = torch.zeros(T, E)
    chosen = torch.arange(T * K).reshape(T, K) % E
    assert balance_loss(even, chosen).item() == pytest.approx(1.0)
    alone = torch.full((T, E), -50.0)
    alone[:, 3] = 50.0
    assert balance_loss(alone, torch.full((T, 1), 3)).item() == pytest.approx(E, rel=1e-4)


def test_against_the_formula_a_layer_and_masked():
    logits = torch.randn(3, T, E, generator=torch.Generator().manual_seed(0))
    chosen, valid = logits.topk(K).indices, torch.arange(T) % 3 > 0
    expected = []
    for layer in range(3):
        kept, picks = logits[layer][valid].softmax(-1), chosen[layer][valid]
        share = [(picks == e).sum().item() / picks.numel() for e in range(E)]
        expected.append(E * sum(f * kept[:, e].mean().item() for e, f in enumerate(share)))
    assert balance_loss(logits, chosen, valid).item() == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_gradient_pushes_the_crowded_expert_down():
    logits = torch.zeros(T, E, requires_grad=True)
    with torch.no_grad():
        logits[:, 0] += 1.0
    balance_loss(logits, logits.topk(1).indices).backward()
    assert (logits.grad[:, 0] > 0).all()
