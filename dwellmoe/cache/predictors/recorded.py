"""Recorded predictions: probabilities that took the model to compute, read from a file about one trace."""

import numpy as np

from dwellmoe.cache.access import passes_of
from dwellmoe.cache.recorded_predictions import RecordedPredictions
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError


class Recorded:
    """Predicts no more at any time than was known by then: for layers that the running token has still to
    reach what the file has, for all others their prior.
    """

    def __init__(self, layers: int, experts: int, *, file: str = "") -> None:
        if not file:
            raise UserError(
                "predictor 'recorded' needs a file of `dwellmoe simulate predict`: recorded:file=PATH"
            )
        self.file = file
        self.found = RecordedPredictions.load(file)
        if self.found.prior.shape != (layers, experts):
            has = " x ".join(map(str, self.found.prior.shape))
            raise UserError(f"{file}: predictions for {has} experts, not for {layers} x {experts}")
        self.horizon = self.found.horizon
        self.early, self.late, self.passes = self.found.early, self.found.late, self.found.tokens
        self.running = 0  # the pass
        self.following = 0  # the layer of it that runs next

    def learn(self, used_TLE: np.ndarray) -> None: ...

    def follow(self, trace: RoutingTrace) -> None:
        try:
            self.found.check_trace(trace)
        except UserError as error:
            raise UserError(f"{self.file}: {error}") from None
        passes = passes_of(trace, "decode")
        self.passes, self.running, self.following = len(passes), 0, 0
        begin = np.cumsum(passes.end - passes.begin) - (passes.end - passes.begin)
        self.early, self.late = _of_passes(self.found.early, begin), _of_passes(self.found.late, begin)

    def start(self) -> None: ...

    def predict(self, layer: int) -> np.ndarray:
        predicted = self._known(layer)
        if predicted is None or self.running >= self.passes:
            return self.found.prior[layer].astype(np.float64)
        return predicted[self.running, layer].astype(np.float64)

    def _known(self, layer: int) -> np.ndarray | None:
        """The predictions of `layer` that are known by now; None: no more than the prior."""
        if layer == self.following:
            return self.early if self.late is None else self.late
        return self.early if 0 < self.following < layer else None

    def watch(self, layer: int, used_E: np.ndarray) -> None:
        if layer + 1 < len(self.found.prior):
            self.following = layer + 1
        else:
            self.running, self.following = self.running + 1, 0


def _of_passes(predicted: np.ndarray | None, begin: np.ndarray) -> np.ndarray | None:
    """For tokens that run together: the probability that any of them uses an expert."""
    if predicted is None or len(begin) == len(predicted):
        return predicted
    return 1 - np.multiply.reduceat(1 - predicted, begin, axis=0)


predictor = Recorded
