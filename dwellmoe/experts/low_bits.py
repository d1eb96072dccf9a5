"""Frozen experts held in the bytes of an `ExpertFormat`: an `ExpertWeights` that dequantises one expert at a
time, in the forward pass and again in the backward pass, and keeps none of it.

Letters: E experts, S rows sorted by expert, I and O the input and output width of a product.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dwellmoe.experts.formats.base import ExpertFormat, Field, Stored

ALIGNMENT_BYTES = 64
"""Each field of a record begins at a multiple of it, so that its bytes can be viewed as any type."""


class HeldMatrix(NamedTuple):
    """One parameter of an expert in its record."""

    format: ExpertFormat
    shape_OI: tuple[int, int]
    fields: tuple[tuple[Field, int], ...]
    """Each with its first byte in the record."""


class RecordLayout(NamedTuple):
    """How the matrices of one expert lie in its record: field after field, without the biases."""

    matrices: Mapping[str, HeldMatrix]
    """By the name of the fused parameter that they are a slice of."""
    nbytes: int

    def stored(self, record: Tensor, name: str) -> Stored:
        """The tensors that hold one matrix: views of a record (uint8)."""
        return {
            field.name: record[begin : begin + _nbytes(field)].view(field.dtype).view(field.shape)
            for field, begin in self.matrices[name].fields
        }


def record_layout(matrices: Mapping[str, tuple[ExpertFormat, tuple[int, int]]]) -> RecordLayout:
    """The layout of matrices of these formats and shapes."""
    held: dict[str, HeldMatrix] = {}
    begin = 0
    for name, (format, shape_OI) in matrices.items():
        fields = []
        for field in format.fields(shape_OI):
            fields.append((field, begin))
            begin += -(-_nbytes(field) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        held[name] = HeldMatrix(format, shape_OI, tuple(fields))
    return RecordLayout(held, begin)


def _nbytes(field: Field) -> int:
    return torch.Size(field.shape).numel() * field.dtype.itemsize


class LowBitExperts:
    """The matrices of a layer's experts, a record each: an `ExpertWeights`."""

    def __init__(self, layout: RecordLayout, experts: int, device: torch.device) -> None:
        self.layout = layout
        self.records = torch.zeros(experts, layout.nbytes, dtype=torch.uint8, device=device)
        """[E, bytes]"""

    def stored(self, expert: int, name: str) -> Stored:
        """The tensors that hold one matrix of an expert: views, into which can be copied."""
        return self.layout.stored(self.records[expert], name)

    def dequantised(self, expert: int, name: str, dtype: torch.dtype) -> Tensor:
        """One matrix of an expert, [O, I]."""
        matrix = self.layout.matrices[name]
        return matrix.format.dequantise(self.stored(expert, name), matrix.shape_OI, dtype)

    def product(self, name: str, x_SI: Tensor, ends: Sequence[int]) -> Tensor:
        """Each row times the matrix of its expert, [S, O]; see `ExpertWeights.product`."""
        return _Product.apply(x_SI, self, name, tuple(ends))  # type: ignore[return-value] - it is untyped


class _Product(torch.autograd.Function):
    """Its only input with a gradient is the rows, whose gradient needs no rows: no tensor is kept."""

    @staticmethod
    def forward(ctx: Any, x_SI: Tensor, experts: LowBitExperts, name: str, ends: tuple[int, ...]) -> Tensor:
        ctx.experts, ctx.name, ctx.ends = experts, name, ends
        width = experts.layout.matrices[name].shape_OI[0]
        return _each_expert("product", x_SI, width, experts, name, ends)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        width = ctx.experts.layout.matrices[ctx.name].shape_OI[1]
        found_SI = _each_expert("gradient", gradients[0], width, ctx.experts, ctx.name, ctx.ends)
        return found_SI, None, None, None


def _each_expert(
    what: str, rows: Tensor, width: int, experts: LowBitExperts, name: str, ends: tuple[int, ...]
) -> Tensor:
    """The rows of each expert through `product` or `gradient` of its matrix."""
    matrix = experts.layout.matrices[name]
    compute = getattr(matrix.format, what)
    out = rows.new_empty(len(rows), width)
    for expert, (begin, end) in enumerate(zip((0, *ends), ends, strict=False)):
        if end > begin:
            out[begin:end] = compute(rows[begin:end], experts.stored(expert, name), matrix.shape_OI)
    return out
