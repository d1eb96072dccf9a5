"""The compiled cache equals the slow and obvious one, in hits and in the order of what it moves."""

from itertools import chain
from math import inf

import pytest

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.replay.curve import curve
from dwellmoe.cache.replay.replay import replay
from tests.cache.reference import ReferenceCache, flatten, reference_counts, requests_of
from tests.cache.traces import random_trace

pytestmark = pytest.mark.slow

SPECS = {
    "lru": {"policy": "lru"},
    "lfu": {"policy": "lfu"},
    "fifo": {"policy": "fifo"},
    "lifo": {"policy": "lifo"},
    "lrfu:decay=0.8": {"policy": "lrfu", "decay": 0.8},
    "opt": {"policy": "opt", "horizon": inf},
    "lopt:horizon=2": {"policy": "lopt", "horizon": 2},
    "lopt:horizon=0": {"policy": "lopt", "horizon": 0},
    "lfru": {"policy": "lfru"},
    "least_stale": {"policy": "least_stale"},
    "opt_forced": {"policy": "opt_forced"},
}
PHASES = {"decode": (1,), "prefill": (0,), "all": (0, 1)}


def counts(row):
    return row.hits, row.misses, row.compulsory_misses


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("access", ["atomic", "sequential"])
def test_replay(spec, scope, access):
    for seed in range(4):
        trace = random_trace(seed)
        capacity = (4, 8)[seed % 2] * (2 if scope == "global" else 1)
        reset = ("never", "request")[seed // 2]
        expected = reference_counts(
            trace, capacity=capacity, scope=scope, access=access, reset=reset, **SPECS[spec]
        )
        assert counts(replay(trace, spec, capacity, scope=scope, access=access, reset=reset)) == expected


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("phase", ["prefill", "all"])
def test_prefill_chunks(spec, phase):
    trace = random_trace(5, prefill=0.5)
    expected = reference_counts(trace, capacity=11, phases=PHASES[phase], **SPECS[spec])
    assert counts(replay(trace, spec, 11, phase=phase)) == expected


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("access", ["atomic", "sequential"])
@pytest.mark.parametrize("reset", ["never", "request"])
def test_every_curve_point_is_the_replay_at_that_capacity(spec, access, reset):
    trace = random_trace(6)
    rows = curve(trace, [spec], access=access, reset=reset)
    assert [row.capacity for row in rows] == list(range(3 if access == "atomic" else 1, 13))
    for row in rows:
        single = replay(trace, spec, row.capacity, access=access, reset=reset)
        assert row.as_dict().items() <= single.as_dict().items()


@pytest.mark.parametrize("spec", [spec for spec in SPECS if "opt" not in spec])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_live_steps_move_what_the_reference_moves(spec, scope):
    trace = random_trace(7)
    capacity = 5 if scope == "layer" else 15
    live = ExpertCache(spec, layers=3, experts=12, capacity=capacity, scope=scope)
    loads, evictions = [], []
    for _, _, _, sets in requests_of(trace):
        for layer, ids in enumerate(sets):
            step = live.request(layer, ids)
            loads.append(step.load)
            evictions.append(step.evict)
    for cache_index, requests in enumerate(flatten(requests_of(trace), scope, 3, 12, "never")):
        *_, expected_loads, expected_evictions = ReferenceCache(capacity=capacity, **SPECS[spec]).run(
            requests
        )
        offset = cache_index * 12
        part = slice(cache_index, None, 3) if scope == "layer" else slice(None)
        assert list(chain.from_iterable(loads[part])) == [offset + e for e in expected_loads]
        assert list(chain.from_iterable(evictions[part])) == [offset + e for e in expected_evictions]
