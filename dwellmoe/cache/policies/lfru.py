"""LFRU eviction: by how often an expert was used and how long ago."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper, index_type
from dwellmoe.cache.policies.base import Shape

ABSENT = -1


class Lfru(NamedTuple):
    """Evicts the smallest uses / age; ties by last use (arXiv 2608.07911).

    Uses are counted since the cache was last emptied, and kept on eviction. The age is the number of this
    request minus that of the last use, plus 1; each cache counts its own requests. The order of the ratios
    changes without any use, so the residents lie side by side in memory and are all compared at an eviction.
    """

    uses: np.ndarray  # int64 [caches, E]
    request: np.ndarray  # int64 [caches]: requests so far
    residents: np.ndarray  # int64 [caches]: how many
    position: np.ndarray  # int64 [caches, E]: where an expert lies, or ABSENT
    expert: np.ndarray  # int [caches, E]: the residents, in any order
    count: np.ndarray  # float64 [caches, E]: uses of the resident at the same position
    last_request: np.ndarray  # float64 [caches, E]: of its last use
    last_access: np.ndarray  # int64 [caches, E]: likewise

    lookahead = "none"

    @classmethod
    def allocate(cls, shape: Shape):
        return cls(
            uses=np.zeros(shape.per_expert, np.int64),
            request=np.zeros(shape.caches, np.int64),
            residents=np.zeros(shape.caches, np.int64),
            position=np.full(shape.per_expert, ABSENT, np.int64),
            expert=np.zeros(shape.per_expert, index_type(shape.experts)),
            count=np.zeros(shape.per_expert),
            last_request=np.zeros(shape.per_expert),
            last_access=np.zeros(shape.per_expert, np.int64),
        )

    def reset(self, cache):
        self.uses[cache, :] = 0
        self.request[cache] = 0
        self.residents[cache] = 0
        self.position[cache, :] = ABSENT

    def on_request(self, cache, layer, ids, first, last, now):
        self.request[cache] += 1

    def on_access(self, cache, expert, inserted, now):
        self.uses[cache, expert] += 1
        if inserted:
            place(self, cache, self.residents[cache], expert)
            self.residents[cache] += 1
        at = self.position[cache, expert]
        self.count[cache, at] = self.uses[cache, expert]
        self.last_request[cache, at] = self.request[cache]
        self.last_access[cache, at] = now.access

    def evict(self, cache, protected, now):
        count, last_request = self.count[cache], self.last_request[cache]
        next_request = self.request[cache] + 1.0
        lowest, lowest_count, lowest_age = ABSENT, 1.0, 0.0  # a ratio above all others
        for at in range(self.residents[cache]):
            age = next_request - last_request[at]
            here, there = count[at] * lowest_age, lowest_count * age  # exact: whole numbers below 2**53
            lower = here < there or (here == there and used_before(self, cache, at, lowest))
            if lower and (now.request < 0 or protected[cache, self.expert[cache, at]] != now.request):
                lowest, lowest_count, lowest_age = at, count[at], age
        expert = self.expert[cache, lowest]
        take_out(self, cache, expert)
        return expert

    def remove(self, cache, expert):
        take_out(self, cache, expert)


@helper
def place(state, cache, at, expert):
    state.expert[cache, at] = expert
    state.position[cache, expert] = at


@helper
def used_before(state, cache, at, other):
    """Whether the resident at one position was used before that at another."""
    return state.last_access[cache, at] < state.last_access[cache, other]


@helper
def take_out(state, cache, expert):
    """Puts the last resident where `expert` lay."""
    at, last = state.position[cache, expert], state.residents[cache] - 1
    state.residents[cache] = last
    place(state, cache, at, state.expert[cache, last])
    state.count[cache, at] = state.count[cache, last]
    state.last_request[cache, at] = state.last_request[cache, last]
    state.last_access[cache, at] = state.last_access[cache, last]
    state.position[cache, expert] = ABSENT


policy = Lfru
