"""Compiled passes over matrices whose rows are decoded one by one: MXFP4, NF4 and block FP8.

A row is decoded into float32 and multiplied by its scales, then multiplied with all rows of the input, or
rounded into a matrix. Of two codes a byte, the first ones of all bytes come first in a decoded row and the
second ones after them: so neighbours are handled together. bfloat16 is handled as its 16 bits, the upper half
of a float32's.

Letters: S rows, O and I the output and input width of a matrix.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import carray

from dwellmoe.cache.kernel.jit import BARE, bound, helper
from dwellmoe.experts.kernels.threads import inlined, memory, pass_of, take_chunk

ROWS_OF_CHUNK = 16
MXFP4_BLOCK, NF4_BLOCK = 32, 64
HALF_BITS = np.uint32(126 << 23)
"""The bits of 0.5."""
NORMAL_FLOATS = tuple(
    np.float32(value)
    for value in (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
        *(0.7229568362236023, 1.0),
    )
)
"""What the codes 0 to 15 of NF4 stand for, as the paper gives them."""


# `pass_of` puts functions and a type of one format in the place of these names.
TYPE = np.float32


def decode(work, o, row, scale_of) -> Any:
    """Decodes row o of the matrix; `scale_of` is room for as many numbers."""


def store(row, out) -> Any:
    """Writes a decoded row in the order of the matrix."""


def load(x, row) -> Any:
    """Reads a row of the input into the order of a decoded row."""


def to_type(number) -> Any:
    """A float32 in the type of the output."""


def from_type(number) -> Any:
    """A number of the input as a float32."""


@helper
def rounded(number):
    """The bits of a float32 rounded to bfloat16, ties to even."""
    bits = np.float32(number).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@helper
def of_bfloat16(bits):
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@helper
def unchanged(number):
    return number


@helper
def _e2m1(code):
    """Of MXFP4: a sign, two bits of exponent with bias 1, one bit of mantissa."""
    code = np.uint32(code)
    size, sign = np.uint32(code & np.uint32(7)), np.uint32(np.uint32(code & np.uint32(8)) << np.uint32(28))
    small = HALF_BITS if size == np.uint32(1) else np.uint32(0)
    bits = small if size < np.uint32(2) else np.uint32(np.uint32(size << np.uint32(22)) + HALF_BITS)
    return np.uint32(bits | sign).view(np.float32)


@helper
def _normal_float(code):
    """Of NF4, by halves of the table: faster than a look-up for many codes at once."""
    values = NORMAL_FLOATS
    code, zero = np.uint32(code), np.uint32(0)
    of_2, of_4 = np.uint32(code & np.uint32(1)) != zero, np.uint32(code & np.uint32(2)) != zero
    of_8, of_16 = np.uint32(code & np.uint32(4)) != zero, np.uint32(code & np.uint32(8)) != zero
    a = values[1] if of_2 else values[0]
    b = values[3] if of_2 else values[2]
    c = values[5] if of_2 else values[4]
    d = values[7] if of_2 else values[6]
    e = values[9] if of_2 else values[8]
    f = values[11] if of_2 else values[10]
    g = values[13] if of_2 else values[12]
    h = values[15] if of_2 else values[14]
    first = (d if of_4 else c) if of_8 else (b if of_4 else a)
    second = (h if of_4 else g) if of_8 else (f if of_4 else e)
    return second if of_16 else first


@helper
def _e4m3(byte):
    """Of FP8: a sign, four bits of exponent with bias 7, three bits of mantissa; all ones is NaN."""
    size = np.int32(byte & 127)
    normal = np.int32((size << 20) + (120 << 23)).view(np.float32)
    value = np.float32(size) * np.float32(2.0**-9) if size < 8 else normal
    value = np.float32(np.nan) if size == 127 else value
    return -value if byte & 128 else value


@helper
def _power_of_two(exponent):
    """2 ** (exponent - 127); the smallest is no normal number."""
    bits = np.int32(np.int32(exponent) << 23) if exponent > 0 else np.int32(1 << 22)
    return np.int32(bits).view(np.float32)


def _decode_mxfp4(work, o, row, scale_of):
    half, blocks = work.inputs // 2, work.inputs // MXFP4_BLOCK
    codes = carray(memory(work.codes + o * half), (half,), np.uint8)
    scales = carray(memory(work.scales + o * blocks), (blocks,), np.uint8)
    for block in range(blocks):
        scale_of[16 * block : 16 * (block + 1)] = _power_of_two(scales[block])
    low, high = row[:half], row[half:]
    for i in range(half):
        low[i] = _e2m1(codes[i] & 15) * scale_of[i]
    for i in range(half):
        high[i] = _e2m1(codes[i] >> 4) * scale_of[i]


def _decode_nf4(work, o, row, scale_of):
    half, blocks = work.inputs // 2, work.inputs // NF4_BLOCK
    codes = carray(memory(work.codes + o * half), (half,), np.uint8)
    largest = carray(memory(work.scales + 4 * o * blocks), (blocks,), np.float32)
    for block in range(blocks):
        scale_of[32 * block : 32 * (block + 1)] = largest[block]
    low, high = row[:half], row[half:]
    for i in range(half):
        low[i] = _normal_float(codes[i] >> 4) * scale_of[i]
    for i in range(half):
        high[i] = _normal_float(codes[i] & 15) * scale_of[i]


def _decode_fp8(work, o, row, scale_of):
    """The scales of a part's rows of blocks come after those of the part before."""
    inputs, block, blocks = work.inputs, work.block, -(-work.inputs // work.block)
    part, within = o // work.part_outputs, o % work.part_outputs
    block_rows = -(-work.part_outputs // work.block_outputs)
    scale_row = part * block_rows + within // work.block_outputs
    codes = carray(memory(work.codes + o * inputs), (inputs,), np.uint8)
    scales = carray(memory(work.scales + 4 * scale_row * blocks), (blocks,), np.float32)
    for i in range(blocks):
        into, scale = row[i * block : min((i + 1) * block, inputs)], scales[i]
        of_block = codes[i * block :]
        for j in range(len(into)):
            into[j] = _e4m3(of_block[j]) * scale


@numba.njit(fastmath={"reassoc", "contract", "nsz"}, **BARE)
def _dot(first, second):
    total = np.float32(0)
    for i in range(len(first)):
        total += first[i] * second[i]
    return total


def _product(pointer):
    """out [S, O] = x [S, I] times the matrix, summed in float32; both are float32, or bits of bfloat16."""
    work = carray(pointer, 1)[0]
    inputs, outputs, rows = work.inputs, work.outputs, work.rows
    x_in = carray(memory(work.x), (rows, inputs), TYPE)
    out = carray(memory(work.out), (rows, outputs), TYPE)
    x = np.empty((rows, inputs), np.float32)
    row, scale_of = np.empty(inputs, np.float32), np.empty(inputs, np.float32)
    for s in range(rows):
        load(x_in[s], x[s])
    first = take_chunk(pointer) * ROWS_OF_CHUNK
    while first < outputs:
        for o in range(first, min(first + ROWS_OF_CHUNK, outputs)):
            decode(work, o, row, scale_of)
            for s in range(rows):
                out[s, o] = to_type(_dot(x[s], row))
        first = take_chunk(pointer) * ROWS_OF_CHUNK


def _dequantise(pointer):
    """out [O, I], in float32 or in the bits of bfloat16."""
    work = carray(pointer, 1)[0]
    inputs, outputs = work.inputs, work.outputs
    out = carray(memory(work.out), (outputs, inputs), TYPE)
    row, scale_of = np.empty(inputs, np.float32), np.empty(inputs, np.float32)
    first = take_chunk(pointer) * ROWS_OF_CHUNK
    while first < outputs:
        for o in range(first, min(first + ROWS_OF_CHUNK, outputs)):
            decode(work, o, row, scale_of)
            store(row, out[o])
        first = take_chunk(pointer) * ROWS_OF_CHUNK


def _store_halves(row, out):
    half = len(out) // 2
    for i in range(half):
        out[2 * i] = to_type(row[i])
        out[2 * i + 1] = to_type(row[half + i])


def _load_halves(x, row):
    half = len(x) // 2
    for i in range(half):
        row[i] = from_type(x[2 * i])
        row[half + i] = from_type(x[2 * i + 1])


def _store_row(row, out):
    for i in range(len(out)):
        out[i] = to_type(row[i])


def _load_row(x, row):
    for i in range(len(x)):
        row[i] = from_type(x[i])


class RowPasses(NamedTuple):
    """The passes of one format for one type of rows and matrices."""

    product: Any
    dequantise: Any


class PassesOfTypes(NamedTuple):
    """The passes of one format."""

    float32: RowPasses
    bfloat16: RowPasses


def row_passes(name: str, decode: Callable, halves: bool) -> PassesOfTypes:
    """The passes around `decode(work, o, row, scale_of)`, which writes row o of the matrix into `row`.

    halves  whether a byte holds two codes: the first of all bytes then come first in `row`
    """

    def of(number_type: type, to_type: Callable, from_type: Callable) -> RowPasses:
        load, store = (_load_halves, _store_halves) if halves else (_load_row, _store_row)
        label = f"{name}-{number_type.__name__}"
        names = {"decode": inlined(decode), "TYPE": number_type}
        loaded, stored = bound(load, from_type=from_type), bound(store, to_type=to_type)
        return RowPasses(
            product=pass_of(_product, label, load=loaded, to_type=to_type, **names),
            dequantise=pass_of(_dequantise, label, store=stored, **names),
        )

    return PassesOfTypes(of(np.float32, unchanged, unchanged), of(np.uint16, rounded, of_bfloat16))


MXFP4 = row_passes("mxfp4", _decode_mxfp4, halves=True)
NF4 = row_passes("nf4", _decode_nf4, halves=True)
FP8 = row_passes("fp8", _decode_fp8, halves=False)
