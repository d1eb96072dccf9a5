"""Rows sorted by expert: one for each (token, chosen expert) pair, so that an expert's rows are neighbours.

`spread` copies tokens to rows and `gather` sums a token's rows; each is the other's backward pass.
Letters: T tokens, K chosen experts a token, E experts, P = T * K pairs, S rows, D width.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

MULTIPLE = 16
"""Long groups of half-precision rows on a CPU are filled up to a multiple of this: oneDNN builds a kernel for
every new number of rows, which takes longer than the product itself."""
TOKENS_AT_ONCE = 256
"""Tokens that are summed at once: bounds the memory for their rows."""


class Rows(NamedTuple):
    """Which row belongs to which pair. Rows that fill an expert's group up have weight 0 and token 0."""

    ends: list[int]
    """[E]: the rows of expert e are ends[e - 1] (0 for the first) up to ends[e]; the last is S."""
    token_S: Tensor
    row_TK: Tensor
    """Pairs of no routed expert (ids of E and above) share a row of weight 0."""
    weight_S: Tensor
    """The routing weights; differentiable."""

    def expert_S(self) -> Tensor:
        """The expert of each row."""
        ends_E = torch.tensor(self.ends, device=self.token_S.device)
        rows_S = torch.arange(len(self.token_S), device=ends_E.device)
        return torch.searchsorted(ends_E, rows_S, right=True)


def sort_by_expert(indices_TK: Tensor, weights_TK: Tensor, experts: int, multiple: int = 1) -> Rows:
    """The rows of all pairs; each expert's group is filled up to a multiple of `multiple` rows.

    indices_TK  ids of the chosen experts; E and above is no routed expert, and adds nothing
    """
    top_k = indices_TK.shape[1]
    expert_P = indices_TK.flatten().clamp(max=experts)
    counts = torch.bincount(expert_P, minlength=experts + 1).tolist()
    others = counts.pop()
    starts, ends = _groups(counts, multiple, spare=others > 0)
    order_P = expert_P.argsort(stable=True)
    first_rows = torch.tensor([*starts, ends[-1] - 1], device=expert_P.device)
    shifts = first_rows - torch.tensor([0, *counts], device=expert_P.device).cumsum(0)
    sorted_P = expert_P[order_P]
    rows_P = torch.arange(len(order_P), device=order_P.device) + shifts[sorted_P]
    if others:
        rows_P = rows_P.where(sorted_P < experts, ends[-1] - 1)
        weights_TK = weights_TK.masked_fill(indices_TK >= experts, 0)
    row_P = torch.empty_like(order_P).index_copy_(0, order_P, rows_P)
    token_S = order_P.new_zeros(ends[-1]).index_copy_(0, rows_P, order_P // top_k)
    weight_S = weights_TK.new_zeros(ends[-1]).index_copy(0, row_P, weights_TK.flatten())
    return Rows(ends, token_S, row_P.view_as(indices_TK), weight_S)


def _groups(counts: list[int], multiple: int, spare: bool) -> tuple[list[int], list[int]]:
    """First and last row of each group; `spare`: the last row of all is one of no pair."""
    starts, ends, end = [], [], 0
    for expert, count in enumerate(counts):
        starts.append(end)
        if spare and expert == len(counts) - 1:
            count += 1
        end += -(-count // multiple) * multiple
        ends.append(end)
    return starts, ends


def multiple_of(x: Tensor, pairs: int, experts: int) -> int:
    """The multiple to which groups of rows of x's type are filled up: 1 where that would not pay."""
    builds_kernels = x.device.type == "cpu" and x.dtype.itemsize == 2
    return MULTIPLE if builds_kernels and pairs >= MULTIPLE * experts else 1


def spread(x_TD: Tensor, rows: Rows) -> Tensor:
    """The row of each pair, [S, D]: its token's."""
    return _Spread.apply(x_TD, rows)  # type: ignore[return-value] - a Function's result is untyped


def gather(x_SD: Tensor, rows: Rows) -> Tensor:
    """The sum of each token's rows, [T, D]; rows of weight 0 must be 0."""
    return _Gather.apply(x_SD, rows)  # type: ignore[return-value]


def _sums(x_SD: Tensor, row_TK: Tensor) -> Tensor:
    return torch.cat([x_SD[part_TK].sum(dim=1) for part_TK in row_TK.split(TOKENS_AT_ONCE)])


class _Spread(Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, rows: Rows) -> Tensor:
        ctx.row_TK = rows.row_TK
        return x_TD[rows.token_S]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _sums(grads[0], ctx.row_TK), None


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, rows: Rows) -> Tensor:
        ctx.token_S = rows.token_S
        return _sums(x_SD, rows.row_TK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][ctx.token_S], None
