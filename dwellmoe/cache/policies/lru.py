"""LRU eviction: a ring of experts in order of last use."""

from typing import NamedTuple

from dwellmoe.cache.kernel import linked_list
from dwellmoe.cache.policies.base import Shape


class Lru(NamedTuple):
    """Evicts the resident used longest ago."""

    ring: linked_list.LinkedList

    lookahead = "none"
    is_stack_algorithm = True

    @classmethod
    def allocate(cls, shape: Shape):
        return cls(linked_list.LinkedList.allocate(*shape.per_expert, rings=1))

    def reset(self, cache):
        linked_list.clear(self.ring, cache)

    def on_access(self, cache, expert, inserted, now):
        if not inserted:
            linked_list.unlink(self.ring, cache, expert)
        linked_list.append(self.ring, cache, 0, expert)

    def evict(self, cache, protected, now):
        expert = linked_list.first_unprotected(self.ring, cache, 0, protected, now)
        linked_list.unlink(self.ring, cache, expert)
        return expert

    def remove(self, cache, expert):
        linked_list.unlink(self.ring, cache, expert)


policy = Lru
