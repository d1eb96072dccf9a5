"""Knows what smoothing each gate alone costs in loss, and deals out strength by it; smooths nothing.

Letters: L layers that are smoothed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

LEAST_PRICE = 0.25
"""Of the mean price: a rise as small as chance must not decide."""


@torch.no_grad()
def loss_rises(
    model: nn.Module, gates: Sequence[nn.Parameter], smoothed: Sequence[Tensor], batches: Sequence[dict]
) -> list[float]:
    """Rise of the mean loss of the batches (inputs of the model) with one gate after the other replaced."""
    before = _mean_loss(model, batches)
    return [
        _loss_with(model, *replaced, batches) - before
        for replaced in tqdm(
            zip(gates, smoothed, strict=True), desc="price of a layer", total=len(gates), disable=None
        )
    ]


def _loss_with(model: nn.Module, gate: nn.Parameter, weight: Tensor, batches: Sequence[dict]) -> float:
    kept = gate.clone()
    gate.copy_(weight)
    try:
        return _mean_loss(model, batches)
    finally:
        gate.copy_(kept)


def _mean_loss(model: Any, batches: Sequence[dict]) -> float:
    return sum(float(model(**batch).loss) for batch in batches) / len(batches)


def strengths(strength: float, rises: Sequence[float]) -> list[float]:
    """The strength of each layer, in inverse proportion to its rise; their mean is the asked one.

    A layer's cost grows with the square of what it gives up, so that the least cost of a whole asks of each
    layer in inverse proportion to its price.
    """
    price_L = torch.tensor(rises, dtype=torch.float64).clamp(min=0)
    share_L = price_L.clamp(min=max(LEAST_PRICE * price_L.mean().item(), 1e-12)).reciprocal()
    return (strength * share_L / share_L.mean()).tolist()
