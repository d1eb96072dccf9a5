"""Rates of a trace that training measures and can be given as targets. Without torch."""

import numpy as np

from dwellmoe.cache import metrics
from dwellmoe.cache.budget import layer_slots
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.trace import RoutingTrace

CACHE_SHARE = 0.25
"""Capacity of the simulated cache, as a share of a layer's experts."""


def ecr_per_layer(trace: RoutingTrace) -> np.ndarray:
    """ECR of each layer, float64 [L]; NaN where no request has two tokens."""
    return np.array(metrics.ecr(trace, "decode").per_layer)


def lru_hit_rate(trace: RoutingTrace) -> float:
    """Hit rate of a cold LRU cache of CACHE_SHARE of each layer's experts (atomic), or of K slots if more."""
    return hit_rate(trace, "lru", f"{CACHE_SHARE:.0%}")


def hit_rate(trace: RoutingTrace, policy: str, capacity: str) -> float:
    """Hit rate of a cold cache a layer (atomic); `capacity` as in `replay`, but at least K slots."""
    return replay(trace, policy, layer_slots(trace, capacity), phase="decode", resamples=0).hit_rate
