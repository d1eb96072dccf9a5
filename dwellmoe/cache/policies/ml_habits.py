"""Learned eviction of this project: a weighted sum of what the routing so far tells of the next use."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.learned import habits
from dwellmoe.cache.learned.habits import LAYOUT, NAMES, RoutingStatistics
from dwellmoe.cache.learned.order import ResidentOrder
from dwellmoe.cache.learned.weights import load_weights


class MlHabits(NamedTuple):
    """Victim: the least likely to be used within a few token steps, by logistic regression.

    One set of weights for all layers and experts, so that it serves models that it was not fitted on.
    """

    seats: ResidentOrder
    habits: RoutingStatistics
    weight: np.ndarray  # float64 [F]
    x: np.ndarray  # float64 [caches, F]

    lookahead = "none"
    LAYOUT = LAYOUT

    @classmethod
    def allocate(cls, caches: int, experts: int, capacity: np.ndarray, layers: int, *, weights: str = ""):
        tensors, _ = load_weights(weights, "ml_habits", LAYOUT)
        return cls(
            ResidentOrder.allocate(caches, experts),
            RoutingStatistics.allocate(caches, experts, layers),
            tensors["weight"].astype(np.float64),
            np.zeros((caches, len(NAMES))),
        )

    def clear(self, cache):
        habits.forget(self.habits, cache)

    def watch(self, cache, layer, ids, first, last, now):
        habits.watch(self.habits, cache, layer, ids, first, last, now.tick)

    def rate(self, cache, expert, now):
        x = self.x[cache]
        habits.describe(self.habits, cache, expert, x)
        total = 0.0
        for feature in range(len(x)):
            total += x[feature] * self.weight[feature]
        return total


policy = MlHabits
