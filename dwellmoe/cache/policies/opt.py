"""Optimal eviction (Belady 1966): needs the whole trace, so it is never run live."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.heap import WAYS, Heap, pop, rise
from dwellmoe.cache.kernel.jit import helper
from dwellmoe.cache.policies.base import NEVER, TICK_BITS

GONE = -1  # next use of whom is not resident
SPARE = 64  # places beside two for each resident


class Opt(NamedTuple):
    """Victim: the farthest next use, never used again first; ties by last use.

    Most experts are soon used again and never come near to leaving. Only those whose next use lies beyond
    `reach` are kept in order; where it comes to others, the reach is shortened. An expert that was used again
    is left lying in the heap, below all that matter: its next use has passed.
    """

    heap: Heap  # score: minus the next use; an expert may sit in several places
    next_use: np.ndarray  # int64 [caches, E]
    reach: np.ndarray  # int64 [caches]: from the begin of the token step on
    seated: np.ndarray  # int64 [caches]: residents

    lookahead = "all"
    is_stack_algorithm = True

    @classmethod
    def allocate(cls, caches: int, experts: int, capacity: np.ndarray):
        heap = Heap.allocate(caches, experts, places=2 * experts + SPARE)
        next_use = np.full((caches, experts), GONE, np.int64)
        return cls(heap, next_use, np.full(caches, NEVER, np.int64), np.zeros(caches, np.int64))

    def clear(self, cache):
        self.heap.size[cache] = 0
        self.next_use[cache, :] = GONE
        self.reach[cache] = NEVER
        self.seated[cache] = 0

    def use(self, cache, expert, fresh, now):
        self.seated[cache] += fresh
        self.next_use[cache, expert] = now.next_use
        self.heap.used[cache, expert] = now.seq
        near = (now.tick << TICK_BITS) + self.reach[cache]
        if now.next_use > near:
            if self.heap.size[cache] >= 2 * self.seated[cache] + SPARE - 1:
                order(self, cache, near)
            push(self.heap, cache, expert, now.next_use)

    def victim(self, cache, guard, now):
        begin = now.tick << TICK_BITS
        while True:
            if self.heap.size[cache] == 0 or -self.heap.score[cache, 0] - begin <= self.reach[cache]:
                order(self, cache, GONE)
                shorten(self, cache, begin)
            expert, following = self.heap.slots[cache, 0], -self.heap.score[cache, 0]
            pop(self.heap, cache)
            if following == self.next_use[cache, expert]:
                drop(self, cache, expert)
                return expert

    def drop(self, cache, expert):
        drop(self, cache, expert)

    def note(self, cache, expert, fresh, now):
        self.next_use[cache, expert] = now.next_use

    def score(self, cache, expert, now):
        return -float(self.next_use[cache, expert])


@helper
def drop(state, cache, expert):
    state.next_use[cache, expert] = GONE
    state.seated[cache] -= 1


@helper
def push(heap, cache, expert, following):
    at = heap.size[cache]
    heap.size[cache] = at + 1
    rise(heap, cache, at, expert, -float(following), heap.used[cache, expert])


@helper
def order(state, cache, near):
    """Puts the residents whose next use lies beyond `near` into the heap, and nobody else."""
    state.heap.size[cache] = 0
    for expert in range(state.next_use.shape[1]):
        if state.next_use[cache, expert] > near:
            push(state.heap, cache, expert, state.next_use[cache, expert])


@helper
def shorten(state, cache, begin):
    """A reach that about a fifth of the residents lie beyond, the farthest one at least."""
    farthest = np.int64(-state.heap.score[cache, 0]) - begin
    reach = np.int64(-state.heap.score[cache, state.heap.size[cache] // WAYS**3]) - begin
    while reach >= farthest:
        reach //= 2
    state.reach[cache] = reach


policy = Opt
