"""The balance term: its ends, its mask, and an obvious version."""

import pytest
import torch

from dwellmoe.locality.balance import UsesOfAStep, balance_loss, request_groups

T, E, K = 40, 8, 2


def test_even_use_is_one_and_a_single_expert_is_E():
    even = torch.zeros(T, E)
    chosen = torch.arange(T * K).reshape(T, K) % E
    assert balance_loss(even, chosen).item() == pytest.approx(1.0)
    alone = torch.full((T, E), -50.0)
    alone[:, 3] = 50.0
    assert balance_loss(alone, torch.full((T, 1), 3)).item() == pytest.approx(E, rel=1e-4)


def test_an_empty_slot_is_no_use():
    logits = torch.randn(T, E, generator=torch.Generator().manual_seed(0))
    chosen = logits.topk(K).indices
    alone = balance_loss(logits, chosen[:, :1]).item()
    chosen[:, 1:] = -1
    assert balance_loss(logits, chosen).item() == pytest.approx(alone)


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


def test_each_request_apart_is_the_mean_of_the_requests():
    segments = torch.tensor([[1] * 5 + [2] * 12 + [0] * 3, [1] * 20])
    logits = torch.randn(2, T, E, generator=torch.Generator().manual_seed(0))
    chosen, groups = logits.topk(K).indices, request_groups(segments)
    spans = [slice(0, 5), slice(5, 17), slice(20, 40)]
    expected = [balance_loss(logits[:, span], chosen[:, span]).item() for span in spans]
    found = balance_loss(logits, chosen, segments.flatten() > 0, groups).item()
    assert found == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_a_local_request_costs_nothing_where_the_step_is_balanced():
    """Two micro-batches, each on one half of the experts: unbalanced alone, balanced together."""
    uses = UsesOfAStep(lambda counts: counts)
    logits = torch.full((2, 1, T, E), -9.0)
    logits[0, ..., : E // 2] = logits[1, ..., E // 2 :] = 9.0
    halves = [torch.arange(T * K).reshape(1, T, K) % (E // 2) + begin for begin in (0, E // 2)]
    valid = torch.ones(T, dtype=torch.bool)
    for step in range(2):  # a new step forgets the one before
        counts = [uses.add(step, half, valid, E) for half in halves]
        parts = zip(logits, halves, counts, strict=True)
        terms = [balance_loss(gate, half, valid, None, count).item() for gate, half, count in parts]
        assert terms == pytest.approx([2.0, 1.0], rel=1e-4)
    assert balance_loss(logits[1], halves[1]).item() == pytest.approx(2.0, rel=1e-4)
