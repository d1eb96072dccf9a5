"""Least recently used: a ring of experts in order of last use."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel import linked_list as links


class Lru(NamedTuple):
    """Victim: the resident used longest ago."""

    ring: links.Links

    FUTURE = "none"
    STACK = True
    FORGETS = True

    @classmethod
    def allocate(cls, caches: int, experts: int, capacity: np.ndarray):
        return cls(links.Links.allocate(caches, experts, rings=1))

    def clear(self, cache):
        links.clear(self.ring, cache)

    def use(self, cache, expert, fresh, now):
        if not fresh:
            links.unlink(self.ring, cache, expert)
        links.append(self.ring, cache, 0, expert)

    def victim(self, cache, guard, now):
        expert = links.first_unguarded(self.ring, cache, 0, guard, now.step)
        links.unlink(self.ring, cache, expert)
        return expert

    def drop(self, cache, expert):
        links.unlink(self.ring, cache, expert)


policy = Lru
