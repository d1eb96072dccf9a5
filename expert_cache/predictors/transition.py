"""A table of which experts of a layer follow which of the layer before, for the same token."""

import numpy as np

from errors import UserError


class Transition:
    """Mean over the experts f of the layer before of P(e | f), drawn to e's usual share by `doubt` uses."""

    def __init__(self, layers: int, experts: int, *, doubt: float = 16.0) -> None:
        if not doubt > 0:
            raise UserError(f"transition: doubt must be above 0, got {doubt}")
        self.doubt = doubt
        self.together_LEE = np.zeros((layers, experts, experts))
        self.uses_LE, self.tokens = np.zeros((layers, experts)), 0

    def learn(self, used_TLE: np.ndarray) -> None:
        numbers_LTE = used_TLE.transpose(1, 0, 2).astype(np.float64)
        self.uses_LE += numbers_LTE.sum(axis=1)
        self.together_LEE[1:] += numbers_LTE[:-1].transpose(0, 2, 1) @ numbers_LTE[1:]
        self.tokens += len(used_TLE)

    def start(self) -> None: ...

    def predict(self, layer: int, now_LE: np.ndarray) -> np.ndarray:
        usual_E = (self.uses_LE[layer] + 1) / (self.tokens + 2)
        if layer == 0 or not now_LE[layer - 1].any():
            return usual_E
        before = now_LE[layer - 1]
        seen = self.uses_LE[layer - 1][before][:, None]
        return ((self.together_LEE[layer][before] + self.doubt * usual_E) / (seen + self.doubt)).mean(axis=0)

    def watch(self, used_LE: np.ndarray) -> None:
        self.learn(used_LE[None])


predictor = Transition
