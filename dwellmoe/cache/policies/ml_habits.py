"""Learned eviction of this project: a weighted sum of statistics of the routing so far."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.learned import routing_statistics
from dwellmoe.cache.learned.order import ResidentOrder
from dwellmoe.cache.learned.routing_statistics import LAYOUT, NAMES, RoutingStatistics, load_habits
from dwellmoe.cache.policies.base import Shape


class MlHabits(NamedTuple):
    """Evicts the expert least likely to be used within a few token steps, by logistic regression.

    One set of weights for all layers and experts, so that it serves models that it was not fitted on.
    """

    resident_order: ResidentOrder
    statistics: RoutingStatistics
    weight: np.ndarray  # float64 [F]
    x: np.ndarray  # float64 [caches, F]

    lookahead = "none"
    LAYOUT = LAYOUT

    @classmethod
    def allocate(cls, shape: Shape, *, weights: str = ""):
        return cls(
            resident_order=ResidentOrder.allocate(*shape.per_expert),
            statistics=RoutingStatistics.allocate(*shape.per_expert, shape.layers),
            weight=load_habits(weights),
            x=np.zeros((shape.caches, len(NAMES))),
        )

    def reset(self, cache):
        routing_statistics.reset(self.statistics, cache)

    def observe(self, cache, layer, ids, first, last, now):
        routing_statistics.count_request(self.statistics, cache, layer, ids, first, last, now.step)

    def score(self, cache, expert, now):
        x = self.x[cache]
        routing_statistics.write_features(self.statistics, cache, expert, x)
        total = 0.0
        for feature in range(len(x)):
            total += x[feature] * self.weight[feature]
        return total


policy = MlHabits
