"""Knows the nets of learned eviction: three layers, SiLU between, absolute value at the end; trains none.

Letters: B rows, I inputs, H hidden units, O outputs. Weights are named as in their files: 0.weight [H, I],
0.bias [H], 1.weight [H, H], 1.bias [H], 2.weight [O, H], 2.bias [O].
"""

from typing import NamedTuple

import numpy as np

from expert_cache.compiled import helper

NAMES = tuple(f"{part}.{kind}" for part in range(3) for kind in ("weight", "bias"))


class Nets(NamedTuple):
    """Nets of one shape; the first axis of every array says which."""

    in_weight: np.ndarray  # float32 [nets, H, I]
    in_bias: np.ndarray  # float32 [nets, H]
    mid_weight: np.ndarray  # float32 [nets, H, H]
    mid_bias: np.ndarray  # float32 [nets, H]
    out_weight: np.ndarray  # float32 [nets, O, H]
    out_bias: np.ndarray  # float32 [nets, O]

    def take(self, which: np.ndarray) -> "Nets":
        """The nets of these numbers, in this order."""
        return Nets(*(np.ascontiguousarray(array[which]) for array in self))


def nets_of(tensors: dict[str, np.ndarray], prefix: str = "") -> Nets:
    return Nets(*(tensors[prefix + name] for name in NAMES))


def evaluate(nets: Nets, x_BI: np.ndarray, net: int) -> np.ndarray:
    """float32 [B, O]: one net on many rows, in NumPy."""
    h_BH = _silu(x_BI @ nets.in_weight[net].T + nets.in_bias[net])
    h_BH = _silu(h_BH @ nets.mid_weight[net].T + nets.mid_bias[net])
    return np.abs(h_BH @ nets.out_weight[net].T + nets.out_bias[net])


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


@helper
def run(nets, net, x, h, g, y):
    """One net on one row: x [I] -> y [O], by way of h and g [H]; compiled, allocates nothing."""
    dense(nets.in_weight[net], nets.in_bias[net], x, h)
    silu(h)
    dense(nets.mid_weight[net], nets.mid_bias[net], h, g)
    silu(g)
    dense(nets.out_weight[net], nets.out_bias[net], g, y)
    for at in range(len(y)):
        y[at] = abs(y[at])


@helper
def silu(x):
    for at in range(len(x)):
        x[at] = x[at] / (np.float32(1) + np.exp(-x[at]))


@helper
def dense(weight, bias, x, y):
    """y = weight @ x + bias, with eight sums side by side so that it becomes vector instructions."""
    inputs = len(x)
    whole = inputs - inputs % 8
    for row in range(len(y)):
        w = weight[row]
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0)
        for at in range(0, whole, 8):
            s0 += w[at] * x[at]
            s1 += w[at + 1] * x[at + 1]
            s2 += w[at + 2] * x[at + 2]
            s3 += w[at + 3] * x[at + 3]
            s4 += w[at + 4] * x[at + 4]
            s5 += w[at + 5] * x[at + 5]
            s6 += w[at + 6] * x[at + 6]
            s7 += w[at + 7] * x[at + 7]
        total = ((s0 + s4) + (s1 + s5)) + ((s2 + s6) + (s3 + s7)) + bias[row]
        for at in range(whole, inputs):
            total += w[at] * x[at]
        y[row] = total
