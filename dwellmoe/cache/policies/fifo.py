"""FIFO eviction: in order of loading, whatever the uses since."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.heap import Heap
from dwellmoe.cache.policies.base import Shape


class Fifo(NamedTuple):
    """Evicts the resident loaded first."""

    heap: Heap
    loaded: np.ndarray  # int64 [caches, E]: number of the access that loaded an expert

    lookahead = "none"
    monotone_score = True

    @classmethod
    def allocate(cls, shape: Shape):
        return cls(Heap.allocate(*shape.per_expert), np.zeros(shape.per_expert, np.int64))

    def record(self, cache, expert, inserted, now):
        if inserted:
            self.loaded[cache, expert] = now.access

    def score(self, cache, expert, now):
        return float(self.loaded[cache, expert])


policy = Fifo
