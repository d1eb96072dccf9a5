"""Result rows: rates of each layer, intervals over requests, the same in a curve and in a replay."""

import numpy as np
import pytest

from dwellmoe.cache import metrics
from dwellmoe.cache.intervals import ratio_interval, ratio_intervals
from dwellmoe.cache.replay import sweep
from dwellmoe.cache.replay.curve import curve
from dwellmoe.cache.replay.replay import misses_by_request, replay
from dwellmoe.cache.replay.reuse import segment_coverage
from dwellmoe.cache.trace import as_decode
from tests.cache.traces import random_trace

TRACE = random_trace(12, steps=120, requests=6, prefill=0, expert_bytes=(10, 20, 30))
RATES = ("hit_rate", "miss_bytes_per_token")


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("spec", ["lru", "opt", "lfu"])
def test_a_curve_has_the_intervals_of_its_replays(spec, scope):
    for row in curve(TRACE, [spec], [3, 5, 11], scope=scope):
        alone = replay(TRACE, spec, row.capacity, scope=scope)
        assert row.as_dict().items() <= alone.as_dict().items()
        for rate in RATES:
            low, high = getattr(row, f"{rate}_ci95")
            assert low <= getattr(row, rate) <= high
            per_layer = (getattr(row, f"layer_{rate}{end}") for end in ("", "_ci95"))
            for value, (low, high) in zip(*per_layer, strict=True):
                assert low <= value <= high


def test_the_interval_is_over_requests():
    """With a cold cache a request, each request can be replayed alone."""
    row = replay(TRACE, "lru", 5, reset="request")
    alone = [replay(as_decode(TRACE, TRACE.request == request), "lru", 5) for request in range(6)]
    hits, tokens = ([getattr(one, name) for one in alone] for name in ("hits", "tokens"))
    assert row.hit_rate_ci95 == pytest.approx(ratio_interval(hits, np.multiply(tokens, 9)))
    fetched = [(one.miss_bytes_per_token or 0) * one.tokens for one in alone]
    assert row.miss_bytes_per_token_ci95 == pytest.approx(ratio_interval(fetched, tokens))
    deepest = [one.layer_hit_rate[2] * one.tokens * 3 for one in alone]
    assert row.layer_hit_rate_ci95[2] == pytest.approx(ratio_interval(deepest, np.multiply(tokens, 3)))


def test_misses_of_each_request_are_those_of_the_row():
    missed = misses_by_request(TRACE, "lru", 5)
    assert len(missed) == 6 and missed.sum() == replay(TRACE, "lru", 5).misses


def test_without_resamples_there_is_no_interval():
    row, sure = replay(TRACE, "lru", 5, resamples=0), replay(TRACE, "lru", 5)
    assert row.hit_rate_ci95 is None and row.hit_rate == sure.hit_rate
    assert curve(TRACE, ["lru"], [5], resamples=0)[0].layer_hit_rate_ci95 is None


def test_one_request_has_no_interval_and_many_are_bundled(monkeypatch):
    alone = replay(as_decode(TRACE, TRACE.request == 0), "lru", 5)
    assert alone.hit_rate_ci95 is None and alone.layer_hit_rate_ci95 is None
    whole = replay(TRACE, "lru", 5)
    monkeypatch.setattr(sweep, "MOST_GROUPS", 2)
    bundled = replay(TRACE, "lru", 5)
    assert bundled.hit_rate_ci95 != whole.hit_rate_ci95
    assert all(getattr(bundled, rate) == getattr(whole, rate) for rate in RATES)


def test_each_column_has_its_own_denominator():
    sums, counts = np.array([[3, 1, 4, 1], [4, 2, 5, 0], [5, 9, 6, 0]]), np.array([[9, 2], [8, 0], [7, 0]])
    found = ratio_intervals(sums, counts, resamples=100)
    alone = [ratio_interval(sums[:, x], counts[:, 0], resamples=100) for x in (0, 2)]
    assert found[::2] == [pytest.approx(interval) for interval in alone]
    assert found[1::2] == [None, None]


def test_locality_of_each_layer_has_an_interval():
    row = metrics.locality_row(TRACE)
    intervals = [interval or (0.0, 0.0) for interval in row.per_layer_ci95 or ()]
    assert all(low < ecr < high for ecr, (low, high) in zip(row.per_layer, intervals, strict=True))


def test_segment_coverage_counts_the_best_experts_of_each_segment():
    covered = np.zeros(3)
    segments = 0
    for request in range(6):
        rows = TRACE.experts[TRACE.request == request].astype(int)
        for begin in range(0, len(rows) - 4, 5):
            segments += 1
            for layer in range(3):
                uses = np.bincount(rows[begin : begin + 5, layer].ravel())
                covered[layer] += np.sort(uses)[::-1][:6].sum()
    (row,) = segment_coverage(TRACE, 5, [2.0])
    assert row.rho == 2.0 and row.layer_value == pytest.approx(covered / segments / 15)
    assert row.value_ci95 is not None
    low, high = row.value_ci95
    assert low < row.value < high and row.value == pytest.approx(covered.sum() / segments / 45)
