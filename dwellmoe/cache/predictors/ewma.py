"""A moving average of use: p <- (1 - alpha) * p + alpha * [used]; 0 for an expert that was never used."""

import numpy as np

from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError


class Ewma:
    """Each layer counts its own runs; a new request goes on where the last one ended."""

    horizon = 1

    def __init__(self, layers: int, experts: int, *, alpha: float = 0.5) -> None:
        if not 0 < alpha <= 1:
            raise UserError(f"ewma: alpha must be above 0 and at most 1, got {alpha}")
        self.alpha, self.p_LE = alpha, np.zeros((layers, experts))

    def learn(self, used_TLE: np.ndarray) -> None:
        for used_LE in used_TLE:
            self.p_LE += self.alpha * (used_LE - self.p_LE)

    def follow(self, trace: RoutingTrace) -> None: ...

    def start(self) -> None: ...

    def predict(self, layer: int) -> np.ndarray:
        return self.p_LE[layer].copy()

    def watch(self, layer: int, used_E: np.ndarray) -> None:
        self.p_LE[layer] += self.alpha * (used_E - self.p_LE[layer])


predictor = Ewma
