"""Memory equivalent: the capacity at which a base routing misses as seldom as another one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwellmoe.cache.replay.memory_equivalent import AT_LEAST, AT_MOST, matching_capacity, memory_equivalent
from dwellmoe.cache.replay.replay import replay
from dwellmoe.errors import UserError
from tests.cache.traces import random_trace, sticky_trace


@pytest.mark.parametrize("setup", [{}, {"scope": "global"}, {"access": "sequential"}, {"reset": "request"}])
@pytest.mark.parametrize("policy", ["lru", "lfru"])
def test_equal_traces_are_worth_their_own_cache(setup, policy):
    trace = random_trace(seed=3, requests=8)
    for capacity in (3, 5, 12):
        slots = capacity * (trace.layers if setup.get("scope") else 1)
        found = memory_equivalent(trace, trace, slots, policy, resamples=50, **setup)
        assert found.ratio == 1 and found.bound is None
        if policy == "lru":
            assert found.ratio_ci95 == [1, 1]


def test_equals_a_search_over_all_capacities():
    base, trace = (sticky_trace(np.random.default_rng(1), stay=stay) for stay in (0.3, 0.7))
    found = memory_equivalent(trace, base, 4, resamples=0)
    wanted = replay(trace, "lru", 4).misses
    misses = {slots: replay(base, "lru", slots).misses for slots in range(2, 13)}
    below = min(slots for slots in misses if misses[slots] <= wanted)
    share = (misses[below - 1] - wanted) / (misses[below - 1] - misses[below])
    assert found.equivalent_capacity == pytest.approx(below - 1 + share)
    assert found.ratio == found.equivalent_capacity / 4 > 1 and found.ratio_ci95 is None


def test_what_the_base_does_not_reach_is_a_bound():
    scattered, local = (sticky_trace(np.random.default_rng(2), stay=stay) for stay in (0.0, 1.0))
    better = memory_equivalent(local, scattered, 4)
    worse = memory_equivalent(scattered, local, 4)
    assert (better.bound, better.ratio, better.ratio_ci95) == (AT_LEAST, 3, [3, 3])
    assert (worse.bound, worse.ratio) == (AT_MOST, 0.5)


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=12),
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(0, 11),
)
def test_fewer_misses_are_worth_more_and_a_point_of_the_curve_itself(misses, one, other, at):
    curve = np.array(sorted(misses, reverse=True), float)
    capacities = np.arange(2, 2 + len(curve))
    at = min(at, len(curve) - 1)
    assert matching_capacity(curve, capacities, curve[at], capacities[at]) == capacities[at]
    few, many = sorted((one, other))
    near = capacities[at]
    assert matching_capacity(curve, capacities, few, near) >= matching_capacity(curve, capacities, many, near)


@pytest.mark.parametrize(
    ("other", "named"),
    [({"requests": 4}, "requests"), ({"layers": 3}, "layers"), ({"experts": 9}, "experts")],
)
def test_other_requests_and_models_are_refused(other, named):
    with pytest.raises(UserError, match=named):
        memory_equivalent(
            sticky_trace(np.random.default_rng(0), **other), sticky_trace(np.random.default_rng(0)), 4
        )


@pytest.mark.slow
def test_the_interval_covers_the_true_ratio():
    """Of 95 % intervals of small samples, at least 88 % hold the ratio of a very large one."""

    def pair(seed, requests):
        rng = np.random.default_rng(seed)
        return sticky_trace(rng, requests, stay=0.6), sticky_trace(rng, requests, stay=0.4)

    setup = {"reset": "request", "resamples": 400}
    truth = memory_equivalent(*pair(0, 20_000), 4, reset="request", resamples=0).ratio
    found = np.array([memory_equivalent(*pair(seed, 60), 4, **setup).ratio_ci95 for seed in range(1, 121)])
    low, high = found.T
    assert ((low <= truth) & (truth <= high)).mean() >= 0.88
    assert (high - low).mean() < 0.5 * truth
