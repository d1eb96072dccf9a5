"""A compiled pass for the attention of one new token: torch's takes five times as long for one query.

Scores, softmax and sums are in float32; queries, keys and values are bfloat16. Each thread takes the next
head of keys. Letters: B rows of a batch, H heads of queries, N heads of keys, L positions, D head width.
"""

import math

import numpy as np
import torch
from numba import carray
from torch import Tensor

from dwellmoe.experts.kernels.one_row import dot_bfloat16
from dwellmoe.experts.kernels.row_passes import of_bfloat16, rounded
from dwellmoe.experts.kernels.threads import memory, pass_of, run, take_chunk


def _attend(pointer):
    """out [B, H, D]; x = queries [B, H, D], scaled already; codes and scales = keys and values [B, N, L, D],
    whose heads begin part_outputs and block_outputs numbers after one another; block = L, inputs = D, rows =
    B * N, outputs = H / N.
    """
    work = carray(pointer, 1)[0]
    width, length, shared, heads = work.inputs, work.block, work.outputs, work.rows
    queries = carray(memory(work.x), (heads, shared, width), np.float32)
    out = carray(memory(work.out), (heads, shared, width), np.uint16)
    scores, sums = np.empty(length, np.float32), np.empty(width, np.float32)
    head = take_chunk(pointer)
    while head < heads:
        keys = carray(memory(work.codes + 2 * head * work.part_outputs), (length, width), np.uint16)
        values = carray(memory(work.scales + 2 * head * work.block_outputs), (length, width), np.uint16)
        for g in range(shared):
            largest = np.float32(-np.inf)
            for i in range(length):
                scores[i] = dot_bfloat16(queries[head, g], keys[i])
                largest = max(largest, scores[i])
            total = np.float32(0)
            sums[:] = 0
            for i in range(length):
                share = np.float32(math.exp(scores[i] - largest))
                total += share
                for d in range(width):
                    sums[d] += share * of_bfloat16(values[i, d])
            for d in range(width):
                out[head, g, d] = rounded(sums[d] / total)
        head = take_chunk(pointer)


ATTEND = pass_of(_attend, "one-query")


def takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the pass computes these: one query a row, bfloat16 on the CPU."""
    tensors = (query, key, value)
    plain = all(each.dtype == torch.bfloat16 and each.device.type == "cpu" for each in tensors)
    of_one = plain and query.dim() == 4 and query.shape[2] == 1 and key.shape == value.shape
    return of_one and query.shape[3] == key.shape[3] and query.shape[1] % key.shape[1] == 0


def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """The attention of one query a row to all positions, [B, 1, H, D].

    query  [B, H, 1, D]; key and value  [B, N, L, D]
    """
    batch, heads, _, width = query.shape
    out = torch.empty(batch, 1, heads, width, dtype=query.dtype)
    key, value = _heads_apart(key), _heads_apart(value)
    run(
        ATTEND,
        inputs=width,
        block=key.shape[2],
        outputs=heads // key.shape[1],
        rows=batch * key.shape[1],
        x=(query.float() * scaling).contiguous(),
        codes=key.data_ptr(),
        scales=value.data_ptr(),
        part_outputs=key.stride(1),
        block_outputs=value.stride(1),
        out=out,
    )
    return out


def _heads_apart(tensor: Tensor) -> Tensor:
    """[B, N, L, D] whose heads follow one another at equal distances, positions of a head without gaps."""
    batch_step, head_step, *within = tensor.stride()
    regular = within == [tensor.shape[3], 1] and batch_step == tensor.shape[1] * head_step
    return tensor if regular else tensor.contiguous()
