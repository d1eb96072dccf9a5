"""The residents before each step are those of the live cache, given the same requests one at a time."""

import numpy as np
import pytest

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.replay.residency_mask import residents_before
from dwellmoe.cache.trace import RoutingTrace

STEPS, LAYERS, K, E = 40, 2, 2, 8


def trace() -> RoutingTrace:
    draw = np.random.default_rng(0)
    sets = [[draw.permutation(E)[:K] for _ in range(LAYERS)] for _ in range(STEPS)]
    request = np.repeat([0, 1, 2], [10, 1, 29]).astype(np.int32)
    return RoutingTrace(np.array(sets, np.uint16), np.ones(STEPS, np.uint8), request, num_experts=E)


@pytest.mark.parametrize("policy", ["lru", "lfu", "sieve"])
@pytest.mark.parametrize("reset", ["never", "request"])
def test_as_the_live_cache_has_them(policy, reset):
    steps, cache = trace(), ExpertCache(policy, layers=LAYERS, experts=E, capacity=4)
    before = residents_before(steps, policy, "50%", reset=reset)
    for i in range(STEPS):
        if reset == "request" and i and steps.request[i] != steps.request[i - 1]:
            cache.reset()
        for layer in range(LAYERS):
            assert (before[i, layer] == cache.resident(layer)).all(), (i, layer)
            cache.request(layer, steps.experts[i, layer])


def test_a_budget_below_one_set_holds_one_set():
    before = residents_before(trace(), "lru", 1)
    assert (before[1:].sum(-1) == K).all()
    assert not before[0].any()
