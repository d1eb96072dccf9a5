"""Re-routing of a recorded trace: without a strategy it is the replay, with one it misses less."""

import dataclasses

import numpy as np
import pytest

from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.routing.rerouted_trace import can_reroute, rerouted_misses


def gated_trace(steps=120, layers=2, experts=10, top_k=2):
    """Routers whose logits drift slowly."""
    rng = np.random.default_rng(0)
    logits = np.cumsum(rng.normal(size=(steps, layers, experts)), axis=0) * 0.3
    probs = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    chosen = np.argsort(-probs, axis=2, kind="stable")[:, :, :top_k].astype(np.uint16)
    phase = (np.arange(steps) >= 10).astype(np.uint8)
    return RoutingTrace(
        chosen, phase, np.zeros(steps, np.int32), experts, gate_probs=probs.astype(np.float16)
    )


@pytest.mark.parametrize("policy", ["lru", "lfu"])
def test_without_a_strategy_it_is_the_replay(policy):
    trace = gated_trace()
    row = replay(trace, policy, 4)
    assert rerouted_misses(trace, "none", policy, 4).sum() == row.misses


def test_a_strategy_that_prefers_residents_misses_less():
    trace = gated_trace()
    own = rerouted_misses(trace, "none", "lru", 4).sum()
    assert rerouted_misses(trace, "margin", "lru", 4).sum() < own
    assert rerouted_misses(trace, "margin:loss=0", "lru", 4).sum() == own


@pytest.mark.parametrize("factor", [None, 1.0, 8.0])
def test_a_strategy_that_keeps_weights_reads_the_recorded_ones(factor):
    """A renormalising router gives larger weights than its distribution: fewer are under the limit."""
    trace = gated_trace()
    share = np.take_along_axis(trace.gate_probs, trace.experts.astype(int), axis=2)
    known = {} if factor is None else {"weights": (share * factor).astype(np.float16)}
    found = rerouted_misses(dataclasses.replace(trace, **known), "own_weight:below=0.15", "lru", 4).sum()
    limit = 0.15 / (factor or 1.0)
    assert found == rerouted_misses(trace, f"own_weight:below={limit}", "lru", 4).sum()
    assert found < rerouted_misses(trace, "none", "lru", 4).sum() or factor == 8.0


def test_a_trace_without_distributions_is_refused():
    trace = gated_trace()
    without = RoutingTrace(trace.experts, trace.phase, trace.request, trace.num_experts)
    assert can_reroute(trace) and not can_reroute(without)
    with pytest.raises(UserError, match="gate_probs"):
        rerouted_misses(without, "margin", "lru", 4)
    with pytest.raises(UserError, match="margin"):
        rerouted_misses(trace, "margni", "lru", 4)
