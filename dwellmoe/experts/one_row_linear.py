"""Linear layers in bfloat16 that a token by itself passes faster than torch's product lets it.

Letters: S rows, O and I the output and input width.
"""

import torch
from torch import Tensor, nn

from dwellmoe.experts.kernels.one_row import BFLOAT16, is_one_row, products


class OneRowLinear(nn.Linear):
    """The same layer: one row takes a compiled pass that sums in float32, all others torch's product."""

    def forward(self, input: Tensor) -> Tensor:
        x_SI = input.reshape(-1, self.in_features)
        if not self._takes(x_SI):
            return super().forward(input)
        out_1O = products(BFLOAT16, x_SI, (self.out_features, self.in_features), [self.weight])
        if self.bias is not None:
            out_1O += self.bias
        return out_1O.view(*input.shape[:-1], self.out_features)

    def _takes(self, x_SI: Tensor) -> bool:
        weight = self.weight
        if torch.is_grad_enabled() and (x_SI.requires_grad or weight.requires_grad):
            return False
        return is_one_row(x_SI) and weight.dtype == x_SI.dtype and weight.is_contiguous()


def take_single_rows(layer: nn.Linear) -> None:
    """Makes a layer of torch a `OneRowLinear`, in place."""
    layer.__class__ = OneRowLinear
