"""First in, first out: counts nothing but the order of loading."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.heap import Heap


class Fifo(NamedTuple):
    """Victim: the resident loaded first."""

    heap: Heap
    loaded: np.ndarray  # int64 [caches, E]: sequence number of the access that loaded an expert

    lookahead = "none"
    monotone_score = True

    @classmethod
    def allocate(cls, caches: int, experts: int, capacity: np.ndarray):
        return cls(Heap.allocate(caches, experts), np.zeros((caches, experts), np.int64))

    def note(self, cache, expert, fresh, now):
        if fresh:
            self.loaded[cache, expert] = now.seq

    def score(self, cache, expert, now):
        return float(self.loaded[cache, expert])


policy = Fifo
