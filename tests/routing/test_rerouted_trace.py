"""Re-routing of a recorded trace: without a strategy it is the replay, with one it misses less."""

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


def test_a_trace_without_distributions_is_refused():
    trace = gated_trace()
    without = RoutingTrace(trace.experts, trace.phase, trace.request, trace.num_experts)
    assert can_reroute(trace) and not can_reroute(without)
    with pytest.raises(UserError, match="gate_probs"):
        rerouted_misses(without, "margin", "lru", 4)
    with pytest.raises(UserError, match="margin"):
        rerouted_misses(trace, "margni", "lru", 4)
