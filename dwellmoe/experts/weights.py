"""`ExpertWeights`: what multiplies rows by the frozen matrices of a layer's experts, however they are held.

An experts module that carries such an object under the name `ATTRIBUTE` is computed by it; any other one by
its own fused parameters. Biases are no part of it: they are small and stay parameters of the module.

Letters: E experts, S rows sorted by expert, I and O the input and output width of a product.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.integrations.moe import _can_use_grouped_mm, _grouped_mm

ATTRIBUTE = "expert_weights"


class ExpertWeights(Protocol):
    """The frozen matrices of all experts of one layer."""

    def product(self, name: str, x_SI: Tensor, ends: Sequence[int]) -> Tensor:
        """Each row times the matrix of its expert, [S, O]; differentiable in the rows, not in the matrices.

        name  of the fused parameter: `gate_up_proj`, `up_proj` or `down_proj`
        ends  of length E: the rows of expert e are `ends[e - 1]` (0 for the first) up to `ends[e]`, and the
              last end is S; most experts may have none. Some rows only fill an expert's group up.

        The result is a tensor of its own: the caller adds to it in place. It is called anew when a layer is
        recomputed for the backward pass, which runs `down_proj` before the other.
        """
        ...


def product(module: Any, name: str, x_SI: Tensor, ends: Sequence[int]) -> Tensor:
    """Each row times the matrix of its expert, [S, O], by what `module` carries or by its parameter."""
    weights: ExpertWeights | None = getattr(module, ATTRIBUTE, None)
    if weights is not None:
        return weights.product(name, x_SI, ends)
    fused = getattr(module, name)[: len(ends)]  # LongCat-Flash has matrices of experts that compute nothing
    matrices_EIO = fused if is_transposed(module) else fused.transpose(-2, -1)
    x_SI = x_SI.to(fused.dtype)
    offsets_E = torch.tensor(ends, dtype=torch.int32, device=x_SI.device)
    if fused.dtype != torch.float64 and _can_use_grouped_mm(x_SI, matrices_EIO, offsets_E):
        return _grouped_mm(x_SI, matrices_EIO, offsets_E)
    # What transformers falls back on makes a gradient of all matrices, which are frozen here.
    groups = zip(x_SI.tensor_split(list(ends[:-1])), matrices_EIO, strict=True)
    return torch.cat([x @ matrix_IO for x, matrix_IO in groups])


def is_transposed(module: Any) -> bool:
    """Whether the experts' matrices are [I, O] instead of [O, I]."""
    return getattr(module, "transposed", getattr(module, "is_transposed", False))


def shape_OI_of(module: Any, name: str) -> tuple[int, int]:
    """The output and input width of a fused parameter's matrices; a shape may stand for the parameter."""
    first, second = getattr(module, name).shape[-2:]
    return (second, first) if is_transposed(module) else (first, second)
