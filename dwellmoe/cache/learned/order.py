"""Knows how residents that a policy rates anew at each request are kept and chosen from; rates none itself.

One row of every array is one cache. A policy with a field `seats` and a function `rate` gets its order here.
All ratings of one request are made together, when the first victim is looked for, and after its uses were
seen: so no score is a step late.
"""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel import linked_list


class ResidentOrder(NamedTuple):
    """Who is resident, in order of last use, and what each was last rated."""

    ring: linked_list.LinkedList
    worth: np.ndarray  # float64 [caches, E]: lowest leaves first
    seen: np.ndarray  # int64 [caches]: requests seen
    rated: np.ndarray  # int64 [caches]: the request for which `worth` holds

    @classmethod
    def allocate(cls, caches: int, experts: int) -> "ResidentOrder":
        ring = linked_list.LinkedList.allocate(caches, experts, rings=1)
        worth = np.zeros((caches, experts))
        return cls(ring, worth, np.zeros(caches, np.int64), np.full(caches, -1, np.int64))


# What a policy says; bound to its functions when it is compiled.
def watch(policy, cache, layer, ids, first, last, now): ...
def rate(policy, cache, expert, now) -> float: ...  # type: ignore[empty-body]
def forget(policy, cache): ...


def see(policy, cache, layer, ids, first, last, now):
    """A request comes: `ids[first:last]` of `layer`, before room is made for them."""
    policy.seats.seen[cache] += 1
    watch(policy, cache, layer, ids, first, last, now)


def clear(policy, cache):
    linked_list.clear(policy.seats.ring, cache)
    forget(policy, cache)


def use(policy, cache, expert, fresh, now):
    if not fresh:
        linked_list.unlink(policy.seats.ring, cache, expert)
    linked_list.append(policy.seats.ring, cache, 0, expert)


def drop(policy, cache, expert):
    linked_list.unlink(policy.seats.ring, cache, expert)


def victim(policy, cache, guard, now):
    """Takes out the unguarded resident rated lowest; ties by last use."""
    seats = policy.seats
    if seats.rated[cache] != seats.seen[cache]:
        seats.rated[cache] = seats.seen[cache]
        rate_all(policy, cache, guard, now)
    newer, worth = seats.ring.newer[cache], seats.worth[cache]
    end = linked_list.head(seats.ring, 0)
    lowest, least = end, np.inf
    expert = newer[end]
    while expert != end:
        better = lowest == end or worth[expert] < least  # seldom so: asked before the guard
        if better and (now.step < 0 or guard[cache, expert] != now.step):
            lowest, least = expert, worth[expert]
        expert = newer[expert]
    linked_list.unlink(seats.ring, cache, lowest)
    return lowest


def rate_all(policy, cache, guard, now):
    """Rates every resident that may leave."""
    ring = policy.seats.ring
    end = linked_list.head(ring, 0)
    expert = ring.newer[cache, end]
    while expert != end:
        if now.step < 0 or guard[cache, expert] != now.step:
            policy.seats.worth[cache, expert] = rate(policy, cache, expert, now)
        expert = ring.newer[cache, expert]
