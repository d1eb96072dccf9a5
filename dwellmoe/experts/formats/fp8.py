"""Eight bits a weight as DeepSeek-V3 and Qwen3 publish their FP8 checkpoints: E4M3 numbers, and a scale for
each block of 128 x 128 (`weight_scale_inv`, by which they are multiplied).
"""

import torch
from torch import Tensor

from dwellmoe.experts.formats.base import Empty, ExpertFormat, Field, Stored
from dwellmoe.experts.formats.blocks import dequantised, look_up_bytes, passes_multiply, product
from dwellmoe.experts.kernels.row_passes import FP8

VALUES = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float()
FEW_ROWS = 3
"""With more, the product of a copy of the weights in 16 or 32 bits is faster, as measured."""


class BlockFp8(ExpertFormat):
    """block       rows and columns of a block
    parts       matrices of equal height that a checkpoint keeps apart and the model as one (gate and up):
                blocks begin anew in each
    scale_type  float32 (DeepSeek-V3) or bfloat16 (Qwen3)
    """

    name = "fp8"
    exact = True

    def __init__(
        self, block: tuple[int, int], *, parts: int = 1, scale_type: torch.dtype = torch.float32
    ) -> None:
        self.block, self.parts, self.scale_type = block, parts, scale_type

    def fields(self, shape_OI: tuple[int, int]) -> tuple[Field, ...]:
        rows, columns = -(-shape_OI[0] // self.parts // self.block[0]), -(-shape_OI[1] // self.block[1])
        return (
            Field("scales", (self.parts, rows, columns), self.scale_type),
            Field("weight", shape_OI, torch.float8_e4m3fn),
        )

    def dequantise(
        self, stored: Stored, shape_OI: tuple[int, int], dtype: torch.dtype, empty: Empty = torch.empty
    ) -> Tensor:
        if stored["weight"].device.type == "cpu":
            return dequantised(FP8, shape_OI, dtype, empty, **self._work(stored, shape_OI))
        by_row = stored["scales"].repeat_interleave(self.block[0], dim=1)[:, : shape_OI[0] // self.parts]
        bytes_OI = stored["weight"].view(torch.uint8)
        return look_up_bytes(bytes_OI, VALUES, by_row.flatten(0, 1).float(), self.block[1], dtype)

    def product(self, x_SI: Tensor, stored: Stored, shape_OI: tuple[int, int]) -> Tensor:
        if not passes_multiply(x_SI, FEW_ROWS):
            return super().product(x_SI, stored, shape_OI)
        return product(FP8, x_SI, shape_OI, **self._work(stored, shape_OI))

    def _work(self, stored: Stored, shape_OI: tuple[int, int]) -> dict[str, int | Tensor]:
        return {
            "codes": stored["weight"],
            "scales": stored["scales"].float().contiguous(),
            "block": self.block[1],
            "block_outputs": self.block[0],
            "part_outputs": shape_OI[0] // self.parts,
        }
