"""Optimal eviction with limited sight: knows the next uses within some token steps."""

from math import inf, isinf
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.heap import Heap
from dwellmoe.cache.policies.base import NEVER, TICK_BITS
from dwellmoe.errors import UserError


class Lopt(NamedTuple):
    """Victim: the farthest next use; all beyond `horizon` token steps tie and come first; 0 is LRU."""

    heap: Heap
    next_use: np.ndarray  # int64 [caches, E]
    horizon: int  # token steps

    lookahead = "horizon"
    is_stack_algorithm = True

    @classmethod
    def allocate(cls, caches: int, experts: int, capacity: np.ndarray, *, horizon: float = 2.0):
        if not horizon >= 0 or not (isinf(horizon) or horizon.is_integer()):
            raise UserError(f"lopt: horizon must be a whole number of token steps >= 0 or inf, got {horizon}")
        steps = int(min(horizon, NEVER >> TICK_BITS))
        return cls(Heap.allocate(caches, experts), np.zeros((caches, experts), np.int64), steps)

    def note(self, cache, expert, fresh, now):
        self.next_use[cache, expert] = now.next_use

    def score(self, cache, expert, now):
        following = self.next_use[cache, expert]
        if following == NEVER or self.horizon == 0 or (following >> TICK_BITS) - now.tick > self.horizon:
            return -inf
        return -float(following)


policy = Lopt
