"""What every file in policies/ must keep: budget, protection, determinism, and no better than optimal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.policies.base import parse_policy
from dwellmoe.cache.replay.replay import replay
from dwellmoe.errors import UserError
from tests.cache.traces import POLICIES, random_trace, used

EXPERTS = 8
LIVE = [name for name in POLICIES if parse_policy(name)[0].lookahead != "all"]
requests = st.lists(
    st.tuples(st.integers(0, 1), st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=4, unique=True)),
    min_size=1,
    max_size=60,
)


def next_tokens(requested, i):
    """How many steps of this layer later each expert is requested again, -1 for never."""
    layer, ids = requested[i]
    later = [other for where, other in requested[i + 1 :] if where == layer]
    return [next((ahead for ahead, other in enumerate(later, 1) if e in other), -1) for e in ids]


def moves(spec, requested, capacity, scope):
    """(hits, loads, evictions) of each request."""
    cache = ExpertCache(spec, layers=2, experts=EXPERTS, capacity=capacity, scope=scope)
    found = []
    for i, (layer, ids) in enumerate(requested):
        future: dict = {"next_tokens": next_tokens(requested, i)} if cache.needs_future else {}
        step = cache.request(layer, ids, **future)
        found.append((step.hits, list(step.load), list(step.evict)))
    return cache, found


@pytest.mark.parametrize("spec", LIVE)
@settings(max_examples=40, deadline=None)
@given(requested=requests, capacity=st.integers(4, 6), scope=st.sampled_from(["layer", "global"]))
def test_moves_are_lawful(spec, requested, capacity, scope):
    cache, found = moves(spec, requested, capacity, scope)
    resident = set()
    for (layer, ids), (hits, loads, evictions) in zip(requested, found, strict=True):
        wanted = {layer * EXPERTS + e for e in ids}
        assert hits == len(wanted & resident) and set(loads) == wanted - resident
        assert set(evictions) <= resident and not set(evictions) & wanted
        resident = resident - set(evictions) | set(loads)
        for part in (
            [resident]
            if scope == "global"
            else [{e for e in resident if e // EXPERTS == layer} for layer in (0, 1)]
        ):
            assert len(part) <= capacity
            assert len(part) == capacity or not evictions or scope == "layer"
    tracked = np.concatenate([cache.resident(0), cache.resident(1)])
    assert set(np.flatnonzero(tracked)) == resident and used(cache) == len(resident)
    assert moves(spec, requested, capacity, scope)[1] == found


@pytest.mark.parametrize("spec", POLICIES)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_no_policy_beats_opt(spec, scope):
    for seed in range(6):
        trace = random_trace(seed, steps=120)
        for capacity in (3, 5, 9):
            row = replay(trace, spec, capacity, scope=scope)
            assert row.hits <= replay(trace, "opt", capacity, scope=scope).hits
            assert row.hits + row.misses == (trace.phase == 1).sum() * trace.layers * trace.top_k
            assert row.compulsory_misses <= row.misses


@pytest.mark.parametrize("spec", POLICIES)
def test_everything_fits_when_there_is_room(spec):
    row = replay(random_trace(3), spec, 12)
    assert row.misses == row.compulsory_misses and row.evictions == 0


@pytest.mark.slow
@pytest.mark.parametrize("access", ["atomic", "sequential"])
def test_horizon_from_nothing_to_everything(access):
    trace = random_trace(4, steps=150)
    for capacity in range(3, 12):
        hits = {
            spec: replay(trace, spec, capacity, access=access).hits
            for spec in ("lru", "lopt:horizon=0", "lopt:horizon=1000", "lopt:horizon=inf", "opt")
        }
        assert hits["lru"] == hits["lopt:horizon=0"]
        assert hits["opt"] == hits["lopt:horizon=inf"] == hits["lopt:horizon=1000"]


@pytest.mark.slow
def test_random_is_seeded():
    trace = random_trace(5, steps=200)
    hits = [replay(trace, f"random:seed={seed}", 5).hits for seed in (0, 0, 1, 2, 3)]
    assert hits[0] == hits[1] and len(set(hits)) > 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nru", "unknown policy 'nru': .*choose from arc, fifo"),
        ("lru:decay=1", "unknown option 'decay'"),
        ("lrfu:decay=fast", "must be of type float"),
        ("lrfu:decay=0", "decay must be above 0"),
        ("lrfu:decay=nan", "'decay' must be finite"),
        ("lopt:horizon=-1", "horizon must be a whole number"),
        ("lopt:horizon=1.5", "horizon must be a whole number"),
        ("s3fifo:small=1", "small must be a share"),
        ("", "unknown policy ''"),
        ("base", "unknown policy 'base'"),
    ],
)
def test_wrong_policy_is_refused(spec, message):
    with pytest.raises(UserError, match=message):
        replay(random_trace(0), spec, 5)


@pytest.mark.slow
def test_opt_is_refused_live_and_limited_sight_needs_the_future():
    sizes: dict = {"layers": 1, "experts": 8, "capacity": 4}
    with pytest.raises(UserError, match="'opt' looks into the future"):
        ExpertCache("opt", **sizes)
    with pytest.raises(UserError, match="give next_tokens"):
        ExpertCache("lopt:horizon=2", **sizes).request(0, [1])


@pytest.mark.slow
def test_random_evicts_uniformly():
    cache = ExpertCache("random", layers=1, experts=8, capacity=4)
    evicted = np.zeros(8, np.int64)
    for step in range(4000):
        for expert in cache.request(0, [step % 8, (step + 3) % 8]).evict:
            evicted[expert] += 1
    assert evicted.min() > 0.7 * evicted.mean()


def test_a_request_wider_than_the_cache_is_refused():
    trace = random_trace(2, steps=400, batch_step=(np.arange(400) // 8).astype(np.int32))
    with pytest.raises(UserError, match=r"capacity 7 .* 9 experts that layer 1, pass 1"):
        replay(trace, "lru", 7, scope="global")
