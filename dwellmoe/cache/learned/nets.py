"""The nets of learned eviction: three layers with SiLU between them and an absolute value at the end.

Letters: B rows, I inputs, H hidden units, O outputs. Weights are named as in their files: 0.weight [H, I],
0.bias [H], 1.weight [H, H], 1.bias [H], 2.weight [O, H], 2.bias [O].
"""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper

NAMES = tuple(f"{part}.{kind}" for part in range(3) for kind in ("weight", "bias"))


class Nets(NamedTuple):
    """Nets of one shape; the first axis of every array says which."""

    in_weight: np.ndarray  # float32 [nets, H, I]
    in_bias: np.ndarray  # float32 [nets, H]
    mid_weight: np.ndarray  # float32 [nets, H, H]
    mid_bias: np.ndarray  # float32 [nets, H]
    out_weight: np.ndarray  # float32 [nets, O, H]
    out_bias: np.ndarray  # float32 [nets, O]

    def transposed(self, which: np.ndarray) -> "Nets":
        """The nets `which`, in this order, with weights [nets, inputs, outputs] as `run` takes them."""
        chosen = (array[which] for array in self)
        return Nets(*(np.ascontiguousarray(array.swapaxes(1, -1)) for array in chosen))


def shapes_of(prefix: str, inputs: int | str, outputs: int | str) -> dict[str, tuple[int | str, ...]]:
    """The shapes of nets in a file, for `check_shapes`: N nets, H hidden units."""
    hidden = f"{prefix}H"
    shapes = {0: (hidden, inputs), 1: (hidden, hidden), 2: (outputs, hidden)}
    return {
        f"{prefix}{part}.{kind}": ("N", *(shape if kind == "weight" else shape[:1]))
        for part, shape in shapes.items()
        for kind in ("weight", "bias")
    }


def nets_of(tensors: dict[str, np.ndarray], prefix: str = "") -> Nets:
    """The nets of tensors that have the shapes of `shapes_of`."""
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
    """One `transposed` net on one row: x [I] -> y [O], with h and g [H] as scratch; allocates nothing."""
    dense(nets.in_weight[net], nets.in_bias[net], x, h)
    silu(h)
    dense(nets.mid_weight[net], nets.mid_bias[net], h, g)
    silu(g)
    dense(nets.out_weight[net], nets.out_bias[net], g, y)
    for i in range(len(y)):
        y[i] = abs(y[i])


@helper
def silu(x):
    for i in range(len(x)):
        x[i] = x[i] / (np.float32(1) + np.exp(-x[i]))


@helper
def dense(weight, bias, x, y):
    """y = x @ weight + bias, four inputs at a time: independent sums become vector instructions."""
    for out in range(len(y)):
        y[out] = bias[out]
    whole = len(x) - len(x) % 4
    for i in range(0, whole, 4):
        x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        for out in range(len(y)):
            first = weight[i, out] * x0 + weight[i + 1, out] * x1
            y[out] += first + (weight[i + 2, out] * x2 + weight[i + 3, out] * x3)
    for i in range(whole, len(x)):
        for out in range(len(y)):
            y[out] += weight[i, out] * x[i]
