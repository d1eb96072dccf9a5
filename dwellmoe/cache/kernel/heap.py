"""A heap that keeps experts in order of keep-score, the lowest first; equal scores leave by last use.

One row of every array is one cache. What the heap compares was true when an expert was last put into place; a
score or a last use may have risen since, never fallen, so the top is scored again before it leaves.
"""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper, index_type

CHILDREN = 4  # of each node


class Heap(NamedTuple):
    """A min-heap of (score, last use) a cache, with the position of every expert.

    Scores lie in the order of the heap, beside those of their siblings: they are what is compared.
    """

    experts: np.ndarray  # int [caches, nodes]: the heap, then what was just popped
    score: (
        np.ndarray
    )  # float64 [caches, nodes]: of the expert at the same position of `experts`, as put there
    last_use: np.ndarray  # int64 [caches, nodes]: likewise
    position: np.ndarray  # int [caches, E]: where an expert is in `experts`, -1 for absent
    used: np.ndarray  # int64 [caches, E]: number of an expert's last access
    size: np.ndarray  # int64 [caches]

    @classmethod
    def allocate(cls, caches: int, experts: int, nodes: int = 0) -> "Heap":
        """Empty heaps of `nodes` nodes, by default one for each expert."""
        nodes = nodes or experts
        return cls(
            experts=np.zeros((caches, nodes), index_type(experts)),
            score=np.zeros((caches, nodes), np.float64),
            last_use=np.zeros((caches, nodes), np.int64),
            position=np.full(
                (caches, experts), -1, np.int16 if nodes <= np.iinfo(np.int16).max else np.int32
            ),
            used=np.zeros((caches, experts), np.int64),
            size=np.zeros(caches, np.int64),
        )


# Hooks of a keep-score policy; bound to its functions when they are compiled.
def record(policy, cache, expert, inserted, now): ...
def score(policy, cache, expert, now) -> float: ...  # type: ignore[empty-body]
def reset_score(policy, cache): ...


def reset(policy, cache):
    """Empties one cache's order."""
    policy.heap.size[cache] = 0
    policy.heap.position[cache, :] = -1
    reset_score(policy, cache)


def on_access(policy, cache, expert, inserted, now):
    """Puts `expert` where its new score belongs."""
    record(policy, cache, expert, inserted, now)
    policy.heap.used[cache, expert] = now.access
    put(policy.heap, cache, expert, score(policy, cache, expert, now), now.access)


def on_access_monotone(policy, cache, expert, inserted, now):
    """The same where no use lowers a score: a resident expert stays in place until some expert must leave."""
    record(policy, cache, expert, inserted, now)
    policy.heap.used[cache, expert] = now.access
    if inserted:
        put(policy.heap, cache, expert, score(policy, cache, expert, now), now.access)


def evict(policy, cache, protected, now):
    """Removes and returns the unprotected expert with the lowest score."""
    heap = policy.heap
    set_aside = 0
    while True:
        top = heap.experts[cache, 0]
        current = score(policy, cache, top, now)
        if current != heap.score[cache, 0] or heap.used[cache, top] != heap.last_use[cache, 0]:
            sink(heap, cache, 0, top, current, heap.used[cache, top])
        elif now.request >= 0 and protected[cache, top] == now.request:
            pop(heap, cache)
            set_aside += 1
        else:
            break
    pop(heap, cache)
    for _ in range(set_aside):
        restore(heap, cache)
    return top


def remove(policy, cache, expert):
    """Takes one expert out of the order."""
    take_out(policy.heap, cache, expert)


@helper
def put(heap, cache, expert, score, used):
    """Puts `expert` where its new score belongs; it may be in the heap already."""
    node = heap.position[cache, expert]
    if node < 0:
        node = heap.size[cache]
        heap.size[cache] = node + 1
        rise(heap, cache, node, expert, score, used)
    else:
        put_at(heap, cache, node, expert, score, used)


@helper
def put_at(heap, cache, node, expert, score, used):
    if rise(heap, cache, node, expert, score, used) == node:
        sink(heap, cache, node, expert, score, used)


@helper
def take_out(heap, cache, expert):
    """Removes an expert that is in the heap."""
    hole = heap.position[cache, expert]
    last = heap.size[cache] - 1
    heap.size[cache] = last
    heap.position[cache, expert] = -1
    if hole < last:
        put_at(
            heap, cache, hole, heap.experts[cache, last], heap.score[cache, last], heap.last_use[cache, last]
        )


@helper
def pop(heap, cache):
    """Takes the top out and leaves it at the first position behind the heap."""
    last = heap.size[cache] - 1
    top, top_score, top_use = heap.experts[cache, 0], heap.score[cache, 0], heap.last_use[cache, 0]
    heap.size[cache] = last
    if last > 0:
        sink(heap, cache, 0, heap.experts[cache, last], heap.score[cache, last], heap.last_use[cache, last])
    write(heap, cache, last, top, top_score, top_use)
    heap.position[cache, top] = -1


@helper
def restore(heap, cache):
    """Takes back what was popped before the last pop."""
    node = heap.size[cache]
    heap.size[cache] = node + 1
    popped = node + 1
    expert, score = heap.experts[cache, popped], heap.score[cache, popped]
    rise(heap, cache, node, expert, score, heap.last_use[cache, popped])


@helper
def write(heap, cache, node, expert, score, used):
    heap.experts[cache, node] = expert
    heap.score[cache, node] = score
    heap.last_use[cache, node] = used
    heap.position[cache, expert] = node


@helper
def before(heap, cache, score, used, node):
    """Whether (score, used) leaves before the expert at `node`."""
    other = heap.score[cache, node]
    return score < other or (score == other and used < heap.last_use[cache, node])


@helper
def move(heap, cache, source, target):
    """Copies the expert at `source` to `target`."""
    expert, score = heap.experts[cache, source], heap.score[cache, source]
    write(heap, cache, target, expert, score, heap.last_use[cache, source])


@helper
def rise(heap, cache, node, expert, score, used):
    """Puts `expert` at `node` or above; returns where."""
    while node > 0:
        parent = (node - 1) // CHILDREN
        if not before(heap, cache, score, used, parent):
            break
        move(heap, cache, parent, node)
        node = parent
    write(heap, cache, node, expert, score, used)
    return node


@helper
def sink(heap, cache, node, expert, score, used):
    """Puts `expert` at `node` or below."""
    size = heap.size[cache]
    while CHILDREN * node + 1 < size:
        lowest = CHILDREN * node + 1
        for child in range(lowest + 1, min(lowest + CHILDREN, size)):
            if before(heap, cache, heap.score[cache, child], heap.last_use[cache, child], lowest):
                lowest = child
        if before(heap, cache, score, used, lowest):
            break
        move(heap, cache, lowest, node)
        node = lowest
    write(heap, cache, node, expert, score, used)
