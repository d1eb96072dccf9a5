"""Optimal eviction with a limited lookahead: the next uses within some token steps are known."""

from math import inf, isinf
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.heap import Heap
from dwellmoe.cache.policies.base import NEVER, STEP_BITS, Shape
from dwellmoe.errors import UserError


class Lopt(NamedTuple):
    """Evicts the farthest next use; all beyond `horizon` token steps tie and leave first; 0 is LRU."""

    heap: Heap
    next_use: np.ndarray  # int64 [caches, E]
    horizon: int  # token steps

    lookahead = "horizon"
    is_stack_algorithm = True

    @classmethod
    def allocate(cls, shape: Shape, *, horizon: float = 2.0):
        if not horizon >= 0 or not (isinf(horizon) or horizon.is_integer()):
            raise UserError(f"lopt: horizon must be a whole number of token steps >= 0 or inf, got {horizon}")
        steps = int(min(horizon, NEVER >> STEP_BITS))
        return cls(Heap.allocate(*shape.per_expert), np.zeros(shape.per_expert, np.int64), steps)

    def record(self, cache, expert, inserted, now):
        self.next_use[cache, expert] = now.next_use

    def score(self, cache, expert, now):
        following = self.next_use[cache, expert]
        if following == NEVER or self.horizon == 0 or (following >> STEP_BITS) - now.step > self.horizon:
            return -inf
        return -float(following)


policy = Lopt
