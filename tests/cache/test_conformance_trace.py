"""The trace that arXiv 2608.07911 gives to check a simulator by hand: 30 accesses, 12 hits, 18 misses."""

import numpy as np

from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.trace import DECODE, RoutingTrace


def test_hits_and_misses():
    sets = np.array([[0, 1], [0, 2], [0, 1], [0, 3], [0, 1]], np.uint16)
    experts = np.repeat(sets[:, None, :], 3, axis=1)  # each of three layers requests the same
    trace = RoutingTrace(experts, np.full(5, DECODE, np.uint8), np.zeros(5, np.int32), 4)
    row = replay(trace, "lru", 2)
    assert (row.hits, row.misses, row.compulsory_misses) == (12, 18, 12)
