"""`lfru` and `opt_forced` in caches so large that they do not look at every resident."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.policies.lfru import LISTED
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.trace import DECODE, RoutingTrace
from tests.cache.reference import ReferenceCache, flatten, reference_counts, requests_of

pytestmark = pytest.mark.slow

LAYERS, EXPERTS, TOP_K = 2, 60, 5


def drifting_trace(seed, steps, drift):
    """Skewed popularity that changes all the time, so that old favourites must leave at last."""
    rng = np.random.default_rng(seed)
    wish = rng.normal(0, 0.6, (LAYERS, EXPERTS))
    chosen = np.empty((steps, LAYERS, TOP_K), np.uint16)
    for step in range(steps):
        wish += rng.normal(0, drift, wish.shape)
        chosen[step] = (-wish - rng.gumbel(size=wish.shape)).argsort(axis=1)[:, :TOP_K]
    request = (np.arange(steps) * 3 // steps).astype(np.int32)
    return RoutingTrace(chosen, np.full(steps, DECODE, np.uint8), request, EXPERTS)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 1000),
    drift=st.sampled_from([0.0, 0.05, 0.2]),
    capacity=st.integers(LISTED + 1, LAYERS * EXPERTS - 10),
    access=st.sampled_from(["atomic", "sequential"]),
    reset=st.sampled_from(["never", "request"]),
)
@pytest.mark.parametrize("policy", ["lfru", "opt_forced"])
def test_counts(policy, seed, drift, capacity, access, reset):
    trace, setup = drifting_trace(seed, 90, drift), {"scope": "global", "access": access, "reset": reset}
    row = replay(trace, policy, capacity, resamples=0, **setup)
    found = row.hits, row.misses, row.compulsory_misses
    assert found == reference_counts(trace, policy, capacity, **setup)


def test_every_eviction_of_lfru_in_order():
    trace, capacity = drifting_trace(5, 150, 0.05), 70
    live = ExpertCache("lfru", layers=LAYERS, experts=EXPERTS, capacity=capacity, scope="global")
    evicted = [
        list(live.request(layer, ids).evict)
        for _, _, _, sets in requests_of(trace)
        for layer, ids in enumerate(sets)
    ]
    (requests,) = flatten(requests_of(trace), "global", LAYERS, EXPERTS, "never")
    *_, expected = ReferenceCache("lfru", capacity).run(requests)
    assert [expert for each in evicted for expert in each] == expected and len(expected) > 200
