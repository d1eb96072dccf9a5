"""Knows how to keep experts in order of keep-score, lowest first; does not know where the scores come from.

One row of every array is one cache. Equal scores leave in order of last use. What is compared is what was
true when an expert was last seated; a score or a last use may have risen since, never fallen, so the top is
looked at again before it is believed.
"""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper, index_type

WAYS = 4  # children of a place


class Heap(NamedTuple):
    """A min-heap of (score, last use) a cache, with the position of every expert.

    Scores lie in the order of the heap, side by side with their siblings': they are what is compared.
    """

    slots: np.ndarray  # int [caches, places]: the heap, then what was just popped
    score: np.ndarray  # float64 [caches, places]: as seated, of whom is in the same place of `slots`
    when: np.ndarray  # int64 [caches, places]: last use as seated, likewise
    place: np.ndarray  # int [caches, E]: where an expert is in `slots`, -1 for absent
    used: np.ndarray  # int64 [caches, E]: sequence number of an expert's last use
    size: np.ndarray  # int64 [caches]

    @classmethod
    def allocate(cls, caches: int, experts: int, places: int = 0) -> "Heap":
        """Empty heaps of `places` places, one for each expert where not told otherwise."""
        shape, seats = (caches, experts), (caches, places or experts)
        return cls(
            np.zeros(seats, index_type(experts)),
            np.zeros(seats, np.float64),
            np.zeros(seats, np.int64),
            np.full(shape, -1, np.int16 if seats[1] <= np.iinfo(np.int16).max else np.int32),
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
    policy.heap.used[cache, expert] = now.seq
    put(policy.heap, cache, expert, score(policy, cache, expert, now), now.seq)


def use_rising(policy, cache, expert, fresh, now):
    """The same where a use never lowers a score: who is seated already stays until somebody must leave."""
    note(policy, cache, expert, fresh, now)
    policy.heap.used[cache, expert] = now.seq
    if fresh:
        put(policy.heap, cache, expert, score(policy, cache, expert, now), now.seq)


def victim(policy, cache, guard, now):
    """Removes and returns the unguarded expert with the lowest score."""
    heap = policy.heap
    aside = 0
    while True:
        top = heap.slots[cache, 0]
        current = score(policy, cache, top, now)
        if current != heap.score[cache, 0] or heap.used[cache, top] != heap.when[cache, 0]:
            sink(heap, cache, 0, top, current, heap.used[cache, top])
        elif now.step >= 0 and guard[cache, top] == now.step:
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
        put_at(heap, cache, at, heap.slots[cache, last], heap.score[cache, last], heap.when[cache, last])


@helper
def put(heap, cache, expert, score, used):
    """ResidentOrder `expert` with a new score where that belongs."""
    at = heap.place[cache, expert]
    if at < 0:
        at = heap.size[cache]
        heap.size[cache] = at + 1
        rise(heap, cache, at, expert, score, used)
    else:
        put_at(heap, cache, at, expert, score, used)


@helper
def put_at(heap, cache, at, expert, score, used):
    if rise(heap, cache, at, expert, score, used) == at:
        sink(heap, cache, at, expert, score, used)


@helper
def pop(heap, cache):
    """Takes the top out and leaves it in the first slot behind the heap."""
    last = heap.size[cache] - 1
    top, top_score, top_when = heap.slots[cache, 0], heap.score[cache, 0], heap.when[cache, 0]
    heap.size[cache] = last
    if last > 0:
        sink(heap, cache, 0, heap.slots[cache, last], heap.score[cache, last], heap.when[cache, last])
    seat(heap, cache, last, top, top_score, top_when)
    heap.place[cache, top] = -1


@helper
def restore(heap, cache):
    """Takes back what was popped before the last pop."""
    at = heap.size[cache]
    heap.size[cache] = at + 1
    rise(heap, cache, at, heap.slots[cache, at + 1], heap.score[cache, at + 1], heap.when[cache, at + 1])


@helper
def seat(heap, cache, at, expert, score, used):
    heap.slots[cache, at] = expert
    heap.score[cache, at] = score
    heap.when[cache, at] = used
    heap.place[cache, expert] = at


@helper
def before(heap, cache, score, used, at):
    """Whether (score, used) leaves before whoever sits at `at`."""
    other = heap.score[cache, at]
    return score < other or (score == other and used < heap.when[cache, at])


@helper
def move(heap, cache, source, target):
    """ResidentOrder whoever sits at `source` at `target`."""
    seat(heap, cache, target, heap.slots[cache, source], heap.score[cache, source], heap.when[cache, source])


@helper
def rise(heap, cache, at, expert, score, used):
    """ResidentOrder `expert` at `at` or above; returns where."""
    while at > 0:
        parent = (at - 1) // WAYS
        if not before(heap, cache, score, used, parent):
            break
        move(heap, cache, parent, at)
        at = parent
    seat(heap, cache, at, expert, score, used)
    return at


@helper
def sink(heap, cache, at, expert, score, used):
    """ResidentOrder `expert` at `at` or below."""
    size = heap.size[cache]
    while WAYS * at + 1 < size:
        lowest = WAYS * at + 1
        for child in range(lowest + 1, min(lowest + WAYS, size)):
            if before(heap, cache, heap.score[cache, child], heap.when[cache, child], lowest):
                lowest = child
        if before(heap, cache, score, used, lowest):
            break
        move(heap, cache, lowest, at)
        at = lowest
    seat(heap, cache, at, expert, score, used)
