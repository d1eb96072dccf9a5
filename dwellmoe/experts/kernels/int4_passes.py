"""Compiled passes over int4's layout: one row times several matrices, few rows where torch has no product for
it on this processor, and the dequantised matrix [I, O].

Letters: S rows, O and I the output and input width of a matrix.
"""

from typing import Any

import numba
import numpy as np
from numba import carray

from dwellmoe.cache.kernel.jit import BARE
from dwellmoe.experts.kernels import int4_vectors
from dwellmoe.experts.kernels.int4_vectors import (
    HALF,
    ROWS,
    add_integer_products,
    add_products,
    add_products_of_rows,
    has_byte_products,
)
from dwellmoe.experts.kernels.one_row import SUM_IN_ANY_ORDER, one_row_pass
from dwellmoe.experts.kernels.row_passes import of_bfloat16, rounded
from dwellmoe.experts.kernels.threads import inlined, memory, pass_of, prefetch, take_chunk

OUTPUTS = 2 * HALF
"""Of a block."""
WITHOUT_NAN: Any = {"fastmath": {"nnan", "nsz", "reassoc"}, **BARE}
AHEAD, LINE_BYTES = 4, 64
"""Groups, and bytes of a cache line."""
LARGEST, LARGEST_BYTE = 127 * 256, 127
"""Of a whole number whose high and low bytes are both signed, and of one such byte."""
# `pass_of` puts a function and a number in the place of these names.
ITEM_BYTES = 4


def decode(codes, scales, out, row_bytes, count) -> Any:
    """Writes the numbers of a group of a block."""


decode_float32: Any = int4_vectors.to_float32


@inlined
def _codes_of(work, codes, block, group):
    return codes + HALF * (block * work.inputs + group * work.block)


@inlined
def _scales_of(work, scales, block, group):
    return scales + 4 * (group * work.outputs + block * OUTPUTS)


@inlined
def _prefetch_scales(work, scales, block, group):
    """Those of a later group: they lie far apart, where the processor does not expect them."""
    begin = _scales_of(work, scales, block, group)
    for line in range(0, 4 * OUTPUTS, LINE_BYTES):
        prefetch(begin + line)


@numba.njit(**SUM_IN_ANY_ORDER)
def _sum(x):
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i]
    return total


@inlined
def _write(totals, out, first):
    for n in range(OUTPUTS):
        out[first + n] = rounded(totals[n])


def _multiply(work, codes, scales, x, room, out, first, end):
    """The outputs of one block."""
    count, block, totals = work.block, first // OUTPUTS, np.zeros(OUTPUTS, np.float32)
    for group in range(work.inputs // count):
        add_products(
            _codes_of(work, codes, block, group),
            _scales_of(work, scales, block, group),
            x.ctypes.data + 4 * group * count,
            _sum(x[group * count : (group + 1) * count]),
            totals.ctypes.data,
            count,
        )
    _write(totals, out, first)


@numba.njit(**WITHOUT_NAN)
def _largest(x):
    """The largest size of these numbers; anything where one of them is NaN."""
    largest = np.float32(0)
    for i in range(len(x)):
        size = abs(x[i])
        largest = size if size > largest else largest
    return largest


@inlined
def _step_of(x, most):
    """The step of which these numbers are at most `most`, and one over it. The step is NaN where one of them
    is not finite, for no whole number is.
    """
    largest = _largest(x)
    step = largest / np.float32(most)
    per_step = np.float32(1) / step if largest > np.float32(0) else np.float32(0)
    return step + _sum(x) * np.float32(0), per_step


def _in_steps(work, x, room):
    """x as whole numbers of 16 bits, their high and low bytes, times a step for each group: closer to x than
    a float is to the sum of a group. Behind them each group's step and sum.
    """
    count, inputs = work.block, work.inputs
    high, low = _bytes_of(room.ctypes.data, inputs), _bytes_of(room.ctypes.data + inputs, inputs)
    steps = _steps_of(room.ctypes.data, inputs, count)
    for group in range(inputs // count):
        first = group * count
        step, per_step = _step_of(x[first : first + count], LARGEST)
        total = 0
        for i in range(first, first + count):
            whole = np.int32(np.rint(x[i] * per_step))
            upper = (whole + np.int32(128)) >> np.int32(8)
            high[i], low[i] = upper, whole - np.int32(256) * upper
            total += whole
        steps[group, 0], steps[group, 1] = step, step * np.float32(total)


@inlined
def _bytes_of(address, count):
    return carray(memory(address), (count,), np.int8)


@inlined
def _steps_of(room, inputs, count):
    return carray(memory(room + 2 * inputs), (inputs // count, 2), np.float32)


def _multiply_steps(work, codes, scales, x, room, out, first, end):
    """The outputs of one block."""
    count, inputs, block = work.block, work.inputs, first // OUTPUTS
    totals, steps = np.zeros(OUTPUTS, np.float32), _steps_of(room.ctypes.data, inputs, count)
    for group in range(inputs // count):
        _prefetch_scales(work, scales, block, group + AHEAD)
        add_integer_products(
            _codes_of(work, codes, block, group),
            _scales_of(work, scales, block, group),
            room.ctypes.data + group * count,
            room.ctypes.data + inputs + group * count,
            steps[group, 0],
            steps[group, 1],
            totals.ctypes.data,
            count,
        )
    _write(totals, out, first)


def _rows_in_bytes(pointer):
    """x [S, I] of bfloat16 as whole numbers of a byte times a step for each group, at `out` int8 [S', I],
    S' whole times ROWS; behind them each row's steps, and the sums of its groups.
    """
    work = carray(pointer, 1)[0]
    count, inputs, rows = work.block, work.inputs, work.rows
    x_in = carray(memory(work.x), (rows, inputs), np.uint16)
    whole = carray(memory(work.out), (rows, inputs), np.int8)
    steps = carray(memory(_steps_behind(work, work.out)), (rows, inputs // count, 2), np.float32)
    x = np.empty(inputs, np.float32)
    row = take_chunk(pointer)
    while row < rows:
        for i in range(inputs):
            x[i] = of_bfloat16(x_in[row, i])
        for group in range(inputs // count):
            first = group * count
            step, per_step = _step_of(x[first : first + count], LARGEST_BYTE)
            total = 0
            for i in range(first, first + count):
                whole[row, i] = np.int8(np.rint(x[i] * per_step))
                total += np.int32(whole[row, i])
            steps[row, group, 0], steps[row, group, 1] = step, step * np.float32(total)
        row = take_chunk(pointer)


@inlined
def _steps_behind(work, place):
    return place + (work.rows + ROWS - 1) // ROWS * ROWS * work.inputs


def _product_of_bytes(pointer):
    """out [S, O] bfloat16 = x [S, I], as `_rows_in_bytes` writes it, times the matrix; O in whole blocks."""
    work = carray(pointer, 1)[0]
    count, inputs, outputs, rows = work.block, work.inputs, work.outputs, work.rows
    groups = inputs // count
    steps = _steps_behind(work, work.x)
    out = carray(memory(work.out), (rows, outputs), np.uint16)
    totals = np.empty((ROWS, OUTPUTS), np.float32)
    block = take_chunk(pointer)
    while block < outputs // OUTPUTS:
        for row in range(0, rows, ROWS):
            totals[:] = 0
            for group in range(groups):
                add_products_of_rows(
                    _codes_of(work, work.codes, block, group),
                    _scales_of(work, work.scales, block, group),
                    work.x + row * inputs + group * count,
                    inputs,
                    steps + 8 * (row * groups + group),
                    8 * groups,
                    totals.ctypes.data,
                    count,
                )
            for each in range(min(ROWS, rows - row)):
                _write(totals[each], out[row + each], block * OUTPUTS)
        block = take_chunk(pointer)


def _product(pointer):
    """out [S, O] float32 = x [S, I] float32 times the matrix; O in whole blocks, I in whole groups."""
    work = carray(pointer, 1)[0]
    count, inputs, outputs, rows = work.block, work.inputs, work.outputs, work.rows
    x = carray(memory(work.x), (rows, inputs), np.float32)
    out = carray(memory(work.out), (rows, outputs), np.float32)
    table = np.empty((count, OUTPUTS), np.float32)
    block = take_chunk(pointer)
    while block < outputs // OUTPUTS:
        out[:, block * OUTPUTS : (block + 1) * OUTPUTS] = 0
        for group in range(inputs // count):
            codes = _codes_of(work, work.codes, block, group)
            scales = _scales_of(work, work.scales, block, group)
            decode_float32(codes, scales, table.ctypes.data, 4 * OUTPUTS, count)
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
    row_bytes = ITEM_BYTES * outputs
    block = take_chunk(pointer)
    while block < outputs // OUTPUTS:
        for group in range(inputs // count):
            codes = _codes_of(work, work.codes, block, group)
            scales = _scales_of(work, work.scales, block, group)
            place = work.out + group * count * row_bytes + block * ITEM_BYTES * OUTPUTS
            decode(codes, scales, place, row_bytes, count)
        block = take_chunk(pointer)


one_row_of_floats = one_row_pass("int4", _multiply)
one_row_in_steps = one_row_pass("int4-steps", _multiply_steps, _in_steps)
one_row = one_row_in_steps if has_byte_products() else one_row_of_floats
product = pass_of(_product, "int4")
rows_in_bytes = pass_of(_rows_in_bytes, "int4")
product_of_bytes = pass_of(_product_of_bytes, "int4")
to_float32 = pass_of(_dequantise, "int4-float32", decode=int4_vectors.to_float32, ITEM_BYTES=4)
to_bfloat16 = pass_of(_dequantise, "int4-bfloat16", decode=int4_vectors.to_bfloat16, ITEM_BYTES=2)
