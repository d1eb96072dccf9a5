"""Eight bits a weight as GGUF files hold them in Q8_0: whole numbers times the scale of their block."""

import torch
from torch import Tensor

from dwellmoe.experts.formats.gguf_blocks import GgufBlocks
from dwellmoe.experts.kernels import gguf_passes


class Q8_0(GgufBlocks):
    name = "q8_0"
    block_bytes = gguf_passes.Q8_0_BYTES
    passes = gguf_passes.Q8_0

    @staticmethod
    def numbers(codes_BN: Tensor) -> Tensor:
        return codes_BN.contiguous().view(torch.int8).float()
