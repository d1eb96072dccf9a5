"""Least frequently used: counts the uses since an expert was loaded."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.heap import Heap


class Lfu(NamedTuple):
    """Victim: the resident with the fewest uses since it was loaded; the count is forgotten on eviction."""

    heap: Heap
    uses: np.ndarray  # int32 [caches, E]

    lookahead = "none"
    monotone_score = True

    @classmethod
    def allocate(cls, caches: int, experts: int, capacity: np.ndarray):
        return cls(Heap.allocate(caches, experts), np.zeros((caches, experts), np.int32))

    def note(self, cache, expert, fresh, now):
        self.uses[cache, expert] = 1 if fresh else self.uses[cache, expert] + 1

    def score(self, cache, expert, now):
        return float(self.uses[cache, expert])


policy = Lfu
