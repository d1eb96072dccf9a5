"""Compiled passes over int4's layout, for processors on which torch has no product for it, and for many rows.

A block of 64 outputs lies together, input after input: 32 bytes hold the codes of the first 32 outputs in
their low halves, and those of the other 32 in their high halves. A group of inputs is decoded into a small
table of float32, which is multiplied with all rows, or rounded into a matrix [I, O].

Letters: S rows, O and I the output and input width of a matrix.
"""

from typing import Any

import numpy as np
from numba import carray

from dwellmoe.cache.kernel.jit import helper
from dwellmoe.experts.kernels.row_passes import of_bfloat16, rounded, unchanged
from dwellmoe.experts.kernels.threads import inlined, memory, pass_of, take_chunk

OUTPUTS = 64
HALF = OUTPUTS // 2
# `pass_of` puts a function and a type in the place of these names.
TYPE = np.float32


def to_type(number) -> Any:
    """The number in the type of the output."""


@helper
def _number(code, scale, zero):
    return np.float32(np.int32(code) - np.int32(8)) * scale + zero


@inlined
def _decode_group(work, block, group, pairs, table):
    """table [inputs of a group, 64]; pairs [2, 64]: room for scales and zeros."""
    count, outputs, inputs = work.block, work.outputs, work.inputs
    both = carray(memory(work.scales + 4 * (group * outputs + block * OUTPUTS)), (OUTPUTS, 2), np.uint16)
    scales, zeros = pairs[0], pairs[1]
    for n in range(OUTPUTS):
        scales[n], zeros[n] = of_bfloat16(both[n, 0]), of_bfloat16(both[n, 1])
    first = work.codes + HALF * (block * inputs + group * count)
    codes = carray(memory(first), (count, HALF), np.uint8)
    for k in range(count):
        for n in range(HALF):
            table[k, n] = _number(codes[k, n] & 15, scales[n], zeros[n])
            table[k, HALF + n] = _number(codes[k, n] >> 4, scales[HALF + n], zeros[HALF + n])


def _product(pointer):
    """out [S, O] float32 = x [S, I] float32 times the matrix; O in whole blocks, I in whole groups."""
    work = carray(pointer, 1)[0]
    count, inputs, outputs, rows = work.block, work.inputs, work.outputs, work.rows
    x = carray(memory(work.x), (rows, inputs), np.float32)
    out = carray(memory(work.out), (rows, outputs), np.float32)
    table, pairs = np.empty((count, OUTPUTS), np.float32), np.empty((2, OUTPUTS), np.float32)
    block = take_chunk(pointer)
    while block < outputs // OUTPUTS:
        out[:, block * OUTPUTS : (block + 1) * OUTPUTS] = 0
        for group in range(inputs // count):
            _decode_group(work, block, group, pairs, table)
            for s in range(rows):
                sums = out[s, block * OUTPUTS : (block + 1) * OUTPUTS]
                for k in range(count):
                    factor = x[s, group * count + k]
                    for n in range(OUTPUTS):
                        sums[n] += factor * table[k, n]
        block = take_chunk(pointer)


def _dequantise(pointer):
    """out [I, O], in float32 or in the bits of bfloat16; O in whole blocks, I in whole groups."""
    work = carray(pointer, 1)[0]
    count, inputs, outputs = work.block, work.inputs, work.outputs
    out = carray(memory(work.out), (inputs, outputs), TYPE)
    table, pairs = np.empty((count, OUTPUTS), np.float32), np.empty((2, OUTPUTS), np.float32)
    block = take_chunk(pointer)
    while block < outputs // OUTPUTS:
        for group in range(inputs // count):
            _decode_group(work, block, group, pairs, table)
            for k in range(count):
                row = out[group * count + k, block * OUTPUTS : (block + 1) * OUTPUTS]
                for n in range(OUTPUTS):
                    row[n] = to_type(table[k, n])
        block = take_chunk(pointer)


product = pass_of(_product, "int4")
to_float32 = pass_of(_dequantise, "int4-float32", to_type=unchanged, TYPE=np.float32)
to_bfloat16 = pass_of(_dequantise, "int4-bfloat16", to_type=rounded, TYPE=np.uint16)
