"""Decoders of low-bit formats that take one number at a time, written from the formats' descriptions."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, int]
NORMAL_FLOATS = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
]


def nf4(stored: Mapping[str, Tensor], shape: Shape) -> Tensor:
    """Two codes a byte, high half first; 64 numbers share the largest absolute value."""
    codes, largest = stored["codes"].flatten().tolist(), stored["largest"].numpy()
    numbers = []
    for byte in codes:
        for code in (byte // 16, byte % 16):
            numbers.append(np.float32(NORMAL_FLOATS[code]) * largest[len(numbers) // 64])
    return torch.tensor(np.array(numbers[: shape[0] * shape[1]])).view(shape)


def int8(stored: Mapping[str, Tensor], shape: Shape) -> Tensor:
    codes, scales = stored["codes"].numpy(), stored["scales"].numpy()
    rows = [[np.float32(code) * scales[row] for code in codes[row]] for row in range(shape[0])]
    return torch.tensor(np.array(rows))


def int4(stored: Mapping[str, Tensor], shape: Shape) -> Tensor:
    """Blocks of 64 rows, column after column: of the 32 bytes of a column the low halves hold the first 32
    rows, the high halves the others. A scale and a zero for each group of a row.
    """
    codes, both = stored["codes"].tolist(), stored["scales_and_zeros"].tolist()
    group = len(codes[0]) // len(both)
    rows = []
    for row in range(shape[0]):
        block, within = divmod(row, 64)
        numbers = []
        for at in range(shape[1]):
            byte = codes[block][at][within % 32]
            code = byte // 16 if within >= 32 else byte % 16
            scale, zero = (np.float32(number) for number in both[at // group][row])
            numbers.append(np.float32(np.float32(code - 8) * scale) + zero)
        rows.append(numbers)
    return torch.tensor(np.array(rows))


def e2m1(code: int) -> float:
    """A sign, two bits of exponent with bias 1, one bit of mantissa."""
    sign, exponent, mantissa = code >> 3, (code >> 1) & 3, code & 1
    size = mantissa * 0.5 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -size if sign else size


def mxfp4(stored: Mapping[str, Tensor], shape: Shape) -> Tensor:
    """Blocks of 32: 16 bytes of two codes, low half first, and an exponent with bias 127."""
    blocks, scales = stored["blocks"].tolist(), stored["scales"].tolist()
    rows = []
    for row in range(shape[0]):
        numbers = []
        for block, scale in zip(blocks[row], scales[row], strict=True):
            for byte in block:
                numbers += [e2m1(half) * 2.0 ** (scale - 127) for half in (byte % 16, byte // 16)]
        rows.append(numbers[: shape[1]])
    return torch.tensor(rows, dtype=torch.float64).float()


def e4m3(byte: int) -> float:
    """A sign, four bits of exponent with bias 7, three bits of mantissa; all ones is NaN."""
    sign, exponent, mantissa = byte >> 7, (byte >> 3) & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if sign else size


def fp8(stored: Mapping[str, Tensor], shape: Shape, block: Shape = (128, 128), parts: int = 1) -> Tensor:
    """A scale for each block of each part."""
    codes, scales = stored["weight"].view(torch.uint8).tolist(), stored["scales"].float().numpy()
    height = shape[0] // parts
    rows = []
    for row in range(shape[0]):
        part, within = divmod(row, height)
        of_row = scales[part][within // block[0]]
        rows.append([np.float32(e4m3(code)) * of_row[at // block[1]] for at, code in enumerate(codes[row])])
    return torch.tensor(np.array(rows))


def half_float(low: int, high: int) -> float:
    """A sign, five bits of exponent with bias 15, ten of mantissa."""
    sign, exponent, mantissa = high >> 7, (high >> 2) & 31, (high & 3) * 256 + low
    size = mantissa * 2.0**-24 if exponent == 0 else (1 + mantissa / 1024) * 2.0 ** (exponent - 15)
    return -size if sign else size


def q8_0(stored: Mapping[str, Tensor], shape: Shape) -> Tensor:
    """Blocks of 32: a scale of two bytes, and a byte with a sign each."""
    numbers = []
    for low, high, *codes in stored["blocks"].view(-1, 34).tolist():
        numbers += [half_float(low, high) * (code - 256 if code > 127 else code) for code in codes]
    return torch.tensor(numbers, dtype=torch.float64).float().view(shape)


def q4_0(stored: Mapping[str, Tensor], shape: Shape) -> Tensor:
    """Blocks of 32: a scale of two bytes, and 16 bytes: all low halves before all high halves."""
    numbers = []
    for low, high, *codes in stored["blocks"].view(-1, 18).tolist():
        halves = [code % 16 for code in codes] + [code // 16 for code in codes]
        numbers += [half_float(low, high) * (half - 8) for half in halves]
    return torch.tensor(numbers, dtype=torch.float64).float().view(shape)
