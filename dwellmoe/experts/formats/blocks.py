"""Matrices of which a row is numbers in blocks: codes of a table of values, times a scale a block.

On a CPU a compiled pass dequantises them, or multiplies few rows by them without writing the matrix. On other
devices they are looked up in a table by torch.

Letters: S rows, O and I the output and input width of a matrix, B blocks of N numbers each.
"""

from typing import Any

import torch
from torch import Tensor

from dwellmoe.experts.formats import passes as quantising_passes
from dwellmoe.experts.formats.base import Empty
from dwellmoe.experts.kernels.row_passes import PassesOfTypes
from dwellmoe.experts.kernels.threads import run

COMPUTED = (torch.bfloat16, torch.float16, torch.float32)
"""Types of rows that a pass multiplies, in float32."""


def dequantised(
    passes: PassesOfTypes, shape_OI: tuple[int, int], dtype: torch.dtype, empty: Empty, **stored: Any
) -> Tensor:
    """The matrix [O, I], computed in float32 and rounded once."""
    short = dtype == torch.bfloat16
    out_OI = empty(shape_OI, dtype=torch.bfloat16 if short else torch.float32)
    function = (passes.bfloat16 if short else passes.float32).dequantise
    run(function, outputs=shape_OI[0], inputs=shape_OI[1], out=out_OI, **stored)
    return out_OI.to(dtype)


def product(passes: PassesOfTypes, x_SI: Tensor, shape_OI: tuple[int, int], **stored: Any) -> Tensor:
    """Each row times the matrix, [S, O], summed in float32."""
    short = x_SI.dtype == torch.bfloat16
    x = (x_SI if short else x_SI.float()).contiguous()
    out_SO = torch.empty(len(x), shape_OI[0], dtype=x.dtype)
    function = (passes.bfloat16 if short else passes.float32).product
    run(function, rows=len(x), outputs=shape_OI[0], inputs=shape_OI[1], x=x, out=out_SO, **stored)
    return out_SO.to(x_SI.dtype)


def passes_multiply(x_SI: Tensor, most_rows: int) -> bool:
    """Whether a pass takes the product of these rows, as far as there are at most so many."""
    return len(x_SI) <= most_rows and x_SI.device.type == "cpu" and x_SI.dtype in COMPUTED


def look_up_pairs(
    codes_BN: Tensor, values_16: Tensor, scales_B: Tensor, dtype: torch.dtype, high_first: bool
) -> Tensor:
    """`values[code] * scale`, [B, N], by torch.

    codes_BN    uint8 [B, N / 2]: two codes a byte
    high_first  the code in the high half of a byte comes first
    """
    pairs = _look_up(codes_BN, _pairs(values_16, high_first)).view(torch.float32)
    return (pairs.view(len(codes_BN), -1) * scales_B.float()[:, None]).to(dtype)


def look_up_bytes(
    bytes_OI: Tensor, values_256: Tensor, scales: Tensor, block: int, dtype: torch.dtype
) -> Tensor:
    """`values[byte] * scale`, [O, I], by torch.

    scales  float32 [O, ceil(I / block)]: one for each `block` numbers of a row
    """
    numbers_OI = _look_up(bytes_OI, values_256)
    return (numbers_OI * scales.repeat_interleave(block, 1)[:, : bytes_OI.shape[1]]).to(dtype)


def nearest_codes(numbers_BN: Tensor, midpoints_15: Tensor) -> tuple[Tensor, Tensor]:
    """The largest absolute value of each block, [B], and for each number the code of the value nearest to its
    share of that, two to a byte, high half first, [B, N / 2]. Float32, on the CPU.
    """
    largest_B = torch.empty(len(numbers_BN))
    codes_BN = torch.empty(len(numbers_BN), numbers_BN.shape[1] // 2, dtype=torch.uint8)
    quantising_passes.nearest(*_arrays(numbers_BN, midpoints_15, largest_B, codes_BN))
    return largest_B, codes_BN


def steps_of_scale(numbers_BN: Tensor, scales_B: Tensor, zeros_B: Tensor) -> tuple[Tensor, Tensor]:
    """For each number the code from 0 to 15 nearest to `(number - zero) / scale + 8`, two to a byte, low half
    first, [B, N / 2], and each block's sum of squared errors, [B]. Float32, on the CPU.
    """
    errors_B = torch.empty(len(numbers_BN))
    codes_BN = torch.empty(len(numbers_BN), numbers_BN.shape[1] // 2, dtype=torch.uint8)
    quantising_passes.steps(*_arrays(numbers_BN, scales_B, zeros_B, codes_BN, errors_B))
    return codes_BN, errors_B


def powers_of_two(numbers_BN: Tensor, sizes_8: Tensor) -> tuple[Tensor, Tensor]:
    """For each block the exponent, plus 127, of the power of two with which its squared error is least, uint8
    [B], and the codes of the sizes nearest to its numbers, with their sign in bit 3, two to a byte, low half
    first, [B, N / 2]. Float32, on the CPU.
    """
    exponents_B = torch.empty(len(numbers_BN), dtype=torch.uint8)
    codes_BN = torch.empty(len(numbers_BN), numbers_BN.shape[1] // 2, dtype=torch.uint8)
    midpoints_7 = (sizes_8[1:] + sizes_8[:-1]) / 2
    quantising_passes.microscale(*_arrays(numbers_BN, midpoints_7, sizes_8, codes_BN, exponents_B))
    return exponents_B, codes_BN


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.contiguous().numpy() for tensor in tensors]


def _pairs(values_16: Tensor, high_first: bool) -> Tensor:
    """[256]: the two float32 numbers that a byte stands for, as one int64."""
    codes = torch.arange(256)
    halves = (codes >> 4, codes & 15) if high_first else (codes & 15, codes >> 4)
    return torch.stack([values_16[half] for half in halves], dim=1).view(torch.int64).flatten()


def _look_up(bytes_N: Tensor, table_256: Tensor) -> Tensor:
    table_256 = table_256.to(bytes_N.device)
    return table_256.index_select(0, bytes_N.flatten().int()).view(bytes_N.shape)
