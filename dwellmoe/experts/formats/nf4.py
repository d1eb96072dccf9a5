"""Four bits a weight: NormalFloat of QLoRA (arXiv 2305.14314), in the bytes of bitsandbytes' `quantize_4bit`.

The matrix is cut into blocks of 64 numbers, row after row; a block is held as its largest absolute value and
a code a number, which stands for a sixteenth of the normal distribution.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from dwellmoe.experts.formats.base import Empty, Field, QuantisingFormat, Stored
from dwellmoe.experts.formats.blocks import (
    dequantised,
    look_up_pairs,
    nearest_codes,
    passes_multiply,
    product,
)
from dwellmoe.experts.kernels.row_passes import NF4, NORMAL_FLOATS

BLOCK = 64
FEW_ROWS = 5
"""With more, the product of a copy of the weights in 16 or 32 bits is faster, as measured."""
VALUES = torch.tensor(NORMAL_FLOATS)


class Nf4(QuantisingFormat):
    name = "nf4"
    relative_error = 0.092

    def fields(self, shape_OI: tuple[int, int]) -> tuple[Field, ...]:
        blocks = -(-shape_OI[0] * shape_OI[1] // BLOCK)
        return (
            Field("largest", (blocks,), torch.float32),
            Field("codes", (blocks, BLOCK // 2), torch.uint8),
        )

    def quantise(self, weight_OI: Tensor) -> dict[str, Tensor]:
        flat = weight_OI.float().flatten()
        blocks_BN = pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
        largest_B, codes_BN = nearest_codes(blocks_BN, (VALUES[1:] + VALUES[:-1]) / 2)
        return {"largest": largest_B, "codes": codes_BN}

    def dequantise(
        self, stored: Stored, shape_OI: tuple[int, int], dtype: torch.dtype, empty: Empty = torch.empty
    ) -> Tensor:
        if stored["codes"].device.type == "cpu":
            numbers_BN = dequantised(NF4, _shape(stored, shape_OI), dtype, empty, **_arrays(stored))
        else:
            numbers_BN = look_up_pairs(stored["codes"], VALUES, stored["largest"], dtype, high_first=True)
        return numbers_BN.flatten()[: shape_OI[0] * shape_OI[1]].view(shape_OI)

    def product(self, x_SI: Tensor, stored: Stored, shape_OI: tuple[int, int]) -> Tensor:
        if shape_OI[1] % BLOCK or not passes_multiply(x_SI, FEW_ROWS):
            return super().product(x_SI, stored, shape_OI)
        return product(NF4, x_SI, shape_OI, **_arrays(stored))


def _shape(stored: Stored, shape_OI: tuple[int, int]) -> tuple[int, int]:
    """Of the matrix, or where its rows begin within blocks, of all blocks below one another."""
    return (len(stored["codes"]), BLOCK) if shape_OI[1] % BLOCK else shape_OI


def _arrays(stored: Stored) -> dict[str, Tensor]:
    return {"codes": stored["codes"], "scales": stored["largest"]}


FORMAT = Nf4
