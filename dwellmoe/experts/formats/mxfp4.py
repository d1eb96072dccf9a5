"""Four bits a weight as GPT-OSS is published: MXFP4 of the OCP microscaling specification.

32 numbers of a row are a block: 16 bytes of two codes each, the first in the low half, and one byte that says
by which power of two they are multiplied. All of it is exact in bfloat16. The power of a block is the one by
which its squared error is least, not always that of its largest number.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from dwellmoe.experts.formats.base import Field, QuantisingFormat, Stored
from dwellmoe.experts.formats.blocks import dequantise_blocks, powers_of_two

BLOCK = 32
_POSITIVE = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
VALUES = torch.tensor([*_POSITIVE, *(-value for value in _POSITIVE)])
"""What the codes stand for: a sign, two bits of exponent, one of mantissa."""


class Mxfp4(QuantisingFormat):
    name = "mxfp4"
    relative_error = 0.115

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

    def dequantise(self, stored: Stored, shape_OI: tuple[int, int], dtype: torch.dtype) -> Tensor:
        codes_BN = stored["blocks"].view(-1, BLOCK // 2)
        powers_B = torch.exp2(stored["scales"].flatten().float() - 127)
        zeros_B = torch.zeros_like(powers_B)
        blocks_BN = dequantise_blocks(codes_BN, VALUES, powers_B, zeros_B, dtype, high_first=False)
        return blocks_BN.view(shape_OI[0], -1)[:, : shape_OI[1]]


FORMAT = Mxfp4
