"""Four bits a weight as GGUF files hold them in Q4_0: codes 0 to 15, less 8, times a block's scale."""

import torch
from torch import Tensor

from dwellmoe.experts.formats.gguf_blocks import GgufBlocks
from dwellmoe.experts.kernels import gguf_passes


class Q4_0(GgufBlocks):
    name = "q4_0"
    block_bytes = gguf_passes.Q4_0_BYTES
    passes = gguf_passes.Q4_0

    @staticmethod
    def numbers(codes_BN: Tensor) -> Tensor:
        """The low halves of the bytes come first."""
        return torch.cat([codes_BN & 15, codes_BN >> 4], dim=1).float() - 8
