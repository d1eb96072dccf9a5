"""The mean of a term over layers, worked out one layer at a time, so that memory for it is that of one layer.

A term over all layers at once keeps every step of its formula in float32 for the backward pass, which is up
to twenty times the gate logits. Here each layer's gradient is formed with its value, and only that is kept:
once the logits' size in float32.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

Layers = Tensor | Sequence[Tensor]
"""A tensor for each layer, or those stacked: [L, ...]."""
Rank = Callable[[Tensor], Tensor]
"""Logits of one layer -> what its router ranks its experts by."""
ObjectiveOfLayers = Callable[[Layers, Layers, Tensor], Tensor]


class Term(NamedTuple):
    """A locality objective in a weighted sum."""

    loss: Callable
    factor: float
    per_layer: bool
    """Whether its loss of all layers is the mean of its losses of each."""
    ranks: Sequence[Rank] | None
    """[L]: what the logits pass through first."""

    def of_layer(self, layer: int, logits_BTE: Tensor, chosen_BTK: Tensor, mask_BP: Tensor) -> Tensor:
        rank = self.ranks[layer] if self.ranks else _unchanged
        return self.factor * self.loss(rank(logits_BTE)[None], chosen_BTK[None], mask_BP)

    def of_all_layers(self, logits: Layers, chosen: Layers, mask_BP: Tensor) -> Tensor:
        if self.ranks:
            logits = [rank(logits_BTE) for rank, logits_BTE in zip(self.ranks, logits, strict=True)]
        return self.factor * self.loss(_stacked(logits), _stacked(chosen), mask_BP)


def weighted_sum(terms: Sequence[Term], logits: Layers, chosen: Layers, mask_BP: Tensor) -> Tensor:
    """The sum of objectives over layers. Those that can are computed one layer at a time, together: one
    gradient is kept, however many they are.
    """
    apart = [term for term in terms if term.per_layer]

    def of_layer(logits_BTE: Tensor, chosen_BTK: Tensor, layer: int) -> Tensor:
        return _sum(term.of_layer(layer, logits_BTE, chosen_BTK, mask_BP) for term in apart)

    parts = [term.of_all_layers(logits, chosen, mask_BP) for term in terms if not term.per_layer]
    if apart:
        parts.append(mean_over_layers(of_layer, logits, chosen, range(len(logits))))
    return _sum(parts)


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)


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
