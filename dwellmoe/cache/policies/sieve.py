"""SIEVE (Zhang et al., NSDI 2024): a queue in order of loading and a hand that spares whom it finds used."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel import linked_list

NOWHERE = -1


class Sieve(NamedTuple):
    """Victim: the first the hand meets, from older to newer, that was not used since the hand last passed."""

    queue: linked_list.LinkedList
    visited: np.ndarray  # bool [caches, E]
    hand: np.ndarray  # int32 [caches]: where the hand goes on; NOWHERE for the oldest

    lookahead = "none"

    @classmethod
    def allocate(cls, caches: int, experts: int, capacity: np.ndarray):
        queue = linked_list.LinkedList.allocate(caches, experts, rings=1)
        return cls(queue, np.zeros((caches, experts), np.bool_), np.full(caches, NOWHERE, np.int32))

    def clear(self, cache):
        linked_list.clear(self.queue, cache)
        self.hand[cache] = NOWHERE

    def use(self, cache, expert, fresh, now):
        self.visited[cache, expert] = not fresh
        if fresh:
            linked_list.append(self.queue, cache, 0, expert)

    def victim(self, cache, guard, now):
        end = linked_list.head(self.queue, 0)
        at = end if self.hand[cache] == NOWHERE else self.hand[cache]
        while at == end or guard[cache, at] == now.step or self.visited[cache, at]:
            if at != end and guard[cache, at] != now.step:
                self.visited[cache, at] = False
            at = self.queue.newer[cache, at]
        self.hand[cache] = self.queue.newer[cache, at]
        linked_list.unlink(self.queue, cache, at)
        return at

    def drop(self, cache, expert):
        if self.hand[cache] == expert:
            self.hand[cache] = self.queue.newer[cache, expert]
        linked_list.unlink(self.queue, cache, expert)


policy = Sieve
