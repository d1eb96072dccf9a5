"""Optimal eviction that keeps what it has just loaded: needs the whole trace, so it is never run live."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper, index_type
from dwellmoe.cache.policies.base import Shape
from dwellmoe.cache.policies.opt import Opt, empty, expect, leave, take_farthest

SOONEST = 0  # as a next use: before any other


class OptForced(NamedTuple):
    """Evicts the farthest next use among the experts that this request did not load; ties by last use.

    The difference to `opt` is what it gains by letting an expert pass through (arXiv 2608.07911). With atomic
    access all experts of a request stay until it is served, so there is none. With sequential access an
    expert that this request loaded leaves only where the cache holds no other.
    """

    opt: Opt  # where an expert is SOONEST as long as it is new
    is_new: np.ndarray  # bool [caches, E]: loaded by this request, and resident
    new: np.ndarray  # int [caches, E]: those experts, in any order
    count: np.ndarray  # int64 [caches]: how many they are
    next_use: np.ndarray  # int64 [caches, E]: theirs

    lookahead = "all"

    @classmethod
    def allocate(cls, shape: Shape):
        return cls(
            opt=Opt.allocate(shape),
            is_new=np.zeros(shape.per_expert, np.bool_),
            new=np.zeros(shape.per_expert, index_type(shape.experts)),
            count=np.zeros(shape.caches, np.int64),
            next_use=np.zeros(shape.per_expert, np.int64),
        )

    def reset(self, cache):
        empty(self.opt, cache)
        self.is_new[cache, :] = False
        self.count[cache] = 0

    def on_request(self, cache, layer, ids, first, last, now):
        for i in range(self.count[cache]):
            expert = self.new[cache, i]
            self.is_new[cache, expert] = False
            expect(self.opt, cache, expert, self.next_use[cache, expert], now.step)
        self.count[cache] = 0

    def on_access(self, cache, expert, inserted, now):
        if inserted:
            self.opt.residents[cache] += 1
            self.is_new[cache, expert] = True
            self.new[cache, self.count[cache]] = expert
            self.count[cache] += 1
        self.opt.heap.used[cache, expert] = now.access
        if self.is_new[cache, expert]:
            self.next_use[cache, expert] = now.next_use
            self.opt.next_use[cache, expert] = SOONEST
        else:
            expect(self.opt, cache, expert, now.next_use, now.step)

    def evict(self, cache, protected, now):
        if self.opt.residents[cache] > self.count[cache]:
            return take_farthest(self.opt, cache, now.step)
        expert = take_farthest_new(self, cache)
        leave(self.opt, cache, expert)
        return expert

    def remove(self, cache, expert):
        leave(self.opt, cache, expert)


@helper
def take_farthest_new(state, cache):
    """The new expert with the farthest next use, which is then no longer new; ties by last use."""
    used, found = state.opt.heap.used, 0
    for i in range(1, state.count[cache]):
        expert, best = state.new[cache, i], state.new[cache, found]
        here, there = state.next_use[cache, expert], state.next_use[cache, best]
        if here > there or (here == there and used[cache, expert] < used[cache, best]):
            found = i
    expert = state.new[cache, found]
    state.is_new[cache, expert] = False
    state.count[cache] -= 1
    state.new[cache, found] = state.new[cache, state.count[cache]]
    return expert


policy = OptForced
