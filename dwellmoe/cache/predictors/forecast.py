"""The forecast of the eviction policy `ml_forecast` as a predictor: use in a layer's next run, and later."""

import numpy as np

from dwellmoe.cache.access import MOST_IDS, begin_pass, write_layer_ids
from dwellmoe.cache.kernel.jit import compiled
from dwellmoe.cache.learned import forecast
from dwellmoe.cache.learned.forecast import HORIZONS, Forecast
from dwellmoe.cache.predictors.watching import WatchingPredictor


class ForecastPredictor(WatchingPredictor):
    """Weights of `dwellmoe simulate fit --policy ml_forecast`, or the shipped ones. It counts
    while it watches.
    """

    horizon = 1

    def __init__(self, layers: int, experts: int, *, weights: str = "") -> None:
        self.forecast = Forecast.allocate(layers, experts, layers, weights)
        self.steps = [0] * layers
        self._layer_ids = np.zeros((2, layers, 1 + MOST_IDS), np.uint16)
        self._p_HE = np.zeros((len(HORIZONS), experts))

    def predict(self, layer: int) -> np.ndarray:
        return self._within(layer)[0].copy()

    def predict_later(self, layer: int) -> np.ndarray:
        """float64 [E]: probability of use in each run after the next, as the longest horizon implies."""
        return 1 - (1 - self._within(layer)[-1]) ** (1 / HORIZONS[-1])

    def _within(self, layer: int) -> np.ndarray:
        """float64 [H, E]: how likely each expert is used within each horizon; a view that is overwritten."""
        if self.steps[layer]:
            _predict(self.forecast, layer, self._p_HE)
        else:
            self._p_HE[:] = 0
        return self._p_HE

    def watch(self, layer: int, used_E: np.ndarray) -> None:
        ids = np.flatnonzero(used_E).astype(np.uint32)
        _watch(self.forecast, self._layer_ids, layer, ids, self.steps[layer])
        self.steps[layer] += 1


@compiled
def _watch(state, layer_ids, layer, ids, step):
    begin_pass(layer_ids, layer)
    forecast.look_around(state, layer, layer_ids, 1)
    write_layer_ids(layer_ids[1, layer], ids, 0, len(ids), 0)
    forecast.count_request(state, layer, layer, ids, 0, len(ids), step)


@compiled
def _predict(state, layer, p_HE):
    for expert in range(p_HE.shape[1]):
        forecast.write_likelihoods(state, layer, expert, p_HE[:, expert])


predictor = ForecastPredictor
