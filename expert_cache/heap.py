"""Knows how to keep experts in order of keep-score, lowest first; does not know where the scores come from.

One row of every array is one cache. Equal scores leave in order of last use.
"""

from typing import NamedTuple

import numpy as np

from expert_cache.compiled import helper


class Heap(NamedTuple):
    """A binary min-heap of (score, last use) a cache, with the position of every expert."""

    slots: np.ndarray  # int32 [caches, E]: the heap, then what was just popped
    place: np.ndarray  # int32 [caches, E]: where an expert is in `slots`, -1 for absent
    score: np.ndarray  # float64 [caches, E]
    used: np.ndarray  # int64 [caches, E]: sequence number of the last use
    size: np.ndarray  # int64 [caches]

    @classmethod
    def allocate(cls, caches: int, experts: int) -> "Heap":
        shape = (caches, experts)
        return cls(
            np.zeros(shape, np.int32),
            np.full(shape, -1, np.int32),
            np.zeros(shape, np.float64),
            np.zeros(shape, np.int64),
            np.zeros(caches, np.int64),
        )


# What a policy that scores says; bound to its functions when it is compiled.
def note(policy, cache, expert, fresh, now): ...
def score(policy, cache, expert, now) -> float: ...  # type: ignore[empty-body]
def forget(policy, cache): ...


def clear(policy, cache):
    """Empties one cache's order."""
    policy.heap.size[cache] = 0
    policy.heap.place[cache, :] = -1
    forget(policy, cache)


def use(policy, cache, expert, fresh, now):
    """Puts `expert` where its new score belongs."""
    note(policy, cache, expert, fresh, now)
    put(policy.heap, cache, expert, score(policy, cache, expert, now), now.seq)


def victim(policy, cache, guard, now):
    """Removes and returns the unguarded expert with the lowest score.

    A score may have risen since it was stored (an expert's next use came within sight), never fallen: so the
    top is looked at again before it is believed.
    """
    heap = policy.heap
    aside = 0
    while True:
        top = heap.slots[cache, 0]
        current = score(policy, cache, top, now)
        if current != heap.score[cache, top]:
            heap.score[cache, top] = current
            sink(heap, cache, 0)
        elif guard[cache, top] == now.step:
            pop(heap, cache)
            aside += 1
        else:
            break
    pop(heap, cache)
    for _ in range(aside):
        restore(heap, cache)
    return top


def drop(policy, cache, expert):
    """Takes one expert out of the order."""
    heap = policy.heap
    at, last = heap.place[cache, expert], heap.size[cache] - 1
    heap.size[cache] = last
    heap.place[cache, expert] = -1
    if at < last:
        moved = heap.slots[cache, last]
        seat(heap, cache, at, moved)
        rise(heap, cache, at)
        sink(heap, cache, heap.place[cache, moved])


@helper
def put(heap, cache, expert, score, used):
    heap.score[cache, expert] = score
    heap.used[cache, expert] = used
    at = heap.place[cache, expert]
    if at < 0:
        at = heap.size[cache]
        heap.size[cache] = at + 1
        seat(heap, cache, at, expert)
    rise(heap, cache, at)
    sink(heap, cache, heap.place[cache, expert])


@helper
def pop(heap, cache):
    """Takes the top out and leaves it in the first slot behind the heap."""
    last = heap.size[cache] - 1
    top = heap.slots[cache, 0]
    heap.size[cache] = last
    seat(heap, cache, 0, heap.slots[cache, last])
    heap.slots[cache, last] = top
    heap.place[cache, top] = -1
    if last > 0:
        sink(heap, cache, 0)


@helper
def restore(heap, cache):
    """Takes back what was popped before the last pop."""
    at = heap.size[cache]
    heap.size[cache] = at + 1
    seat(heap, cache, at, heap.slots[cache, at + 1])
    rise(heap, cache, at)


@helper
def seat(heap, cache, at, expert):
    heap.slots[cache, at] = expert
    heap.place[cache, expert] = at


@helper
def before(heap, cache, one, other):
    one_score, other_score = heap.score[cache, one], heap.score[cache, other]
    if one_score != other_score:
        return one_score < other_score
    return heap.used[cache, one] < heap.used[cache, other]


@helper
def rise(heap, cache, at):
    expert = heap.slots[cache, at]
    while at > 0:
        parent = (at - 1) >> 1
        above = heap.slots[cache, parent]
        if not before(heap, cache, expert, above):
            break
        seat(heap, cache, at, above)
        at = parent
    seat(heap, cache, at, expert)


@helper
def sink(heap, cache, at):
    expert = heap.slots[cache, at]
    size = heap.size[cache]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        below = heap.slots[cache, child]
        if child + 1 < size and before(heap, cache, heap.slots[cache, child + 1], below):
            child += 1
            below = heap.slots[cache, child]
        if not before(heap, cache, below, expert):
            break
        seat(heap, cache, at, below)
        at = child
    seat(heap, cache, at, expert)
