"""LFU eviction: by the number of uses since an expert was loaded."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.heap import Heap
from dwellmoe.cache.policies.base import Shape


class Lfu(NamedTuple):
    """Evicts the resident with the fewest uses since it was loaded; the count is forgotten on eviction."""

    heap: Heap
    uses: np.ndarray  # int32 [caches, E]

    lookahead = "none"
    monotone_score = True

    @classmethod
    def allocate(cls, shape: Shape):
        return cls(Heap.allocate(*shape.per_expert), np.zeros(shape.per_expert, np.int32))

    def record(self, cache, expert, inserted, now):
        self.uses[cache, expert] = 1 if inserted else self.uses[cache, expert] + 1

    def score(self, cache, expert, now):
        return float(self.uses[cache, expert])


policy = Lfu
