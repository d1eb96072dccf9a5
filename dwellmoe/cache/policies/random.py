"""Random eviction: a list of the resident experts, in no order."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper
from dwellmoe.cache.policies.base import Shape
from dwellmoe.errors import UserError

STRIDE, MIX_1, MIX_2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Random(NamedTuple):
    """Evicts uniformly among unprotected residents; the same seed evicts the same (splitmix64 a cache)."""

    members: np.ndarray  # int32 [caches, E]: the residents, in no order
    position: np.ndarray  # int32 [caches, E]: where an expert is in `members`
    size: np.ndarray  # int64 [caches]
    state: np.ndarray  # uint64 [caches]

    lookahead = "none"

    @classmethod
    def allocate(cls, shape: Shape, *, seed: int = 0):
        if seed < 0:
            raise UserError(f"random: seed must be at least 0, got {seed}")
        return cls(
            members=np.zeros(shape.per_expert, np.int32),
            position=np.zeros(shape.per_expert, np.int32),
            size=np.zeros(shape.caches, np.int64),
            state=np.random.SeedSequence(seed).generate_state(shape.caches, np.uint64),
        )

    def reset(self, cache):
        self.size[cache] = 0

    def on_access(self, cache, expert, inserted, now):
        if inserted:
            size = self.size[cache]
            self.size[cache] = size + 1
            self.members[cache, size] = expert
            self.position[cache, expert] = size

    def evict(self, cache, protected, now):
        size = self.size[cache]
        while True:
            self.state[cache] += STRIDE
            bits = self.state[cache]
            bits = (bits ^ (bits >> np.uint64(30))) * MIX_1
            bits = (bits ^ (bits >> np.uint64(27))) * MIX_2
            drawn = np.int64(
                ((bits ^ (bits >> np.uint64(31))) >> np.uint64(32)) * np.uint64(size) >> np.uint64(32)
            )
            expert = self.members[cache, drawn]
            if protected[cache, expert] != now.request:
                break
        take_out(self, cache, expert)
        return expert

    def remove(self, cache, expert):
        take_out(self, cache, expert)


@helper
def take_out(state, cache, expert):
    """The last member takes the position of `expert`."""
    hole, last = state.position[cache, expert], state.size[cache] - 1
    moved = state.members[cache, last]
    state.members[cache, hole] = moved
    state.position[cache, moved] = hole
    state.size[cache] = last


policy = Random
