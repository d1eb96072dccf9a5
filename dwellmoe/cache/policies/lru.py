"""Least recently used: a ring of experts in order of last use."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel import linked_list


class Lru(NamedTuple):
    """Victim: the resident used longest ago."""

    ring: linked_list.LinkedList

    lookahead = "none"
    is_stack_algorithm = True
    FORGETS = True

    @classmethod
    def allocate(cls, caches: int, experts: int, capacity: np.ndarray):
        return cls(linked_list.LinkedList.allocate(caches, experts, rings=1))

    def clear(self, cache):
        linked_list.clear(self.ring, cache)

    def use(self, cache, expert, fresh, now):
        if not fresh:
            linked_list.unlink(self.ring, cache, expert)
        linked_list.append(self.ring, cache, 0, expert)

    def victim(self, cache, guard, now):
        expert = linked_list.first_unguarded(self.ring, cache, 0, guard, now.step)
        linked_list.unlink(self.ring, cache, expert)
        return expert

    def drop(self, cache, expert):
        linked_list.unlink(self.ring, cache, expert)


policy = Lru
