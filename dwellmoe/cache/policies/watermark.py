"""Eviction by predicted benefit: how likely an expert is soon used, and how soon its layer runs again."""

from math import exp, log
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.learned.order import ResidentOrder
from dwellmoe.cache.policies.base import Shape
from dwellmoe.errors import UserError


class Watermark(NamedTuple):
    """Evicts the lowest p * exp(-gamma * D); ties by last use.

    p <- (1 - alpha) * p + alpha * [used] at each token step of the layer, 0 for an expert never used; D is
    the cyclic distance from the running layer to the expert's, L for the running layer itself. What a fetch
    saves per byte is nearly the same for all experts of a model (latency is small beside their size), so the
    benefit density of `tiers/watermark/` orders experts as p does.
    """

    resident_order: ResidentOrder
    log_p: np.ndarray  # float64 [caches, E]: log of p / (1 - alpha)**step, as of the last use
    running: np.ndarray  # int64 [caches]: the layer of the latest request
    layers: int
    log_kept: float  # log(1 - alpha)
    alpha: float
    gamma: float

    lookahead = "none"

    @classmethod
    def allocate(cls, shape: Shape, *, alpha: float = 0.5, gamma: float = 0.02):
        if not 0 < alpha < 1:
            raise UserError(f"watermark: alpha must be a share between 0 and 1, got {alpha}")
        if not 0 <= gamma < float("inf"):
            raise UserError(f"watermark: gamma must be at least 0, got {gamma}")
        return cls(
            resident_order=ResidentOrder.allocate(*shape.per_expert),
            log_p=np.full(shape.per_expert, -np.inf),
            running=np.zeros(shape.caches, np.int64),
            layers=shape.layers,
            log_kept=log(1 - alpha),
            alpha=alpha,
            gamma=gamma,
        )

    def reset(self, cache):
        self.log_p[cache, :] = -np.inf

    def observe(self, cache, layer, ids, first, last, now):
        self.running[cache] = layer
        decay = self.log_kept * now.step
        for i in range(first, last):
            before = exp(self.log_p[cache, ids[i]] + decay)
            self.log_p[cache, ids[i]] = log(before + self.alpha) - decay

    def score(self, cache, expert, now):
        each = self.log_p.shape[1] * self.log_p.shape[0] // self.layers
        distance = (cache + expert // each - self.running[cache] - 1) % self.layers + 1
        return self.log_p[cache, expert] - self.gamma * distance


policy = Watermark
