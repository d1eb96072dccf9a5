"""Compiled passes for a token by itself: one row of bfloat16 times several matrices of equal shape at once.

A row of a matrix is one output: numbers of bfloat16, or of int8 with a scale in float32. It is read once and
never written in another form, so that a product takes the time of reading the matrix. Sums are in float32.

Letters: M matrices, O and I their output and input width.
"""

from array import array
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import numba
import numpy as np
import torch
from numba import carray
from torch import Tensor

from dwellmoe.cache.kernel.jit import BARE
from dwellmoe.experts.kernels.row_passes import of_bfloat16, rounded
from dwellmoe.experts.kernels.threads import address_of, inlined, memory, pass_of, run, take_chunk

OUTPUTS_OF_CHUNK = 64
SUM_IN_ANY_ORDER: Any = {"fastmath": {"reassoc", "contract", "nsz"}, **BARE}


# `pass_of` puts functions of a format in the place of these.


def prepare(work, x, room) -> Any:
    """Brings a row of the input into the form that `multiply` takes; `room` is as large as `x`."""


def multiply(work, codes, scales, x, room, out, first, end) -> Any:
    """Writes the outputs `first` to `end` of a matrix."""


def _products(pointer):
    """out [M, O] = x [M, I], or [1, I] for all of them, times the matrix of each."""
    work = carray(pointer, 1)[0]
    inputs, outputs, rows, matrices = work.inputs, work.outputs, work.rows, work.matrices
    codes = carray(memory(work.codes), (matrices,), np.int64)
    scales = carray(memory(work.scales), (matrices,), np.int64)
    x_in = carray(memory(work.x), (rows, inputs), np.uint16)
    out = carray(memory(work.out), (matrices, outputs), np.uint16)
    x, room, loaded = np.empty(inputs, np.float32), np.empty(inputs, np.float32), np.int64(-1)
    chunks = (outputs + OUTPUTS_OF_CHUNK - 1) // OUTPUTS_OF_CHUNK
    chunk = take_chunk(pointer)
    while chunk < matrices * chunks:
        matrix, first = chunk // chunks, chunk % chunks * OUTPUTS_OF_CHUNK
        row = min(matrix, rows - 1)
        if row != loaded:
            for i in range(inputs):
                x[i] = of_bfloat16(x_in[row, i])
            prepare(work, x, room)
            loaded = row
        end = min(first + OUTPUTS_OF_CHUNK, outputs)
        multiply(work, codes[matrix], scales[matrix], x, room, out[matrix], first, end)
        chunk = take_chunk(pointer)


@numba.njit(**SUM_IN_ANY_ORDER)
def dot_bfloat16(x, row):
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i] * of_bfloat16(row[i])
    return total


@numba.njit(**SUM_IN_ANY_ORDER)
def _dot_int8(x, row):
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i] * np.float32(row[i])
    return total


def _multiply_bfloat16(work, codes, scales, x, room, out, first, end):
    inputs = work.inputs
    for o in range(first, end):
        out[o] = rounded(dot_bfloat16(x, carray(memory(codes + 2 * o * inputs), (inputs,), np.uint16)))


def _multiply_int8(work, codes, scales, x, room, out, first, end):
    inputs = work.inputs
    for o in range(first, end):
        scale = carray(memory(scales + 4 * o), (1,), np.float32)[0]
        out[o] = rounded(scale * _dot_int8(x, carray(memory(codes + o * inputs), (inputs,), np.int8)))


def _as_it_is(work, x, room):
    pass


def one_row_pass(label: str, multiply: Callable, prepare: Callable = _as_it_is) -> FunctionType:
    """The pass around `multiply(work, codes, scales, x, room, out, first, end)`, which writes the outputs
    `first` to `end`, at most OUTPUTS_OF_CHUNK, of the matrix at the addresses `codes` and `scales`.
    """
    return pass_of(_products, label, multiply=inlined(multiply), prepare=inlined(prepare))


BFLOAT16 = one_row_pass("bfloat16", _multiply_bfloat16)
INT8 = one_row_pass("int8", _multiply_int8)


def is_one_row(x: Tensor, matrices: int = 1) -> bool:
    """Whether these rows are one for each of the matrices, or one for all, that a pass takes."""
    return len(x) in (1, matrices) and x.dtype == torch.bfloat16 and x.is_cpu


def products(
    function: FunctionType,
    x_MI: Tensor,
    shape_OI: tuple[int, int],
    codes: Sequence[Tensor],
    scales: Sequence[Tensor] = (),
    block: int = 0,
) -> Tensor:
    """A row times each matrix, [M, O].

    x_MI    a row for each matrix, or one row for all of them
    codes   what holds the numbers of each matrix; `scales` its scales, where the format has them
    block   inputs of a group that shares a scale, where the format has groups
    """
    out_MO = torch.empty(len(codes), shape_OI[0], dtype=torch.bfloat16)
    addresses = array("q", [address_of(each) for each in (*codes, *(scales or codes))])
    place, count = addresses.buffer_info()
    run(
        function,
        outputs=shape_OI[0],
        inputs=shape_OI[1],
        rows=len(x_MI),
        matrices=len(codes),
        block=block,
        codes=place,
        scales=place + count // 2 * addresses.itemsize,
        x=x_MI.contiguous(),
        out=out_MO,
    )
    return out_MO
