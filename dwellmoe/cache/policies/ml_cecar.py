"""CECAR's learned eviction: two nets a layer predict an expert's next use from its recency and frequency."""

from math import inf
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper
from dwellmoe.cache.learned import uses
from dwellmoe.cache.learned.nets import Nets, evaluate, nets_of, shapes_of
from dwellmoe.cache.learned.order import ResidentOrder
from dwellmoe.cache.learned.uses import TINY, Uses
from dwellmoe.cache.learned.weights import check_shapes, depths, load_weights
from dwellmoe.cache.policies.base import Shape
from dwellmoe.errors import UserError

LAYOUT = "r, f"
LAGS, STEPS = 256, 64  # rows and columns of the table, beside the last row and the last column


class MlCecar(NamedTuple):
    """Evicts the lowest -(w1 * short + w2 * long); w2 = min(1, C / C0) / 2, w1 = 1 - w2.

    The nets have two inputs, and one is the inverse of a whole number: they are tabulated when the cache is
    made, exactly in the lag up to 256, and interpolated in the frequency.
    """

    resident_order: ResidentOrder
    uses: Uses
    table: np.ndarray  # float32 [layers, LAGS + 1, STEPS + 1]: score; the last row for never used

    lookahead = "none"
    LAYOUT = LAYOUT

    @classmethod
    def allocate(cls, shape: Shape, *, weights: str = ""):
        tensors, facts = load_weights(weights, "ml_cecar", LAYOUT)
        for prefix in ("short.", "long."):
            check_shapes(weights, tensors, shapes_of(prefix, 2, 1))
        each_layer = shape.capacity[0] / (shape.layers // shape.caches)
        table = tabulate(tensors, share_of_long(each_layer, _c0(weights, facts)))
        table = table[depths(shape.layers, len(table))]
        return cls(ResidentOrder.allocate(*shape.per_expert), Uses.allocate(*shape.per_expert), table)

    def reset(self, cache):
        uses.reset(self.uses, cache)

    def observe(self, cache, layer, ids, first, last, now):
        uses.count_request(self.uses, cache, ids, first, last, now.step)

    def score(self, cache, expert, now):
        caches, experts = self.uses.last.shape
        layer, _ = uses.in_layer(cache, expert, experts * caches // len(self.table), experts)
        recency = uses.recency(self.uses.last[cache, expert], now.step)
        frequency = uses.frequency(self.uses.count[cache, expert], self.uses.most[cache])
        return look_up(self.table[layer], recency, frequency)


def _c0(path: str, facts: dict[str, str]) -> float:
    try:
        found = float(facts["c0"])
    except (KeyError, ValueError):
        found = 0.0
    if not 0 < found < inf:
        raise UserError(f"{path}: metadata 'c0' must be a number above 0, got {facts.get('c0')!r}")
    return found


def share_of_long(capacity: float, c0: float) -> float:
    """w2: how much the long horizon counts in a cache of `capacity` experts a layer."""
    return min(1.0, capacity / c0) / 2


def tabulate(tensors: dict[str, np.ndarray], w2: float) -> np.ndarray:
    """float32 [layers, LAGS + 1, STEPS + 1]: scores of every lag and frequency."""
    short, long = nets_of(tensors, "short."), nets_of(tensors, "long.")
    inverse = np.append(1.0 / np.arange(1, LAGS + 1), 0.0) + TINY
    grid = np.meshgrid(inverse, np.arange(STEPS + 1) / STEPS, indexing="ij")
    x_BI = np.stack(grid, axis=-1).reshape(-1, 2).astype(np.float32)
    layers = range(len(short.in_bias))
    rows = [-((1 - w2) * _one(short, x_BI, layer) + w2 * _one(long, x_BI, layer)) for layer in layers]
    return np.stack(rows).reshape(-1, LAGS + 1, STEPS + 1).astype(np.float32)


def _one(nets: Nets, x_BI: np.ndarray, layer: int) -> np.ndarray:
    return evaluate(nets, x_BI, layer)[:, 0]


@helper
def look_up(table, recency, frequency):
    """The table between its columns; longer lags than it has lie between its last two rows."""
    inverse = recency - TINY
    column = min(int(frequency * STEPS), STEPS - 1)
    part = frequency * STEPS - column
    if inverse * LAGS >= 1.0:
        row = int(1.0 / inverse + 0.5) - 1
        return table[row, column] * (1 - part) + table[row, column + 1] * part
    near = inverse * LAGS
    above = table[LAGS - 1, column] * (1 - part) + table[LAGS - 1, column + 1] * part
    below = table[LAGS, column] * (1 - part) + table[LAGS, column + 1] * part
    return above * near + below * (1 - near)


policy = MlCecar
