"""A compiled pass for several rows in bfloat16 times a matrix [O, I] as it lies in memory: libraries copy it
into another order first, which the few rows of one expert do not pay for.

Sums are in float32. Letters: S rows, O and I the output and input width of the matrix.
"""

import torch
from numba import carray
from torch import Tensor
from torch.nn.functional import linear

from dwellmoe.experts.kernels.bfloat16_vectors import (
    INPUTS,
    OUTPUTS,
    ROWS,
    has_pair_products,
    products_of_row,
    products_of_rows,
    products_with_prefetch,
)
from dwellmoe.experts.kernels.threads import inlined, pass_of, prefetch, run, take_chunk

OUTPUTS_OF_CHUNK, LINE_BYTES = 64, 64
FEW_ROWS = 48
"""Up to which the next rows of the matrix are asked for within products, as measured."""


def _products(pointer):
    """out [S, O] = x [S, I] times the matrix; I in whole steps, O whole times OUTPUTS.

    While some rows of the matrix are used the next ones are asked for: each begins a page, where the
    processor does not go on by itself. Few rows of x leave no time for that between their products.
    """
    work = carray(pointer, 1)[0]
    outputs, rows, row_bytes, steps = work.outputs, work.rows, 2 * work.inputs, work.inputs // INPUTS
    groups, row_lines = (rows + ROWS - 1) // ROWS, row_bytes // LINE_BYTES
    few = rows <= FEW_ROWS
    lines_at_first = max(0, OUTPUTS - groups) * row_lines if few else 0
    lines_of_group = 0 if few else (OUTPUTS * row_lines + groups - 1) // groups
    chunk = take_chunk(pointer)
    while chunk * OUTPUTS_OF_CHUNK < outputs:
        first = chunk * OUTPUTS_OF_CHUNK
        for o in range(first, min(first + OUTPUTS_OF_CHUNK, outputs), OUTPUTS):
            matrix, row = work.codes + o * row_bytes, 0
            ahead = _ask_for(matrix + OUTPUTS * row_bytes, lines_at_first)
            while row < rows:
                ahead = _ask_for(ahead, lines_of_group)
                x, out = work.x + row * row_bytes, work.out + 2 * (row * outputs + o)
                if row + ROWS > rows:
                    products_of_row(x, matrix, row_bytes, out, 2 * outputs, steps, ahead)
                    row += 1
                    continue
                if few:
                    products_with_prefetch(x, matrix, row_bytes, out, 2 * outputs, steps, ahead)
                    ahead += row_bytes
                else:
                    products_of_rows(x, matrix, row_bytes, out, 2 * outputs, steps, ahead)
                row += ROWS
        chunk = take_chunk(pointer)


@inlined
def _ask_for(place, lines):
    """Asks for so many cache lines; where the next one begins."""
    for _ in range(lines):
        prefetch(place)
        place += LINE_BYTES
    return place


PRODUCTS = pass_of(_products, "bfloat16")


def takes(x_SI: Tensor, matrix_OI: Tensor) -> bool:
    """Whether the pass multiplies these rows by this matrix; of products with a gradient it keeps none."""
    if torch.is_grad_enabled() and x_SI.requires_grad:
        return False
    outputs, inputs = matrix_OI.shape
    of_type = x_SI.dtype == matrix_OI.dtype == torch.bfloat16 and x_SI.is_cpu and matrix_OI.is_cpu
    in_steps = inputs % INPUTS == 0 and outputs % OUTPUTS == 0
    return of_type and in_steps and matrix_OI.is_contiguous() and len(x_SI) > 0 and has_pair_products()


def product(x_SI: Tensor, matrix_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Each row times the matrix, [S, O], a tensor of its own: by the pass where it takes them."""
    if not takes(x_SI, matrix_OI):
        return linear(x_SI, matrix_OI, bias_O)
    out_SO = torch.empty(len(x_SI), len(matrix_OI), dtype=torch.bfloat16)
    outputs, inputs = matrix_OI.shape
    run(
        PRODUCTS,
        outputs=outputs,
        inputs=inputs,
        rows=len(x_SI),
        codes=matrix_OI,
        x=x_SI.contiguous(),
        out=out_SO,
    )
    return out_SO if bias_O is None else out_SO.add_(bias_O)
