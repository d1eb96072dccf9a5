"""Atomic `opt` equals the best that any sequence of evictions can do."""

from itertools import combinations

import numpy as np
import pytest

from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.trace import RoutingTrace


def fewest_misses(sets, capacity):
    """By trying every set of experts that could be kept after each step."""
    costs = {frozenset(): 0}
    for requested in sets:
        following = {}
        for resident, cost in costs.items():
            total = cost + len(requested - resident)
            others = resident - requested
            for kept in combinations(sorted(others), min(len(others), capacity - len(requested))):
                state = requested | frozenset(kept)
                following[state] = min(total, following.get(state, total))
        costs = following
    return min(costs.values())


@pytest.mark.parametrize(
    ("experts", "top_k", "capacity"), [(5, 1, 2), (6, 2, 3), (6, 2, 4), (7, 3, 4), (5, 2, 2)]
)
def test_equals_brute_force(experts, top_k, capacity):
    """Each of 500 layers is a small random trace of its own."""
    steps, layers = 9, 500
    rng = np.random.default_rng(experts * 100 + top_k * 10 + capacity)
    chosen = rng.random((steps, layers, experts)).argsort(axis=2)[:, :, :top_k].astype(np.uint16)
    trace = RoutingTrace(chosen, np.ones(steps, np.uint8), np.zeros(steps, np.int32), experts)
    rates = replay(trace, "opt", capacity).layer_hit_rate
    for layer in range(layers):
        best = fewest_misses([frozenset(step[layer].tolist()) for step in chosen], capacity)
        assert round(steps * top_k * (1 - rates[layer])) == best
