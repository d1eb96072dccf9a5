"""The eviction policy `ml_habits` as a predictor: its odds, normalised to K experts a layer."""

import numpy as np

from dwellmoe.cache.kernel.jit import compiled
from dwellmoe.cache.learned import routing_statistics
from dwellmoe.cache.learned.routing_statistics import RoutingStatistics, load_habits
from dwellmoe.cache.predictors.watching import WatchingPredictor


class HabitsPredictor(WatchingPredictor):
    """One file of weights for all layers and models; the counts are made while it watches."""

    horizon = 1

    def __init__(self, layers: int, experts: int, *, weights: str = "") -> None:
        self.weight = load_habits(weights)
        self.statistics = RoutingStatistics.allocate(layers, experts, layers)
        self.steps = [0] * layers
        self.scores = np.zeros(experts)

    def predict(self, layer: int) -> np.ndarray:
        if not self.steps[layer]:
            return np.zeros(len(self.scores))
        _score(self.statistics, layer, self.weight, self.scores)
        odds_E = np.exp(self.scores - self.scores.max())
        return np.minimum(1.0, odds_E * (max(1, self.statistics.width[layer, 0]) / odds_E.sum()))

    def watch(self, layer: int, used_E: np.ndarray) -> None:
        _watch(self.statistics, layer, np.flatnonzero(used_E).astype(np.int32), self.steps[layer])
        self.steps[layer] += 1


@compiled
def _watch(state, layer, ids, step):
    routing_statistics.count_request(state, layer, layer, ids, 0, len(ids), step)


@compiled
def _score(state, layer, weight, scores):
    x = np.empty(len(weight))
    for expert in range(len(scores)):
        routing_statistics.write_features(state, layer, expert, x)
        scores[expert] = 0.0
        for feature in range(len(x)):
            scores[expert] += x[feature] * weight[feature]


predictor = HabitsPredictor
