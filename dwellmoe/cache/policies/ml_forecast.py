"""Learned eviction by a forecast of coming tokens: how likely an expert is used within several horizons."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.learned import forecast
from dwellmoe.cache.learned.forecast import LAYOUT, Forecast, eviction_value
from dwellmoe.cache.learned.online import LEARNING_RATE
from dwellmoe.cache.learned.order import ResidentOrder
from dwellmoe.cache.policies.base import Shape
from dwellmoe.errors import UserError


class MlForecast(NamedTuple):
    """Evicts the lowest sum of the probabilities of use within 1, 2, 4 and 8 steps, each times its value.

    Fitted to a model, it knows which experts follow which in and around each of its layers; on any other
    model it goes by statistics of the routing so far alone. What these count for it goes on learning, at
    `learning_rate` (0: not at all).
    """

    resident_order: ResidentOrder
    forecast: Forecast
    value: np.ndarray  # float64 [H]

    lookahead = "none"
    LAYOUT = LAYOUT
    LEARNING_RATE = LEARNING_RATE

    @classmethod
    def allocate(cls, shape: Shape, *, weights: str = "", learning_rate: float = LEARNING_RATE):
        if not 0 <= learning_rate <= 1:
            raise UserError(f"ml_forecast: learning_rate must be from 0 to 1, got {learning_rate}")
        return cls(
            resident_order=ResidentOrder.allocate(*shape.per_expert),
            forecast=Forecast.allocate(*shape.per_expert, shape.layers, weights, learning_rate),
            value=eviction_value(weights),
        )

    def reset(self, cache):
        forecast.reset(self.forecast, cache)

    def on_layers(self, cache, layer, layer_ids, running):
        forecast.look_around(self.forecast, layer, layer_ids, running)

    def observe(self, cache, layer, ids, first, last, now):
        forecast.count_request(self.forecast, cache, layer, ids, first, last, now.step)

    def score(self, cache, expert, now):
        p = self.forecast.p[cache]
        forecast.write_likelihoods(self.forecast, cache, expert, p)
        total = 0.0
        for horizon in range(len(p)):
            total += self.value[horizon] * p[horizon]
        return total


policy = MlForecast
