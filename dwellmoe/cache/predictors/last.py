"""The last token's experts are used again: each with the share of repeats in recorded tokens."""

import numpy as np

from dwellmoe.cache.trace import RoutingTrace


class Last:
    horizon = 1

    def __init__(self, layers: int, experts: int) -> None:
        self.last_LE = np.zeros((layers, experts), np.bool_)
        self.repeated_L, self.others_L = np.full(layers, 0.5), np.full(layers, 0.5)

    def learn(self, used_TLE: np.ndarray) -> None:
        before, after = used_TLE[:-1], used_TLE[1:]
        self.repeated_L = _share(before & after, before)
        self.others_L = _share(~before & after, ~before)

    def follow(self, trace: RoutingTrace) -> None: ...

    def start(self) -> None:
        self.last_LE = np.zeros_like(self.last_LE)

    def predict(self, layer: int) -> np.ndarray:
        return np.where(self.last_LE[layer], self.repeated_L[layer], self.others_L[layer])

    def watch(self, layer: int, used_E: np.ndarray) -> None:
        self.last_LE[layer] = used_E


def _share(found_TLE: np.ndarray, of_TLE: np.ndarray) -> np.ndarray:
    return (found_TLE.sum(axis=(0, 2)) + 1) / (of_TLE.sum(axis=(0, 2)) + 2)


predictor = Last
