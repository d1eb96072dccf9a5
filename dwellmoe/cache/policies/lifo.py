"""LIFO eviction: the experts that were loaded first stay."""

from dwellmoe.cache.policies.fifo import Fifo


class Lifo(Fifo):
    """Evicts the resident loaded last."""

    def score(self, cache, expert, now):
        return -float(self.loaded[cache, expert])


policy = Lifo
