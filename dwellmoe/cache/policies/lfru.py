"""LFRU eviction: by how often an expert was used and how long ago."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper, index_type
from dwellmoe.cache.policies.base import Shape

ABSENT = -1
FEW = 48  # residents up to which all are compared at each eviction
LISTED = 256  # experts on the short list at most
REQUESTS = 24  # that a short list serves
SURE = 1 - 1e-9  # beyond what dividing and multiplying in floating point can differ by


class Lfru(NamedTuple):
    """Evicts the smallest uses / age; ties by last use (arXiv 2608.07911).

    Uses are counted since the cache was last emptied, and kept on eviction. The age is the number of this
    request minus that of the last use, plus 1; each cache counts its own requests.

    The order of the ratios changes without any use, so no heap keeps it. The residents lie side by side in
    memory; where they are many, those that may come to have a ratio below `bound` within the next requests
    are on a short list, and the lowest of these leaves if it is below `bound`. Otherwise all are compared,
    and the list is made anew. A use only raises the ratio, so it brings no expert onto the list.
    """

    uses: np.ndarray  # int64 [caches, E]
    request: np.ndarray  # int64 [caches]: requests so far
    residents: np.ndarray  # int64 [caches]: how many
    position: np.ndarray  # int64 [caches, E]: where an expert lies, or ABSENT
    expert: np.ndarray  # int [caches, E]: the residents, in any order
    count: np.ndarray  # float64 [caches, E]: uses of the resident at the same position
    last_request: np.ndarray  # float64 [caches, E]: of its last use
    last_access: np.ndarray  # int64 [caches, E]: likewise
    listed: np.ndarray  # int [caches, LISTED]: the short list; experts that have left may still be on it
    length: np.ndarray  # int64 [caches]: of the short list
    until: np.ndarray  # int64 [caches]: the last request that the short list serves
    bound: np.ndarray  # float64 [caches]
    spread: np.ndarray  # float64 [caches]: `bound` over the lowest ratio, when the list was made

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
            listed=np.zeros((shape.caches, LISTED), index_type(shape.experts)),
            length=np.zeros(shape.caches, np.int64),
            until=np.full(shape.caches, ABSENT, np.int64),
            bound=np.zeros(shape.caches),
            spread=np.full(shape.caches, 2.0),
        )

    def reset(self, cache):
        self.uses[cache, :] = 0
        self.request[cache] = 0
        self.residents[cache] = 0
        self.position[cache, :] = ABSENT
        self.until[cache] = ABSENT

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
        if inserted and self.until[cache] >= self.request[cache] and may_be_lowest(self, cache, at):
            put_on_list(self, cache, expert)

    def evict(self, cache, protected, now):
        many = self.residents[cache] > FEW
        at = lowest_on_list(self, cache, protected, now) if many else ABSENT
        if at == ABSENT:
            at = lowest_of_all(self, cache, protected, now)
            if many:
                make_list(self, cache, at)
        expert = self.expert[cache, at]
        take_out(self, cache, expert)
        return expert

    def remove(self, cache, expert):
        take_out(self, cache, expert)


@helper
def place(state, cache, at, expert):
    state.expert[cache, at] = expert
    state.position[cache, expert] = at


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


@helper
def lower(state, cache, at, other, next_request):
    """Whether the resident at one position leaves before that at another, which may be ABSENT."""
    if other == ABSENT:
        return True
    age = next_request - state.last_request[cache, at]
    other_age = next_request - state.last_request[cache, other]
    here = state.count[cache, at] * other_age  # exact: whole numbers below 2**53
    there = state.count[cache, other] * age
    earlier = state.last_access[cache, at] < state.last_access[cache, other]
    return here < there or (here == there and earlier)


@helper
def is_protected(state, cache, at, protected, now):
    return now.request >= 0 and protected[cache, state.expert[cache, at]] == now.request


@helper
def lowest_of_all(state, cache, protected, now):
    """The position of the unprotected resident with the lowest ratio."""
    next_request = state.request[cache] + 1.0
    lowest = ABSENT
    for at in range(state.residents[cache]):
        is_lower = lower(state, cache, at, lowest, next_request)
        if is_lower and not is_protected(state, cache, at, protected, now):
            lowest = at
    return lowest


@helper
def lowest_on_list(state, cache, protected, now):
    """The same if the list is sure to hold it, else ABSENT. Drops experts that no longer belong on it."""
    if state.request[cache] > state.until[cache]:
        return ABSENT
    next_request = state.request[cache] + 1.0
    lowest, kept = ABSENT, 0
    for i in range(state.length[cache]):
        expert = state.listed[cache, i]
        at = state.position[cache, expert]
        if at == ABSENT or not may_be_lowest(state, cache, at):
            continue
        state.listed[cache, kept] = expert
        kept += 1
        is_lower = lower(state, cache, at, lowest, next_request)
        if is_lower and not is_protected(state, cache, at, protected, now):
            lowest = at
    state.length[cache] = kept
    if lowest == ABSENT:
        return ABSENT
    age = next_request - state.last_request[cache, lowest]
    return lowest if state.count[cache, lowest] < SURE * state.bound[cache] * age else ABSENT


@helper
def may_be_lowest(state, cache, at):
    """Whether a resident that is not used until the short list ends has a ratio below the bound then."""
    oldest = state.until[cache] + 1.0 - state.last_request[cache, at]
    return state.count[cache, at] < state.bound[cache] * oldest


@helper
def put_on_list(state, cache, expert):
    """Adds an expert; a list that is full serves no more."""
    length = state.length[cache]
    if length == LISTED:
        state.until[cache] = ABSENT
    else:
        state.listed[cache, length] = expert
        state.length[cache] = length + 1


@helper
def make_list(state, cache, lowest):
    """Makes the short list, of more or fewer experts than the last one where that was too short or full."""
    age = state.request[cache] + 1.0 - state.last_request[cache, lowest]
    state.bound[cache] = state.spread[cache] * state.count[cache, lowest] / age
    state.until[cache] = state.request[cache] + REQUESTS
    state.length[cache] = 0
    for at in range(state.residents[cache]):
        if may_be_lowest(state, cache, at):
            put_on_list(state, cache, state.expert[cache, at])
            if state.until[cache] == ABSENT:
                break
    if state.length[cache] > LISTED // 4:
        state.spread[cache] = 1 + (state.spread[cache] - 1) / 2
    elif state.length[cache] < LISTED // 16:
        state.spread[cache] = 1 + (state.spread[cache] - 1) * 2


policy = Lfru
