"""Eviction by predicted benefit: how likely an expert is soon used, and how soon its layer runs again."""

from math import exp, log
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.learned.order import ResidentOrder
from dwellmoe.errors import UserError


class Watermark(NamedTuple):
    """Victim: the least p * exp(-gamma * D); ties by last use.

    p <- (1 - alpha) * p + alpha * [used] on the layer's own clock, 0 for whom was never used; D is the cyclic
    distance from the running layer to the expert's, L for the running layer itself. What a fetch saves per
    byte is nearly the same for all experts of a model (latency is small beside their size), so the benefit
    density of `expert_cache/placement.py` orders experts as p does.
    """

    seats: ResidentOrder
    likely: np.ndarray  # float64 [caches, E]: log of p / (1 - alpha)**tick, as of the last use
    running: np.ndarray  # int64 [caches]: the layer that asked last
    layers: int
    kept: float  # log(1 - alpha)
    gain: float  # alpha
    gamma: float

    lookahead = "none"

    @classmethod
    def allocate(
        cls,
        caches: int,
        experts: int,
        capacity: np.ndarray,
        layers: int,
        *,
        alpha: float = 0.5,
        gamma: float = 0.02,
    ):
        if not 0 < alpha < 1:
            raise UserError(f"watermark: alpha must be a share between 0 and 1, got {alpha}")
        if not 0 <= gamma < float("inf"):
            raise UserError(f"watermark: gamma must be at least 0, got {gamma}")
        likely = np.full((caches, experts), -np.inf)
        running = np.zeros(caches, np.int64)
        return cls(
            ResidentOrder.allocate(caches, experts), likely, running, layers, log(1 - alpha), alpha, gamma
        )

    def clear(self, cache):
        self.likely[cache, :] = -np.inf

    def watch(self, cache, layer, ids, first, last, now):
        self.running[cache] = layer
        aged = self.kept * now.tick
        for at in range(first, last):
            before = exp(self.likely[cache, ids[at]] + aged)
            self.likely[cache, ids[at]] = log(before + self.gain) - aged

    def rate(self, cache, expert, now):
        each = self.likely.shape[1] * self.likely.shape[0] // self.layers
        distance = (cache + expert // each - self.running[cache] - 1) % self.layers + 1
        return self.likely[cache, expert] - self.gamma * distance


policy = Watermark
