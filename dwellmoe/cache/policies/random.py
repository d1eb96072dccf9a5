"""Random eviction: remembers nothing but who is there."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper
from dwellmoe.errors import UserError

STRIDE, MIX_1, MIX_2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Random(NamedTuple):
    """Victim: uniform among the unprotected residents; the same seed gives the same victims (splitmix64 a
    cache).
    """

    members: np.ndarray  # int32 [caches, E]: the residents, in no order
    place: np.ndarray  # int32 [caches, E]: where an expert is in `members`
    size: np.ndarray  # int64 [caches]
    state: np.ndarray  # uint64 [caches]

    lookahead = "none"

    @classmethod
    def allocate(cls, caches: int, experts: int, capacity: np.ndarray, *, seed: int = 0):
        if seed < 0:
            raise UserError(f"random: seed must be at least 0, got {seed}")
        shape = (caches, experts)
        state = np.random.SeedSequence(seed).generate_state(caches, np.uint64)
        return cls(np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(caches, np.int64), state)

    def clear(self, cache):
        self.size[cache] = 0

    def use(self, cache, expert, fresh, now):
        if fresh:
            at = self.size[cache]
            self.size[cache] = at + 1
            self.members[cache, at] = expert
            self.place[cache, expert] = at

    def victim(self, cache, guard, now):
        size = self.size[cache]
        while True:
            self.state[cache] += STRIDE
            bits = self.state[cache]
            bits = (bits ^ (bits >> np.uint64(30))) * MIX_1
            bits = (bits ^ (bits >> np.uint64(27))) * MIX_2
            at = np.int64(
                ((bits ^ (bits >> np.uint64(31))) >> np.uint64(32)) * np.uint64(size) >> np.uint64(32)
            )
            expert = self.members[cache, at]
            if guard[cache, expert] != now.step:
                break
        take_out(self, cache, expert)
        return expert

    def drop(self, cache, expert):
        take_out(self, cache, expert)


@helper
def take_out(state, cache, expert):
    """The last member takes the place of `expert`."""
    at, last = state.place[cache, expert], state.size[cache] - 1
    moved = state.members[cache, last]
    state.members[cache, at] = moved
    state.place[cache, moved] = at
    state.size[cache] = last


policy = Random
