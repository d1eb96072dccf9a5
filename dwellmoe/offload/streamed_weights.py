"""Frozen experts that are read from the checkpoint while a model trains: an `ExpertWeights` over a stream.

Letters: S rows sorted by expert, I and O the input and output width of a product.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dwellmoe.offload.expert_layout import LowBitMatrix, Matrix
from dwellmoe.offload.expert_stream import ExpertStream
from dwellmoe.routing.router_tap import in_backward

DOWN = "down_proj"


class _Pass(NamedTuple):
    """In which part of a training step a product is computed."""

    training: bool
    backward: bool
    last_use: bool
    """Whether this visit of the layer needs an expert no more after this product."""


class StreamedWeights:
    """The matrices of one layer's experts.

    transposed  whether they are [I, O] instead of [O, I]
    dtype       to compute in
    """

    def __init__(self, stream: ExpertStream, layer: int, transposed: bool, dtype: torch.dtype) -> None:
        self.stream, self.layer, self.transposed, self.dtype = stream, layer, transposed, dtype
        self._shapes_OI = stream.layouts[layer].shapes_OI

    def product(self, name: str, x_SI: Tensor, ends: Sequence[int]) -> Tensor:
        """Each row times the matrix of its expert, [S, O]; see `ExpertWeights.product`."""
        backward, training = in_backward(), torch.is_grad_enabled()
        if training and not backward:
            self.stream.order.expect_backward(self.layer, x_SI.requires_grad)
        when = _Pass(training, backward, last_use=name == DOWN and not backward)
        return _Product.apply(x_SI.to(self.dtype), self, name, tuple(ends), when)  # type: ignore[return-value]

    def multiply(self, name: str, rows: Tensor, ends: Sequence[int], when: _Pass, gradient: bool) -> Tensor:
        """Rows [S, I] times the matrices; with `gradient`, rows [S, O] times their transposes."""
        width = self._shapes_OI[name][1 if gradient else 0]
        out = rows.new_empty(len(rows), width)
        begins = (0, *ends)
        needed = [expert for expert, end in enumerate(ends) if end > begins[expert]]
        for expert in self.stream.visit(self.layer, needed, when.training, when.backward):
            group = slice(begins[expert], ends[expert])
            self._multiply_group(self._matrix(expert, name), rows[group], out[group], gradient)
            if when.last_use:
                self.stream.release(self.layer, expert)
        return out

    def _matrix(self, expert: int, name: str) -> Matrix:
        found = self.stream.expert(self.layer, expert)
        return found.down if name == DOWN else found.up

    def _multiply_group(self, matrix: Matrix, rows: Tensor, out: Tensor, gradient: bool) -> None:
        """The rows of one expert."""
        if isinstance(matrix, LowBitMatrix):
            here = matrix.to(rows.device)
            out.copy_(here.gradient(rows) if gradient else here.product(rows))
            return
        matrix_IO = (matrix if self.transposed else matrix.T).to(rows.device, rows.dtype)
        torch.mm(rows, matrix_IO.T if gradient else matrix_IO, out=out)


class _Product(torch.autograd.Function):
    """Its only input with a gradient is the rows, whose gradient needs no rows: no tensor is kept."""

    @staticmethod
    def forward(
        ctx: Any, x_SI: Tensor, weights: StreamedWeights, name: str, ends: tuple[int, ...], when: _Pass
    ) -> Tensor:
        ctx.weights, ctx.name, ctx.ends = weights, name, ends
        return weights.multiply(name, x_SI, ends, when, gradient=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        when = _Pass(training=True, backward=True, last_use=ctx.name != DOWN)
        found_SI = ctx.weights.multiply(ctx.name, gradients[0], ctx.ends, when, gradient=True)
        return found_SI, None, None, None, None
