"""What predictors share that learn from text just as they do while they watch."""

import numpy as np

from dwellmoe.cache.predictors import Predictor


class WatchingPredictor(Predictor):
    """A predictor whose counts are made by `watch` alone; they go on through all requests."""

    def learn(self, used_TLE: np.ndarray) -> None:
        for used_LE in used_TLE:
            for layer, used_E in enumerate(used_LE):
                self.watch(layer, used_E)
