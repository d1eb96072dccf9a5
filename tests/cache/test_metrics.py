"""ECR, GDS and LAL against sums written out by hand, and what must not be counted."""

import numpy as np
import pytest

from dwellmoe.cache import metrics
from dwellmoe.cache.intervals import bootstrap_ci, ratio_interval, ratio_intervals
from dwellmoe.cache.trace import EMPTY, RoutingTrace
from dwellmoe.errors import UserError
from tests.cache.traces import random_trace


def slow_ecr(trace, phase):
    sums = np.zeros(trace.layers)
    pairs = 0
    rows = {}
    for row in range(trace.steps):
        before = rows.get(trace.request[row])
        rows[trace.request[row]] = row
        if before is None or trace.phase[before] != trace.phase[row] or trace.phase[row] != phase:
            continue
        pairs += 1
        for layer in range(trace.layers):
            sums[layer] += len({*trace.experts[before, layer]} & {*trace.experts[row, layer]} - {EMPTY})
    return sums / pairs / trace.top_k


@pytest.mark.parametrize(("phase", "number"), [("prefill", 0), ("decode", 1)])
def test_ecr(phase, number):
    trace = random_trace(2, steps=80)
    found = metrics.ecr(trace, phase)
    assert found.per_layer == pytest.approx(slow_ecr(trace, number))
    assert found.value == pytest.approx(np.mean(found.per_layer))
    low, high = found.ci95 or []
    assert low <= found.value <= high


def test_interleaved_requests_are_told_apart():
    experts = np.array([[[0, 1]], [[2, 3]], [[0, 1]], [[2, 3]]], np.uint16)
    trace = RoutingTrace(experts, np.ones(4, np.uint8), np.array([0, 1, 0, 1], np.int32), 4)
    assert metrics.ecr(trace).value == 1.0


def test_gds_and_chance():
    trace = random_trace(1, steps=40)
    probs = np.random.default_rng(0).dirichlet(np.ones(12), (40, 3)).astype(np.float16)
    with_probs = RoutingTrace(trace.experts, trace.phase, trace.request, 12, gate_probs=probs)
    now, following = metrics._pairs(trace, "decode")
    p, q = probs[now].astype(float), probs[following].astype(float)
    cosine = (p * q).sum(-1) / np.sqrt((p * p).sum(-1) * (q * q).sum(-1))
    assert metrics.gds(with_probs).value == pytest.approx(((1 + cosine) / 2).mean())
    with pytest.raises(UserError, match="gate_probs"):
        metrics.gds(trace)


def test_lal():
    trace = random_trace(1)
    per_layer = metrics.ecr(trace).per_layer
    found = metrics.lal(metrics.ecr(trace))
    assert found.value == pytest.approx((per_layer[0] + 2 * per_layer[1] + 3 * per_layer[2]) / 6)
    assert found.unnormalised == pytest.approx((per_layer[0] + 2 * per_layer[1] + 3 * per_layer[2]) / 3)


def test_interval_covers_the_mean_and_needs_two_requests():
    values = np.random.default_rng(0).random(50)
    low, high = bootstrap_ci(values) or []
    assert low < values.mean() < high and high - low < 0.25
    assert bootstrap_ci([0.5]) is None
    assert bootstrap_ci([0.2, 0.8], [1, 0]) is None


def test_each_column_has_the_interval_it_has_alone():
    sums, pairs = np.array([[3.0, 1.0], [4.0, 2.0], [5.0, 9.0]]), [10, 8, 12]
    together = ratio_intervals(sums, pairs, resamples=200)
    assert together == [ratio_interval(column, pairs, resamples=200) for column in sums.T]
    assert ratio_intervals([[1.0, 2.0]], [2]) == [None, None]


def test_nothing_to_compare():
    trace = RoutingTrace(np.zeros((1, 1, 1), np.uint16), np.ones(1, np.uint8), np.zeros(1, np.int32), 2)
    with pytest.raises(UserError, match="no two consecutive decode"):
        metrics.ecr(trace)
    with pytest.raises(UserError, match="unknown phase"):
        metrics.ecr(trace, "training")
