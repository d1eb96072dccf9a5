"""Formats of GGUF files whose rows are blocks of 32 numbers: a scale in float16 and then the codes, together.

Letters: S rows, O and I the output and input width of a matrix, B blocks.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from dwellmoe.experts.formats.base import Empty, ExpertFormat, Field, Stored
from dwellmoe.experts.formats.blocks import dequantised, passes_multiply, product
from dwellmoe.experts.kernels.gguf_passes import BLOCK, SCALE_BYTES
from dwellmoe.experts.kernels.row_passes import PassesOfTypes

FEW_ROWS = 8
"""With more, the product of a copy of the weights in 16 or 32 bits is faster."""


class GgufBlocks(ExpertFormat):
    """The bytes of the file, as they are: a scale in float16 times a code is exact in float32."""

    exact = True
    block_bytes: ClassVar[int]
    passes: ClassVar[PassesOfTypes]

    def fields(self, shape_OI: tuple[int, int]) -> tuple[Field, ...]:
        return (Field("blocks", (shape_OI[0], shape_OI[1] // BLOCK, self.block_bytes), torch.uint8),)

    def dequantise(
        self, stored: Stored, shape_OI: tuple[int, int], dtype: torch.dtype, empty: Empty = torch.empty
    ) -> Tensor:
        if stored["blocks"].device.type == "cpu":
            return dequantised(self.passes, shape_OI, dtype, empty, codes=stored["blocks"])
        return self.by_torch(stored, shape_OI, dtype)

    def by_torch(self, stored: Stored, shape_OI: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """The matrix [O, I], on any device."""
        blocks_BN = stored["blocks"].flatten(0, 1)
        scales_B1 = blocks_BN[:, :SCALE_BYTES].contiguous().view(torch.float16).float()
        return (self.numbers(blocks_BN[:, SCALE_BYTES:]) * scales_B1).view(shape_OI).to(dtype)

    @staticmethod
    @abstractmethod
    def numbers(codes_BN: Tensor) -> Tensor:
        """What the bytes of codes stand for, before the scales: float32 [B, 32]."""

    def product(self, x_SI: Tensor, stored: Stored, shape_OI: tuple[int, int]) -> Tensor:
        if not passes_multiply(x_SI, FEW_ROWS):
            return super().product(x_SI, stored, shape_OI)
        return product(self.passes, x_SI, shape_OI, codes=stored["blocks"])
