"""LFRU eviction: by how often an expert was used and how long ago."""

from math import inf
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.heap import Heap, pop, put, sink, take_out
from dwellmoe.cache.kernel.jit import helper, index_type
from dwellmoe.cache.policies.base import Shape

ABSENT = -1
LISTED = 48
SHORTER = 0.95  # what patience is multiplied by where no expert on the list may leave
ROUNDING = 1e-3  # of a request; what rounding errors make of a time is far less


class Lfru(NamedTuple):
    """Evicts the smallest uses / age; ties by last use (arXiv 2608.07911).

    Uses are counted since the cache was last emptied, and kept on eviction. The age is the number of this
    request minus that of the last use, plus 1; each cache counts its own requests.

    The order of the ratios changes without any use, so no heap keeps it. But from a use on it is known at
    which request the age reaches `patience` times the uses, and a later use only puts that off. A heap keeps
    these times; experts whose time has come are on a list, and their ratios are lower than all others.
    Patience grows where the list is long and shrinks where it is empty.
    """

    heap: Heap  # score: the request at which an expert's time comes
    uses: np.ndarray  # float64 [caches, E]
    last_request: np.ndarray  # float64 [caches, E]: of an expert's last use
    request: np.ndarray  # int64 [caches]: requests so far
    patience: np.ndarray  # float64 [caches]: age over uses
    listed: np.ndarray  # int [caches, E]: residents whose time has come, in any order
    listed_uses: np.ndarray  # float64 [caches, E]: theirs, when they were listed
    listed_request: np.ndarray  # float64 [caches, E]: likewise, of the last use
    length: np.ndarray  # int64 [caches]: how many they are

    lookahead = "none"

    @classmethod
    def allocate(cls, shape: Shape):
        return cls(
            heap=Heap.allocate(*shape.per_expert),
            uses=np.zeros(shape.per_expert),
            last_request=np.zeros(shape.per_expert),
            request=np.zeros(shape.caches, np.int64),
            patience=np.zeros(shape.caches),
            listed=np.zeros(shape.per_expert, index_type(shape.experts)),
            listed_uses=np.zeros(shape.per_expert),
            listed_request=np.zeros(shape.per_expert),
            length=np.zeros(shape.caches, np.int64),
        )

    def reset(self, cache):
        self.heap.size[cache] = 0
        self.heap.position[cache, :] = ABSENT
        self.uses[cache, :] = 0
        self.request[cache] = 0
        self.patience[cache] = 0
        self.length[cache] = 0

    def on_request(self, cache, layer, ids, first, last, now):
        self.request[cache] += 1

    def on_access(self, cache, expert, inserted, now):
        self.uses[cache, expert] += 1
        self.last_request[cache, expert] = self.request[cache]
        self.heap.used[cache, expert] = now.access
        if inserted:
            wait(self, cache, expert)

    def evict(self, cache, protected, now):
        if self.length[cache] > LISTED:
            lengthen_patience(self, cache)
        while True:
            list_experts(self, cache)
            at = lowest_on_list(self, cache, protected, now)
            if at == ABSENT:
                shorten_patience(self, cache)
                continue
            uses = self.listed_uses[cache, at]
            expert = take_off_list(self, cache, at)
            if uses == self.uses[cache, expert]:
                return expert
            wait(self, cache, expert)

    def remove(self, cache, expert):
        if self.heap.position[cache, expert] != ABSENT:
            take_out(self.heap, cache, expert)
            return
        at = 0
        while self.listed[cache, at] != expert:
            at += 1
        take_off_list(self, cache, at)


@helper
def time_of(state, cache, expert):
    """The request at which an expert's age reaches the patience times its uses, if it is not used before."""
    return state.last_request[cache, expert] + state.patience[cache] * state.uses[cache, expert]


@helper
def wait(state, cache, expert):
    """Puts an expert into the heap."""
    put(state.heap, cache, expert, time_of(state, cache, expert), state.heap.used[cache, expert])


@helper
def list_experts(state, cache):
    """Lists the experts whose time has come; a time in the heap may be too early, never too late."""
    heap, next_request = state.heap, state.request[cache] + 1.0
    while heap.size[cache] > 0 and heap.score[cache, 0] <= next_request + ROUNDING:
        expert = heap.experts[cache, 0]
        time = time_of(state, cache, expert)
        if time > heap.score[cache, 0]:
            sink(heap, cache, 0, expert, time, heap.used[cache, expert])
        else:
            pop(heap, cache)
            put_on_list(state, cache, expert)


@helper
def put_on_list(state, cache, expert):
    at = state.length[cache]
    state.listed[cache, at] = expert
    state.listed_uses[cache, at] = state.uses[cache, expert]
    state.listed_request[cache, at] = state.last_request[cache, expert]
    state.length[cache] = at + 1


@helper
def take_off_list(state, cache, at):
    """Removes and returns an expert on the list, whose place the last one takes."""
    expert, last = state.listed[cache, at], state.length[cache] - 1
    state.listed[cache, at] = state.listed[cache, last]
    state.listed_uses[cache, at] = state.listed_uses[cache, last]
    state.listed_request[cache, at] = state.listed_request[cache, last]
    state.length[cache] = last
    return expert


@helper
def lowest_on_list(state, cache, protected, now):
    """Where on the list the unprotected expert with the lowest ratio is; ABSENT unless all others are higher.

    An expert that was used since it was listed has a higher ratio than is noted here.
    """
    next_request, used = state.request[cache] + 1.0, state.heap.used[cache]
    lowest, lowest_uses, lowest_age = ABSENT, inf, 1.0
    for at in range(state.length[cache]):
        uses, age = state.listed_uses[cache, at], next_request - state.listed_request[cache, at]
        here, there = uses * lowest_age, lowest_uses * age  # exact: whole numbers below 2**53
        if here > there:
            continue
        expert = state.listed[cache, at]
        is_lower = here < there or used[expert] < used[state.listed[cache, lowest]]
        if is_lower and (now.request < 0 or protected[cache, expert] != now.request):
            lowest, lowest_uses, lowest_age = at, uses, age
    return lowest if lowest_age >= state.patience[cache] * lowest_uses else ABSENT


@helper
def lengthen_patience(state, cache):
    """Lengthens patience to the mean of age over uses on the list; whose time has not come then, waits."""
    next_request, listed = state.request[cache] + 1.0, state.length[cache]
    total = 0.0
    for at in range(listed):
        total += (next_request - state.listed_request[cache, at]) / state.listed_uses[cache, at]
    state.patience[cache] = max(state.patience[cache], total / listed)
    for at in range(listed - 1, -1, -1):
        expert = state.listed[cache, at]
        if time_of(state, cache, expert) > next_request:
            wait(state, cache, take_off_list(state, cache, at))


@helper
def shorten_patience(state, cache):
    """Shortens patience, and orders the heap by the new times, from its leaves up."""
    heap = state.heap
    state.patience[cache] *= SHORTER
    for node in range(heap.size[cache] - 1, -1, -1):
        expert = heap.experts[cache, node]
        sink(heap, cache, node, expert, time_of(state, cache, expert), heap.used[cache, expert])


policy = Lfru
