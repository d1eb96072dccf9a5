"""Least recently and frequently used: a count of uses that fades, kept for experts that are not resident."""

from math import exp, log
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.heap import Heap
from dwellmoe.errors import UserError


class Lrfu(NamedTuple):
    """Victim: the smallest counter; each token step multiplies counters by `decay`, a use adds 1; kept on
    eviction.

    All counters fade alike, so their order changes only with a use. What is compared is the logarithm of
    counter / decay**tick, which stays put in between and never underflows (Lee et al., LRFU, IEEE ToC 2001,
    eq. 3).
    """

    heap: Heap
    counter: np.ndarray  # float64 [caches, E]: as of the last use
    tick: np.ndarray  # int64 [caches, E]: token step of the last use
    worth: np.ndarray  # float64 [caches, E]
    fading: float  # -log(decay)

    lookahead = "none"
    monotone_score = True
    is_stack_algorithm = True

    @classmethod
    def allocate(cls, caches: int, experts: int, capacity: np.ndarray, *, decay: float = 0.95):
        if not 0 < decay <= 1:
            raise UserError(f"lrfu: decay must be above 0 and at most 1, got {decay}")
        shape = (caches, experts)
        heap = Heap.allocate(caches, experts)
        return cls(heap, np.zeros(shape), np.zeros(shape, np.int64), np.zeros(shape), -log(decay))

    def clear(self, cache):
        self.counter[cache, :] = 0

    def note(self, cache, expert, fresh, now):
        faded = exp(-self.fading * (now.tick - self.tick[cache, expert]))
        self.counter[cache, expert] = self.counter[cache, expert] * faded + 1
        self.tick[cache, expert] = now.tick
        self.worth[cache, expert] = log(self.counter[cache, expert]) + self.fading * now.tick

    def score(self, cache, expert, now):
        return self.worth[cache, expert]


policy = Lrfu
