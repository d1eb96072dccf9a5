"""The live cache: the same steps as the simulator's, tiers below it, and prefill kept apart from decode."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.replay.replay_split import replay_split
from dwellmoe.cache.tiers.prefill_decode import PrefillDecodeCache
from dwellmoe.cache.tiers.tier_stack import TierStack
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from tests.cache.traces import LIVE_POLICIES, random_trace, used

SIZES: dict = {"layers": 2, "experts": 8}


@pytest.mark.parametrize("spec", LIVE_POLICIES)
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("access", ["atomic", "sequential"])
def test_live_counts_are_the_simulators(spec, scope, access):
    trace = random_trace(1, steps=150)
    capacity = 5 if scope == "layer" else 16
    live = ExpertCache(spec, layers=3, experts=12, capacity=capacity, scope=scope, access=access)
    for row in np.flatnonzero(trace.phase == 1):
        for layer in range(3):
            live.request(layer, trace.experts[row, layer])
    row = replay(trace, spec, capacity, scope=scope, access=access)
    assert live.counts() == {
        name: getattr(row, name) for name in ("hits", "misses", "compulsory_misses", "evictions")
    }


@pytest.mark.parametrize("spec", ["lru", "ml_habits"])
def test_a_wider_request_than_any_before_changes_nothing_else(spec):
    """The rows of a batch may name more experts than there are; other layers' caches go on as they were."""
    rng = np.random.default_rng(3)
    narrow, wide = (ExpertCache(spec, **SIZES, capacity=5) for _ in range(2))
    for width in range(2, 40):
        requested, rows = rng.permutation(8)[:3], np.tile(rng.permutation(8)[:3], width)
        step = wide.request(1, rows)
        assert step.hits == len(rows) - len(step.load) and wide.resident(1)[rows].all()
        for cache in (narrow, wide):
            cache.request(0, requested)
        assert (narrow.resident(0) == wide.resident(0)).all()


def test_reset_empties():
    cache = ExpertCache("lru", **SIZES, capacity=4)
    cache.request(0, [1, 2])
    assert used(cache) == 2 and cache.resident(0).sum() == 2
    cache.reset()
    assert used(cache) == 0 and not cache.resident(0).any()
    assert cache.request(0, [1]).hits == 0


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("access", ["atomic", "sequential"])
@pytest.mark.parametrize("bad", [[8], [-1], [1, 99], [0, 1, 2, 3, 4]])
def test_an_impossible_request_changes_nothing(scope, access, bad):
    if access == "sequential" and len(bad) == 5:
        pytest.skip("one after the other they fit")
    cache = ExpertCache("lru", **SIZES, capacity=4, scope=scope, access=access)
    cache.request(1, [1, 2])
    before = cache.resident(0).tolist(), cache.resident(1).tolist(), cache.counts()
    for layer in (0, 1):
        with pytest.raises(UserError):
            cache.request(layer, bad)
    assert (cache.resident(0).tolist(), cache.resident(1).tolist(), cache.counts()) == before
    with pytest.raises(UserError, match="layer 2 does not exist"):
        cache.request(2, [0])


@pytest.mark.slow
def test_bytes_are_kept_to_the_byte():
    rng = np.random.default_rng(0)
    cache = ExpertCache("lfu", **SIZES, scope="global", budget_bytes=100, expert_bytes=[10, 17])
    for _ in range(500):
        cache.request(int(rng.integers(2)), rng.permutation(8)[:3])
        resident = 10 * cache.resident(0).sum() + 17 * cache.resident(1).sum()
        assert resident == used(cache) <= 100


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"capacity": 4, "budget_bytes": 9},
        {"capacity": 9},
        {"budget_bytes": 9},
        {"capacity": 4, "scope": "x"},
    ],
)
def test_wrong_settings_are_refused(options):
    with pytest.raises(UserError):
        ExpertCache("lru", **SIZES, **options)


@pytest.mark.parametrize("spec", LIVE_POLICIES)
def test_what_was_taken_away_is_loaded_again(spec):
    rng = np.random.default_rng(1)
    cache = ExpertCache(spec, layers=1, experts=16, capacity=6)
    for _ in range(300):
        step = cache.request(0, rng.permutation(16)[:3])
        gone = int(rng.integers(16))
        was_resident = bool(cache.resident(0)[gone])
        assert cache.remove(0, gone) == was_resident and not cache.resident(0)[gone]
        assert used(cache) == cache.resident(0).sum() <= 6
        assert step.hits >= 0


@pytest.mark.parametrize("spec", LIVE_POLICIES)
@pytest.mark.parametrize("ram_slots", [None, 1, 3, 6])
def test_tiers_exclude_each_other_and_lose_nothing(spec, ram_slots):
    rng = np.random.default_rng(2)
    device = ExpertCache(spec, layers=2, experts=10, capacity=4)
    ram = (
        None
        if ram_slots is None
        else ExpertCache(spec, layers=2, experts=10, capacity=ram_slots, scope="global")
    )
    stack = TierStack(device, ram)
    in_ram = set()
    requests = 0
    for _ in range(300):
        layer, requested = int(rng.integers(2)), rng.permutation(10)[:3]
        before = {layer * 10 + e for e in np.flatnonzero(device.resident(layer))}
        plan = stack.request(layer, requested)
        requests += plan.hits + len(plan.load)
        wanted = {layer * 10 + int(e) for e in requested}
        assert set(plan.promote) == (wanted - before) & in_ram
        assert set(plan.load) == wanted - before and plan.hits == len(wanted & before)
        assert set(plan.demote) <= set(plan.evict) and set(plan.drop) <= in_ram - set(plan.promote)
        in_ram = (in_ram - set(plan.promote) - set(plan.drop)) | set(plan.demote)
        assert len(in_ram) <= (ram_slots or 0)
        on_device = {which * 10 + e for which in (0, 1) for e in np.flatnonzero(device.resident(which))}
        assert not on_device & in_ram
    assert requests == 900


def test_tiers_of_different_models_are_refused():
    small, large = (ExpertCache("lru", layers=1, experts=n, capacity=2) for n in (4, 8))
    with pytest.raises(UserError, match="one model"):
        TierStack(small, large)


@pytest.mark.parametrize("rule", ["none", "recent:tokens=2", "lrfu:decay=0.9", "pool"])
def test_prefill_loads_an_expert_at_most_once_a_chunk(rule):
    rng = np.random.default_rng(3)
    both = PrefillDecodeCache(ExpertCache("lru", layers=1, experts=32, capacity=4), rule)
    for _ in range(30):
        rows = rng.random((9, 32)).argsort(axis=1)[:, :3]
        before = both.decode_cache.resident(0)
        step = both.prefill(0, rows)
        union = set(rows.ravel().tolist())
        assert len(set(step.load)) == len(step.load)
        assert set(step.load) == {e for e in union if not before[e]}
        assert step.hits + len(step.load) == len(union)
        assert set(step.kept) == union & set(np.flatnonzero(both.decode_cache.resident(0)).tolist())
        if rule == "none":
            assert np.array_equal(both.decode_cache.resident(0), before)
        both.request(0, rng.permutation(32)[:3])


def test_recent_rule_keeps_what_the_last_prompt_tokens_used_most():
    both = PrefillDecodeCache(ExpertCache("lru", layers=1, experts=8, capacity=3), "recent:tokens=3")
    both.prefill(0, [[0, 1], [0, 1], [0, 1]])
    both.prefill(0, [[2, 3], [2, 4]])
    assert (
        set(np.flatnonzero(both.decode_cache.resident(0))) == {2, 4, 3}
        or both.decode_cache.resident(0)[[2, 4]].all()
    )
    assert both.decode_cache.counts()["misses"] == 0


@given(st.integers(0, 10**6), st.integers(3, 7), st.integers(1, 4))
def test_pool_rule_keeps_what_the_whole_prompt_used_most(seed, capacity, chunks):
    """However the prompt is cut; what an earlier prompt left only fills up what it does not use."""
    rng = np.random.default_rng(seed)
    both = PrefillDecodeCache(ExpertCache("lru", layers=1, experts=12, capacity=capacity), "pool")
    for _ in range(3):
        rows = rng.random((rng.integers(chunks, 9), 12)).argsort(axis=1)[:, :3]
        rows[rng.random(rows.shape) < 0.1] = 65535
        for part in np.array_split(rows, chunks):
            both.prefill(0, part)
        used = [int(expert) for expert in rows.ravel() if expert < 12]
        last = {expert: at for at, expert in enumerate(used)}
        best = sorted(last, key=lambda expert: (used.count(expert), last[expert]))[-capacity:]
        resident = set(np.flatnonzero(both.decode_cache.resident(0)).tolist())
        assert {*best} <= resident and len(resident) <= capacity
        both.request(0, rng.permutation(12)[:3])
    assert both.decode_cache.counts()["hits"] + both.decode_cache.counts()["misses"] == 9


def test_split_replay_counts_decode_only_and_needs_room_for_it():
    base = random_trace(4, steps=90, prefill=0.5)
    trace = RoutingTrace(base.experts, base.phase, base.request, 12, expert_bytes=(1, 1, 1))
    decode = int((trace.phase == 1).sum())
    for rule in ("shared", "none", "recent:tokens=4", "lrfu:decay=0.9", "pool"):
        row = replay_split(trace, "lru", 6, rule)
        assert row.hits + row.misses == decode * 9 and row.start == "warm:prefill"
    with pytest.raises(UserError, match="below the 3 experts"):
        replay_split(trace, "lru", 6, "none", prefill_buffer=4)
    with pytest.raises(UserError, match="has no streaming buffer"):
        replay_split(trace, "lru", 6, "shared", prefill_buffer=1)
    for rule in ("often", "recent:decay=1", "recent:tokens=0", "lrfu:decay=2", "none:x=1", "pool:x=1"):
        with pytest.raises(UserError, match="hand"):
            replay_split(trace, "lru", 6, rule)
