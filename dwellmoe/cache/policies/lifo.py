"""Last in, first out: keeps what came first."""

from dwellmoe.cache.policies.fifo import Fifo


class Lifo(Fifo):
    """Victim: the resident loaded last."""

    def score(self, cache, expert, now):
        return -float(self.loaded[cache, expert])


policy = Lifo
