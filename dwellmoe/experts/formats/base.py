"""`ExpertFormat`: how one matrix of an expert is held in memory or in a file, and how rows pass through it.

Letters: S rows, O and I the output and input width of a matrix, G groups of a row.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dwellmoe.experts.kernels.many_rows import product
from dwellmoe.experts.kernels.scratch import scratch

Stored = Mapping[str, Tensor]
"""The tensors that hold one matrix, by the names of their fields."""
Empty = Callable[..., Tensor]
"""`empty(shape, dtype=..., device=...)`: memory for a result."""


class Field(NamedTuple):
    """One of the tensors that hold a matrix."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class ExpertFormat(ABC):
    """A way to hold a matrix. Its options are keyword arguments, as in `int4:group=64`."""

    name: ClassVar[str]
    exact: ClassVar[bool]
    """Whether nothing is lost: `dequantise` gives, rounded once to the type asked for, what was stored."""
    relative_error: ClassVar[float] = 0.0
    """Of a lossy format by default, for normally distributed weights: |W - dequantised W| / |W|."""

    def __eq__(self, other: object) -> bool:
        """Whether it is the same format with the same options."""
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.name)

    @abstractmethod
    def fields(self, shape_OI: tuple[int, int]) -> tuple[Field, ...]:
        """The tensors that hold a matrix of this shape: together the bytes that it takes."""

    @abstractmethod
    def dequantise(
        self, stored: Stored, shape_OI: tuple[int, int], dtype: torch.dtype, empty: Empty = torch.empty
    ) -> Tensor:
        """The matrix [O, I], in any order of memory; in a tensor of its own, or where `empty` puts it."""

    def product(self, x_SI: Tensor, stored: Stored, shape_OI: tuple[int, int]) -> Tensor:
        """Each row times the matrix, [S, O], in the type of the rows. No gradient is kept."""
        return product(x_SI, self.dequantise(stored, shape_OI, x_SI.dtype, scratch))

    def products(self, x_MI: Tensor, stored: Sequence[Stored], shape_OI: tuple[int, int]) -> Tensor:
        """One row times each of M matrices, [M, O]; `x_MI` has a row for each, or one for all of them."""
        rows = x_MI.expand(len(stored), -1).split(1)
        return torch.cat([self.product(row, each, shape_OI) for row, each in zip(rows, stored, strict=True)])

    def gradient(self, gradient_SO: Tensor, stored: Stored, shape_OI: tuple[int, int]) -> Tensor:
        """The gradient of the rows, [S, I], from that of `product`."""
        return gradient_SO @ self.dequantise(stored, shape_OI, gradient_SO.dtype, scratch)


class QuantisingFormat(ExpertFormat):
    """A format into which any matrix can be brought."""

    exact = False

    @abstractmethod
    def quantise(self, weight_OI: Tensor) -> dict[str, Tensor]:
        """What holds the matrix, a tensor for each of the `fields`."""
