"""What a file says of the decoded tokens of one trace: predictions that took the model to make."""

import numpy as np

from dwellmoe.cache.access import passes_of
from dwellmoe.cache.recorded_predictions import RecordedPredictions
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError


class Recorded:
    """Says no more at any time than was known by then: of layers that the running token has still to come to
    what the file has, of all others their usual shares.
    """

    def __init__(self, layers: int, experts: int, *, file: str = "") -> None:
        if not file:
            raise UserError("predictor 'recorded' needs a file of `simulate.py predict`: recorded:file=PATH")
        self.file, self.found = file, RecordedPredictions.load(file)
        if self.found.usual.shape != (layers, experts):
            has = " x ".join(map(str, self.found.usual.shape))
            raise UserError(f"{file}: predictions for {has} experts, not for {layers} x {experts}")
        self.reach = self.found.reach
        self.early, self.late, self.passes = self.found.early, self.found.late, self.found.tokens
        self.running, self.following = 0, 0  # the pass, and the layer of it that runs next

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
        said = self._warned(layer)
        known = said is not None and self.running < self.passes
        return (said[self.running, layer] if known else self.found.usual[layer]).astype(np.float64)

    def _warned(self, layer: int) -> np.ndarray | None:
        if layer == self.following:
            return self.early if self.late is None else self.late
        return self.early if 0 < self.following < layer else None

    def watch(self, layer: int, used_E: np.ndarray) -> None:
        if layer + 1 < len(self.found.usual):
            self.following = layer + 1
        else:
            self.running, self.following = self.running + 1, 0


def _of_passes(said: np.ndarray | None, begin: np.ndarray) -> np.ndarray | None:
    """Of tokens that run together: that any of them uses an expert."""
    if said is None or len(begin) == len(said):
        return said
    return 1 - np.multiply.reduceat(1 - said, begin, axis=0)


predictor = Recorded
