"""The order of residents that a policy scores anew at each request that evicts.

One row of every array is one cache. A policy with a field `resident_order` gets its order here. All scores of
one request are made together, when the first expert has to leave and after the request was observed: so no
score is a step late.
"""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel import linked_list


class ResidentOrder(NamedTuple):
    """The resident experts in order of last use, and the latest score of each."""

    ring: linked_list.LinkedList
    score: np.ndarray  # float64 [caches, E]: the lowest leaves first
    requests: np.ndarray  # int64 [caches]: requests observed
    scored: np.ndarray  # int64 [caches]: the request for which `score` holds

    @classmethod
    def allocate(cls, caches: int, experts: int) -> "ResidentOrder":
        ring = linked_list.LinkedList.allocate(caches, experts, rings=1)
        score = np.zeros((caches, experts))
        return cls(ring, score, np.zeros(caches, np.int64), np.full(caches, -1, np.int64))


# Hooks of a ranking policy; bound to its functions when they are compiled.
def observe(policy, cache, layer, ids, first, last, now): ...
def score(policy, cache, expert, now) -> float: ...  # type: ignore[empty-body]
def reset_score(policy, cache): ...


def on_request(policy, cache, layer, ids, first, last, now):
    """A request begins: `ids[first:last]` of `layer`, before room is made for them."""
    policy.resident_order.requests[cache] += 1
    observe(policy, cache, layer, ids, first, last, now)


def reset(policy, cache):
    linked_list.clear(policy.resident_order.ring, cache)
    reset_score(policy, cache)


def on_access(policy, cache, expert, inserted, now):
    if not inserted:
        linked_list.unlink(policy.resident_order.ring, cache, expert)
    linked_list.append(policy.resident_order.ring, cache, 0, expert)


def remove(policy, cache, expert):
    linked_list.unlink(policy.resident_order.ring, cache, expert)


def evict(policy, cache, protected, now):
    """Removes and returns the unprotected resident with the lowest score; ties by last use."""
    order = policy.resident_order
    if order.scored[cache] != order.requests[cache]:
        order.scored[cache] = order.requests[cache]
        score_all(policy, cache, protected, now)
    newer, scores = order.ring.newer[cache], order.score[cache]
    end = linked_list.head(order.ring, 0)
    lowest, lowest_score = end, np.inf
    expert = newer[end]
    while expert != end:
        better = lowest == end or scores[expert] < lowest_score  # seldom so, and cheaper than the other check
        if better and (now.request < 0 or protected[cache, expert] != now.request):
            lowest, lowest_score = expert, scores[expert]
        expert = newer[expert]
    linked_list.unlink(order.ring, cache, lowest)
    return lowest


def score_all(policy, cache, protected, now):
    """Scores every resident that may leave."""
    ring = policy.resident_order.ring
    end = linked_list.head(ring, 0)
    expert = ring.newer[cache, end]
    while expert != end:
        if now.request < 0 or protected[cache, expert] != now.request:
            policy.resident_order.score[cache, expert] = score(policy, cache, expert, now)
        expert = ring.newer[cache, expert]
