"""LoRA of experts on the rows that each serves: `s * (x A_e^T) B_e`, added to the product of its weights.

Letters: E experts, S rows sorted by expert, R rank, I and O the input and output width of a product.
"""

from collections.abc import Iterator, Sequence
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
    product_SO: Tensor, x_SI: Tensor, factors: Factors, ends: Sequence[int], source: "Source | None" = None
) -> Tensor:
    """`product_SO` with the adapter's part added in place; differentiable in product, rows and factors.

    ends    the rows of expert e are ends[e - 1] (0 for the first) up to ends[e]
    source  where the backward pass finds the rows again, instead of keeping `x_SI`
    """
    if len(x_SI) <= FEW_ROWS and not torch.is_grad_enabled():
        return _add_to_few(product_SO, x_SI, factors, ends)
    index_S = None if source is None else source.index_S
    kept = x_SI if source is None else source.x_TI
    return _LowRank.apply(product_SO, x_SI, kept, index_S, *factors, list(ends))  # type: ignore[return-value]


class Source(NamedTuple):
    """Row s is x_TI[index_S[s]]."""

    x_TI: Tensor
    index_S: Tensor


def _add_to_few(product_SO: Tensor, x_SI: Tensor, factors: Factors, ends: Sequence[int]) -> Tensor:
    experts = [expert for expert, (begin, end) in enumerate(_groups(ends)) for _ in range(begin, end)]
    expert_S = torch.tensor(experts, device=x_SI.device)
    a_SRI, b_SRO = factors.a_ERI[expert_S], factors.b_ERO[expert_S]
    z_S1R = torch.bmm(x_SI.to(a_SRI.dtype)[:, None], a_SRI.mT)
    return product_SO.add_(torch.bmm(z_S1R, b_SRO)[:, 0], alpha=factors.scaling)


def _groups(ends: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip([0, *ends[:-1]], ends, strict=True)


class _LowRank(Function):
    """Computes in the type of the product, as PEFT does. `x_SI` is not kept, `kept` is."""

    @staticmethod
    def forward(
        ctx: Any,
        product_SO: Tensor,
        x_SI: Tensor,
        kept: Tensor,
        index_S: Tensor | None,
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
        ctx.save_for_backward(kept, index_S, a, b, z_SR)
        ctx.scaling, ctx.ends, ctx.factor_types = scaling, ends, (a_ERI.dtype, b_ERO.dtype)
        ctx.x_type = x_SI.dtype
        return product_SO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        kept, index_S, a, b, z_SR = ctx.saved_tensors
        (g_SO,) = grads
        a_type, b_type = ctx.factor_types
        needs_x = ctx.needs_input_grad[1]
        gx_SI = g_SO.new_zeros(len(g_SO), a.shape[2], dtype=ctx.x_type) if needs_x else None
        ga_ERI = torch.zeros_like(a, dtype=a_type)
        gb_ERO = torch.zeros_like(b, dtype=b_type)
        for expert, (begin, end) in enumerate(_groups(ctx.ends)):
            if end > begin:
                g, rows = g_SO[begin:end], slice(begin, end)
                x = kept[rows] if index_S is None else kept[index_S[rows]]
                gz = g @ b[expert].T * ctx.scaling
                gb_ERO[expert] = (z_SR[rows].T @ g) * ctx.scaling
                ga_ERI[expert] = gz.T @ x.to(gz.dtype)
                if gx_SI is not None:
                    gx_SI[rows] = gz @ a[expert]
        return g_SO, gx_SI, None, None, ga_ERI, gb_ERO, None, None
