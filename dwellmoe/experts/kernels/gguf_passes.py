"""Compiled passes over the blocks of GGUF files: Q8_0 and Q4_0.

A block is 32 numbers of a row: a scale in float16, and then a byte each, or 16 bytes of which the low halves
are the first 16 numbers and the high halves the others.
"""

import numpy as np
from numba import carray

from dwellmoe.experts.kernels.row_passes import row_passes
from dwellmoe.experts.kernels.threads import inlined, memory

BLOCK = 32
SCALE_BYTES = 2
Q8_0_BYTES, Q4_0_BYTES = SCALE_BYTES + BLOCK, SCALE_BYTES + BLOCK // 2


@inlined
def _float16(address):
    """A sign, five bits of exponent with bias 15, ten of mantissa."""
    bits = np.int32(carray(memory(address), (1,), np.uint16)[0])
    size = bits & 0x7FFF
    value = np.int32((size << 13) + (112 << 23)).view(np.float32)
    value = np.float32(size) * np.float32(2.0**-24) if size < 0x400 else value
    value = np.float32(np.nan) if size >= 0x7C00 else value
    return -value if bits & 0x8000 else value


def _decode_q8_0(work, o, row, scale_of):
    blocks = work.inputs // BLOCK
    for block in range(blocks):
        begin = work.codes + (o * blocks + block) * Q8_0_BYTES
        scale, first = _float16(begin), block * BLOCK
        codes = carray(memory(begin + SCALE_BYTES), (BLOCK,), np.int8)
        for i in range(BLOCK):
            row[first + i] = np.float32(codes[i]) * scale


def _decode_q4_0(work, o, row, scale_of):
    blocks, half = work.inputs // BLOCK, BLOCK // 2
    for block in range(blocks):
        begin = work.codes + (o * blocks + block) * Q4_0_BYTES
        scale, first = _float16(begin), block * BLOCK
        codes = carray(memory(begin + SCALE_BYTES), (half,), np.uint8)
        for i in range(half):
            row[first + i] = np.float32(np.int32(codes[i] & 15) - np.int32(8)) * scale
            row[first + half + i] = np.float32(np.int32(codes[i] >> 4) - np.int32(8)) * scale


Q8_0 = row_passes("q8_0", _decode_q8_0, halves=False)
Q4_0 = row_passes("q4_0", _decode_q4_0, halves=False)
