"""Matrices in bfloat16 by which a token by itself is multiplied faster than torch's product does it.

Letters: S rows, O and I the output and input width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from dwellmoe.experts.kernels.one_row import BFLOAT16, is_one_row, products


class OneRowLinear(nn.Linear):
    """The same layer: one row takes a compiled pass that sums in float32, all others torch's product."""

    def forward(self, input: Tensor) -> Tensor:
        return _product(input, self.weight, self.bias)


class OneRowWeight(nn.Parameter):
    """The same matrix, for modules that give it to `torch.nn.functional.linear` themselves, as routers do."""

    @classmethod
    def __torch_function__(cls, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return (_product if function is linear else function)(*args, **(kwargs or {}))


def take_single_rows(layer: nn.Linear) -> None:
    """Makes a layer of torch a `OneRowLinear`, in place."""
    layer.__class__ = OneRowLinear


def _product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x_SI = input.reshape(-1, input.shape[-1])
    if not _takes(x_SI, weight):
        return linear(input, weight, bias)
    out_1O = products(BFLOAT16, x_SI, (weight.shape[0], weight.shape[1]), [weight])
    if bias is not None:
        out_1O += bias
    return out_1O.view(*input.shape[:-1], weight.shape[0])


def _takes(x_SI: Tensor, weight: Tensor) -> bool:
    if torch.is_grad_enabled() and (x_SI.requires_grad or weight.requires_grad):
        return False
    return is_one_row(x_SI) and weight.dtype == x_SI.dtype and weight.is_contiguous()
