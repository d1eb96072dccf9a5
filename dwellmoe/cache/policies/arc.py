"""ARC (Megiddo and Modha, FAST 2003): balances recency and frequency by which evicted experts come back."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel import linked_list
from dwellmoe.cache.policies.base import Shape

NOWHERE, ONCE, OFTEN, ONCE_GHOST, OFTEN_GHOST = -1, 0, 1, 2, 3  # T1, T2, B1, B2 of the paper


class Arc(NamedTuple):
    """Evicts the least recently used of those used once, or of those used more often; the split adapts."""

    queues: linked_list.LinkedList
    where: np.ndarray  # int8 [caches, E]
    length: np.ndarray  # int64 [caches, 4]
    target: np.ndarray  # float64 [caches]: wanted length of ONCE (p of the paper)
    often_ghost_missed: np.ndarray  # bool [caches]: an OFTEN_GHOST is about to be loaded
    capacity: np.ndarray  # int64 [caches]

    lookahead = "none"

    @classmethod
    def allocate(cls, shape: Shape):
        queues = linked_list.LinkedList.allocate(*shape.per_expert, rings=4)
        return cls(
            queues=queues,
            where=np.full(shape.per_expert, NOWHERE, np.int8),
            length=np.zeros((shape.caches, 4), np.int64),
            target=np.zeros(shape.caches),
            often_ghost_missed=np.zeros(shape.caches, np.bool_),
            capacity=shape.capacity.astype(np.int64),
        )

    def reset(self, cache):
        linked_list.clear(self.queues, cache)
        self.where[cache, :] = NOWHERE
        self.length[cache, :] = 0
        self.target[cache] = 0

    def on_miss(self, cache, expert):
        once, often = self.length[cache, ONCE_GHOST], self.length[cache, OFTEN_GHOST]
        if self.where[cache, expert] == ONCE_GHOST:
            self.target[cache] = min(self.target[cache] + max(1.0, often / once), float(self.capacity[cache]))
        elif self.where[cache, expert] == OFTEN_GHOST:
            self.target[cache] = max(self.target[cache] - max(1.0, once / often), 0.0)
            self.often_ghost_missed[cache] = True

    def on_access(self, cache, expert, inserted, now):
        self.often_ghost_missed[cache] = False
        if self.where[cache, expert] != NOWHERE:
            linked_list.move(self, cache, expert, OFTEN)
            return
        length, capacity = self.length[cache], self.capacity[cache]
        if length[ONCE] + length[ONCE_GHOST] >= capacity and length[ONCE_GHOST] > 0:
            linked_list.move(self, cache, linked_list.first(self.queues, cache, ONCE_GHOST), NOWHERE)
        elif length.sum() >= 2 * capacity and length[OFTEN_GHOST] > 0:
            linked_list.move(self, cache, linked_list.first(self.queues, cache, OFTEN_GHOST), NOWHERE)
        linked_list.move(self, cache, expert, ONCE)

    def evict(self, cache, protected, now):
        once = linked_list.first_unprotected(self.queues, cache, ONCE, protected, now)
        often = linked_list.first_unprotected(self.queues, cache, OFTEN, protected, now)
        excess = self.length[cache, ONCE] - self.target[cache]
        prefer_once = excess > 0 or (self.often_ghost_missed[cache] and excess == 0)
        if often == linked_list.head(self.queues, OFTEN) or (
            prefer_once and once != linked_list.head(self.queues, ONCE)
        ):
            linked_list.move(self, cache, once, ONCE_GHOST)
            return once
        linked_list.move(self, cache, often, OFTEN_GHOST)
        return often

    def remove(self, cache, expert):
        linked_list.move(self, cache, expert, NOWHERE)


policy = Arc
