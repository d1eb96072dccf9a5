"""Which experts follow which of the layer before, for the same token: predicts the layer that runs next."""

import numpy as np

from dwellmoe.cache.memory import check_memory
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError


class Transition:
    """Mean over the experts f of the layer before of P(e | f), drawn towards e's share of all tokens by
    `pseudocount` uses.
    """

    horizon = 1

    def __init__(self, layers: int, experts: int, *, pseudocount: float = 16.0) -> None:
        if not pseudocount > 0:
            raise UserError(f"transition: pseudocount must be above 0, got {pseudocount}")
        check_memory(8 * layers * experts**2, f"transition with {layers} layers x {experts} experts")
        self.pseudocount = pseudocount
        self.together_LEE = np.zeros((layers, experts, experts))
        self.uses_LE, self.tokens_L = np.zeros((layers, experts)), np.zeros(layers)
        self.start()

    def learn(self, used_TLE: np.ndarray) -> None:
        used_LTE = used_TLE.transpose(1, 0, 2).astype(np.float64)
        self.uses_LE += used_LTE.sum(axis=1)
        self.together_LEE[1:] += used_LTE[:-1].transpose(0, 2, 1) @ used_LTE[1:]
        self.tokens_L += len(used_TLE)

    def follow(self, trace: RoutingTrace) -> None: ...

    def start(self) -> None:
        self.before_E = np.zeros(self.uses_LE.shape[1], np.bool_)  # of the layer that ran last

    def predict(self, layer: int) -> np.ndarray:
        prior_E = (self.uses_LE[layer] + 1) / (self.tokens_L[layer] + 2)
        before_E = self.before_E
        if layer == 0 or not before_E.any():
            return prior_E
        together = self.together_LEE[layer][before_E] + self.pseudocount * prior_E
        uses = self.uses_LE[layer - 1][before_E][:, None] + self.pseudocount
        return (together / uses).mean(axis=0)

    def watch(self, layer: int, used_E: np.ndarray) -> None:
        if layer:
            self.together_LEE[layer][self.before_E] += used_E
        self.uses_LE[layer] += used_E
        self.tokens_L[layer] += 1
        self.before_E = used_E.copy()


predictor = Transition
