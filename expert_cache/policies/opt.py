"""Optimal eviction (Belady 1966): needs the whole trace, so it is never run live."""

from math import inf

from expert_cache.policies.lopt import Lopt


class Opt(Lopt):
    """Victim: the farthest next use; never used again comes first. `lopt` with unlimited sight."""

    FUTURE = "all"

    @classmethod
    def allocate(cls, caches, experts, capacity):
        return cls(*Lopt.allocate(caches, experts, capacity, horizon=inf))


policy = Opt
