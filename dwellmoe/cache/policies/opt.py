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
        empty(self, cache)

    def on_access(self, cache, expert, inserted, now):
        self.residents[cache] += inserted
        self.heap.used[cache, expert] = now.access
        expect(self, cache, expert, now.next_use, now.step)

    def evict(self, cache, protected, now):
        return take_farthest(self, cache, now.step)

    def remove(self, cache, expert):
        leave(self, cache, expert)

    def record(self, cache, expert, inserted, now):
        self.next_use[cache, expert] = now.next_use

    def score(self, cache, expert, now):
        return -float(self.next_use[cache, expert])


@helper
def expect(state, cache, expert, following, step):
    """Notes the next use of a resident."""
    state.next_use[cache, expert] = following
    near = (step << STEP_BITS) + state.horizon[cache]
    if following > near:
        if state.heap.size[cache] >= 2 * state.residents[cache] + SPARE - 1:
            order(state, cache, near)
        push(state.heap, cache, expert, following)


@helper
def take_farthest(state, cache, step):
    """Removes and returns the resident with the farthest next use."""
    begin = step << STEP_BITS
    while True:
        if state.heap.size[cache] == 0 or -state.heap.score[cache, 0] - begin <= state.horizon[cache]:
            order(state, cache, GONE)
            shorten(state, cache, begin)
        expert, following = state.heap.experts[cache, 0], -state.heap.score[cache, 0]
        pop(state.heap, cache)
        if following == state.next_use[cache, expert]:
            leave(state, cache, expert)
            return expert


@helper
def empty(state, cache):
    """Forgets all residents."""
    state.heap.size[cache] = 0
    state.next_use[cache, :] = GONE
    state.horizon[cache] = NEVER
    state.residents[cache] = 0


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
