"""LoRA of experts on the rows that each serves: `s * (x A_e^T) B_e`, added to the product of its weights.

Letters: E experts, S rows sorted by expert, R rank, I and O the input and output width of a product.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

FEW_ROWS = 32
"""Up to so many rows the factors of each row are copied together: faster than to go from expert to expert."""


class Factors(NamedTuple):
    """One adapter of one product of a layer's experts, as views of PEFT's parameters."""

    a_ERI: Tensor
    b_ERO: Tensor
    scaling: float


def add_low_rank(
    product_SO: Tensor, x_SI: Tensor, factors: Factors, ends: Sequence[int], source: "Source"
) -> Tensor:
    """`product_SO` with the adapter's part added in place; differentiable in product, rows and factors.

    ends    the rows of expert e are ends[e - 1] (0 for the first) up to ends[e]
    source  where the backward pass finds the rows again: `x_SI` itself is not kept
    """
    if len(x_SI) <= FEW_ROWS and not torch.is_grad_enabled():
        return _add_to_few(product_SO, x_SI, factors, ends)
    return _LowRank.apply(product_SO, x_SI, *source, *factors, list(ends))  # type: ignore[return-value]


def add_low_rank_of_one(product_SO: Tensor, x_SI: Tensor, factors: Factors, expert: int) -> None:
    """Adds the adapter's part in place to the rows of one expert. No gradient is kept."""
    a_RI, b_RO = factors.a_ERI[expert], factors.b_ERO[expert]
    product_SO.add_(x_SI.to(a_RI.dtype) @ a_RI.T @ b_RO, alpha=factors.scaling)


class Source(NamedTuple):
    """A tensor that is kept anyway, and how some rows are computed from it."""

    kept: Tensor
    rows: Callable[[Tensor, slice], Tensor]


def _add_to_few(product_SO: Tensor, x_SI: Tensor, factors: Factors, ends: Sequence[int]) -> Tensor:
    experts = [expert for expert, (begin, end) in enumerate(_groups(ends)) for _ in range(begin, end)]
    expert_S = torch.tensor(experts, device=x_SI.device)
    a_SRI = factors.a_ERI.index_select(0, expert_S)
    b_SRO = factors.b_ERO[expert_S]  # it is strided, which index_select would take far longer for
    z_S1R = torch.bmm(x_SI.to(a_SRI.dtype)[:, None], a_SRI.mT)
    return product_SO.add_(torch.bmm(z_S1R, b_SRO)[:, 0], alpha=factors.scaling)


def _groups(ends: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip([0, *ends[:-1]], ends, strict=True)


class _LowRank(Function):
    """Computes in the type of the product, as PEFT does."""

    @staticmethod
    def forward(
        ctx: Any,
        product_SO: Tensor,
        x_SI: Tensor,
        kept: Tensor,
        rows_of: Callable[[Tensor, slice], Tensor],
        a_ERI: Tensor,
        b_ERO: Tensor,
        scaling: float,
        ends: list[int],
    ) -> Tensor:
        dtype = product_SO.dtype
        a, b = a_ERI.to(dtype).contiguous(), b_ERO.to(dtype).contiguous()
        z_SR = x_SI.new_empty(len(x_SI), a.shape[1], dtype=dtype)
        for expert, (begin, end) in enumerate(_groups(ends)):
            if end > begin:
                z = z_SR[begin:end]
                torch.mm(x_SI[begin:end].to(dtype), a[expert].T, out=z)
                product_SO[begin:end].addmm_(z, b[expert], alpha=scaling)
        ctx.mark_dirty(product_SO)
        ctx.save_for_backward(kept, a, b, z_SR)
        ctx.rows_of, ctx.scaling, ctx.ends = rows_of, scaling, ends
        ctx.types = x_SI.dtype, a_ERI.dtype, b_ERO.dtype
        return product_SO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        kept, a, b, z_SR = ctx.saved_tensors
        (g_SO,) = grads
        x_type, a_type, b_type = ctx.types
        needs_x = ctx.needs_input_grad[1]
        gx_SI = g_SO.new_empty(len(g_SO), a.shape[2], dtype=x_type) if needs_x else None
        ga_ERI = torch.zeros_like(a, dtype=a_type)
        gb_ERO = torch.zeros_like(b, dtype=b_type)
        for expert, (begin, end) in enumerate(_groups(ctx.ends)):
            if end > begin:
                g, rows = g_SO[begin:end], slice(begin, end)
                gz = g @ b[expert].T * ctx.scaling
                gb_ERO[expert] = (z_SR[rows].T @ g) * ctx.scaling
                ga_ERI[expert] = gz.T @ ctx.rows_of(kept, rows).to(gz.dtype)
                if gx_SI is not None:
                    gx_SI[rows] = gz @ a[expert]
        return g_SO, gx_SI, None, None, ga_ERI, gb_ERO, None, None
