"""SIEVE (Zhang et al., NSDI 2024): a queue in order of loading and a hand that skips used experts once."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel import linked_list
from dwellmoe.cache.policies.base import Shape

NOWHERE = -1


class Sieve(NamedTuple):
    """Evicts the first expert, from older to newer, that was not used since the hand last passed it."""

    queue: linked_list.LinkedList
    visited: np.ndarray  # bool [caches, E]
    hand: np.ndarray  # int32 [caches]: where the hand goes on; NOWHERE for the oldest

    lookahead = "none"

    @classmethod
    def allocate(cls, shape: Shape):
        queue = linked_list.LinkedList.allocate(*shape.per_expert, rings=1)
        return cls(queue, np.zeros(shape.per_expert, np.bool_), np.full(shape.caches, NOWHERE, np.int32))

    def reset(self, cache):
        linked_list.clear(self.queue, cache)
        self.hand[cache] = NOWHERE

    def on_access(self, cache, expert, inserted, now):
        self.visited[cache, expert] = not inserted
        if inserted:
            linked_list.append(self.queue, cache, 0, expert)

    def evict(self, cache, protected, now):
        end = linked_list.head(self.queue, 0)
        expert = end if self.hand[cache] == NOWHERE else self.hand[cache]
        while expert == end or protected[cache, expert] == now.request or self.visited[cache, expert]:
            if expert != end and protected[cache, expert] != now.request:
                self.visited[cache, expert] = False
            expert = self.queue.newer[cache, expert]
        self.hand[cache] = self.queue.newer[cache, expert]
        linked_list.unlink(self.queue, cache, expert)
        return expert

    def remove(self, cache, expert):
        if self.hand[cache] == expert:
            self.hand[cache] = self.queue.newer[cache, expert]
        linked_list.unlink(self.queue, cache, expert)


policy = Sieve
