"""Four bits a weight: NormalFloat of QLoRA (arXiv 2305.14314), in the bytes of bitsandbytes' `quantize_4bit`.

The matrix is cut into blocks of 64 numbers, row after row; a block is held as its largest absolute value and
a code a number, which stands for a sixteenth of the normal distribution.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from dwellmoe.experts.formats.base import Field, QuantisingFormat, Stored
from dwellmoe.experts.formats.blocks import dequantise_blocks, nearest_codes

BLOCK = 64
_NEGATIVE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495,
)  # fmt: skip
_POSITIVE = (
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434,
    0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
VALUES = torch.tensor([*_NEGATIVE, 0.0, *_POSITIVE])
"""What the codes 0 to 15 stand for, as the paper gives them."""


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

    def dequantise(self, stored: Stored, shape_OI: tuple[int, int], dtype: torch.dtype) -> Tensor:
        largest_B = stored["largest"]
        blocks_BN = dequantise_blocks(
            stored["codes"], VALUES, largest_B, torch.zeros_like(largest_B), dtype, high_first=True
        )
        return blocks_BN.flatten()[: shape_OI[0] * shape_OI[1]].view(shape_OI)


FORMAT = Nf4
