"""ARC (Megiddo and Modha, FAST 2003): balances recency and frequency by what it regrets to have evicted."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel import linked_list

NOWHERE, ONCE, OFTEN, ONCE_GHOST, OFTEN_GHOST = -1, 0, 1, 2, 3  # T1, T2, B1, B2 of the paper


class Arc(NamedTuple):
    """Victim: the least recently used of those seen once, or of those seen more often; the split adapts."""

    queues: linked_list.LinkedList
    where: np.ndarray  # int8 [caches, E]
    length: np.ndarray  # int64 [caches, 4]
    target: np.ndarray  # float64 [caches]: wanted length of ONCE (p of the paper)
    regretted: np.ndarray  # bool [caches]: an OFTEN_GHOST is about to be loaded
    capacity: np.ndarray  # int64 [caches]

    lookahead = "none"

    @classmethod
    def allocate(cls, caches: int, experts: int, capacity: np.ndarray):
        queues = linked_list.LinkedList.allocate(caches, experts, rings=4)
        where, length = np.full((caches, experts), NOWHERE, np.int8), np.zeros((caches, 4), np.int64)
        return cls(
            queues, where, length, np.zeros(caches), np.zeros(caches, np.bool_), capacity.astype(np.int64)
        )

    def clear(self, cache):
        linked_list.clear(self.queues, cache)
        self.where[cache, :] = NOWHERE
        self.length[cache, :] = 0
        self.target[cache] = 0

    def want(self, cache, expert):
        once, often = self.length[cache, ONCE_GHOST], self.length[cache, OFTEN_GHOST]
        if self.where[cache, expert] == ONCE_GHOST:
            self.target[cache] = min(self.target[cache] + max(1.0, often / once), float(self.capacity[cache]))
        elif self.where[cache, expert] == OFTEN_GHOST:
            self.target[cache] = max(self.target[cache] - max(1.0, once / often), 0.0)
            self.regretted[cache] = True

    def use(self, cache, expert, fresh, now):
        self.regretted[cache] = False
        if self.where[cache, expert] != NOWHERE:
            linked_list.move(self, cache, expert, OFTEN)
            return
        length, capacity = self.length[cache], self.capacity[cache]
        if length[ONCE] + length[ONCE_GHOST] >= capacity and length[ONCE_GHOST] > 0:
            linked_list.move(self, cache, linked_list.first(self.queues, cache, ONCE_GHOST), NOWHERE)
        elif length.sum() >= 2 * capacity and length[OFTEN_GHOST] > 0:
            linked_list.move(self, cache, linked_list.first(self.queues, cache, OFTEN_GHOST), NOWHERE)
        linked_list.move(self, cache, expert, ONCE)

    def victim(self, cache, guard, now):
        once = linked_list.first_unguarded(self.queues, cache, ONCE, guard, now.step)
        often = linked_list.first_unguarded(self.queues, cache, OFTEN, guard, now.step)
        excess = self.length[cache, ONCE] - self.target[cache]
        prefer_once = excess > 0 or (self.regretted[cache] and excess == 0)
        if often == linked_list.head(self.queues, OFTEN) or (
            prefer_once and once != linked_list.head(self.queues, ONCE)
        ):
            linked_list.move(self, cache, once, ONCE_GHOST)
            return once
        linked_list.move(self, cache, often, OFTEN_GHOST)
        return often

    def drop(self, cache, expert):
        linked_list.move(self, cache, expert, NOWHERE)


policy = Arc
