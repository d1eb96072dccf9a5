"""Optimal eviction (Belady 1966): needs the whole trace, so it is never run live."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.heap import CHILDREN, Heap, pop, rise
from dwellmoe.cache.kernel.jit import helper
from dwellmoe.cache.policies.base import NEVER, STEP_BITS, Shape

GONE = -1  # next use of an expert that is not resident
SPARE = 64  # nodes of the heap beside two for each resident


class Opt(NamedTuple):
    """Evicts the farthest next use, never used again first; ties by last use.

    Most experts are soon used again and never come near to leaving. Only those whose next use lies beyond
    `horizon` are in the heap; when these run out, the horizon is shortened. An expert that was used again
    keeps its old node in the heap, below all that matter: that next use has passed.
    """

    heap: Heap  # score: minus the next use; an expert may have several nodes
    next_use: np.ndarray  # int64 [caches, E]
    horizon: np.ndarray  # int64 [caches]: a time of use, from the begin of the token step on
    residents: np.ndarray  # int64 [caches]

    lookahead = "all"
    is_stack_algorithm = True

    @classmethod
    def allocate(cls, shape: Shape):
        return cls(
            heap=Heap.allocate(*shape.per_expert, nodes=2 * shape.experts + SPARE),
            next_use=np.full(shape.per_expert, GONE, np.int64),
            horizon=np.full(shape.caches, NEVER, np.int64),
            residents=np.zeros(shape.caches, np.int64),
        )

    def reset(self, cache):
        self.heap.size[cache] = 0
        self.next_use[cache, :] = GONE
        self.horizon[cache] = NEVER
        self.residents[cache] = 0

    def on_access(self, cache, expert, inserted, now):
        self.residents[cache] += inserted
        self.next_use[cache, expert] = now.next_use
        self.heap.used[cache, expert] = now.access
        near = (now.step << STEP_BITS) + self.horizon[cache]
        if now.next_use > near:
            if self.heap.size[cache] >= 2 * self.residents[cache] + SPARE - 1:
                order(self, cache, near)
            push(self.heap, cache, expert, now.next_use)

    def evict(self, cache, protected, now):
        begin = now.step << STEP_BITS
        while True:
            if self.heap.size[cache] == 0 or -self.heap.score[cache, 0] - begin <= self.horizon[cache]:
                order(self, cache, GONE)
                shorten(self, cache, begin)
            expert, following = self.heap.experts[cache, 0], -self.heap.score[cache, 0]
            pop(self.heap, cache)
            if following == self.next_use[cache, expert]:
                leave(self, cache, expert)
                return expert

    def remove(self, cache, expert):
        leave(self, cache, expert)

    def record(self, cache, expert, inserted, now):
        self.next_use[cache, expert] = now.next_use

    def score(self, cache, expert, now):
        return -float(self.next_use[cache, expert])


@helper
def leave(state, cache, expert):
    state.next_use[cache, expert] = GONE
    state.residents[cache] -= 1


@helper
def push(heap, cache, expert, following):
    node = heap.size[cache]
    heap.size[cache] = node + 1
    rise(heap, cache, node, expert, -float(following), heap.used[cache, expert])


@helper
def order(state, cache, near):
    """Puts the residents whose next use lies beyond `near` into the heap, and no others."""
    state.heap.size[cache] = 0
    for expert in range(state.next_use.shape[1]):
        if state.next_use[cache, expert] > near:
            push(state.heap, cache, expert, state.next_use[cache, expert])


@helper
def shorten(state, cache, begin):
    """Sets a horizon that about a fifth of the residents lie beyond, the farthest one at least."""
    farthest = np.int64(-state.heap.score[cache, 0]) - begin
    horizon = np.int64(-state.heap.score[cache, state.heap.size[cache] // CHILDREN**3]) - begin
    while horizon >= farthest:
        horizon //= 2
    state.horizon[cache] = horizon


policy = Opt
