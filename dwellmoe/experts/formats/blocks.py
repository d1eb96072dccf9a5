"""Numbers in blocks: 4-bit codes of a table of 16 values, or bytes of a table of 256, times a scale a block.

On a CPU this is one compiled pass, which takes 1 to 2 ms for 4 million numbers, where torch's operations one
after the other take 10 to 400 ms. On other devices it is done by torch.

Letters: B blocks of N numbers each.
"""

import numpy as np
import torch
from torch import Tensor

from dwellmoe.experts.formats import passes


def dequantise_blocks(
    codes_BN: Tensor,
    values_16: Tensor,
    scales_B: Tensor,
    zeros_B: Tensor,
    dtype: torch.dtype,
    high_first: bool,
) -> Tensor:
    """`values[code] * scale + zero`, [B, N], computed in float32 and rounded once.

    codes_BN    uint8 [B, N / 2]: two codes a byte
    high_first  the code in the high half of a byte comes first
    """
    scales_B, zeros_B = scales_B.float(), zeros_B.float()
    shape = len(codes_BN), 2 * codes_BN.shape[1]
    if codes_BN.device.type != "cpu":
        pairs = _look_up(codes_BN, _pairs(values_16, high_first)).view(torch.float32).view(shape)
        return torch.addcmul(zeros_B[:, None], pairs, scales_B[:, None]).to(dtype)
    out_BN = _empty(shape, dtype)
    pass_over = passes.dequantise_rounded if out_BN.dtype == torch.bfloat16 else passes.dequantise
    pass_over(*_arrays(codes_BN, values_16, scales_B, zeros_B), high_first, _array(out_BN))
    return out_BN.to(dtype)


def dequantise_bytes(
    bytes_OI: Tensor, values_256: Tensor, scales: Tensor, block: int, dtype: torch.dtype
) -> Tensor:
    """`values[byte] * scale`, [O, I], computed in float32 and rounded once.

    scales  float32 [O, ceil(I / block)]: one for each `block` numbers of a row
    """
    if bytes_OI.device.type != "cpu":
        numbers_OI = _look_up(bytes_OI, values_256.to(bytes_OI.device))
        return (numbers_OI * scales.repeat_interleave(block, 1)[:, : bytes_OI.shape[1]]).to(dtype)
    out_OI = torch.empty(bytes_OI.shape)
    passes.scale(*_arrays(bytes_OI, values_256, scales), block, out_OI.numpy())
    return out_OI.to(dtype)


def nearest_codes(numbers_BN: Tensor, midpoints_15: Tensor) -> tuple[Tensor, Tensor]:
    """The largest absolute value of each block, [B], and for each number the code of the value nearest to its
    share of that, two to a byte, high half first, [B, N / 2]. Float32, on the CPU.
    """
    largest_B = torch.empty(len(numbers_BN))
    codes_BN = torch.empty(len(numbers_BN), numbers_BN.shape[1] // 2, dtype=torch.uint8)
    passes.nearest(*_arrays(numbers_BN, midpoints_15, largest_B, codes_BN))
    return largest_B, codes_BN


def steps_of_scale(numbers_BN: Tensor, scales_B: Tensor, zeros_B: Tensor) -> tuple[Tensor, Tensor]:
    """For each number the code from 0 to 15 nearest to `(number - zero) / scale + 8`, two to a byte, low half
    first, [B, N / 2], and each block's sum of squared errors, [B]. Float32, on the CPU.
    """
    errors_B = torch.empty(len(numbers_BN))
    codes_BN = torch.empty(len(numbers_BN), numbers_BN.shape[1] // 2, dtype=torch.uint8)
    passes.steps(*_arrays(numbers_BN, scales_B, zeros_B, codes_BN, errors_B))
    return codes_BN, errors_B


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What a pass writes: bfloat16 or float32, which is rounded once more to float16."""
    return torch.empty(shape, dtype=dtype if dtype == torch.bfloat16 else torch.float32)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [_array(tensor.contiguous()) for tensor in tensors]


def _array(tensor: Tensor) -> np.ndarray:
    """The same memory; numpy has no bfloat16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _pairs(values_16: Tensor, high_first: bool) -> Tensor:
    """[256]: the two float32 numbers that a byte stands for, as one int64."""
    codes = torch.arange(256)
    halves = (codes >> 4, codes & 15) if high_first else (codes & 15, codes >> 4)
    return torch.stack([values_16[half] for half in halves], dim=1).view(torch.int64).flatten()


def _look_up(bytes_N: Tensor, table_256: Tensor) -> Tensor:
    table_256 = table_256.to(bytes_N.device)
    return table_256.index_select(0, bytes_N.flatten().int()).view(bytes_N.shape)
