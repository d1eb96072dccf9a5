"""Four bits a weight as GPT-OSS is published: MXFP4 of the OCP microscaling specification.

32 numbers of a row are a block: 16 bytes of two codes each, the first in the low half, and one byte that says
by which power of two they are multiplied. All of it is exact in bfloat16. The power of a block is the one by
which its squared error is least, not always that of its largest number.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from dwellmoe.experts.formats.base import Empty, Field, QuantisingFormat, Stored
from dwellmoe.experts.formats.blocks import (
    dequantised,
    look_up_pairs,
    passes_multiply,
    powers_of_two,
    product,
)
from dwellmoe.experts.kernels.row_passes import MXFP4

BLOCK = 32
FEW_ROWS = 4
"""With more, the product of a copy of the weights in 16 or 32 bits is faster, as measured."""
_POSITIVE = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
VALUES = torch.tensor([*_POSITIVE, *(-value for value in _POSITIVE)])
"""What the codes stand for: a sign, two bits of exponent, one of mantissa."""


class Mxfp4(QuantisingFormat):
    name = "mxfp4"
    relative_error = 0.111

    def fields(self, shape_OI: tuple[int, int]) -> tuple[Field, ...]:
        rows, blocks = shape_OI[0], -(-shape_OI[1] // BLOCK)
        return (
            Field("blocks", (rows, blocks, BLOCK // 2), torch.uint8),
            Field("scales", (rows, blocks), torch.uint8),
        )

    def quantise(self, weight_OI: Tensor) -> dict[str, Tensor]:
        rows, width = weight_OI.shape
        blocks_BN = pad(weight_OI.float(), (0, -width % BLOCK)).view(-1, BLOCK)
        scales_B, codes_BN = powers_of_two(blocks_BN, torch.tensor(_POSITIVE))
        return {"blocks": codes_BN.view(rows, -1, BLOCK // 2), "scales": scales_B.view(rows, -1)}

    def dequantise(
        self, stored: Stored, shape_OI: tuple[int, int], dtype: torch.dtype, empty: Empty = torch.empty
    ) -> Tensor:
        rows, blocks = stored["scales"].shape
        if stored["blocks"].device.type == "cpu":
            shape = rows, BLOCK * blocks
            return dequantised(MXFP4, shape, dtype, empty, **_arrays(stored))[:, : shape_OI[1]]
        codes_BN = stored["blocks"].view(-1, BLOCK // 2)
        powers_B = torch.exp2(stored["scales"].flatten().float() - 127)
        numbers_BN = look_up_pairs(codes_BN, VALUES, powers_B, dtype, high_first=False)
        return numbers_BN.view(rows, -1)[:, : shape_OI[1]]

    def product(self, x_SI: Tensor, stored: Stored, shape_OI: tuple[int, int]) -> Tensor:
        if not passes_multiply(x_SI, FEW_ROWS):
            return super().product(x_SI, stored, shape_OI)
        rows, blocks = stored["scales"].shape
        x_SI = pad(x_SI, (0, BLOCK * blocks - shape_OI[1]))
        return product(MXFP4, x_SI, (rows, BLOCK * blocks), **_arrays(stored))


def _arrays(stored: Stored) -> dict[str, Tensor]:
    return {"codes": stored["blocks"], "scales": stored["scales"]}


FORMAT = Mxfp4
