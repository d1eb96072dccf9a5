"""Optimal eviction that keeps what it has just loaded: needs the whole trace, so it is never run live."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.policies.base import Shape

GONE = -1  # next use of an expert that is not resident


class OptForced(NamedTuple):
    """Evicts the farthest next use among the experts that this request did not load; ties by last use.

    The difference to `opt` is what it gains by letting an expert pass through (arXiv 2608.07911). With atomic
    access all experts of a request stay until it is served, so there is none. With sequential access an
    expert that this request loaded leaves only where the cache holds no other.
    """

    next_use: np.ndarray  # int64 [caches, E]
    last_access: np.ndarray  # int64 [caches, E]
    loaded_at: np.ndarray  # int64 [caches, E]: the request that loaded an expert
    request: np.ndarray  # int64 [caches]: requests so far

    lookahead = "all"

    @classmethod
    def allocate(cls, shape: Shape):
        return cls(
            next_use=np.full(shape.per_expert, GONE, np.int64),
            last_access=np.zeros(shape.per_expert, np.int64),
            loaded_at=np.zeros(shape.per_expert, np.int64),
            request=np.zeros(shape.caches, np.int64),
        )

    def reset(self, cache):
        self.next_use[cache, :] = GONE
        self.loaded_at[cache, :] = 0
        self.request[cache] = 0

    def on_request(self, cache, layer, ids, first, last, now):
        self.request[cache] += 1

    def on_access(self, cache, expert, inserted, now):
        self.next_use[cache, expert] = now.next_use
        self.last_access[cache, expert] = now.access
        if inserted:
            self.loaded_at[cache, expert] = self.request[cache]

    def evict(self, cache, protected, now):
        farthest, farthest_use, farthest_fresh = -1, np.int64(GONE), True
        for expert in range(self.next_use.shape[1]):
            following = self.next_use[cache, expert]
            if following == GONE or (now.request >= 0 and protected[cache, expert] == now.request):
                continue
            fresh = self.loaded_at[cache, expert] == self.request[cache]
            older = farthest < 0 or self.last_access[cache, expert] < self.last_access[cache, farthest]
            later = following > farthest_use or (following == farthest_use and older)
            if farthest < 0 or fresh < farthest_fresh or (fresh == farthest_fresh and later):
                farthest, farthest_use, farthest_fresh = expert, following, fresh
        self.next_use[cache, farthest] = GONE
        return farthest

    def remove(self, cache, expert):
        self.next_use[cache, expert] = GONE


policy = OptForced
