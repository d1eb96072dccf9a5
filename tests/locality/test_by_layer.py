"""Terms computed a layer at a time: the numbers of all layers at once, in three times the logits' memory."""

from typing import Any

import pytest
import torch
from scale.objective_memory import memory_over_logits

from dwellmoe.locality.balance import balance_loss, balance_over_layers
from dwellmoe.locality.by_layer import mean_over_layers
from dwellmoe.locality.objectives import OBJECTIVES, load_objective, objective_names
from dwellmoe.locality.reference_model import gate_kl_loss, mean_kl

L, B, T, E, K = 48, 2, 40, 32, 4
WEIGHT = 0.7
DTYPES = [torch.float32, torch.bfloat16]
BUILT_IN = ["cache_miss", "js", "kl", "l2", "overlap", "pool", "reuse"]


def gates(dtype) -> Any:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(L, B, T, E, generator=generator).to(dtype).requires_grad_()
    mask = torch.rand(B, T - 1, generator=generator) > 0.1
    return logits, logits.detach().topk(K).indices, mask


def value_and_gradient(term, logits) -> Any:
    logits.grad = None
    value = WEIGHT * term(logits)
    value.backward()
    return value.detach(), logits.grad


def assert_same(term, expected, logits):
    """Equal to 1e-6 of the largest, but for the one rounding of a gradient in bfloat16."""
    (value, gradient), (slow, slow_gradient) = (value_and_gradient(each, logits) for each in (term, expected))
    assert value.item() == pytest.approx(slow.item(), rel=1e-6)
    assert gradient.dtype == logits.dtype
    rounding = torch.finfo(logits.dtype).eps if logits.dtype == torch.bfloat16 else 0
    largest = slow_gradient.abs().max().item()
    torch.testing.assert_close(gradient, slow_gradient, rtol=rounding, atol=1e-6 * largest)


def terms(dtype):
    """Name -> (term, the same of all layers at once), of logits."""
    _, chosen, mask = gates(dtype)
    valid = torch.arange(B * T) % 7 > 0
    draw = torch.Generator().manual_seed(1)  # not what the logits were drawn from
    reference = torch.randn(L, B, T, E, generator=draw).to(dtype)
    found: dict[str, Any] = {
        name: (
            lambda z, name=name: load_objective(name)(z, chosen, mask),
            lambda z, name=name: OBJECTIVES.get(name)(z, chosen, mask),
        )
        for name in BUILT_IN
    }
    found["balance"] = (
        lambda z: balance_over_layers(z, chosen, valid),
        lambda z: balance_loss(z.flatten(1, 2), chosen.flatten(1, 2), valid),
    )
    at = valid.view(B, T)
    found["gate_kl"] = (
        lambda z: gate_kl_loss(z, reference, at),
        lambda z: mean_kl(z[:, at], reference[:, at]),
    )
    return found


def test_every_built_in_objective_is_covered():
    assert {*BUILT_IN} == {*OBJECTIVES.names()} - OBJECTIVES.registered_names()
    assert {*BUILT_IN} <= {*objective_names()}


@pytest.mark.parametrize("name", [*BUILT_IN, "balance", "gate_kl"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_term_of_all_layers_at_once_in_three_times_the_logits(name, dtype):
    logits = gates(dtype)[0]
    term, at_once = terms(dtype)[name]
    assert_same(term, at_once, logits)
    assert memory_over_logits(term, logits) <= 3 < memory_over_logits(at_once, logits)


@pytest.mark.parametrize("name", BUILT_IN)
def test_one_tensor_a_layer_is_taken_as_well_and_copied_nowhere(name):
    logits, chosen, mask = gates(torch.float32)
    apart = [layer.detach().clone().requires_grad_() for layer in logits]
    load_objective(name)(logits, chosen, mask).backward()
    load_objective(name)(apart, list(chosen), mask).backward()
    for layer, whole in zip(apart, logits.grad, strict=True):
        assert torch.equal(layer.grad, whole)


SUM = "cache_miss:budget=4+0.5*pool+2.0*js"


@pytest.mark.slow
def test_a_sum_is_that_of_its_objectives_in_the_memory_of_one():
    logits, chosen, mask = gates(torch.float32)

    def apart(z):
        factors = {"cache_miss:budget=4": 1.0, "pool": 0.5, "js": 2.0}
        return sum(factor * load_objective(name)(z, chosen, mask) for name, factor in factors.items())

    def together(z):
        return load_objective(SUM)(z, chosen, mask)

    assert_same(together, apart, logits)
    sums: Any = apart  # of an objective of its own each
    assert memory_over_logits(together, logits) <= 3 < memory_over_logits(sums, logits)


def test_a_sum_with_an_objective_of_all_layers_at_once(monkeypatch):
    def at_once(logits, chosen, mask):
        return logits.float().softmax(-1).diff(dim=-2).abs().sum(-1).mean()

    monkeypatch.setattr(OBJECTIVES, "_registered", {**OBJECTIVES._registered, "at_once": at_once})
    logits, chosen, mask = gates(torch.float32)
    rank = [lambda z: 2 * z] * L
    doubled = OBJECTIVES.get("overlap")(2 * logits, chosen, mask)  # by rank; the other goes by logits
    expected = 0.5 * doubled + 1.5 * at_once(logits, chosen, mask)
    found = load_objective("0.5*overlap+1.5*at_once", rank)(logits, chosen, mask)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_nothing_is_kept_where_no_gradient_is_wanted():
    logits, chosen, mask = gates(torch.float32)
    with torch.no_grad():
        assert not load_objective("js")(logits, chosen, mask).requires_grad
    assert not load_objective("js")(logits.detach(), chosen, mask).requires_grad


def test_a_second_backward_pass_gives_the_same():
    logits = gates(torch.float32)[0]
    value = mean_over_layers(lambda layer: layer.exp().mean(), logits)
    first, second = (torch.autograd.grad(value, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
