"""The known numbers of the recorded Qwen3-30B-A3B trace, to four decimals."""

import pytest

from dwellmoe.cache import metrics
from dwellmoe.cache.formats import read_trace
from dwellmoe.cache.replay.curve import curve
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.replay.replay_split import replay_split

KNOWN = {
    "lru": [0.4268, 0.6075, 0.7216, 0.8053],
    "lfu": [0.4454, 0.6105, 0.7301, 0.8093],
    "lrfu:decay=0.95": [0.4610, 0.6486, 0.7551, 0.8223],
    "lfru": [0.4556, 0.6405, 0.7509, 0.8196],
    "opt": [0.5199, 0.7476, 0.8362, 0.8812],
}
CAPACITIES = [8, 16, 24, 32]


@pytest.fixture(scope="module")
def trace(real_trace_path):
    return read_trace(real_trace_path)


def test_hit_rates(trace):
    rows = curve(trace, list(KNOWN), CAPACITIES)
    found = {spec: [round(row.hit_rate, 4) for row in rows if row.policy == spec] for spec in KNOWN}
    assert found == KNOWN
    for spec, rates in KNOWN.items():
        assert [round(replay(trace, spec, capacity).hit_rate, 4) for capacity in CAPACITIES] == rates


def test_sequential_opt(trace):
    assert round(replay(trace, "opt", 24, access="sequential").hit_rate, 3) == 0.842


def test_ecr(trace):
    assert round(metrics.ecr(trace).value, 4) == 0.3795
    assert round(metrics.locality_row(trace).chance_ecr, 3) == 0.047


def test_prefill_that_passes_through_leaves_decode_a_better_cache(trace):
    """At equal memory no hand-off rule is worse than the cache that prefill goes through."""
    shared = replay_split(trace, "lru", 24, "shared").hits
    for rule in ("recent:tokens=8", "lrfu:decay=0.95"):
        assert replay_split(trace, "lru", 24, rule, prefill_buffer=0).hits >= shared
