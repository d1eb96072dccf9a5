"""LRFU eviction: by a count of uses that decays, kept for experts that are not resident as well."""

from math import exp, log
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.heap import Heap
from dwellmoe.cache.policies.base import Shape
from dwellmoe.errors import UserError


class Lrfu(NamedTuple):
    """Evicts the smallest counter; each token step multiplies counters by `decay`, a use adds 1.

    All counters decay alike, so their order changes only with a use. The score is the logarithm of
    counter / decay**step, which is constant between uses and never underflows (Lee et al., LRFU, IEEE ToC
    2001, eq. 3).
    """

    heap: Heap
    counter: np.ndarray  # float64 [caches, E]: as of the last use
    last_step: np.ndarray  # int64 [caches, E]: token step of the last use
    log_score: np.ndarray  # float64 [caches, E]
    rate: float  # -log(decay)

    lookahead = "none"
    monotone_score = True
    is_stack_algorithm = True

    @classmethod
    def allocate(cls, shape: Shape, *, decay: float = 0.95):
        if not 0 < decay <= 1:
            raise UserError(f"lrfu: decay must be above 0 and at most 1, got {decay}")
        return cls(
            heap=Heap.allocate(*shape.per_expert),
            counter=np.zeros(shape.per_expert),
            last_step=np.zeros(shape.per_expert, np.int64),
            log_score=np.zeros(shape.per_expert),
            rate=-log(decay),
        )

    def reset(self, cache):
        self.counter[cache, :] = 0

    def record(self, cache, expert, inserted, now):
        decayed = exp(-self.rate * (now.step - self.last_step[cache, expert]))
        self.counter[cache, expert] = self.counter[cache, expert] * decayed + 1
        self.last_step[cache, expert] = now.step
        self.log_score[cache, expert] = log(self.counter[cache, expert]) + self.rate * now.step

    def score(self, cache, expert, now):
        return self.log_score[cache, expert]


policy = Lrfu
