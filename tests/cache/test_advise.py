"""Advice follows from its numbers: the budget that fits, policies beyond chance, and what helps most."""

from dataclasses import replace

import numpy as np
import pytest

from dwellmoe.cache.device import DeviceProfile
from dwellmoe.cache.replay.advice_lines import advice_lines
from dwellmoe.cache.replay.advise import BASELINE, advise
from dwellmoe.cache.replay.curve import curve
from dwellmoe.cache.replay.plan import plan
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from tests.cache.traces import random_trace

EXPERT_BYTES, RESIDENT = 10**8, 10**8
SLOT = 3 * EXPERT_BYTES  # of each of 3 layers


def trace_of(seed=0, steps=400, requests=12, **fields):
    return random_trace(seed, steps=steps, requests=requests, expert_bytes=(EXPERT_BYTES,) * 3, **fields)


def device(slots, storage=1.0, memory=100.0):
    """A device in whose memory so many slots a layer fit."""
    return DeviceProfile("box", memory, storage, memory_gb=(RESIDENT + (slots + 0.5) * SLOT) / 1e9)


def most(found):
    return next(line for line in advice_lines(found) if line.startswith("Most:"))


@pytest.mark.slow
def test_the_budget_is_the_largest_that_fits_and_its_numbers_are_those_of_the_plan():
    trace = trace_of()
    found = advise(trace, device(6), RESIDENT)
    assert found.budget is not None and found.budget.capacity == 6 and not found.all_fit
    planned = plan(trace, device(6), curve(trace, ["lru"], [6]), RESIDENT)
    assert found.budget == planned.rows[0]
    assert found.budget.hit_rate == replay(trace, "lru", 6).hit_rate
    assert found.nearly is not None and found.nearly.capacity <= 6
    text = "\n".join(advice_lines(found))
    assert "Budget: 6 experts a layer" in text and f"{found.budget.hit_rate:.4f}" in text


def test_where_all_experts_fit_no_cache_is_advised():
    found = advise(trace_of(), device(12), RESIDENT)
    assert (
        found.all_fit
        and found.policies == []
        and {change.name for change in found.changes} == {"int8", "int4"}
    )
    text = "\n".join(advice_lines(found))
    assert "no cache is needed" in text and "int4" in most(found)
    assert advise(trace_of(), replace(device(1), memory_gb=None), RESIDENT).all_fit


def test_where_nothing_fits_only_low_bits_can_help():
    found = advise(trace_of(), device(0.8), RESIDENT)
    assert found.budget is None and "none fits" in "\n".join(advice_lines(found))
    assert {change.name for change in found.changes} == {"int4"}, (
        "1.3 slots of 16 bits hold 2.6 of 8, 4.2 of 5"
    )
    assert "int4" in most(found)


def test_a_policy_is_named_only_where_it_is_better_beyond_chance():
    """Two hot experts, used every other step, between long scans: LRU loses them, LFU keeps them."""
    steps = np.arange(600)
    scan = 2 + steps // 2 % 10
    hot = np.where(steps % 2 == 0, steps // 2 % 2, scan)
    experts = np.repeat(hot[:, None, None], 3, axis=1).astype(np.uint16)
    request = (steps // 50).astype(np.int32)
    trace = RoutingTrace(experts, np.ones(600, np.uint8), request, 12, expert_bytes=(EXPERT_BYTES,) * 3)
    found = advise(trace, device(3), RESIDENT)
    assert found.best_policy != BASELINE
    row = next(row for row in found.policies if row.policy == found.best_policy)
    assert row.ratio_ci95 is not None and row.ratio_ci95[1] < 1 and row.hit_rate > found.budget.hit_rate
    one = replace(trace, request=np.zeros(600, np.int32))
    alone = advise(one, device(3), RESIDENT)
    assert alone.best_policy == BASELINE and "one request" in "\n".join(advice_lines(alone))


def test_random_routing_gets_the_baseline():
    rng = np.random.default_rng(0)
    experts = np.argsort(rng.random((300, 3, 12)), axis=2)[:, :, :2].astype(np.uint16)
    request = (np.arange(300) // 30).astype(np.int32)
    trace = RoutingTrace(experts, np.ones(300, np.uint8), request, 12, expert_bytes=(EXPERT_BYTES,) * 3)
    found = advise(trace, device(6), RESIDENT)
    better = [row for row in found.policies if row.is_better]
    assert (found.best_policy == BASELINE) == (better == [])


def test_changes_are_counted_with_the_bytes_that_they_have():
    trace = trace_of()
    found = advise(trace, device(4), RESIDENT)
    changes = {change.name: change for change in found.changes}
    assert changes["int8"].capacity == 9, "4.5 slots of 16 bits hold 9 of 8"
    assert changes["int4"].capacity == 12
    bytes_per_token = replay(trace, "lru", 9).miss_bytes_per_token
    assert bytes_per_token
    assert changes["int8"].miss_bytes_per_token == pytest.approx(bytes_per_token / 2)
    trained = [change for change in found.changes if change.source == "assumed"]
    assert {change.capacity for change in trained} == {4}
    assert all(change.tokens_per_second > found.budget.tokens_per_second for change in trained)
    assert {change.name for change in advise(trace, device(4), RESIDENT, 8.0).changes} >= {"int4"}


def test_training_is_said_to_help_most_only_where_it_does():
    found = advise(trace_of(), device(6), RESIDENT, 4.0)  # 4 bits already: there are no lower ones
    assert {change.source for change in found.changes} == {"assumed"} and "training" in most(found)
    fast = advise(trace_of(), device(6, storage=1e6, memory=1.0), RESIDENT, 4.0)
    assert "none of these adds 2 %" in most(fast), "misses cost nothing here"


def test_rerouting_is_replayed_where_the_trace_allows_it():
    trace = trace_of()
    found = advise(trace, device(6), RESIDENT, 4.0, rerouted=lambda slots: np.zeros(3, np.int64))
    change = next(change for change in found.changes if change.name == "re-routing")
    assert change.source == "replayed" and change.misses_per_token == 0
    assert change.tokens_per_second == pytest.approx(found.tokens_per_second_without_misses)
    assert "re-routing" in most(found) and change.worth_capacity == 12
    same = advise(
        trace,
        device(6),
        RESIDENT,
        rerouted=lambda slots: np.array([replay(trace, "lru", slots).misses // 3] * 3),
    )
    again = next(change for change in same.changes if change.name == "re-routing")
    assert again.worth_capacity == pytest.approx(6, abs=0.1)


def test_a_trace_without_sizes_is_refused():
    with pytest.raises(UserError, match="expert_bytes"):
        advise(random_trace(), device(6), RESIDENT)
