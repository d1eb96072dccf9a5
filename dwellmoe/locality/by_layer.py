"""The mean of a term over layers, worked out one layer at a time, so that memory for it is that of one layer.

A term over all layers at once keeps every step of its formula in float32 for the backward pass, which is up
to twenty times the gate logits. Here each layer's gradient is formed with its value, and only that is kept:
once the logits' size in float32.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

Layers = Tensor | Sequence[Tensor]
"""A tensor for each layer, or those stacked: [L, ...]."""
Rank = Callable[[Tensor], Tensor]
"""Logits of one layer -> what its router ranks its experts by."""
ObjectiveOfLayers = Callable[[Layers, Layers, Tensor], Tensor]


def one_by_one(
    loss: Callable, ranks: Sequence[Rank] | None, logits: Layers, chosen: Layers, mask_BP: Tensor
) -> Tensor:
    """A locality objective over layers, computed one layer at a time."""

    def of_layer(logits_BTE: Tensor, chosen_BTK: Tensor, rank: Rank) -> Tensor:
        return loss(rank(logits_BTE)[None], chosen_BTK[None], mask_BP)

    return mean_over_layers(of_layer, logits, chosen, ranks or [_unchanged] * len(logits))


def all_at_once(
    loss: Callable, ranks: Sequence[Rank] | None, logits: Layers, chosen: Layers, mask_BP: Tensor
) -> Tensor:
    """A locality objective over layers, given all of them in one tensor."""
    if ranks:
        logits = [rank(logits_BTE) for rank, logits_BTE in zip(ranks, logits, strict=True)]
    return loss(_stacked(logits), _stacked(chosen), mask_BP)


def _unchanged(logits_BTE: Tensor) -> Tensor:
    return logits_BTE


def _stacked(layers: Layers) -> Tensor:
    return layers if isinstance(layers, Tensor) else torch.stack([*layers])


def mean_over_layers(term: Callable[..., Tensor], logits: Iterable[Tensor], *others: Iterable[Any]) -> Tensor:
    """The mean over layers of `term(logits of the layer in float32, *others of the layer)`, each a scalar.

    Only the logits get a gradient. `others` hold a value for each layer, and may be tensors [L, ...].
    """
    return torch.stack([_of_layer(term, *layer) for layer in zip(logits, *others, strict=True)]).mean()


def _of_layer(term: Callable[..., Tensor], logits: Tensor, *others: Any) -> Tensor:
    if torch.is_grad_enabled() and logits.requires_grad:
        return _WithGradient.apply(logits, lambda logits: term(logits, *others))  # pyright: ignore
    return term(logits.float(), *others)


class _WithGradient(Function):
    """A scalar function of one tensor whose gradient is formed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, term: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = logits.detach().float().requires_grad_()
        with torch.enable_grad():
            value = term(leaf)
            (gradient,) = torch.autograd.grad(value, leaf)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(gradient)
        return value.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        (gradient,) = ctx.saved_tensors
        return (factor * gradient).to(ctx.dtype), None
