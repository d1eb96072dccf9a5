"""The two features of CECAR's learned eviction, recency and frequency, for training and serving alike.

After the uses of step t: lag = t - last use + 1, r = 1 / lag + 1e-6, f = uses / (most uses + 1e-6); r = 1e-6
for an expert that was never used. One row of every array is one cache; E is a cache's number of experts.
"""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper

UNUSED = -1
TINY = 1e-6


class Uses(NamedTuple):
    last: np.ndarray  # int64 [caches, E]: token step of the last use, UNUSED for none
    count: np.ndarray  # int64 [caches, E]
    most: np.ndarray  # int64 [caches]: the largest count

    @classmethod
    def allocate(cls, caches: int, experts: int) -> "Uses":
        shape = (caches, experts)
        return cls(np.full(shape, UNUSED, np.int64), np.zeros(shape, np.int64), np.zeros(caches, np.int64))


@helper
def reset(uses, cache):
    uses.last[cache, :] = UNUSED
    uses.count[cache, :] = 0
    uses.most[cache] = 0


@helper
def count_request(uses, cache, ids, first, last, step):
    """Counts a request at token step `step`, after which its experts have lag 1."""
    for i in range(first, last):
        expert = ids[i]
        uses.last[cache, expert] = step
        uses.count[cache, expert] += 1
        uses.most[cache] = max(uses.most[cache], uses.count[cache, expert])


@helper
def recency(last, step):
    """r of the module's text. Layers that share a live cache may be a step ahead of one another."""
    return TINY if last < 0 else 1.0 / max(1, step - last + 1) + TINY


@helper
def frequency(count, most):
    """f of the module's text."""
    return count / (most + TINY)


@helper
def in_layer(cache, expert, each, experts):
    """(layer, expert's id in it); a layer has `each` experts, a cache `experts`, mostly as many."""
    if each == experts:
        return cache, np.int64(expert)
    return cache + expert // each, expert % each
